"""Volumes as figures: slices across their axes, and projections along them, over the input in gray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.colours import COLORS, Limits, Scale, colored, colormap, scale_of
from lrpfunc.heatmaps.figures import draw_image, new_figure, write_title
from lrpfunc.heatmaps.maps import as_array, check_values, sum_of_channels
from lrpfunc.heatmaps.pictures import mixed
from lrpfunc.heatmaps.sheets import color_bar, unit_of

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

Window = tuple[float, float] | None
AXES = ("depth", "height", "width")
TILE = 1.6  # inches


def slices(
    relevance: Tensor | np.ndarray,
    volume: Tensor | np.ndarray | None = None,
    axis: int | None = None,
    count: int = 5,
    at: Sequence[int] | None = None,
    window: Window = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    title: str = "",
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    quantile: float = 1.0,
    opacity: float = 1.0,
    figure: Figure | SubFigure | None = None,
) -> Any:
    """A figure of a volume's relevance: slices, and at the right the largest relevance along the axis, with its sign.

    A row for each axis; all pictures have one scale. The projection shows for each line of voxels the relevance of the
    largest magnitude, over the largest value of the volume. Colours cover the volume as in `overlay`.

    Args:
        relevance: (D, H, W) or (C, D, H, W), in any units; channels are summed.
        volume: the input, of the same shape or without channels (else their mean is shown), in any units, or None.
        axis: 0 for slices across the depth, 1 the height, 2 the width; None for all three.
        count: how many slices, evenly spread.
        at: the numbers of the slices instead, counted from 0; needs an axis.
        window: (low, high), the values of the volume that are black and white; its least and largest, unless given.
        spacing: the sides of a voxel in depth, height and width, in any unit.
        title: stands above all.
        colors, limits, quantile: as in `heatmap`.
        opacity: as in `overlay`.
        figure: draw into this one, as in `show`.
    Errors: `InputError` for another rank, values that are not finite, a volume of another shape, slices beyond the
    volume, a window or spacing that is none, and what is of another type; those of `heatmap` for the scale.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> drawn = heatmaps.slices(torch.randn(9, 6, 6), torch.rand(9, 6, 6), axis=0, count=2)
    >>> [axis.get_title() for axis in drawn.axes]
    ['depth 2', 'depth 6', 'largest along depth', '']
    """
    found = _relevance(relevance)
    window = _window(window)
    gray = None if volume is None else _gray(volume, found.shape, np.shape(relevance), window)
    chosen, sides = _chosen(found.shape, axis, count, at), _sides(spacing)
    scale = scale_of(found.reshape(1, len(found), -1), limits, False, quantile).of(0)
    opacity = checks.number("opacity", opacity, "from 0 to 1", low=0.0, high=1.0)
    colors, figure, title = colormap(colors), checks.canvas(figure), checks.text("the title", title)
    return _drawn(_Volume(found, gray, chosen, sides), _Look(scale, colors, opacity), title, figure)


# -- what is drawn ----------------------------------------------------------------------------------------------------


class _Volume(NamedTuple):
    """What is to be drawn, checked: relevance and gray (D, H, W), slices across each axis, and the sides of a voxel."""

    relevance: np.ndarray
    gray: np.ndarray | None
    chosen: dict[int, list[int]]
    sides: list[float]

    def pictures(self, axis: int) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """The slices and the projection, of relevance and of gray."""
        numbers, gray = self.chosen[axis], self.gray
        maps = [*(self.relevance.take(number, axis) for number in numbers), projected(self.relevance, axis)]
        if gray is None:
            return maps, [None] * len(maps)
        return maps, [*(gray.take(number, axis) for number in numbers), gray.max(axis)]


class _Look(NamedTuple):
    """How it is coloured."""

    scale: Scale
    colors: Colormap
    opacity: float

    def of(self, one: np.ndarray, under: np.ndarray | None) -> np.ndarray:
        if under is None:
            return colored(one, self.scale, self.colors)
        return mixed(under, one, self.scale, self.colors, self.opacity)


def _relevance(relevance: Any) -> np.ndarray:
    """(D, H, W) in float64, checked."""
    found = as_array("relevance", relevance).astype(np.float64)
    if found.ndim not in (3, 4):
        hint = "Take one sample of the batch." if found.ndim == 5 else "heatmaps.heatmap draws maps."
        raise InputError(f"slices need relevance of shape (D, H, W) or (C, D, H, W), but got {found.shape}. {hint}")
    check_values("a figure of slices", found)
    return found if found.ndim == 3 else sum_of_channels(found, 0)


def _gray(volume: Any, shape: tuple[int, ...], given: tuple[int, ...], window: Window) -> np.ndarray:
    """The volume (D, H, W) from 0 to 255."""
    values = as_array("the volume", volume).astype(np.float64)
    if values.shape not in (shape, tuple(given)):
        raise InputError(
            f"the volume must have the shape of the relevance, {tuple(given)}, or {shape}, but has {values.shape}."
        )
    if not np.isfinite(values).all():
        raise InputError("the volume must be finite, but has values that are nan or infinite: fill them first.")
    values = values if values.ndim == 3 else (values / len(values)).sum(axis=0)
    low, high = (values.min(), values.max()) if window is None else window
    reach = max(abs(low), abs(high)) or 1.0
    low, high, values = low / reach, high / reach, np.clip(values, low, high) / reach
    return 255 * (values - low) / ((high - low) or 1.0)


def _window(window: Any) -> Window:
    if window is None:
        return None
    low, high = (checks.number("each end of window", end) for end in checks.pair("window", window))
    if not low < high:
        raise InputError(f"window must rise, (low, high) with low < high, but is {window!r}.")
    return low, high


def _chosen(shape: tuple[int, ...], axis: Any, count: Any, at: Any) -> dict[int, list[int]]:
    """The numbers of the slices across each axis."""
    if axis is not None and (checks.whole("axis", axis) not in (0, 1, 2)):
        raise InputError(f"axis must be 0, 1, 2 or None, but is {axis!r}.")
    if checks.whole("count", count) < 1:
        raise InputError(f"count must be one or more, but is {count!r}.")
    if at is not None:
        return _given(shape, axis, at)
    axes = (0, 1, 2) if axis is None else (int(axis),)
    return {i: sorted({int((k + 0.5) * shape[i] / count) for k in range(count)}) for i in axes}


def _given(shape: tuple[int, ...], axis: Any, at: Any) -> dict[int, list[int]]:
    if not isinstance(at, list | tuple | range) or not at:
        checks.refuse("at", "a list of numbers of slices", at)
    if axis is None:
        raise InputError("at needs an axis across which the slices are: axis=0, 1 or 2.")
    numbers = [checks.whole("each of at", one) for one in at]
    beyond = [number for number in numbers if not 0 <= number < shape[axis]]
    if beyond:
        raise InputError(f"at must name slices from 0 to {shape[axis] - 1}, but has {beyond[0]}.")
    return {int(axis): numbers}


def _sides(spacing: Any) -> list[float]:
    if not isinstance(spacing, tuple | list) or len(spacing) != 3:
        checks.refuse("spacing", "three numbers, for depth, height and width", spacing)
    return [checks.number("each of spacing", side, "a number above zero", above=0.0) for side in spacing]


def projected(values: np.ndarray, axis: int) -> np.ndarray:
    """Of each line along an axis what has the largest magnitude."""
    most, least = values.max(axis=axis), values.min(axis=axis)
    return np.where(most >= -least, most, least)


# -- drawing ----------------------------------------------------------------------------------------------------------


def _drawn(volume: _Volume, look: _Look, title: str, figure: Any) -> Any:
    figure, axes = _axes(figure, volume, title)
    for row, (i, numbers) in zip(axes, volume.chosen.items(), strict=True):
        words = [*(f"{AXES[i]} {number}" for number in numbers), f"largest along {AXES[i]}"]
        down, across = (side for j, side in enumerate(volume.sides) if j != i)
        for place, one, under, label in zip(row, *volume.pictures(i), words, strict=False):
            _draw(place, look.of(one, under), down / across, label)
    _bar(figure, axes, look)
    write_title(figure, title)
    return figure


def _axes(figure: Any, volume: _Volume, title: str) -> tuple[Any, np.ndarray]:
    """A row of axes for each axis of the volume, as high as its pictures are."""
    heights = []
    for i in volume.chosen:
        down, across = (volume.relevance.shape[j] * volume.sides[j] for j in range(3) if j != i)
        heights.append(TILE * min(max(down / across, 0.25), 3.0) + 0.25)
    columns = max(map(len, volume.chosen.values())) + 1
    if figure is None:
        figure = new_figure((TILE + 0.1) * columns + 0.9, sum(heights) + 0.4 * bool(title))
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for row, numbers in zip(axes, volume.chosen.values(), strict=True):
        for unused in row[len(numbers) + 1 :]:
            unused.set_axis_off()
    return figure, axes


def _draw(place: Any, shown: np.ndarray, aspect: float, label: str) -> None:
    is_small = max(shown.shape) > TILE * place.figure.dpi  # its pixels are, and nearest would leave most out
    draw_image(place, shown, interpolation="antialiased" if is_small else "nearest")
    place.set_aspect(aspect)
    place.set_title(label, fontsize=8)


def _bar(figure: Any, axes: np.ndarray, look: _Look) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = look.scale
    unit = unit_of(scale.reach.item())
    low, high = (end / unit for end in scale.ends(0, look.colors))
    values = ScalarMappable(Normalize(low, high), look.colors)
    limits = (scale.low.item() / unit, scale.high.item() / unit)
    color_bar(figure, values, unit, limits, ax=axes, fraction=0.03, pad=0.02)
