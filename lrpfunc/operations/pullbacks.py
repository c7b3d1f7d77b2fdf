"""Vector-Jacobian products of one operation, and what autograd records of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.compat import as_plain_operations, is_transforming
from lrpfunc.errors import RuleError
from lrpfunc.operations.row import Slot
from lrpfunc.program import Foreign, is_plain


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
    except RuntimeError:
        if torch.compiler.is_compiling():
            raise
        # There may be an operator in it that torch has not made.
        return torch.func.vjp(Foreign(function), *inputs)[1](s)


def differentiable(result):
    """The real and complex parts of a result: what flows can arrive at. A list of one output is that output."""
    if isinstance(result, (tuple, list)):
        parts = tuple(tensor for tensor in result if tensor.is_floating_point() or tensor.is_complex())
        return parts[0] if len(result) == 1 else parts
    return result
