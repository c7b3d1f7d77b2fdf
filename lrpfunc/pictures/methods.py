"""Methods beside LRP by their names, for comparison: gradients, their averages, and occlusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from lrpfunc import attributors

SIDE = 14  # windows of occlusion along the longer side of an image


class Explained(NamedTuple):
    """An explained output as a function of the input: its gradient, and itself, one number a sample."""

    gradient: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]


def _occlusion(explained: Explained, x: Tensor) -> Tensor:
    """By gray windows, since zero is the mean of what a network was trained on."""
    height, width = x.shape[-2:]
    window = max(1, -(-max(height, width) // SIDE))
    sizes = (min(window, height), min(window, width))
    return attributors.occlusion(explained.score, x, sizes) / x.shape[1]  # each channel has its part of a window's


METHODS: Mapping[str, Callable[[Explained, Tensor], Tensor]] = {
    "gradient": lambda explained, x: explained.gradient(x),
    "gradient_times_input": lambda explained, x: x * explained.gradient(x),
    "smooth_grad": lambda explained, x: attributors.smooth_grad(explained.gradient, x),
    "integrated_gradients": lambda explained, x: attributors.integrated_gradients(explained.gradient, x),
    "occlusion": _occlusion,
}
