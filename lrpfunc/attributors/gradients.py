"""The gradient of an explained output, and that output as a function of the input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.attribution import Target, cotangent, has_batch, is_function, seed
from lrpfunc.errors import InputError
from lrpfunc.program import NAMESPACE, Program, Variable


def gradient(fmodel: Program, params, x: Tensor, target: Target = None, times_input: bool = False) -> Tensor:
    """The gradient of the explained output in the input: what a small change of each value would change.

    Args:
        fmodel: a program.
        params: its parameters.
        x: one input, a floating-point tensor.
        target: what is explained, as `attribute` takes it: a class, or a function output -> R_out, as an output
            of several tensors needs.
        times_input: x * gradient, which is LRP-0 on a piecewise linear network.

    Errors: `TargetError`, `InputError`.
    Source: Simonyan et al. 2014, arXiv:1312.6034.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.trace(lambda p, x: x @ p, torch.tensor([[2.0], [-1.0]]), torch.ones(1, 2))
    >>> lrpfunc.attributors.gradient(fmodel, params, torch.tensor([[3.0, 5.0]]))
    tensor([[ 2., -1.]])
    """
    check_input(x)
    found: Any = torch.func.vjp(lambda x: _divided(fmodel(params, x)), x, has_aux=True)
    values, pullback, fixed = found
    chosen = cotangent(_joined(fmodel.output, values, fixed), target, has_batch(fmodel))
    moved = pullback(_divided(chosen)[0])[0]
    return x * moved if times_input else moved


def score(fmodel: Program, params, x: Tensor, target: Target = None) -> Callable[[Tensor], Tensor]:
    """The explained output as a function of inputs like x that gives one number a sample; the class is that of x.

    Of a program without a batch it gives one number.

    Args:
        fmodel: a program.
        params: its parameters.
        x: one input; without a target, each sample's arg-max there is explained, wherever the function is called.
        target: what is explained, as `gradient` takes it. The function is the sum of R_out, if it is one: asked anew
            wherever the score is, so let it take no arg-max of its own.

    Errors: `TargetError`, `InputError`.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.trace(lambda p, x: x @ p, torch.eye(2), torch.ones(1, 2))
    >>> explained = lrpfunc.attributors.score(fmodel, params, torch.tensor([[3.0, 5.0]]))
    >>> explained(torch.tensor([[4.0, -1.0]]))
    tensor([-1.])
    """
    check_input(x)
    with torch.no_grad():
        output = fmodel(params, x)
        chosen = [] if is_function(target) else _divided(cotangent(output, target, has_batch(fmodel)))[0]

    def explained(x: Tensor) -> Tensor:
        output = fmodel(params, x)
        if is_function(target):
            shares, _ = _divided(seed(output, target))
        else:
            shares = [value * one for value, one in zip(_divided(output)[0], chosen, strict=True)]
        axes = 1 if has_batch(fmodel) else 0
        sums = [share.sum(tuple(range(axes, share.dim()))) if share.dim() > axes else share for share in shares]
        return sum(sums[1:], start=sums[0])

    return explained


def _divided(output: Any) -> tuple[list[Tensor], list[Tensor]]:
    """An output's tensors that have a derivative, and the others."""
    tensors = [leaf for leaf in optree.tree_leaves(output, namespace=NAMESPACE) if isinstance(leaf, Tensor)]
    kinds = [tensor.is_floating_point() or tensor.is_complex() for tensor in tensors]
    return list(itertools.compress(tensors, kinds)), list(itertools.compress(tensors, [not kind for kind in kinds]))


def _joined(template: Any, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Any:
    """An output of such tensors, in the place of a program's variables."""
    leaves, structure = optree.tree_flatten(template, namespace=NAMESPACE)
    moving, others = iter(values), iter(fixed)
    filled = [
        next(moving if leaf.is_differentiable else others) if isinstance(leaf, Variable) else leaf for leaf in leaves
    ]
    return optree.tree_unflatten(structure, filled)


def check_input(x: Any) -> None:
    """Errors: `InputError` for what is no floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"an attributor needs one floating-point tensor as its input, but got {got}.")
