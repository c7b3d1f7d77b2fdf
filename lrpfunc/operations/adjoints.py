"""The transposed maps of the linear operations, and what maximum pooling remembers.

Each gets an `Operation`, which binds one of them to its arguments. An adjoint returns None where it does not cover the
arguments; the vector-Jacobian product then does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpfunc import compat
from lrpfunc.operations import kernels
from lrpfunc.operations.row import Slot
from lrpfunc.program import moved

if TYPE_CHECKING:
    from lrpfunc.operations.operation import Operation

aten = torch.ops.aten


def _broadcast(value, dimensions: int) -> list[int]:
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * dimensions if len(value) == 1 else value


def convolution(operation: Operation, x: Tensor) -> Tensor | None:
    """The value of a convolution by a faster kernel."""
    if len(operation.arguments) < 7 or operation.keywords:
        return None
    _, weight, bias, stride, padding, dilation, groups = operation.arguments
    return kernels.convolve(operation.packs, x, weight, bias, stride, padding, dilation, groups)


def transposed(operation: Operation, x: Tensor) -> Tensor | None:
    """As `convolution`, of a transposed one."""
    if len(operation.arguments) < 8 or operation.keywords:
        return None
    _, weight, bias, stride, padding, left_over, groups, dilation = operation.arguments
    return kernels.convolve_transposed(operation.packs, x, weight, bias, stride, padding, left_over, groups, dilation)


def convolution_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    """The transposed convolution; `output_padding` restores the rows that the stride left over."""
    weight = operation.weight
    _, _, _, stride, padding, dilation, groups = operation.arguments
    if isinstance(padding, str):
        return None
    dimensions = weight.dim() - 2
    stride, padding, dilation = (_broadcast(value, dimensions) for value in (stride, padding, dilation))
    sizes = operation.shapes[0][-dimensions:]
    left_over = [
        n - ((m - 1) * t - 2 * p + d * (k - 1) + 1)
        for n, m, t, p, d, k in zip(
            sizes, s.shape[-dimensions:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    geometry = (stride, padding, left_over, groups, dilation)
    moved = kernels.convolve_transposed(operation.packs, s, weight, None, *geometry)
    if moved is not None:
        return moved
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]
    return transpose(s, weight, None, *geometry)


def transposed_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    weight = operation.weight
    _, _, _, stride, padding, _, groups, dilation = operation.arguments
    moved = kernels.convolve(operation.packs, s, weight, None, stride, padding, dilation, groups)
    if moved is None:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        moved = convolve(s, weight, None, stride, padding, dilation, groups)
    # A transposed convolution with output_padding has rows that reach no input; the convolution may then see one more.
    for axis, size in enumerate(operation.shapes[0][2 - weight.dim() :], start=2 - weight.dim()):
        moved = moved.narrow(axis, 0, size)
    return moved


def linear_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s @ operation.weight


def mm_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    left, right = operation.arguments[:2]
    dimensions = [len(operation.shapes[0]) if isinstance(side, Slot) else side.dim() for side in (left, right)]
    if min(dimensions) < 2:
        return None  # vectors
    moved = s @ right.mT if isinstance(left, Slot) else left.mT @ s
    return moved.sum_to_size(operation.shapes[0])


def mm_pullback(operation: Operation, inputs: Sequence[Tensor], s: Tensor) -> tuple[Tensor, ...] | None:
    left, right = inputs
    if min(left.dim(), right.dim()) < 2:
        return None
    return (s @ right.mT).sum_to_size(left.shape), (left.mT @ s).sum_to_size(right.shape)


def mul_adjoint(operation: Operation, s: Tensor) -> Tensor:
    left, right = operation.arguments[:2]
    return (s * (right if isinstance(left, Slot) else left)).sum_to_size(operation.shapes[0])


def mul_pullback(operation: Operation, inputs: Sequence[Tensor], s: Tensor) -> tuple[Tensor, ...]:
    left, right = inputs
    return (s * right).sum_to_size(left.shape), (s * left).sum_to_size(right.shape)


def div_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    if operation.keywords:
        return None  # a rounding mode
    return (s / operation.arguments[1]).sum_to_size(operation.shapes[0])


def sub_adjoint(operation: Operation, s: Tensor):
    if operation.keywords.get("alpha", 1) != 1:
        return None
    left, right = operation.arguments[:2]
    signed = [t for side, t in ((left, s), (right, -s)) if isinstance(side, Slot)]
    return tuple(t.sum_to_size(shape) for t, shape in zip(signed, operation.shapes, strict=True))


def neg_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return -s


def mean_adjoint(operation: Operation, s: Tensor) -> Tensor:
    """Of a sum or mean over some dimensions, or all."""
    shape = operation.shapes[0]
    if not shape:
        return s.reshape(())
    given = operation.arguments[1] if len(operation.arguments) > 1 else None
    keeps = operation.arguments[2] if len(operation.arguments) > 2 else False
    given = [given] if isinstance(given, int) else given or range(len(shape))
    axes = sorted(axis % len(shape) for axis in given)
    for axis in [] if keeps else axes:
        s = s.unsqueeze(axis)
    count = math.prod([shape[axis] for axis in axes]) if operation.row.divides else 1
    return (s / count if count != 1 else s).expand(shape)


def slice_adjoint(operation: Operation, s: Tensor) -> Tensor:
    shape = operation.shapes[0]
    axis, start, end, step = _filled_up(operation.arguments[1:], 0, None, None, 1)
    if s.shape == shape:
        return s  # all of it
    size = shape[axis]
    first, last, step = slice(start, end, step).indices(size)
    if step == 1:
        return _padded(s, axis, first, size - max(last, first))
    return aten.slice_backward(s, shape, axis, first, last, step)


def _filled_up(given: Sequence, *defaults) -> list:
    return [*given, *defaults[len(given) :]]


def _padded(s: Tensor, axis: int, before: int, after: int) -> Tensor:
    return F.pad(s, [0, 0] * (s.dim() - 1 - axis % s.dim()) + [before, after])


def select_adjoint(operation: Operation, s: Tensor) -> Tensor:
    shape = operation.shapes[0]
    _, axis, index = operation.arguments
    position = index % shape[axis]
    return _padded(s.unsqueeze(axis), axis if axis >= 0 else len(shape) + axis, position, shape[axis] - 1 - position)


def split_adjoint(operation: Operation, parts) -> Tensor:
    """Of `split`, `chunk` and their like, of which the parts together are all."""
    axis = operation.arguments[2] if len(operation.arguments) > 2 else 0
    return torch.cat(parts, axis) if isinstance(parts, (tuple, list)) else parts


def unbind_adjoint(operation: Operation, parts) -> Tensor:
    axis = operation.arguments[1] if len(operation.arguments) > 1 else 0
    return torch.stack(parts if isinstance(parts, (tuple, list)) else [parts], axis)


def roll_adjoint(operation: Operation, s: Tensor) -> Tensor:
    shifts, axes = _filled_up(operation.arguments[1:], [], [])
    return torch.roll(s, [-n for n in shifts], axes)


def masked_fill_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    x, mask, value = operation.arguments[:3]
    if not isinstance(x, Slot) or isinstance(value, Slot):
        return None
    return s.masked_fill(mask, 0).sum_to_size(operation.shapes[0])


def addmm_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return (s @ operation.weight.mT) * operation.keywords.get("alpha", 1)


def reshape_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s.reshape(operation.shapes[0])


def transpose_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s.transpose(*operation.arguments[1:3])


def permute_adjoint(operation: Operation, s: Tensor) -> Tensor:
    order = [axis % s.dim() for axis in operation.arguments[1]]
    return s.permute([order.index(axis) for axis in range(len(order))])


def identity_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s


def moved_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s if operation.device is None else moved(s, operation.device)


def expand_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s.sum_to_size(operation.shapes[0])


def cat_adjoint(operation: Operation, s: Tensor):
    tensors, axis = operation.arguments[:2]
    if not all(isinstance(tensor, Slot) for tensor in tensors):
        return None
    return s.split([shape[axis] for shape in operation.shapes], axis)


def add_adjoint(operation: Operation, s: Tensor):
    if operation.keywords.get("alpha", 1) != 1:
        return None
    return tuple(s.sum_to_size(shape) for shape in operation.shapes)


def one_hot_adjoint(operation: Operation, s: Tensor) -> Tensor:
    """The relevance of an id is all that its row of zeros and one has."""
    return s.sum(-1)


# -- maximum pooling, by its indices -----------------------------------------------------------------------------------


def remember_max_pool2d(operation: Operation, x: Tensor) -> tuple[Tensor, Any] | None:
    if operation.keywords:
        return None
    output, indices = aten.max_pool2d_with_indices(x, *operation.arguments[1:])
    return output, (x, indices)


def recall_max_pool2d(operation: Operation, memory, s: Tensor) -> Tensor:
    x, indices = memory
    if not torch.compiler.is_compiling() and compat.is_wrapped(s):  # which dynamo cannot ask
        return _scattered(indices, s, x.shape[-2:])
    settings = (*operation.arguments[1:], *((), 0, 1, False)[len(operation.arguments) - 2 :])
    return aten.max_pool2d_with_indices_backward(s, x, *settings, indices)


def _scattered(indices: Tensor, s: Tensor, size: torch.Size) -> Tensor:
    """s at the pixels that were largest, in the layout of their indices: under `vmap` ATen's takes ten times as long,
    and leaves channels first that were last in memory."""
    is_laid_out = indices.dim() == 4 and not compat.is_wrapped(indices)  # of what is mapped itself nobody knows
    is_last = is_laid_out and indices.is_contiguous(memory_format=torch.channels_last)
    if is_last:
        indices, s = indices.movedim(1, -1), s.movedim(1, -1)
    axis = -2 if is_last else -1  # of pixels, once they stand in a row
    places, shares = indices.flatten(axis - 1, axis), s.flatten(axis - 1, axis)
    shape = [*shares.shape]
    shape[axis] = size.numel()
    nothing = torch.zeros_like(shares.narrow(axis, 0, 1)).expand(shape)
    moved = nothing.scatter_add(axis, places, shares).unflatten(axis, size)
    return moved.movedim(-1, 1) if is_last else moved
