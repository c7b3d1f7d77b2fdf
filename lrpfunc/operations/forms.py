"""How operations normalize: the column `form` of the table.

y = w (x - mean x) / d + b with d as a constant: the statistics give y and 1 / d, the adjoint takes c_y to c_x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrpfunc.operations.row import Form
from lrpfunc.program import is_plain, multiply

if TYPE_CHECKING:
    from lrpfunc.operations.operation import Operation

aten = torch.ops.aten


# -- over the last dimensions -----------------------------------------------------------------------------------------


def _layer_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    _, shape, weight, bias, eps = operation.arguments[:5]
    if is_plain(x):
        output, _, scale = aten.native_layer_norm(x, shape, weight, bias, eps)
        return output, scale
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # the kernel's own scale has no derivative
    return operation(x), wide.var(_last(operation), correction=0, keepdim=True).add(eps).rsqrt()


def _layer_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    axes = _last(operation)
    u = _weighted(c, operation.arguments[2])
    u = u - u.mean(axes, keepdim=True)
    return multiply(u, scale)


def _rms_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    eps = operation.arguments[3] if len(operation.arguments) > 3 else None
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return operation(x), wide.square().mean(_last(operation), keepdim=True).add(eps).rsqrt()


def _rms_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    return _weighted(c, operation.arguments[2] if len(operation.arguments) > 2 else None) * scale


def _last(operation: Operation) -> list[int]:
    return list(range(-len(operation.arguments[1]), 0))


def _weighted(c: Tensor, weight: Tensor | None) -> Tensor:
    return c if weight is None else c * weight


# -- over groups of channels and all that follows ---------------------------------------------------------------------


def _group_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    return operation(x), _reciprocal_deviation(x, operation.arguments[1], operation.arguments[4])


def _group_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    return _centered(_per_channel(c, operation.arguments[2]), scale, operation.arguments[1])


def _instance_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    _, _, _, _, variance, uses_input, _, eps = operation.arguments[:8]
    if not uses_input:
        return operation(x), (variance + eps).rsqrt()
    return operation(x), _reciprocal_deviation(x, x.shape[1], eps)


def _instance_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    u = _per_channel(c, operation.arguments[1])
    return _centered(u, scale, c.shape[1]) if operation.arguments[5] else _per_channel(u, scale)


def _reciprocal_deviation(x: Tensor, groups: int, eps: float) -> Tensor:
    """One number per sample and group."""
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1)).flatten(2)
    return grouped.var(-1, correction=0, keepdim=True).add(eps).rsqrt()


def _centered(u: Tensor, scale: Tensor, groups: int) -> Tensor:
    grouped = u.unflatten(1, (groups, -1)).flatten(2)
    return ((grouped - grouped.mean(-1, keepdim=True)) * scale).reshape(u.shape)


def _per_channel(c: Tensor, weight: Tensor | None) -> Tensor:
    return c if weight is None else c * weight.reshape(-1, *[1] * (c.dim() - 2))


# -- over the batch that a model was trained with ---------------------------------------------------------------------


def _batch_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    variance, eps = operation.arguments[4:6]
    return operation(x), (variance + eps).rsqrt().to(x.dtype)


def _batch_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    weight = operation.arguments[1]
    return _per_channel(c, scale if weight is None else weight * scale)


LAYER_NORM = Form(_layer_statistics, _layer_adjoint)
RMS_NORM = Form(_rms_statistics, _rms_adjoint)
GROUP_NORM = Form(_group_statistics, _group_adjoint)
INSTANCE_NORM = Form(_instance_statistics, _instance_adjoint)
BATCH_NORM = Form(_batch_statistics, _batch_adjoint)
