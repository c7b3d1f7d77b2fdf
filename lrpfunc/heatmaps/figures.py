"""Figures of images with labels, and what figures are made of.

matplotlib is imported where it is used, and only through its object-oriented interface: pyplot and its global state
stay untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.colours import COLORS, colormap
from lrpfunc.heatmaps.files import png
from lrpfunc.heatmaps.inputs import rows_of_pictures
from lrpfunc.heatmaps.pictures import width_of

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image

FRAME: dict[str, Any] = {"color": "0.75", "linewidth": 0.8}
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
    Errors: `InputError` for no images, what is none, rows of unequal length, and for labels that are not text or not
    one per column or row.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> maps = heatmaps.heatmap(torch.randn(2, 1, 8, 8))
    >>> drawn = heatmaps.figure([maps], columns=["cat", "dog"], title="Which pixels count?")
    >>> [axis.get_title() for axis in drawn.axes]
    ['cat', 'dog']
    """
    shown = rows_of_pictures(images, is_array_fine=True)
    across = _columns(shown, columns, rows)
    for what, words in (("title", title), ("caption", caption)):
        checks.text(f"the {what}", words)
    figure = new_figure(1.25 * across + 0.9, 1.25 * len(shown) + 1.5)
    axes = figure.subplots(len(shown), across, squeeze=False)
    for i, row in enumerate(shown):
        for j, image in enumerate(row):
            draw_image(axes[i, j], image if isinstance(image, np.ndarray) else np.asarray(_rgb(image)))
    for axis, label in zip(axes[0], columns, strict=False):
        axis.set_title(label, fontsize=8.5, linespacing=1.15, **PLAIN)
    for axis, label in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center", labelpad=6, **PLAIN)
    write_title(figure, title)
    if scale is not None:
        _color_bar(figure, axes, scale, colors)
    if caption:
        figure.supxlabel(caption, fontsize=8.5, color="0.3", **PLAIN)
    return figure


# -- parts ------------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know of, and that a notebook shows all the same.

    IPython asks an object for `_repr_png_` only if no printer of PNGs is registered for its type; pyplot's inline
    backend registers one, so that a figure is shown once in either case.

    Args:
        width: in inches.
        height: in inches.
    Errors: `InputError` for sides that are not numbers above zero.

    >>> from lrpfunc import heatmaps
    >>> heatmaps.new_figure(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    from matplotlib.figure import Figure

    sides = [
        checks.number(f"a figure's {what}", side, "a number of inches above zero", above=0.0)
        for what, side in (("width", width), ("height", height))
    ]
    figure = Figure(figsize=(sides[0], sides[1]), layout="constrained", facecolor="white")
    figure._repr_png_ = partial(png, figure)  # type: ignore[attr-defined]
    return figure


def _columns(images: Sequence[Sequence[Any]], columns: Sequence[str], rows: Sequence[str]) -> int:
    """How many columns a figure has, once its labels are known to fit."""
    across = width_of(images)
    for what, labels, needed in (("column", columns, across), ("row", rows, len(images))):
        if checks.words(f"the labels of {what}s", labels) and len(labels) != needed:
            raise InputError(f"a grid needs one label per {what}, {needed}, but got {len(labels)}.")
    return across


def write_title(figure: Figure | SubFigure, title: str) -> None:
    if checks.text("the title", title):
        figure.suptitle(title, fontsize=12, fontweight="bold", **PLAIN)


def _rgb(image: Image) -> Image:
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def draw_image(axis: Any, image: np.ndarray, **keywords) -> Any:
    # Nearest: a heatmap says something about pixels, and smoothing would invent values between them.
    drawn = axis.imshow(image, **{"interpolation": "nearest", **keywords})
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(**FRAME)
    return drawn


def _color_bar(figure: Figure, axes: np.ndarray, words: tuple[str, str, str], colors: str | Colormap) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if len(checks.words("the scale", words)) != 3:
        raise InputError(f"the scale needs three texts, of its low end, middle and high end, but got {len(words)}.")
    values = ScalarMappable(Normalize(-1, 1), colormap(colors))
    bar = figure.colorbar(values, ax=axes, location="bottom", fraction=0.03, pad=0.02, aspect=60, shrink=0.6)
    bar.set_ticks([-1, 0, 1], labels=list(words))
    bar.ax.tick_params(length=0, labelsize=8.5)
    bar.outline.set(**FRAME)


def tail(name: str, length: int = 44) -> str:
    """The end of a long name: that is where layers differ.

    Args:
        name: of a layer.
        length: how many letters are kept.

    >>> from lrpfunc import heatmaps
    >>> heatmaps.tail("encoder.layers.11.attention", length=12)
    '…11.attention'
    """
    return name if len(checks.text("a name", name)) <= length else f"…{name[-length:]}"
