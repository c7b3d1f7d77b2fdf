"""Heatmaps beside their inputs in one figure, with their scales: a few in rows with colour bars, many in columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.colours import COLORS, Limits, Scale, colormap, is_diverging, scale_of
from lrpfunc.heatmaps.figures import FRAME, draw_image, new_figure, write_title
from lrpfunc.heatmaps.inputs import one_per_map
from lrpfunc.heatmaps.maps import summed

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image

FEW = 4  # so many maps have a colour bar each
AREA, WIDEST, NARROWEST = 120.0, 2.0, 0.75  # in inches: square ones of a sheet, and sides of a picture on it
GAP, BETWEEN, LINE = 0.05, 0.2, 0.19  # inside a pair, between pairs, and the height of a line of words
TOP, BOTTOM = 0.45, 0.6  # for a title, and for a colour bar


def show(
    relevance: Tensor | np.ndarray,
    image: Image | Sequence[Image] | Tensor | np.ndarray | None = None,
    title: str = "",
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    figure: Figure | SubFigure | None = None,
    channels: str = "sum",
    columns: int | None = None,
) -> Any:
    """A figure of heatmaps with their scales in units of the relevance, the input beside each.

    Up to four maps stand in rows, with a colour bar each. More stand in columns, numbered from 0, with the ends of
    their colours in writing. Where all have one scale there is one colour bar. It displays itself in a notebook,
    without pyplot.

    Args:
        relevance: as in `heatmap`.
        image: the input or inputs as in `overlay`, of any size, or None to show none.
        title: stands above all.
        colors: see `colormap`.
        limits: as in `heatmap`, as are the next two. A colour bar ends where the limits are.
        joint: one scale for all maps.
        quantile: of the magnitudes that the colours reach to.
        figure: draw into this one, such as `plt.figure()` or a SubFigure, and return it.
        channels: "sum", or "each" for a map of each channel.
        columns: how many maps, each with its input, stand in a row; as many as give a sheet of 4 to 3, unless given.
    Errors: those of `heatmap` and `overlay`; `InputError` for columns below one.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> drawn = heatmaps.show(torch.tensor([[-2.0, 1.0]]), torch.rand(1, 1, 2))
    >>> picture, heatmap, bar = drawn.axes
    >>> bar.get_ylabel(), heatmap.images[0].get_clim()
    ('relevance', (-2.0, 2.0))
    """
    values = summed(relevance, channels)
    maps = values.reshape(-1, *values.shape[-2:])
    scale = scale_of(maps, limits, joint, quantile)
    unders = [None] * len(maps) if image is None else one_per_map(image, values)
    figure, title = checks.canvas(figure), checks.text("the title", title)
    if columns is not None and checks.whole("columns", columns) < 1:
        raise InputError(f"columns must be one or more, but are {columns!r}.")
    cells = [_cell(one, under, scale, i, colors) for i, (one, under) in enumerate(zip(maps, unders, strict=True))]
    names = _names(values.shape[:-2], channels)
    if len(cells) <= FEW:
        return _rows(cells, names, title, figure, columns or 1)
    return _sheet(cells, names, title, figure, columns)


class Cell(NamedTuple):
    """A map to draw, in a unit that matplotlib can count in, with its input and the ends of its colours."""

    values: np.ndarray
    unit: float
    colors: Colormap
    ends: tuple[float, float]  # of the colours, in units
    limits: tuple[float, float]  # of what is shown of them
    under: Image | None


def _cell(one: np.ndarray, under: Image | None, scale: Scale, i: int, colors: str | Colormap) -> Cell:
    low, high, reach = (end.flat[i].item() for end in (scale.low, scale.high, scale.reach))
    unit = unit_of(reach)
    ends = (-reach / unit, reach / unit) if is_diverging(colors) else (low / unit, high / unit)
    clipped = np.clip(one, low, high) / unit
    return Cell(clipped, unit, colormap(colors), ends, (low / unit, high / unit), under)


def unit_of(reach: float) -> float:
    """1, or a power of ten for what is so small or large that matplotlib's arithmetic loses it."""
    return 1.0 if 1e-100 < reach < 1e100 else 10.0 ** max(math.floor(math.log10(reach)), -323)


def in_unit(words: str, unit: float) -> str:
    return words if unit == 1.0 else f"{words} in {unit:.0e}"


def _names(counts: tuple[int, ...], channels: str) -> list[str]:
    """The number of the sample, of the channel, or both."""
    if len(counts) == 2:
        return [f"{i}, channel {j}" for i in range(counts[0]) for j in range(counts[1])]
    return [f"channel {i}" if channels == "each" else str(i) for i in range(math.prod(counts))]


# -- a few ------------------------------------------------------------------------------------------------------------


def _rows(cells: Sequence[Cell], names: Sequence[str], title: str, figure: Any, columns: int) -> Any:
    columns = min(columns, len(cells))
    across = columns * (1 if cells[0].under is None else 2)
    down = -(-len(cells) // columns)
    height = 0.3 + 2.2 * min(max(cells[0].values.shape[0] / cells[0].values.shape[1], 0.3), 1.0)
    figure = figure or new_figure(2.6 * across + 0.9 * columns, height * down + 0.4 * bool(title))
    axes = figure.subplots(down, across, squeeze=False)
    shared = _share(cells)
    pairs = axes.reshape(down * columns, -1)
    for cell, pair in zip(cells, pairs, strict=False):
        drawn = _draw(pair, cell, "nearest")
        if not shared:
            color_bar(figure, drawn, cell.unit, cell.limits, ax=pair[-1], fraction=0.05, pad=0.03)
    if shared:
        color_bar(figure, drawn, cells[0].unit, cells[0].limits, ax=axes, fraction=0.05, pad=0.03)
    for unused in pairs[len(cells) :].flat:
        unused.set_axis_off()
    if "channel" in names[-1]:
        for name, pair in zip(names, pairs, strict=False):
            pair[-1].set_title(name, fontsize=8.5)
    write_title(figure, title)
    return figure


def _draw(pair: Sequence[Any], cell: Cell, interpolation: str) -> Any:
    if cell.under is not None:
        draw_image(pair[0], np.asarray(cell.under.convert("RGB")), interpolation=interpolation)
    low, high = cell.ends
    # Mixed as data: mixed as colours, red and blue would give a violet that means nothing.
    options: dict[str, Any] = {"interpolation": interpolation, "interpolation_stage": "data"}
    return draw_image(pair[-1], cell.values, cmap=cell.colors, vmin=low, vmax=high, **options)


def _share(cells: Sequence[Cell]) -> bool:
    """Whether several maps have one scale."""
    return len(cells) > 1 and len({(cell.unit, cell.ends, cell.limits) for cell in cells}) == 1


def color_bar(figure: Any, drawn: Any, unit: float, limits: tuple[float, float], **where: Any) -> None:
    """A bar in units of the relevance that shows no more than lies within the limits."""
    bar = figure.colorbar(drawn, **where)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set(**FRAME)
    bar.set_label(in_unit("relevance", unit), fontsize=8.5)
    (bar.ax.set_xlim if bar.orientation == "horizontal" else bar.ax.set_ylim)(*limits)


# -- many -------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Where things are, in inches: `width` and `height` of a picture, `whole` of the sheet, `top` over the pictures."""

    across: int  # pictures in a cell
    width: float
    height: float
    columns: int
    whole: tuple[float, float]
    top: float


def _sheet(cells: Sequence[Cell], names: Sequence[str], title: str, figure: Any, columns: int | None) -> Any:
    """Axes at places that are worked out here: a layout engine takes minutes for hundreds."""
    shared = _share(cells)
    room = None if figure is None else (figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi)
    layout = _layout(cells, columns, room, TOP * bool(title), BOTTOM * shared)
    if figure is None:
        figure = new_figure(*layout.whole)
        figure.set_layout_engine("none")
    elif hasattr(figure, "set_layout_engine") and not figure.axes:
        figure.set_layout_engine("none")  # it would complain that there is nothing for it to lay out
    # Of pixels that are smaller than dots, nearest would leave most out.
    is_small = max(cells[0].values.shape) > layout.width * figure.dpi
    for i, (cell, name) in enumerate(zip(cells, names, strict=True)):
        pair = [figure.add_axes(place) for place in _places(i, layout)]
        drawn = _draw(pair, cell, "antialiased" if is_small else "nearest")
        words = [name, *([] if shared else [_ends(cell)])]
        for axis, written in zip(pair, words if len(pair) == 2 else [": ".join(words)], strict=False):
            axis.set_xlabel(written, fontsize=7 if layout.width < 1.2 else 8, labelpad=2, color="0.25")
    if shared:
        bar = figure.add_axes((0.25, 0.42 / layout.whole[1], 0.5, 0.12 / layout.whole[1]))
        color_bar(figure, drawn, cells[0].unit, cells[0].limits, cax=bar, orientation="horizontal")
    write_title(figure, title)
    return figure


def _layout(
    cells: Sequence[Cell], columns: int | None, room: tuple[float, float] | None, top: float, bottom: float
) -> Layout:
    """The sheet that is asked for, or one of 4 to 3; in a room that is given, the one of the largest pictures."""
    across = 1 if cells[0].under is None else 2
    ratio = min(max(cells[0].values.shape[0] / cells[0].values.shape[1], 0.2), 5.0)
    gaps, words = (across - 1) * GAP + BETWEEN, LINE + 0.1
    around = (BETWEEN, 0.15 + top + bottom)
    if room is not None:
        fitting = {
            count: min(
                ((room[0] - around[0]) / count - gaps) / across,
                ((room[1] - around[1]) / -(-len(cells) // count) - words) / ratio,
            )
            for count in ([min(columns, len(cells))] if columns else range(1, len(cells) + 1))
        }
        columns = max(fitting, key=lambda count: fitting[count])
        width = max(fitting[columns], 0.01)  # no room at all
        return Layout(across, width, width * ratio, columns, room, top)
    side = min(max(math.sqrt(AREA / (len(cells) * across)) - BETWEEN, NARROWEST), WIDEST)
    width = side / math.sqrt(max(ratio, 1.0))
    cell = (across * width + gaps, width * ratio + words)
    columns = min(columns or max(1, round(math.sqrt(len(cells) * cell[1] / cell[0] * 4 / 3))), len(cells))
    whole = (columns * cell[0] + around[0], -(-len(cells) // columns) * cell[1] + around[1])
    return Layout(across, width, width * ratio, columns, whole, top)


def _places(i: int, layout: Layout) -> list[tuple[float, float, float, float]]:
    """Of a cell's pictures, as parts of the figure."""
    wide, high = layout.whole
    row, column = divmod(i, layout.columns)
    left = BETWEEN + column * (layout.across * layout.width + (layout.across - 1) * GAP + BETWEEN)
    lower = high - layout.top - 0.1 - row * (layout.height + LINE + 0.1) - layout.height
    size = (layout.width / wide, layout.height / high)
    return [((left + j * (layout.width + GAP)) / wide, lower / high, *size) for j in range(layout.across)]


def _ends(cell: Cell) -> str:
    """The ends of a map's colours in writing."""
    low, high = (end * cell.unit for end in cell.limits)
    return f"±{high:.3g}" if low == -high else f"{low:.3g} to {high:.3g}"
