"""Vector-Jacobian products of one operation, and what autograd records of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.compat import as_plain_operations, is_transforming
from lrpfunc.errors import RuleError
from lrpfunc.operations.row import Slot
from lrpfunc.program import is_plain


class Recorded(NamedTuple):
    """What autograd recorded of one operation."""

    leaves: tuple[Tensor, ...]
    output: Tensor


def record(function: Callable, inputs: Sequence[Tensor]) -> tuple[Tensor, Recorded]:
    """The value of a function, by the fastest kernel there is, and what autograd needs to move a flow back."""
    with torch.enable_grad():
        leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        output = function(*leaves)
    return output.detach(), Recorded(leaves, output)


def may_record(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd may record an operation on these, and nobody else would notice."""
    is_watched = is_transforming() or torch.is_inference_mode_enabled()
    return not is_watched and is_plain(*tensors) and not any(tensor.is_inference() for tensor in tensors)


def tensors_in(template) -> Iterator[Tensor]:
    """The tensors among nested arguments."""
    if isinstance(template, Tensor):
        yield template
    elif isinstance(template, (list, tuple)) and not isinstance(template, Slot):
        for item in template:
            yield from tensors_in(item)


def pull_back(function: Callable, inputs: tuple, s) -> tuple:
    """The vector-Jacobian product of a function at `inputs`."""

    def pull(inputs, s):
        return torch.func.vjp(function, *inputs)[1](s)

    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        # torch.export (non-strict) would take the values inside a transform for constants: give it plain operations.
        pull = as_plain_operations(pull, inputs, s)
    try:
        return pull(inputs, s)
    except (torch.OutOfMemoryError, RuleError):
        raise
    except RuntimeError as error:  # an operator that knows autograd, but none of the transforms of torch.func
        if torch.compiler.is_compiling():
            raise
        if may_record((*inputs, *tensors_in(s))):
            return _by_autograd(function, inputs, s, error)
        several = isinstance(s, (tuple, list))
        return _OneByOne.apply(function, error, several, len(inputs), *inputs, *(s if several else [s]))


def _by_autograd(function: Callable, inputs: tuple, s, error: RuntimeError) -> tuple:
    """The vector-Jacobian product by plain autograd. Errors: `RuleError` where that has no derivative either."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        try:
            moved = torch.autograd.grad(function(*leaves), leaves, s, allow_unused=True)
        except RuntimeError:
            raise _no_derivative(error) from error
    return tuple(torch.zeros_like(x) if m is None else m for x, m in zip(inputs, moved, strict=True))


class _OneByOne(torch.autograd.Function):
    """The vector-Jacobian product by plain autograd, of what `torch.func.vmap` maps one by one."""

    @staticmethod
    def forward(function: Callable, error: RuntimeError, several: bool, count: int, *tensors: Tensor):
        inputs, s = tensors[:count], tensors[count:]
        return _by_autograd(function, inputs, s if several else s[0], error)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.error = inputs[1]

    @staticmethod
    def backward(ctx, *moved: Tensor):
        raise _no_derivative(ctx.error)

    jvp = backward

    @staticmethod
    def vmap(info, in_dims, function, error, several, count, *tensors):
        mapped = list(zip(tensors, in_dims[4:], strict=True))
        moved = []
        for i in range(info.batch_size):
            one = [tensor if dim is None else tensor.select(dim, i) for tensor, dim in mapped]
            moved.append(_OneByOne.apply(function, error, several, count, *one))
        return tuple(map(torch.stack, zip(*moved, strict=True))), (0,) * count


def _no_derivative(error: RuntimeError) -> RuleError:
    reason = (str(error).strip().splitlines() or ["unknown"])[0]
    return RuleError(f"torch has no derivative of it ({reason}). Give its layer a rule that needs none.")


def differentiable(result):
    """The real and complex parts of a result: what flows can arrive at. A list of one output is that output."""
    if isinstance(result, (tuple, list)):
        parts = tuple(tensor for tensor in result if tensor.is_floating_point() or tensor.is_complex())
        return parts[0] if len(result) == 1 else parts
    return result
