"""Arithmetic that writes over a temporary where nobody watches.

The elementwise passes over memory of a rule cost as much as small convolutions. Comparisons and `torch.where` are
avoided there: on a CPU they take ten times as long as a product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrpfunc.compat import is_inside_forward_ad, is_intercepted, is_transforming, is_wrapped
from lrpfunc.program import fast_paths


def divide(numerator: Tensor, spare: Tensor) -> Tensor:
    """numerator / spare, where nobody else needs `spare`."""
    return torch.div(numerator, spare, out=spare) if may_overwrite(spare, numerator) else numerator / spare


def multiply(spare: Tensor, factor: Tensor) -> Tensor:
    """spare * factor, where nobody else needs `spare`."""
    return spare.mul_(factor) if may_overwrite(spare, factor) else spare * factor


def add(spare: Tensor, other: Tensor) -> Tensor:
    """spare + other, where nobody else needs `spare`."""
    return spare.add_(other) if may_overwrite(spare, other) else spare + other


def minimum(spare: Tensor, other: Tensor) -> Tensor:
    """The lesser of each two elements, where nobody else needs `spare`."""
    return torch.minimum(spare, other, out=spare) if may_overwrite(spare, other) else torch.minimum(spare, other)


def may_overwrite(spare: Tensor, *others: Tensor) -> bool:
    """Whether the result of `spare` and others fits in `spare`, and no transform, derivative or tracer would notice."""
    for other in others:  # loops: a generator would cost more than all that is asked
        if other.shape != spare.shape or other.dtype != spare.dtype:
            return False
    if is_transforming():  # which refuses to write over what was made before it
        return False
    return not _overlaps(spare) and is_plain(spare, *others)


def _overlaps(tensor: Tensor) -> bool:
    """Whether several of its elements are one place in memory."""
    strides = tensor.stride()
    return 0 in strides and any(stride == 0 and size > 1 for stride, size in zip(strides, tensor.shape, strict=True))


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are just numbers in memory: not batched, differentiated, traced or of a subclass of tensors."""
    if not fast_paths.taken or torch.compiler.is_compiling() or is_inside_forward_ad() or is_intercepted():
        return False
    is_differentiating = torch.is_grad_enabled()
    for tensor in tensors:
        if (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or (is_differentiating and tensor.requires_grad)
            or is_wrapped(tensor)
        ):
            return False
    return True
