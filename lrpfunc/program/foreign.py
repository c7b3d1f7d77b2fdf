"""Operators that torch did not make, such as torchvision's, with the derivatives that torch.func's transforms ask for.

Plain autograd alone knows theirs: under `torch.func.grad` torch refuses them, and under `torch.func.jvp` it takes their
derivatives for zero, and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.compat import Operator, is_inside_forward_ad, is_transforming, schema_of
from lrpfunc.errors import RuleError


def derivable(function: Callable) -> Callable:
    """A function of an equation as transforms of torch.func take it: itself, but for operators that are not torch's."""
    if isinstance(function, Operator) and function.namespace not in ("aten", "prims"):
        return Foreign(function)
    return function


@dataclass(frozen=True)
class Foreign:
    """A function of which plain autograd alone knows derivatives, such as an operator that torch did not make.

    `linear`: the positions of arguments that it is linear in, all at once.
    """

    function: Callable
    linear: tuple[int, ...] = ()

    def __call__(self, *arguments, **keywords):
        if torch.compiler.is_dynamo_compiling() or not (is_transforming() or is_inside_forward_ad()):
            return self.function(*arguments, **keywords)
        leaves, structure = optree.tree_flatten((arguments, keywords), none_is_leaf=True)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        template = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        linear = [any(tensor is arguments[position] for position in self.linear) for tensor in tensors]
        return _Called.apply(_Call(self.function, template, structure, linear), *tensors)


class _Call(NamedTuple):
    """One call of a function as one of its tensors, in some of which it is linear.

    `template`: all that it is called with, flat, with `Tensor` where tensors stand.
    """

    function: Callable
    template: Sequence[Any]
    structure: Any
    linear: Sequence[bool]

    def __call__(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if leaf is Tensor else leaf for leaf in self.template]
        arguments, keywords = optree.tree_unflatten(self.structure, leaves)
        result = self.function(*arguments, **keywords)
        return tuple(result) if isinstance(result, list) else result

    def along(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None], which: str) -> Any:
        """Its derivative along tangents, for a derivative of some order. Errors: those of `refuse`."""
        self.refuse(tangents, which)
        steps = [torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True)]
        given = zip(inputs, steps, self.linear, strict=True)
        return _Called.apply(self, *(step if linear else x for x, step, linear in given))

    def refuse(self, tangents: Iterable[Any], which: str) -> None:
        """Errors: `RuleError` for tangents of what it is not linear in, along which nobody knows its derivative."""
        if any(t is not None and not linear for t, linear in zip(tangents, self.linear, strict=True)):
            name = schema_of(self.function).name if isinstance(self.function, Operator) else "it"
            raise RuleError(
                f"torch has no {which} derivative of {name}: take finite differences, or give its layer a rule that "
                "needs none."
            )


class _Called(torch.autograd.Function):
    """A call. Its vector-Jacobian product is plain autograd's; where it is linear, its derivative is itself."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor):
        return call(*tensors)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.call, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(tensor for tensor in _several(output) if not is_differentiable(tensor)))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *s: Tensor | None):
        inputs, reached = ctx.saved_tensors, {i: tensor for i, tensor in enumerate(s) if tensor is not None}
        moved = iter(_Pulled.apply(ctx.call, [*reached], *inputs, *reached.values()))
        return None, *(next(moved) if is_differentiable(x) else None for x in inputs)

    @staticmethod
    def jvp(ctx, _, *tangents: Tensor | None):
        return ctx.call.along(ctx.saved_tensors, tangents, "forward-mode")

    @staticmethod
    def vmap(info, in_dims, call: _Call, *tensors: Tensor):
        return _one_by_one(partial(_Called.apply, call), info.batch_size, tensors, in_dims[1:])


class _Pulled(torch.autograd.Function):
    """The vector-Jacobian product of a call at some of its outputs by plain autograd."""

    @staticmethod
    def forward(call: _Call, reached: Sequence[int], *tensors: Tensor):
        count = len(call.linear)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(is_differentiable(x)) for x in tensors[:count]]
            inputs = [leaf for leaf in leaves if leaf.requires_grad]
            try:
                made = _several(call(*leaves))
                moved = torch.autograd.grad([made[i] for i in reached], inputs, tensors[count:], allow_unused=True)
            except RuntimeError as error:
                reason = (str(error).strip().splitlines() or ["unknown"])[0]
                raise RuleError(
                    f"torch has no derivative of it ({reason}). Give its layer a rule that needs none."
                ) from error
        return tuple(torch.zeros_like(x) if m is None else m for x, m in zip(inputs, moved, strict=True))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.call, ctx.reached, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *steps: Tensor | None):
        call, count = ctx.call, len(ctx.call.linear)
        inputs = ctx.saved_tensors[:count]
        call.refuse((True if needs else None for needs in ctx.needs_input_grad[2 : count + 2]), "second")
        given = iter(steps)
        tangents = [next(given) if is_differentiable(x) else None for x in inputs]
        made = _several(call.along(inputs, tangents, "second"))
        return None, None, *[None] * count, *(made[i] for i in ctx.reached)

    @staticmethod
    def jvp(ctx, _, __, *tangents: Tensor | None):
        count, tensors = len(ctx.call.linear), ctx.saved_tensors
        ctx.call.refuse(tangents[:count], "second")
        steps = (torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents, strict=True))
        return _Pulled.apply(ctx.call, ctx.reached, *tensors[:count], *list(steps)[count:])

    @staticmethod
    def vmap(info, in_dims, call: _Call, reached: Sequence[int], *tensors: Tensor):
        return _one_by_one(partial(_Pulled.apply, call, reached), info.batch_size, tensors, in_dims[2:])


def _one_by_one(function: Callable, count: int, tensors: Sequence[Tensor], in_dims: Sequence[int | None]):
    """What `vmap` of a function gives, and along which axes, as torch's own loop would, which warns of being one."""
    mapped = list(zip(tensors, in_dims, strict=True))
    made = [function(*(t if dim is None else t.select(dim, i) for t, dim in mapped)) for i in range(count)]
    if isinstance(made[0], Tensor):
        return torch.stack(made), 0
    return tuple(map(torch.stack, zip(*made, strict=True))), (0,) * len(made[0])


def _several(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def is_differentiable(tensor: Tensor) -> bool:
    """Whether it holds real or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()
