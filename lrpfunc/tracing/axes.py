"""Along which axes examples may have other sizes later: those asked for, and those that inputs of their look have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import InputError

Axes = tuple[int, ...]  # of one input, along which it may have any size


class Varying:
    """An example input, and the axes along which others may have other sizes: a leaf of pytrees."""

    def __init__(self, example: Tensor, axes: Axes):
        self.example, self.axes = example, axes


def varying(x: Tensor, *axes: int) -> Varying:
    """An example input for `functionalize` and `trace` whose sizes along these axes may differ from call to call.

    `lrpfunc.functionalize(model, lrpfunc.varying(x, 2, 3))` takes images of any height and width. What is found without
    being asked for (the batch, say) stays open as well.

    Args:
        x: a tensor: an input, or a leaf of one.
        axes: of x, also counted from the end. Along them the example should be larger than 1.

    Errors: `InputError` for what is no tensor, and for axes that it does not have. Tracing raises `TraceError` if the
    model fixes a size that should vary, and where.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Conv2d(3, 4, 3)
    >>> fmodel, params = lrpfunc.functionalize(model, lrpfunc.varying(torch.ones(1, 3, 8, 8), 2, 3))
    >>> print(fmodel)
    name    operation  input                      output
    conv2d  conv2d     (batch, 3, height, width)  (batch, 4, height - 2, width - 2)
    >>> fmodel(params, torch.ones(2, 3, 16, 9)).shape
    torch.Size([2, 4, 14, 7])
    """
    if not isinstance(x, Tensor):
        raise InputError(f"varying needs a tensor, but got {type(x).__name__}. Put it around each tensor inside.")
    for axis in axes:
        if isinstance(axis, bool) or not isinstance(axis, int) or not -x.dim() <= axis < x.dim():
            raise InputError(f"varying got axis {axis!r}, but the axes of a tensor {tuple(x.shape)} are {_all(x)}.")
    if not axes:
        raise InputError(f"varying needs the axes that vary, of {_all(x)}: lrpfunc.varying(x, 0).")
    return Varying(x, tuple(sorted({axis % x.dim() for axis in axes})))


def _all(x: Tensor) -> str:
    return f"0 to {x.dim() - 1}" if x.dim() > 1 else "0" if x.dim() else "none"


def split(leaves: Sequence) -> tuple[list, list[Axes]]:
    """Leaves of examples without the marks of `varying`, and for each tensor among them the axes asked for."""
    plain = [leaf.example if isinstance(leaf, Varying) else leaf for leaf in leaves]
    tensors = [leaf for leaf in leaves if isinstance(leaf, (Tensor, Varying))]
    return plain, [leaf.axes if isinstance(leaf, Varying) else () for leaf in tensors]


class Opening(NamedTuple):
    """What to leave open of inputs, which have these labels: exactly `axes`, or what is `asked` for and found."""

    labels: Sequence[str]
    asked: Sequence[Axes]
    axes: Sequence[Axes] | None = None

    def attempts(self, inputs: Sequence[Tensor]) -> Iterator[list[Axes]]:
        """What to leave open, the most first."""
        if self.axes is not None:
            yield list(self.axes)
            return
        first, *others = _usual(inputs)
        tried: list[list[Axes]] = []
        none: list[Axes] = [()] * len(inputs)
        for axes in (_joined(first, _spatial(inputs)), first, *others, none):
            opened = _joined(axes, self.asked)
            if opened not in tried and any(opened):
                tried.append(opened)
                yield opened

    def conditioned(self, inputs: Sequence[Tensor], opened: Sequence[Axes]) -> list[Axes]:
        """The axes of these whose sizes may be bound by conditions: others than the batch and the sequence length."""
        usual = opened if self.axes is not None else next(_usual(inputs))
        return [tuple(a for a in axes if a not in known) for axes, known in zip(opened, usual, strict=True)]

    def found(self, opened: Sequence[Axes]) -> list[Axes]:
        """The axes of these that nobody asked for."""
        return [tuple(a for a in axes if a not in known) for axes, known in zip(opened, self.asked, strict=True)]

    def places(self, shapes: Sequence[Sequence]) -> dict[str, str]:
        """Where sizes are, by their names: the first such axis of an input."""
        pairs = zip(self.labels, shapes, strict=True)
        found = [(str(n), f"{label}.shape[{axis}]") for label, shape in pairs for axis, n in enumerate(shape)]
        return dict(reversed(found))


# -- without being asked ----------------------------------------------------------------------------------------------


def _usual(inputs: Sequence[Tensor]) -> Iterator[list[Axes]]:
    """The batch of all inputs that have the first one's batch size, and their sequence length; the most first."""
    batch = batch_of(inputs)
    has_batch = [tensor.dim() > 0 and tensor.shape[0] == batch for tensor in inputs]
    is_sequence = [has and _is_sequence(tensor) for has, tensor in zip(has_batch, inputs, strict=True)]
    lengths = {tensor.shape[1] for tensor, long in zip(inputs, is_sequence, strict=True) if long}
    masks = [has and x.dim() == 2 and x.shape[1] in lengths for has, x in zip(has_batch, inputs, strict=True)]
    is_sequence = [long or mask for long, mask in zip(is_sequence, masks, strict=True)]
    if any(is_sequence):
        yield [(0, 1) if long else (0,) * has for has, long in zip(has_batch, is_sequence, strict=True)]
    yield [(0,) * has for has in has_batch]


def batch_of(inputs: Sequence[Tensor]) -> int | None:
    """The first size of the first input that has any."""
    return next((tensor.shape[0] for tensor in inputs if tensor.dim()), None)


def _is_sequence(tensor: Tensor) -> bool:
    """Token ids and their masks, (batch, length), or embeddings, (batch, length, width)."""
    return tensor.dim() == (3 if tensor.is_floating_point() else 2) and tensor.shape[1] > 1


def _spatial(inputs: Sequence[Tensor]) -> list[Axes]:
    """The axes of height and width, of time steps, and of edges: pairs of indices, and what there is for each."""
    batch = batch_of(inputs)
    is_edges = [_is_edges(x) and x.shape[0] != batch for x in inputs]
    counts = {x.shape[1] for x, are in zip(inputs, is_edges, strict=True) if are}

    def of(x: Tensor, are_edges: bool) -> Axes:
        if are_edges:
            return (1,)
        if x.dim() and x.shape[0] in counts:
            return (0,)
        is_signal = x.is_floating_point() and x.dim() > 2 and x.shape[0] == batch
        return tuple(axis for axis in range(2, x.dim()) if x.shape[axis] > 1) if is_signal else ()

    return list(map(of, inputs, is_edges))


def _is_edges(x: Tensor) -> bool:
    """(2, edges)"""
    return x.dtype in (torch.int64, torch.int32) and x.dim() == 2 and x.shape[0] == 2 and x.shape[1] > 1


def _joined(*several: Sequence[Axes]) -> list[Axes]:
    """For each input the axes that it has in any of these."""
    return [tuple(sorted({*sum(axes, ())})) for axes in zip(*several, strict=True)]
