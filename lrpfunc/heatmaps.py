"""Heatmaps: relevance as colours, and grids of labelled heatmaps as figures.

`heatmap` turns relevance into RGB arrays, `grid` lays such arrays out, `save` writes the figure. matplotlib is imported
where it is used, and only through its object-oriented interface: pyplot and its global state stay untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError, near_misses

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

COLORS = "seismic"


def heatmap(
    relevance: Tensor | np.ndarray, colors: str = COLORS, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Relevance as RGB bytes: (H, W) or (C, H, W) gives (H, W, 3), and a batch (N, C, H, W) gives (N, H, W, 3).

    Channels are summed. The colours run from -m to m, m the largest magnitude in each map, so that zero has the middle
    colour and maps of one batch are scaled one by one; `limits=(low, high)` sets one scale for all and clips to it.
    `colors`: the name of a matplotlib colour map, by default blue for negative, white for zero, red for positive.
    Errors: `InputError` for another rank, an empty map, values that are not finite, unknown colours, unordered limits.
    """
    values = _summed(relevance)
    maps = values.reshape(-1, *values.shape[-2:])
    low, high = _symmetric(maps) if limits is None else _checked(limits)
    return _colormap(colors)((maps - low) / (high - low), bytes=True)[..., :3].reshape(*values.shape, 3)


def _summed(relevance: Tensor | np.ndarray) -> np.ndarray:
    """Maps (H, W) or (N, H, W) in float64, checked."""
    if isinstance(relevance, Tensor):
        values = relevance.detach().cpu().double().numpy()
    else:
        values = np.asarray(relevance, dtype=np.float64)
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


def _symmetric(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits -m and m of each map; 1 where a map is zero everywhere and any scale will do."""
    largest = np.abs(maps).max(axis=(-2, -1), keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    return -largest, largest


def _checked(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"limits must be finite and rise, (low, high) with low < high, but are {limits!r}.")
    return float(low), float(high)


def _colormap(name: str) -> Colormap:
    from matplotlib import colormaps

    if name not in colormaps:
        raise InputError(f"no colour map is called {name!r}.{near_misses(name, colormaps)} matplotlib lists them all.")
    # An odd number of colours: with matplotlib's usual 256 the middle, and thus zero, would fall between two of them.
    return colormaps[name].resampled(257)


def grid(
    images: Sequence[Sequence[np.ndarray]],
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    title: str = "",
    caption: str = "",
    scale: tuple[str, str, str] | None = None,
    colors: str = COLORS,
) -> Figure:
    """A figure of rows of RGB images, as `heatmap` returns them, with labels above the columns and before the rows.

    `scale`: the words for the low end, the middle and the high end of a colour bar in `colors`; without, there is none.
    Errors: `InputError` for no images, for rows of unequal length, and for labels that are not one per column or row.
    """
    from matplotlib.figure import Figure

    across = _columns(images, columns, rows)
    figure = Figure(figsize=(1.25 * across + 0.9, 1.25 * len(images) + 1.5), layout="constrained", facecolor="white")
    axes = figure.subplots(len(images), across, squeeze=False)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            _draw(axes[i, j], image)
    for axis, label in zip(axes[0], columns, strict=False):
        axis.set_title(label, fontsize=8.5, linespacing=1.15)
    for axis, label in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center", labelpad=6)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    if scale is not None:
        _color_bar(figure, axes, scale, colors)
    if caption:
        figure.supxlabel(caption, fontsize=8.5, color="0.3")
    return figure


def _columns(images: Sequence[Sequence[np.ndarray]], columns: Sequence[str], rows: Sequence[str]) -> int:
    """How many columns a grid has, once its labels are known to fit."""
    widths = {len(row) for row in images}
    if len(widths) != 1 or 0 in widths:
        raise InputError(f"a grid needs rows of equally many images, one at least, but they have {sorted(widths)}.")
    (across,) = widths
    for what, labels, needed in (("column", columns, across), ("row", rows, len(images))):
        if labels and len(labels) != needed:
            raise InputError(f"a grid needs one label per {what}, {needed}, but got {len(labels)}.")
    return across


def _draw(axis: Any, image: np.ndarray) -> None:
    # Nearest: a heatmap says something about pixels, and smoothing would invent values between them.
    axis.imshow(image, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color="0.75", linewidth=0.8)


def _color_bar(figure: Figure, axes: np.ndarray, words: tuple[str, str, str], colors: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = ScalarMappable(Normalize(-1, 1), _colormap(colors))
    bar = figure.colorbar(values, ax=axes, location="bottom", fraction=0.03, pad=0.02, aspect=60, shrink=0.6)
    bar.set_ticks([-1, 0, 1], labels=list(words))
    bar.ax.tick_params(length=0, labelsize=8.5)
    bar.outline.set(color="0.75", linewidth=0.8)


def save(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write a figure in the format that its path's ending names (.png, .pdf, .svg, .jpg, ...) and return the path.

    Errors: as `check_path`; `OSError` where the system refuses to write.
    """
    path = check_path(path)
    figure.savefig(path, dpi=dpi)
    return path


def check_path(path: str | Path) -> Path:
    """A path that a figure can be written to. Ask before long work, not after it.

    Errors: `InputError` for an ending that names no image format; `FileNotFoundError` for a folder that does not exist;
    `IsADirectoryError` if the path itself is a folder.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it, such as {path / 'heatmaps.png'}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}.")
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise InputError(f"cannot write {path}: its ending must name an image format, one of {', '.join(formats)}.")
    return path
