"""Occlusion: what a score loses where a window of the input is covered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrpfunc.attribution import is_int
from lrpfunc.attributors.averages import Progress, check_count
from lrpfunc.attributors.gradients import check_input
from lrpfunc.errors import InputError


def occlusion(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    window: int | Sequence[int] = 16,
    stride: int | Sequence[int] | None = None,
    fill: float | Tensor | Callable[[Tensor], Tensor] = 0.0,
    keep: bool = False,
    chunk_size: int = 8,
    progress: Progress | None = None,
) -> Tensor:
    """What a score loses where a window is covered: score(x) - score(x covered there), averaged where windows overlap.

    Args:
        score: inputs like x -> one number a sample (batch,); `attributors.score` makes it of a program.
        x: the input (batch, ...).
        window: the size of a window: a number for images (the last two axes) and series (the last one), or one for
            each of the last axes. Axes before them are covered whole; at the far end windows are cut off.
        stride: from one window to the next; as wide as a window, unless given.
        fill: what covers: a number, a tensor that broadcasts to x, or a function x -> tensor, such as a blur.
        keep: show a window and cover the rest: the score of what each window says alone (zennit's).
        chunk_size: how many windows at once, by `vmap`; 1 calls `score` with one at a time.
        progress: called as `progress(done, of)`.

    Errors: `InputError` for windows that do not fit, strides wider than a window, a fill or a score of another shape.
    Source: Zeiler and Fergus 2014, arXiv:1311.2901.

    >>> import lrpfunc, torch
    >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> lrpfunc.attributors.occlusion(lambda x: x.sum((1, 2)), x, window=(1, 2))
    tensor([[[3., 3.],
             [7., 7.]]])
    """
    check_input(x)
    check_count("chunk_size", chunk_size)
    sizes, strides = _sizes(x, window, stride)
    cover = _cover(x, fill)
    corners = _corners(x, sizes, strides)
    whole = torch.zeros(len(x), dtype=x.dtype, device=x.device) if keep else _checked(score(x), len(x))
    total, counts = torch.zeros_like(x), torch.zeros(x.shape[1:], dtype=x.dtype, device=x.device)
    for first in range(0, len(corners), chunk_size):
        chunk = torch.stack([_mask(x, corner, sizes) for corner in corners[first : first + chunk_size]])
        scores = _scores(score, x, cover, chunk if not keep else ~chunk)
        worth = scores if keep else whole - scores
        weights = chunk.to(x.dtype)
        total = total + torch.tensordot(worth, weights, ([0], [0])).reshape(x.shape)
        counts = counts + weights.sum(0)
        if progress is not None:
            progress(min(first + chunk_size, len(corners)), len(corners))
    return total / counts


def _scores(score: Callable[[Tensor], Tensor], x: Tensor, cover: Tensor, masks: Tensor) -> Tensor:
    """(windows, batch): the scores with each mask covered."""
    if len(masks) == 1:
        return _checked(score(torch.where(masks[0], cover, x)), len(x))[None]
    found = torch.func.vmap(lambda mask: score(torch.where(mask, cover, x)))(masks)
    return _checked(found, len(masks), len(x))


def _checked(found: Tensor, *shape: int) -> Tensor:
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        got = tuple(found.shape[len(shape) - 1 :]) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the score must be one number a sample, ({shape[-1]},), but is {got}.")
    return found


def _sizes(x: Tensor, window: int | Sequence[int], stride: int | Sequence[int] | None) -> tuple[list[int], list[int]]:
    """Windows and strides of the last axes. Errors: `InputError`."""
    axes = min(2, max(1, x.dim() - 2)) if is_int(window) else None
    sizes = _each(window, axes)
    strides = sizes if stride is None else _each(stride, len(sizes))
    if x.dim() < 2 or not 1 <= len(sizes) < x.dim() or len(strides) != len(sizes):
        raise InputError(
            f"window and stride must be a number each, or one for each of the last axes of an input {tuple(x.shape)} "
            f"but for the batch, but are {window!r} and {stride!r}."
        )
    for size, step, full in zip(sizes, strides, x.shape[-len(sizes) :], strict=True):
        if not (1 <= size <= full and 1 <= step <= size):
            raise InputError(
                f"a window must have 1 to {full} values along an axis of {full}, and a stride 1 to the window's size, "
                f"but they are {size} and {step}."
            )
    return sizes, strides


def _each(given: Any, axes: int | None) -> list[int]:
    """A number for each axis; none for what is no number nor a list of them."""
    numbers = [given] * axes if axes is not None and is_int(given) else given
    is_list = isinstance(numbers, (list, tuple)) and all(is_int(number) for number in numbers)
    return [int(number) for number in numbers] if is_list else []


def _cover(x: Tensor, fill: float | Tensor | Callable[[Tensor], Tensor]) -> Tensor:
    cover = fill(x) if callable(fill) and not isinstance(fill, Tensor) else fill
    try:
        return torch.as_tensor(cover, dtype=x.dtype, device=x.device).expand_as(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"what covers must be a number or broadcast to {tuple(x.shape)}, but is {cover!r}.") from error


def _corners(x: Tensor, sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, ...]]:
    """Where each window starts. The last one along an axis reaches its end."""
    starts = []
    for size, stride, length in zip(sizes, strides, x.shape[-len(sizes) :], strict=True):
        starts.append([start for start in range(0, length - size + stride, stride) if start < length])
    return list(itertools.product(*starts))


def _mask(x: Tensor, corner: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """(*sample): where a window is. At the far end it is cut off."""
    mask = torch.zeros(x.shape[1:], dtype=torch.bool, device=x.device)
    covered = mask
    for axis, (start, size) in enumerate(zip(corner, sizes, strict=True), start=-len(sizes)):
        covered = covered.narrow(axis, start, min(size, covered.shape[axis] - start))
    covered.fill_(True)
    return mask
