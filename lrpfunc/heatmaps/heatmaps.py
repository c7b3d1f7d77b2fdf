"""Heatmaps: relevance as pictures, and where relevance went as a figure.

`heatmap`, `overlay` and `grid` give PIL images, `show`, `figure` and `flow` matplotlib figures, `colorize` arrays.
matplotlib is imported where it is used, and only through its object-oriented interface: pyplot and its global state
stay untouched.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lrpfunc.attribution import Entry, Ledger, Target, ledger
from lrpfunc.composites import Entries
from lrpfunc.errors import InputError, near_misses
from lrpfunc.operations import CONVOLUTION, DENSE
from lrpfunc.program import Program

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image

COLORS = "seismic"
Limits = tuple[float | None, float | None] | None
PLAIN: dict[str, Any] = {"parse_math": False}  # for words of the user's, in which a dollar is a dollar


# -- colours ----------------------------------------------------------------------------------------------------------

# zennit's colour maps as (position, colour) pairs, where matplotlib has none of that name or another one.
ZENNIT: dict[str, Sequence[tuple[float, str]]] = {
    "wred": ((0, "#ffffff"), (1, "#ff0000")),
    "wblue": ((0, "#ffffff"), (1, "#0000ff")),
    "cold": ((0, "#000000"), (1 / 2, "#0000ff"), (1, "#00ffff")),
    "coldnhot": ((0, "#00ffff"), (1 / 4, "#0000ff"), (1 / 2, "#000000"),
                 (0.6654, "#ff0000"), (0.8307, "#ffff00"), (1, "#ffffff")),
    "france": ((0, "#0055a4"), (1 / 2, "#ffffff"), (1, "#ef4135")),
    "coolio": ((0, "#00d0d0"), (1 / 2, "#d0d0d0"), (1, "#d000d0")),
    "coleus": ((0, "#00d000"), (1 / 2, "#d0d0d0"), (1, "#d000d0")),
    "zennit:hot": ((0, "#000000"), (1 / 3, "#ff0000"), (2 / 3, "#ffff00"), (1, "#ffffff")),
    "zennit:seismic": ((0, "#0000d0"), (1 / 2, "#d0d0d0"), (1, "#d00000")),
}  # fmt: skip


def colormap(colors: str | Colormap) -> Colormap:
    """A matplotlib colour map with 257 colours, so that the middle of its range, zero, has one of its own.

    `colors`: a colour map, or the name of one of matplotlib's or of zennit's: wred, wblue, cold, coldnhot, france,
    coolio, coleus. "gray" and "bwr" are the same in both. "hot" and "seismic" are not, and mean matplotlib's;
    zennit's are "zennit:hot" and "zennit:seismic". Errors: `InputError` for an unknown name.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Colormap, LinearSegmentedColormap

    if isinstance(colors, Colormap):
        return colors.resampled(257)
    if colors in ZENNIT:
        return LinearSegmentedColormap.from_list(colors, ZENNIT[colors], N=257)
    if colors not in colormaps:
        hint = near_misses(str(colors), [*ZENNIT, *colormaps])
        raise InputError(
            f"no colour map is called {colors!r}.{hint} There are those that matplotlib lists, and {', '.join(ZENNIT)}."
        )
    return colormaps[colors].resampled(257)


def colorize(
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
) -> np.ndarray:
    """`heatmap` as an array of bytes: (H, W, 3), or (N, H, W, 3) for a batch."""
    values = _summed(relevance)
    maps = values.reshape(-1, *values.shape[-2:])
    low, high = _scale(maps, limits, joint, quantile)
    return _colored(maps, low, high, colors).reshape(*values.shape, 3)


def _summed(relevance: Tensor | np.ndarray) -> np.ndarray:
    """Maps (H, W) or (N, H, W) in float64, checked."""
    values = _array(relevance).astype(np.float64)
    if values.ndim not in (2, 3, 4):
        raise InputError(
            f"a heatmap needs relevance of shape (H, W), (C, H, W) or (N, C, H, W), but got {values.shape}. "
            "Sum, index or reshape it first."
        )
    if values.size == 0:
        raise InputError(f"a heatmap needs at least one value, but the relevance has shape {values.shape}.")
    wrong = np.count_nonzero(~np.isfinite(values))
    if wrong:
        raise InputError(
            f"a heatmap needs finite relevance, but {wrong} of {values.size} values are nan or infinite. "
            "A larger stabilizer, or float32 instead of a half precision, often helps."
        )
    return values if values.ndim == 2 else values.sum(axis=-3)


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16


def _scale(maps: np.ndarray, limits: Limits, joint: bool, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """The low and the high end (N, 1, 1) of each map's colours, checked."""
    floor, ceiling = _checked(limits)
    if not 0 < quantile <= 1:
        raise InputError(f"quantile must be above 0 and at most 1, but is {quantile!r}.")
    magnitudes = np.abs(np.clip(maps, floor, ceiling))
    axes = (0, 1, 2) if joint else (1, 2)
    largest = magnitudes.max(axis=axes, keepdims=True)
    reached = np.quantile(magnitudes, quantile, axis=axes, keepdims=True)
    reached = np.where(reached > 0, reached, largest)  # nearly everything is zero
    reached = np.where(reached > 0, reached, 1.0)  # everything is, and any scale will do
    reached = np.broadcast_to(reached, (len(maps), 1, 1))
    low = np.full_like(reached, floor) if math.isfinite(floor) else -reached
    high = np.full_like(reached, ceiling) if math.isfinite(ceiling) else reached
    return low, high


def _checked(limits: Limits) -> tuple[float, float]:
    """Limits, an infinite one where the data are to decide."""
    low, high = (None, None) if limits is None else limits
    floor = -math.inf if low is None else float(low)
    ceiling = math.inf if high is None else float(high)
    is_finite = all(math.isfinite(end) for end in (low, high) if end is not None)
    beyond_zero = (high is None and floor > 0) or (low is None and ceiling < 0)
    if not is_finite or not floor < ceiling or beyond_zero:
        raise InputError(
            f"limits must be finite and rise, (low, high) with low < high, but are {limits!r}. "
            "Beside None, which leaves an end to the relevance, the other may not lie beyond zero."
        )
    return floor, ceiling


def _colored(maps: np.ndarray, low: np.ndarray, high: np.ndarray, colors: str | Colormap) -> np.ndarray:
    """Maps (N, H, W) as bytes (N, H, W, 3)."""
    return colormap(colors)((maps - low) / (high - low), bytes=True)[..., :3]


# -- pictures ---------------------------------------------------------------------------------------------------------


def heatmap(
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
) -> Image | list[Image]:
    """Relevance as an RGB image: one for (H, W) or (C, H, W), a list of them for a batch (N, C, H, W).

    Channels are summed. The colours run from -m to m, m the largest magnitude in each map, so that zero has the middle
    colour; with `joint` m is that of all maps together, and `quantile=0.99` takes the magnitude that 99% of the pixels
    stay below, unless it is zero, and clips to it. `limits=(low, high)` sets the scale in units of the relevance; None
    in place of an end leaves it to the relevance: (0, None) shows what is positive. `colors`: see `colormap`; by
    default blue for negative, white for zero, red for positive. `colorize` returns arrays.
    Errors: `InputError` for another rank, an empty map, values that are not finite, unknown colours, limits that do not
    rise, a quantile outside (0, 1].
    """
    from PIL import Image

    colored = colorize(relevance, colors, limits, joint, quantile)
    return Image.fromarray(colored) if colored.ndim == 3 else [Image.fromarray(one) for one in colored]


def overlay(
    image: Image | Sequence[Image] | Tensor | np.ndarray,
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    opacity: float = 1.0,
) -> Image | list[Image]:
    """Relevance over its input in gray: where it is zero the input shows, where it is largest only the colour.

    Between, the colour of R covers by `opacity` * abs(R) / m, m the end of the scale; relevance as in `heatmap`, one
    image or a list. `image`: a PIL image or a list of them, an array of bytes (H, W), (H, W, 3) or (N, H, W, 3), or a
    tensor (H, W), (C, H, W) or (N, C, H, W) of values from 0 to 1 or of bytes, C being 1 or 3; one image serves all
    maps. Maps of another size are resized to the image's, bilinearly.
    Errors: `InputError` for values outside of [0, 1], another shape, number or aspect ratio, an opacity outside of
    [0, 1]; those of `heatmap`.
    """
    from PIL import Image

    if not 0 <= opacity <= 1:
        raise InputError(f"opacity must be from 0 to 1, but is {opacity!r}.")
    values = _summed(relevance)
    maps = values.reshape(-1, *values.shape[-2:])
    low, high = _scale(maps, limits, joint, quantile)
    overlaid = []
    for one, floor, ceiling, under in zip(maps, low, high, _one_per_map(image, maps), strict=True):
        resized = np.clip(_resized(one, under.size), floor, ceiling)
        color = _colored(resized, floor, ceiling, colors)
        cover = opacity * np.abs(resized / np.maximum(abs(floor), abs(ceiling)))[..., None]
        gray = np.asarray(under.convert("L"), dtype=np.float64)[..., None]
        overlaid.append(Image.fromarray(np.rint((1 - cover) * gray + cover * color).astype(np.uint8)))
    return overlaid[0] if values.ndim == 2 else overlaid


def _one_per_map(image: Image | Sequence[Image] | Tensor | np.ndarray, maps: np.ndarray) -> list[Image]:
    images = _images(image)
    if len(images) not in (1, len(maps)):
        raise InputError(f"{len(maps)} maps need as many images, or one for all, but got {len(images)}.")
    return images if len(images) == len(maps) else images * len(maps)


def _images(image: Image | Sequence[Image] | Tensor | np.ndarray) -> list[Image]:
    """PIL images of whatever may be given as input images."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return [image]
    if isinstance(image, Sequence):
        return [one for part in image for one in _images(part)]
    array = _array(image)
    if isinstance(image, Tensor) or array.dtype != np.uint8:
        array = array if array.ndim < 3 else np.moveaxis(array, -3, -1)
    if array.dtype != np.uint8:
        array = np.rint(255 * _unit(array)).astype(np.uint8)
    if array.ndim > 2 and array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    if array.ndim not in (2, 3, 4) or array.size == 0 or (array.ndim > 2 and array.shape[-1] != 3):
        raise InputError(
            "an image must be a PIL image, bytes (H, W), (H, W, 3) or (N, H, W, 3), or a tensor (H, W), (C, H, W) or "
            f"(N, C, H, W) with one or three channels, but has shape {tuple(np.shape(image))}."
        )
    return [Image.fromarray(one) for one in array] if array.ndim == 4 else [Image.fromarray(array)]


def _unit(array: np.ndarray) -> np.ndarray:
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise InputError(
            f"a tensor as image must lie in 0 to 1, but goes from {array.min():.3g} to {array.max():.3g}. "
            "If it was normalized for the model, undo that: image = x * std + mean, with one std and mean per channel."
        )
    return array


def _resized(one: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) at an image's size (width, height). Errors: `InputError` if it would be squeezed by over 2%."""
    from PIL import Image

    height, width = one.shape
    if (width, height) == size:
        return one
    ratio = (size[0] * height) / (size[1] * width)
    if not 0.98 < ratio < 1.02:
        raise InputError(
            f"relevance of {height} x {width} does not fit an image of {size[1]} x {size[0]} (height x width): "
            "crop the image as the model's input was cropped."
        )
    return np.asarray(Image.fromarray(one.astype(np.float32)).resize(size, Image.Resampling.BILINEAR), np.float64)


def grid(
    images: Sequence[Image] | Sequence[Sequence[Image]],
    columns: int | None = None,
    gap: int = 2,
    scale: int = 1,
    background: str = "white",
) -> Image:
    """Rows of images of one size, or a flat list in rows of `columns` (all in one), tiled into one image.

    `gap`: pixels between images. `scale`: how many times to repeat each pixel of tiny images. `figure` adds labels.
    Errors: `InputError` for no images, images of several sizes, rows of unequal length, numbers below one.
    """
    from PIL import Image

    rows = _rows(images, columns)
    if scale < 1 or gap < 0:
        raise InputError(f"a grid needs a scale >= 1 and a gap >= 0, but got {scale!r} and {gap!r}.")
    sizes = {image.size for row in rows for image in row}
    if len(sizes) > 1:
        raise InputError(f"a grid needs images of one size, but they have {sorted(sizes)}: resize them first.")
    width, height = (scale * side for side in sizes.pop())
    across = max(map(len, rows))
    tiled = Image.new("RGB", (across * (width + gap) - gap, len(rows) * (height + gap) - gap), background)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            tiled.paste(enlarged, (j * (width + gap), i * (height + gap)))
    return tiled


def _rows(images: Sequence[Any], columns: int | None) -> list[Sequence[Image]]:
    from PIL import Image

    if not all(isinstance(image, Image.Image) for image in images):
        if columns is not None:
            raise InputError("a grid takes `columns` with a flat list of images only: these are rows already.")
        _width(images)
        return list(images)
    columns = len(images) if columns is None else columns
    if not images or columns < 1:
        raise InputError(f"a grid needs one image and one column at least, but got {len(images)} and {columns!r}.")
    return [images[i : i + columns] for i in range(0, len(images), columns)]


# -- figures ----------------------------------------------------------------------------------------------------------


def figure(
    images: Sequence[Sequence[Image | np.ndarray]],
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    title: str = "",
    caption: str = "",
    scale: tuple[str, str, str] | None = None,
    colors: str | Colormap = COLORS,
) -> Figure:
    """A figure of rows of images, as `heatmap` or `colorize` return them, with labels above columns and before rows.

    `scale`: the words for the low end, the middle and the high end of a colour bar in `colors`; without, there is none.
    Errors: `InputError` for no images, for rows of unequal length, and for labels that are not one per column or row.
    """
    across = _columns(images, columns, rows)
    figure = new_figure(1.25 * across + 0.9, 1.25 * len(images) + 1.5)
    axes = figure.subplots(len(images), across, squeeze=False)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            _draw(axes[i, j], np.asarray(image))
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


def _columns(images: Sequence[Sequence[Any]], columns: Sequence[str], rows: Sequence[str]) -> int:
    """How many columns a figure has, once its labels are known to fit."""
    across = _width(images)
    for what, labels, needed in (("column", columns, across), ("row", rows, len(images))):
        if labels and len(labels) != needed:
            raise InputError(f"a grid needs one label per {what}, {needed}, but got {len(labels)}.")
    return across


def _width(images: Sequence[Sequence[Any]]) -> int:
    widths = {len(row) for row in images}
    if len(widths) != 1 or 0 in widths:
        raise InputError(f"a grid needs rows of equally many images, one at least, but they have {sorted(widths)}.")
    return widths.pop()


def _draw(axis: Any, image: np.ndarray, **keywords) -> Any:
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


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know of, and that a notebook shows all the same.

    IPython asks an object for `_repr_png_` only if no printer of PNGs is registered for its type; pyplot's inline
    backend registers one, so that a figure is shown once in either case.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    _write(figure, buffer, format="png")
    return buffer.getvalue()


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

    It displays itself in a notebook, without pyplot. `figure`: draw into this one, such as `plt.figure()` or a
    SubFigure, and return it. Relevance, colours and scale as in `heatmap`, images as in `overlay`, of any size.
    Errors: those of `heatmap` and `overlay`.
    """
    values = _summed(relevance)
    maps = values.reshape(-1, *values.shape[-2:])
    low, high = _scale(maps, limits, joint, quantile)
    images = [None] * len(maps) if image is None else _one_per_map(image, maps)
    across = 1 if image is None else 2
    figure = new_figure(2.6 * across + 0.9, 2.5 * len(maps) + 0.4 * bool(title)) if figure is None else figure
    axes = figure.subplots(len(maps), across, squeeze=False)
    for i, (one, under) in enumerate(zip(maps, images, strict=True)):
        if under is not None:
            _draw(axes[i, 0], np.asarray(under.convert("RGB")))
        drawn = _draw(axes[i, -1], one, cmap=colormap(colors), vmin=low[i].item(), vmax=high[i].item())
        bar = figure.colorbar(drawn, ax=axes[i, -1], fraction=0.05, pad=0.03)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set(color="0.75", linewidth=0.8)
        bar.set_label("relevance", fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", **PLAIN)
    return figure


# -- where relevance went ---------------------------------------------------------------------------------------------

NOTICEABLE = 1e-3  # of the seed, or of the largest share if that is larger
PASSED, ABSORBED, ADDED = "0.82", "tab:red", "tab:blue"


def flow(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    target: Target = None,
    title: str = "",
    figure: Figure | SubFigure | None = None,
) -> Any:
    """A figure of the ledger, the output at the top: what each layer gets and passes on, and what is left in all.

    Left: all relevance that is still on its way, from the seed to what arrives at the inputs, with what each layer
    absorbs: red, or blue where that is below zero. Right: what arrives at the layer and what it passes on. Equations
    without weights that absorb less than 0.1% of the seed are not shown; the total counts them. Sums are over the
    batch. `figure`: as in `show`. Arguments and errors: those of `attribute`.
    """
    return _draw_ledger(ledger(fmodel, params, x, rules, target), title, figure)


def _draw_ledger(account: Ledger, title: str, figure: Figure | SubFigure | None) -> Any:
    shown = _noticeable(account)
    figure = new_figure(9.5, 0.2 * len(shown) + 1.9) if figure is None else figure
    total, parts = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_total(total, account, shown)
    _draw_parts(parts, shown)
    positions = range(len(shown) + 2)
    total.set_yticks(positions, ["output", *(tail(entry.name) for entry, _ in shown), "inputs"], fontsize=8)
    total.set_ylim(len(shown) + 1.6, -0.6)
    rules = parts.secondary_yaxis("right")
    rules.set_yticks(positions, ["", *(_head(entry.rule) for entry, _ in shown), ""], fontsize=7.5, color="0.35")
    for axis in (total, parts, rules):
        axis.tick_params(axis="y", length=0)
        axis.spines[:].set_visible(False)
    for axis in (total, parts):
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.grid(axis="x", color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(axis="x", labelsize=8, length=0)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", **PLAIN)
    figure.supxlabel(_legend(account, len(account.entries) - len(shown)), fontsize=8.5, color="0.3")
    return figure


def _noticeable(account: Ledger) -> list[tuple[Entry, float]]:
    """The entries to show, each with all the relevance that is on its way after it."""
    scale = max([abs(account.seed), *(abs(entry.absorbed) for entry in account.entries)])
    left, shown = account.seed, []
    for entry in account.entries:
        left -= entry.absorbed
        if entry.kind in (CONVOLUTION, DENSE) or abs(entry.absorbed) > NOTICEABLE * scale:
            shown.append((entry, left))
    return shown


def _draw_total(axis: Any, account: Ledger, shown: Sequence[tuple[Entry, float]]) -> None:
    """What is left after each entry as a bar, and at its end what the entry absorbed."""
    left = [account.seed, *(after for _, after in shown), account.arrived]
    absorbed = [0.0, *(entry.absorbed for entry, _ in shown), 0.0]
    colors = [ABSORBED if share > 0 else ADDED for share in absorbed]
    axis.barh(range(len(left)), left, color=["0.45", *[PASSED] * len(shown), "0.45"], height=0.8)
    axis.barh(range(len(left)), absorbed, left=left, color=colors, height=0.8)
    reach = max(max(map(abs, left)), max(abs(after + share) for after, share in zip(left, absorbed, strict=True)))
    for i, (after, share) in enumerate(zip(left, absorbed, strict=True)):
        at_end = i in (0, len(left) - 1)
        if at_end or abs(share) > 0.01 * reach:
            end = max(after, after + share, 0.0)
            text = _short(after) if at_end else _short(-share, "+")
            color = "0.2" if at_end else colors[i]
            axis.text(end + 0.01 * reach, i, text, va="center", fontsize=7.5, color=color)
    axis.margins(x=0.1)
    axis.set_title("still on its way, in all layers together", fontsize=9, loc="left")


def _draw_parts(axis: Any, shown: Sequence[tuple[Entry, float]]) -> None:
    """What arrived at each entry and what it passed on."""
    for i, (entry, _) in enumerate(shown, start=1):
        axis.barh(i - 0.2, entry.arrived, color="0.65", height=0.36)
        axis.barh(i + 0.2, entry.passed_on, color="0.3", height=0.36)
    axis.set_title("arrived at the layer (light), passed on (dark)", fontsize=9, loc="left")


def _legend(account: Ledger, hidden: int) -> str:
    parts = [
        f"seed {_short(account.seed)}",
        f"at the inputs {_short(account.arrived)}",
        f"absorbed {_short(account.absorbed)} (red; blue: below zero)",
        "summed over the batch",
    ]
    return ", ".join(parts) + f"\nnot shown: {hidden} without weights that absorb nothing noticeable" * (hidden > 0)


def _short(value: float, sign: str = "") -> str:
    """Three digits at least, and no powers of ten where thousands can be read."""
    return format(value, f"{sign},.0f" if 1000 <= abs(value) < 1e6 else f"{sign}.3g")


def tail(name: str, length: int = 44) -> str:
    """The end of a long name: that is where layers differ."""
    return name if len(name) <= length else f"…{name[-length:]}"


def _head(rule: str, length: int = 30) -> str:
    return rule if len(rule) <= length else f"{rule[:length]}…"


# -- files ------------------------------------------------------------------------------------------------------------


def save(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write a figure in the format that its path's ending names (.png, .pdf, .svg, .jpg, ...) and return the path.

    Errors: as `check_path`; `OSError` where the system refuses to write.
    """
    path = check_path(path)
    _write(figure, path, dpi=dpi)
    return path


def _write(figure: Figure, file: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box stands for a letter without a font
        figure.savefig(file, **options)


def check_path(path: str | Path, formats: Collection[str] = ()) -> Path:
    """A path that a figure, or what has one of these `formats`, can be written to. Ask before long work, not after it.

    Errors: `InputError` for an ending that names no image format; `FileNotFoundError` for a folder that does not exist;
    `IsADirectoryError` if the path itself is a folder.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it, such as {path / 'heatmaps.png'}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}.")
    formats = formats or FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise InputError(f"cannot write {path}: its ending must name a format, one of {', '.join(formats)}.")
    return path
