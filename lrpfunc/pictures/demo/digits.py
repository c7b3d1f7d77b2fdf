"""The demo with handwritten digits: several composites, one picture, and figures on what the heatmaps are worth.

`measure` does the work and returns what it found, `tables` prints it with rich.
"""

from __future__ import annotations

import statistics
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import lrpfunc
from lrpfunc import composites, digits, heatmaps
from lrpfunc.composites import Composite
from lrpfunc.errors import InputError
from lrpfunc.pictures.demo.flipping import Flipping, area_under, compare, pixel_flipping, table

if TYPE_CHECKING:
    from rich.console import Console

COMPOSITES: Mapping[str, Composite] = {
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(low=0.0, high=1.0),
    "guided_backprop": composites.guided_backprop(),
}
INK_FIRST = "ink first (no model)"
RANDOM_ORDERS = 10
REPEATS = 5


class Map(NamedTuple):
    """One heatmap: of which digit (its class) under which composite, the explained logit, what it sums to, the time."""

    composite: str
    digit: int
    logit: float
    total: float
    milliseconds: float
    relevance: Tensor


class Result(NamedTuple):
    """What the demo found. `flipping` has one entry per composite, then one for the order by ink alone."""

    maps: list[Map]
    flipping: list[Flipping]
    digits_flipped: int
    path: Path


def measure(out: str | Path, count: int = 6, seed: int = 0) -> Result:
    """Explain `count` sample digits under all `COMPOSITES`, write the picture, flip the pixels of all sample digits.

    The class explained is the one that the network predicts. `seed` chooses the digits and the random orders.
    Errors: `InputError` for a count beyond the sample digits; those of `heatmaps.save`.
    """
    path = heatmaps.check_path(out)
    model, images, labels = digits.load()
    if not 1 <= count <= len(images):
        raise InputError(f"the demo has 1 to {len(images)} digits to show, but {count} were asked for.")
    generator = torch.Generator().manual_seed(seed)
    with digits.single_thread():
        fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model, images))
        logits = fmodel(params, images)
        chosen = _shuffled_in_tens(len(images), generator)[:count]
        maps = [
            _timed_map(fmodel, params, images[i : i + 1], name, int(labels[i]), logits[i].max().item())
            for name in COMPOSITES
            for i in chosen.tolist()
        ]
        flipping = _compare_orders(fmodel, params, images, generator)
    predictions = logits.argmax(1)
    rows = [f"true {int(labels[i])}\npredicted {int(predictions[i])}" for i in chosen]
    heatmaps.save(_picture(images[chosen], rows, maps), path)
    return Result(maps, flipping, len(images), path)


def _shuffled_in_tens(count: int, generator: torch.Generator) -> Tensor:
    """Indices in random order, but ten by ten: as samples come ten by ten, 0 to 9, the first few differ in class."""
    tens = torch.arange(count).split(10)
    return torch.cat([ten[torch.randperm(len(ten), generator=generator)] for ten in tens])


def _timed_map(fmodel, params, x: Tensor, name: str, digit: int, logit: float) -> Map:
    """A heatmap of one digit, and the median time of a few calls after the first, which warms up."""
    relevance = lrpfunc.attribute(fmodel, params, x, COMPOSITES[name])
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        lrpfunc.attribute(fmodel, params, x, COMPOSITES[name])
        times.append(time.perf_counter() - start)
    return Map(name, digit, logit, relevance.sum().item(), 1e3 * statistics.median(times), relevance)


# -- pixel flipping ---------------------------------------------------------------------------------------------------


def _compare_orders(fmodel, params, images: Tensor, generator: torch.Generator) -> list[Flipping]:
    """Pixel flipping to blank paper (0), by the relevance of each composite, by ink, and by random orders.

    Blank paper is what a digit leaves where it is not: pictures in between look like digits half erased. The choice
    matters. Random orders waste half their steps on pixels that are blank already, so they are easy to beat; the order
    by ink alone, which knows no model, says how easy. The other common choice, the mean of the training digits pixel by
    pixel, is itself taken for a digit, with probability 0.76. With it the shipped network has the areas 0.45 for random
    orders, 0.37 epsilon, 0.46 epsilon_plus, 0.25 for both with a flat first layer, 0.21 epsilon_gamma_box, 0.59
    guided_backprop, 0.47 for ink: epsilon_plus and guided_backprop are then no better than random.
    """
    target = fmodel(params, images).argmax(1)

    def area(scores: Tensor) -> Tensor:
        return area_under(pixel_flipping(lambda x: fmodel(params, x), images, scores, target))

    orders = {name: lrpfunc.attribute(fmodel, params, images, rules) for name, rules in COMPOSITES.items()}
    randoms = (torch.rand(images.shape, generator=generator) for _ in range(RANDOM_ORDERS))
    return list(compare(area, orders | {INK_FIRST: images}, randoms))


# -- what people see --------------------------------------------------------------------------------------------------


def _picture(images: Tensor, rows: list[str], maps: list[Map]):
    columns = [heatmaps.heatmap(images, "gray_r", limits=(0, 1))]
    for name in COMPOSITES:
        columns.append(heatmaps.heatmap(torch.cat([m.relevance for m in maps if m.composite == name])))
    return heatmaps.figure(
        list(zip(*columns, strict=True)),
        columns=["input", *map(_in_lines, COMPOSITES)],
        rows=rows,
        title="Which pixels speak for the predicted digit?",
        caption="Every map has its own scale: its largest value has the darkest colour.",
        scale=("against", "nothing", "for the predicted digit"),
    )


def _in_lines(name: str) -> str:
    """A composite's name, broken at underscores so that it fits above a column."""
    return textwrap.fill(name.replace("_", "_ "), 16).replace("_ ", "_")


def tables(result: Result, console: Console) -> None:
    """Print the figures of each map and of the pixel flipping."""
    from rich.table import Table

    maps = Table("composite", title="Heatmaps", title_justify="left")
    for heading in ("digit", "logit", "relevance sum", "ms"):
        maps.add_column(heading, justify="right")
    for i, m in enumerate(result.maps):
        last = i + 1 == len(result.maps) or result.maps[i + 1].composite != m.composite
        maps.add_row(
            m.composite, str(m.digit), f"{m.logit:.2f}", f"{m.total:.2f}", f"{m.milliseconds:.1f}", end_section=last
        )
    console.print(maps)
    console.print(
        "Between a sum and its logit lies the share of the biases (the folded batch norms). guided_backprop is a "
        "gradient and has no total to keep. ms: one digit, one thread, median of "
        f"{REPEATS} after a warm-up.\n",
        style="dim",
        highlight=False,
    )

    table(result.flipping, "Pixel flipping: area under the curve", console)
    console.print(
        f"Mean over {result.digits_flipped} held-out digits of the predicted class's probability, as pixels turn "
        f"blank, most relevant first; lower is better. below random: how far the area is below that of random orders "
        f"(mean of {RANDOM_ORDERS}), ± its standard error over digits. Random orders waste steps on pixels that are "
        "blank already; the order by ink alone, without the model, is the higher bar.\n",
        style="dim",
        highlight=False,
    )
