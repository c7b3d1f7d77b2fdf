"""The gradient of an explained output, and that output as a function of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrpfunc.attribution import Target, cotangent, has_batch, is_function, seed
from lrpfunc.errors import InputError, TargetError
from lrpfunc.program import Program


def gradient(fmodel: Program, params, x: Tensor, target: Target = None, times_input: bool = False) -> Tensor:
    """The gradient of the explained output in the input: what a small change of each value would change.

    Args:
        fmodel: a program.
        params: its parameters.
        x: one input, a floating-point tensor.
        target: what is explained, as `attribute` takes it: a class, or a function output -> R_out.
        times_input: x * gradient, which is LRP-0 on a piecewise linear network.

    Errors: `TargetError`, `InputError`.
    Source: Simonyan et al. 2014, arXiv:1312.6034.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.trace(lambda p, x: x @ p, torch.tensor([[2.0], [-1.0]]), torch.ones(1, 2))
    >>> lrpfunc.attributors.gradient(fmodel, params, torch.tensor([[3.0, 5.0]]))
    tensor([[ 2., -1.]])
    """
    check_input(x)
    output, pullback = _vjp(lambda x: fmodel(params, x), x)
    moved = pullback(_chosen(fmodel, output, target))[0]
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
        chosen = _chosen(fmodel, fmodel(params, x), target)

    def explained(x: Tensor) -> Tensor:
        output = fmodel(params, x)
        relevance = seed(output, target) if is_function(target) else output * chosen
        return relevance.reshape(len(output), -1).sum(1) if has_batch(fmodel) else relevance.sum()

    return explained


def _vjp(function: Callable, x: Tensor) -> Any:
    return torch.func.vjp(function, x)


def _chosen(fmodel: Program, output: Any, target: Target) -> Tensor:
    if not isinstance(output, Tensor):
        got = type(output).__name__
        raise TargetError(f"the output must be one tensor, but is {got}: trace a function that picks one.")
    return cotangent(output, target, has_batch(fmodel))


def check_input(x: Any) -> None:
    """Errors: `InputError` for what is no floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"an attributor needs one floating-point tensor as its input, but got {got}.")
