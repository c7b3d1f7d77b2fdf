"""Relevance as matplotlib figures with labels and colour bars.

matplotlib is imported where it is used, and only through its object-oriented interface: pyplot and its global state
stay untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps.colours import COLORS, Limits, colormap, scale_of, summed
from lrpfunc.heatmaps.files import png
from lrpfunc.heatmaps.pictures import one_per_map, width_of

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image

PLAIN: dict[str, Any] = {"parse_math": False}  # for words of the user's, in which a dollar is a dollar


def figure(
    images: Sequence[Sequence[Image | np.ndarray]],
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    title: str = "",
    caption: str = "",
    scale: tuple[str, str, str] | None = None,
    colors: str | Colormap = COLORS,
) -> Figure:
    """A figure of rows of images, with labels above columns and before rows.

    Args:
        images: rows of images or arrays, as `heatmap` or `colorize` return them.
        columns: a label for each column, or none.
        rows: a label for each row, or none.
        title: stands above all.
        caption: stands below all.
        scale: the words for the low end, the middle and the high end of a colour bar; without, there is none.
        colors: of that bar; see `colormap`.
    Errors: `InputError` for no images, for rows of unequal length, and for labels that are not one per column or row.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> maps = heatmaps.heatmap(torch.randn(2, 1, 8, 8))
    >>> drawn = heatmaps.figure([maps], columns=["cat", "dog"], title="Which pixels count?")
    >>> [axis.get_title() for axis in drawn.axes]
    ['cat', 'dog']
    """
    across = _columns(images, columns, rows)
    figure = new_figure(1.25 * across + 0.9, 1.25 * len(images) + 1.5)
    axes = figure.subplots(len(images), across, squeeze=False)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            _draw_image(axes[i, j], np.asarray(image))
    for axis, label in zip(axes[0], columns, strict=False):
        axis.set_title(label, fontsize=8.5, linespacing=1.15, **PLAIN)
    for axis, label in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center", labelpad=6, **PLAIN)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", **PLAIN)
    if scale is not None:
        _color_bar(figure, axes, scale, colors)
    if caption:
        figure.supxlabel(caption, fontsize=8.5, color="0.3", **PLAIN)
    return figure


def show(
    relevance: Tensor | np.ndarray,
    image: Image | Sequence[Image] | Tensor | np.ndarray | None = None,
    title: str = "",
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    figure: Figure | SubFigure | None = None,
) -> Any:
    """A figure of heatmaps with a colour bar in units of the relevance, the input beside each; a batch gives rows.

    It displays itself in a notebook, without pyplot.

    Args:
        relevance: as in `heatmap`.
        image: the input or inputs as in `overlay`, of any size, or None to show none.
        title: stands above all.
        colors: see `colormap`.
        limits: as in `heatmap`, as are the next two.
        joint: one scale for all maps.
        quantile: of the magnitudes that the colours reach to.
        figure: draw into this one, such as `plt.figure()` or a SubFigure, and return it.
    Errors: those of `heatmap` and `overlay`.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> drawn = heatmaps.show(torch.tensor([[-2.0, 1.0]]), torch.rand(1, 1, 2))
    >>> picture, heatmap, bar = drawn.axes
    >>> bar.get_ylabel(), heatmap.images[0].get_clim()
    ('relevance', (-2.0, 2.0))
    """
    values = summed(relevance)
    maps = values.reshape(-1, *values.shape[-2:])
    low, high = scale_of(maps, limits, joint, quantile)
    images = [None] * len(maps) if image is None else one_per_map(image, maps)
    across = 1 if image is None else 2
    figure = new_figure(2.6 * across + 0.9, 2.5 * len(maps) + 0.4 * bool(title)) if figure is None else figure
    axes = figure.subplots(len(maps), across, squeeze=False)
    for i, (one, under) in enumerate(zip(maps, images, strict=True)):
        if under is not None:
            _draw_image(axes[i, 0], np.asarray(under.convert("RGB")))
        drawn = _draw_image(axes[i, -1], one, cmap=colormap(colors), vmin=low[i].item(), vmax=high[i].item())
        bar = figure.colorbar(drawn, ax=axes[i, -1], fraction=0.05, pad=0.03)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set(color="0.75", linewidth=0.8)
        bar.set_label("relevance", fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", **PLAIN)
    return figure


# -- parts ------------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know of, and that a notebook shows all the same.

    IPython asks an object for `_repr_png_` only if no printer of PNGs is registered for its type; pyplot's inline
    backend registers one, so that a figure is shown once in either case.

    Args:
        width: in inches.
        height: in inches.

    >>> from lrpfunc import heatmaps
    >>> heatmaps.new_figure(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure._repr_png_ = partial(png, figure)  # type: ignore[attr-defined]
    return figure


def _columns(images: Sequence[Sequence[Any]], columns: Sequence[str], rows: Sequence[str]) -> int:
    """How many columns a figure has, once its labels are known to fit."""
    across = width_of(images)
    for what, labels, needed in (("column", columns, across), ("row", rows, len(images))):
        if labels and len(labels) != needed:
            raise InputError(f"a grid needs one label per {what}, {needed}, but got {len(labels)}.")
    return across


def _draw_image(axis: Any, image: np.ndarray, **keywords) -> Any:
    # Nearest: a heatmap says something about pixels, and smoothing would invent values between them.
    drawn = axis.imshow(image, interpolation="nearest", **keywords)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color="0.75", linewidth=0.8)
    return drawn


def _color_bar(figure: Figure, axes: np.ndarray, words: tuple[str, str, str], colors: str | Colormap) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = ScalarMappable(Normalize(-1, 1), colormap(colors))
    bar = figure.colorbar(values, ax=axes, location="bottom", fraction=0.03, pad=0.02, aspect=60, shrink=0.6)
    bar.set_ticks([-1, 0, 1], labels=list(words))
    bar.ax.tick_params(length=0, labelsize=8.5)
    bar.outline.set(color="0.75", linewidth=0.8)


def tail(name: str, length: int = 44) -> str:
    """The end of a long name: that is where layers differ.

    Args:
        name: of a layer.
        length: how many letters are kept.

    >>> from lrpfunc import heatmaps
    >>> heatmaps.tail("encoder.layers.11.attention", length=12)
    '…11.attention'
    """
    return name if len(name) <= length else f"…{name[-length:]}"
