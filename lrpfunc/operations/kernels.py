"""Convolutions of images on CPUs, by oneDNN with weights in the layout that its kernels want.

ATen lays a weight out anew in every call, and by a copy that takes several times as long as a small convolution where
images have channels last. Here oneDNN does it itself, and once for all calls where a `TensorTable` keeps what it made.
Each function returns None where it does not apply; ATen's own then does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrpfunc import compat
from lrpfunc.program import is_plain

LEAST = 2**21  # products, which take about as long as oneDNN needs to find out what to do with a weight

# What was made of a weight, by what it was made for: an input's shape, and which of the two functions.
Packs = dict[str, tuple[torch.Size, int, Tensor]]


def convolve(packs: compat.TensorTable | None, x, weight, bias, stride, padding, dilation, groups) -> Tensor | None:
    """`conv2d` of its arguments. `packs`: where weights in another layout are kept."""
    if isinstance(padding, str) or not _fits(x, weight, bias):
        return None
    geometry = _pair(padding), _pair(stride), _pair(dilation), groups
    packed = _packed(packs, "convolve", x, weight, lambda: compat.pack_convolution(weight, *geometry, x.shape))
    return compat.packed_convolution(x, packed, bias, *geometry)


def convolve_transposed(
    packs: compat.TensorTable | None, x, weight, bias, stride, padding, left_over, groups, dilation
) -> Tensor | None:
    """`conv_transpose2d` of its arguments, as `convolve` does it. `left_over`: its output_padding."""
    if not _fits(x, weight, bias):
        return None
    geometry = _pair(padding), _pair(left_over), _pair(stride), _pair(dilation), groups
    packed = _packed(packs, "transposed", x, weight, lambda: compat.pack_transposed(weight, *geometry, x.shape))
    return compat.packed_transposed(x, packed, bias, *geometry)


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def suit(*tensors: Tensor) -> bool:
    """Whether a weight, and a bias if there is one, may be of a convolution that these functions compute.

    One channel by itself (depthwise) has so few weights that ATen lays them out in no time.
    """
    return (
        is_plain(*tensors)
        and tensors[0].dim() == 4
        and tensors[0].shape[1] > 1
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and compat.has_packed_convolutions()
    )


def _fits(x, weight, bias) -> bool:
    """Channels must be last, and surely so, as they are in the result; a row of pixels has any layout."""
    return (
        suit(weight, x, *(() if bias is None else (bias,)))
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and x.numel() > 0
        and x[:, 0].numel() * weight.numel() >= LEAST
    )


def _packed(packs: compat.TensorTable | None, name: str, x: Tensor, weight: Tensor, pack: Callable) -> Tensor:
    """What was made of a weight for inputs of this shape, unless the weight has changed since."""
    if packs is None or weight.is_inference():  # which counts no versions
        return pack()
    made: Packs = packs.setdefault(weight, {})
    kept = made.get(name)
    if kept is None or kept[:2] != (x.shape, weight._version):
        made[name] = kept = (x.shape, weight._version, pack())
    return kept[2]
