"""How the kernel of one layer holds that of another, so that one layer can be both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.operations import GROUPS, Immovable, channel_axis, is_batch_norm, is_convolution, positions
from lrpfunc.program import Equation


class Kernel(NamedTuple):
    """Which inputs an output is made of: by spatial axis, size, stride, padding before and dilation; the groups.

    A dense layer has no spatial axis. Of a batch norm and of the identity each channel is a group.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def is_transposed(layer: Equation) -> bool:
    return positions(layer).output_axis is None


def check_held(host: Equation, layer: Equation | None) -> None:
    """Errors: `Immovable` unless a layer's kernel holds that of another, of a batch norm or (None) of the identity."""
    name = "the input" if layer is None else layer.name
    if not _is_alike(host, layer):
        raise Immovable(f"{host.name} and {name} are no layers of one kind")
    if is_transposed(host):
        return
    kernel, other = kernel_of(host, host), kernel_of(layer, host)
    if kernel.stride != other.stride:
        raise Immovable(f"{host.name} and {name} have different strides")
    if other.groups % kernel.groups:
        raise Immovable(f"{name} mixes channels that {host.name} keeps apart")
    for places, size in zip(_places(kernel, other), kernel.size, strict=True):
        if not set(places) <= set(range(size)):
            raise Immovable(f"the kernel of {host.name} does not hold that of {name}")


def _is_alike(host: Equation, layer: Equation | None) -> bool:
    """Whether both count channels alike; a transposed convolution takes others of its own geometry only."""
    if layer is None or is_batch_norm(layer):
        return not is_transposed(host) and (layer is None or channel_axis(host) == 1)
    if not is_convolution(host):
        return not is_convolution(layer)
    shapes = [one.arguments[1].shape for one in (host, layer)]
    is_same = shapes[0] == shapes[1] and host.arguments[3:] == layer.arguments[3:]
    return host.operator == layer.operator and (is_same or not is_transposed(host))


def kernel_of(layer: Equation | None, host: Equation) -> Kernel:
    """The kernel of a layer, of a batch norm or (None) of the identity, with the axes that another layer has."""
    weight = host.arguments[positions(host).weight]
    axes = len(weight.shape) - 2
    if layer is None or is_batch_norm(layer):
        return Kernel((1,) * axes, (1,) * axes, (0,) * axes, (1,) * axes, weight.shape[positions(host).output_axis])
    if not is_convolution(layer):
        return Kernel((), (), (), (), 1)
    size = layer.arguments[1].shape[2:]
    stride, padding, dilation = (_per_axis(given, axes) for given in layer.arguments[3:6])
    if padding[0] == "same":  # of an odd number of zeros the last one comes behind
        padding = tuple(step * (n - 1) // 2 for n, step in zip(size, dilation, strict=True))
    before = (0,) * axes if padding[0] == "valid" else padding
    return Kernel(size, stride, before, dilation, layer.arguments[GROUPS])


def _per_axis(given, axes: int) -> tuple:
    is_one = isinstance(given, (int, str))
    return (given,) * axes if is_one else tuple(given) * (axes // len(given))


def _places(kernel: Kernel, other: Kernel) -> list[list[int]]:
    """By axis, where in a kernel the entries of another are; -1 for between its entries."""
    found = []
    for size, step, before, own, shift in zip(
        other.size, other.dilation, other.before, kernel.dilation, kernel.before, strict=True
    ):
        offsets = [shift - before + step * i for i in range(size)]
        found.append([-1 if offset % own else offset // own for offset in offsets])
    return found


def embedded(weight: Tensor, kernel: Kernel, other: Kernel) -> Tensor:
    """A weight (out, in / groups, ...) of one kernel as that of a larger one, with zeros elsewhere."""
    weight = _widened(weight, other.groups, kernel.groups)
    for axis, (places, size) in enumerate(zip(_places(kernel, other), kernel.size, strict=True), 2):
        source = [places.index(i) if i in places else len(places) for i in range(size)]
        padded = torch.cat([weight, torch.zeros_like(weight.narrow(axis, 0, 1))], axis)
        weight = padded.index_select(axis, torch.tensor(source, device=weight.device))
    return weight


def _widened(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """A weight with fewer groups, zero where it joined no channels."""
    ratio, rest = groups // fewer, [1] * (weight.dim() - 1)
    apart = torch.eye(ratio, dtype=weight.dtype, device=weight.device).reshape(1, ratio, 1, ratio, *rest)
    return (weight.unflatten(0, (fewer, ratio, -1)).unsqueeze(3) * apart).flatten(3, 4).flatten(0, 2)
