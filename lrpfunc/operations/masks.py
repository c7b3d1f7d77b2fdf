"""Masks of attention, of which there is one for all layers and which each layer's record would keep in floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrpfunc.operations.pullbacks import Recorded, may_record, record, tensors_in

if TYPE_CHECKING:
    from lrpfunc.operations.operation import Operation

MASK, CAUSAL = 3, 5  # positions among the arguments
LARGE = 2**20  # elements: below that a copy for each layer is nothing
ROWS = 1024  # of a mask that are looked at at a time


def remember_attention(operation: Operation, *inputs: Tensor) -> tuple[Tensor, Recorded] | None:
    """As autograd records it, but for a large mask of truth values, which kernels want in floats: n^2 for each layer.

    One that hides what is to come is left out, as kernels know of it (`is_causal`) and take no memory for it; of
    another one the floats are made anew where a flow moves back.
    """
    mask = operation.arguments[MASK] if len(operation.arguments) > MASK else None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.numel() < LARGE or mask.is_meta:
        return None
    if not may_record((*inputs, *tensors_in(operation.arguments))):
        return None
    before, behind = operation.arguments[:MASK], [*operation.arguments[MASK + 1 :], 0.0, False][:2]
    if not behind[1] and hides_what_is_to_come(mask):
        return record(operation.copy(arguments=[*before, None, behind[0], True]), inputs)
    floats = in_floats(mask, inputs[0].dtype)
    place = floats.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.untyped_storage().data_ptr() == place else tensor

    def unpack(packed: Tensor | None) -> Tensor:
        return in_floats(mask, inputs[0].dtype) if packed is None else packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return record(operation.copy(arguments=[*before, floats, *operation.arguments[MASK + 1 :]]), inputs)


def in_floats(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where a mask is true, and -inf."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -torch.inf)


def hides_what_is_to_come(mask: Tensor) -> bool:
    """Whether a square mask is true for each row up to its own place, and no further."""
    if mask.shape[-1] != mask.shape[-2]:
        return False
    places = torch.arange(mask.shape[-1], device=mask.device)
    return all(
        bool((mask[..., start : start + ROWS, :] == (places <= places[start : start + ROWS, None])).all())
        for start in range(0, len(places), ROWS)
    )
