"""Pixel and patch flipping: how soon a network loses its class as what an order names first is replaced.

Both demos compare orders with it. Source: Samek et al. 2017, doi:10.1109/TNNLS.2016.2599820.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rich.console import Console

Predict = Callable[[Tensor], Tensor]


class Flipping(NamedTuple):
    """Areas under the curves (N,) of an order and, for the same samples, the mean of random orders; lower is better."""

    order: str
    areas: Tensor
    random_areas: Tensor

    @property
    def area(self) -> float:
        return self.areas.mean().item()

    @property
    def random(self) -> float:
        return self.random_areas.mean().item()

    @property
    def gain(self) -> float:
        """By which part of the random orders' area the order stays below it."""
        return 1 - self.area / self.random

    @property
    def error(self) -> float:
        """The standard error of how far the order stays below random ones, over the samples; nan for one sample."""
        saved = self.random_areas - self.areas
        return (saved.std() / len(saved) ** 0.5).item() if len(saved) > 1 else float("nan")

    @property
    def wins(self) -> int:
        """On how many samples the order is better than random ones."""
        return int((self.areas < self.random_areas).sum())


def compare(
    area: Callable[[Tensor], Tensor], orders: Mapping[str, Tensor], randoms: Iterator[Tensor]
) -> Iterator[Flipping]:
    """Each order beside random ones. `area`: scores -> the samples' areas (N,). `randoms`: scores of random orders."""
    random_areas = torch.stack([area(scores) for scores in randoms]).mean(0)
    for name, scores in orders.items():
        yield Flipping(name, area(scores), random_areas)


def pixel_flipping(predict: Predict, x: Tensor, scores: Tensor, target: Tensor, baseline: float = 0.0) -> Tensor:
    """The probability of the target class (N, P + 1) as the P pixels are replaced, those of highest score first.

    `predict`: images (N, C, H, W) -> logits (N, classes), called once with all steps of all images. `scores`: as `x`,
    summed over channels. `target`: classes (N,). `baseline`: what replaces a pixel. Ties go by position. The first
    column is the probability for the image as it is, the last one for the baseline alone.
    """
    order = scores.sum(1).flatten(1).argsort(dim=1, descending=True, stable=True)
    steps = torch.arange(order.shape[1] + 1)
    flipped = (order.argsort(dim=1)[:, None] < steps[:, None]).reshape(len(x), len(steps), 1, *x.shape[2:])
    images = torch.where(flipped, baseline, x[:, None])
    probabilities = predict(images.flatten(0, 1)).softmax(1).reshape(len(x), len(steps), -1)
    return probabilities[torch.arange(len(x)), :, target]


def patch_flipping(
    predict: Predict, x: Tensor, scores: Tensor, target: Tensor, baseline: Tensor, patch: int = 16, steps: int = 10
) -> Tensor:
    """The probability of the target class (N, steps + 1) as patches are replaced, those of highest total first.

    `predict`: images (N, C, H, W) -> logits (N, classes), called for one image's steps at a time. `scores`: as `x`,
    summed over channels and each patch. `target`: classes (N,). `baseline`: as `x`, what replaces a patch. `patch`: its
    side in pixels, which divides the image's. `steps`: how many, as nearly equal as may be. Ties go by position.
    """
    totals = torch.nn.functional.avg_pool2d(scores.sum(1, keepdim=True), patch)
    ranks = totals.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).reshape(totals.shape)
    until = torch.linspace(0, totals[0].numel(), steps + 1).round()[:, None, None, None]
    curves = []
    for one, other, rank, index in zip(x, baseline, ranks, target, strict=True):
        flipped = (rank < until).repeat_interleave(patch, -1).repeat_interleave(patch, -2)
        images = torch.where(flipped, other, one).contiguous(memory_format=torch.channels_last)  # a third faster
        curves.append(predict(images).softmax(1)[:, index])
    return torch.stack(curves)


def area_under(curves: Tensor) -> Tensor:
    """The areas (N,) under curves (N, P + 1) over the part of the pixels that was replaced, from 0 to 1."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)


def table(flipping: list[Flipping], title: str, console: Console) -> None:
    """Print the areas, and how far they stay below those of random orders."""
    from rich.table import Table

    listed = Table("order", title=title, title_justify="left")
    for heading in ("area", "below random", "better on"):
        listed.add_column(heading, justify="right")
    for one in flipping:
        saved, count = one.random - one.area, f"{one.wins} of {len(one.areas)}"
        listed.add_row(one.order, f"{one.area:.3f}", f"{saved:.3f} ± {one.error:.3f}", count)
    listed.add_section()
    listed.add_row("random order", f"{flipping[0].random:.3f}")
    console.print(listed)
