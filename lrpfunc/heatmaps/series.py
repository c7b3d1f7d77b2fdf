"""Series and signals as figures: curves in the colours of their relevance, and the relevance as bars below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.colours import COLORS, Limits, Scale, colored, colormap, scale_of
from lrpfunc.heatmaps.figures import FRAME, PLAIN, new_figure, write_title
from lrpfunc.heatmaps.maps import as_array, check_values
from lrpfunc.heatmaps.sheets import in_unit, unit_of

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

MOST_ROWS = 64
MOST_COLUMNS = 2000  # of bars: a screen has no more dots


def lines(
    relevance: Tensor | np.ndarray,
    values: Tensor | np.ndarray | None = None,
    x: Tensor | np.ndarray | Sequence[float] | None = None,
    names: Sequence[str] = (),
    x_label: str = "step",
    unit: str = "",
    title: str = "",
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    figure: Figure | SubFigure | None = None,
) -> Any:
    """A figure of series: each channel is a row with its curve, coloured by relevance, and bars of relevance below it.

    All channels of a sample have one scale. Of more than 2000 steps each bar stands for several: it is as long as the
    largest relevance in them, and the curve goes through their least and largest value.

    Args:
        relevance: (T,), (C, T) or (N, C, T), in any units.
        values: the signal, of the same shape, or None for bars alone.
        x: where the steps are, T rising numbers such as seconds; 0, 1, 2, ... unless given.
        names: a name for each channel, or none.
        x_label, unit: what x is, and the unit of the values.
        title: stands above all.
        colors, limits, quantile: as in `heatmap`; the bars reach as far as the colours.
        joint: one scale for all samples.
        figure: draw into this one, as in `show`.
    Errors: `InputError` for another rank, values that are not finite or of another shape, an x that does not rise, more
    than 64 rows, names that are not one per channel, and what is of another type; those of `heatmap` for the scale.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> t = torch.linspace(0, 6.28, 100)
    >>> drawn = heatmaps.lines(t.cos(), t.sin(), t, x_label="time in s", unit="mV")
    >>> [axis.get_ylabel() for axis in drawn.axes], drawn.axes[1].get_xlabel()
    (['mV', ''], 'time in s')
    """
    series = _series(relevance, values, x, names)
    scale = scale_of(series.relevance, limits, joint, quantile)
    x_label, unit = checks.text("x_label", x_label), checks.text("unit", unit)
    colors, figure, title = colormap(colors), checks.canvas(figure), checks.text("the title", title)
    return _drawn(series, scale, colors, (x_label, unit, title), figure)


# -- what is drawn ----------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """What is to be drawn, checked: arrays (N, C, T), and a label for each of the N times C rows."""

    relevance: np.ndarray
    signal: np.ndarray | None
    places: np.ndarray
    labels: list[str]


def _series(relevance: Any, values: Any, x: Any, names: Any) -> Series:
    found = _relevance(relevance)
    signal = None if values is None else _signal(values, found.shape, np.shape(relevance))
    return Series(found, signal, _places(x, found.shape[-1]), _labels(names, found.shape))


def _relevance(relevance: Any) -> np.ndarray:
    """(N, C, T) in float64, checked."""
    found = as_array("relevance", relevance).astype(np.float64)
    if found.ndim not in (1, 2, 3):
        raise InputError(
            f"a plot of lines needs relevance of shape (T,), (C, T) or (N, C, T), but got {found.shape}. "
            "Sum or index it first."
        )
    check_values("a plot of lines", found)
    rows = found.size // found.shape[-1]
    if rows > MOST_ROWS:
        raise InputError(
            f"a plot of lines has room for {MOST_ROWS} rows, but relevance of shape {found.shape} has {rows}: choose "
            "some, sum over channels, or, if time is not the last axis, swap them: relevance.swapaxes(-1, -2)."
        )
    return found.reshape((1,) * (3 - found.ndim) + found.shape)


def _signal(values: Any, shape: tuple[int, ...], given: tuple[int, ...]) -> np.ndarray:
    signal = as_array("values", values).astype(np.float64)
    if signal.shape != tuple(given):
        raise InputError(f"values must have the shape of the relevance, {tuple(given)}, but have {signal.shape}.")
    wrong = np.count_nonzero(~np.isfinite(signal))
    if wrong:
        raise InputError(f"values must be finite, but {wrong} of {signal.size} are nan or infinite: fill gaps first.")
    return signal.reshape(shape)


def _places(x: Any, steps: int) -> np.ndarray:
    if x is None:
        return np.arange(steps, dtype=np.float64)
    places = as_array("x", _listed(x) if isinstance(x, list | tuple | range) else x).astype(np.float64)
    if places.shape != (steps,):
        raise InputError(f"x needs one number for each of the {steps} steps, but has shape {places.shape}.")
    if not np.isfinite(places).all() or not (np.diff(places) > 0).all():
        raise InputError("x must be finite and rise from step to step: sort by it first.")
    return places


def _listed(x: Sequence[Any]) -> np.ndarray:
    return np.array([checks.number(f"number {i} of x", one) for i, one in enumerate(x)])


def _labels(names: Any, shape: tuple[int, ...]) -> list[str]:
    """Of each row: of which sample, if there are several, and of which channel."""
    samples, channels, _ = shape
    if checks.words("names", names) and len(names) != channels:
        raise InputError(f"names must be one per channel, {channels}, but are {len(names)}.")
    listed = list(names) or ([str(j) for j in range(channels)] if channels > 1 else [""])
    if samples == 1:
        return listed
    return [": ".join(filter(None, (f"sample {i}", name))) for i in range(samples) for name in listed]


class Row(NamedTuple):
    """What is drawn of a channel: K bars, each from one edge to the next, and pieces of the curve above, (K, P, 2)."""

    edges: np.ndarray
    relevance: np.ndarray
    curve: np.ndarray | None


def _row(places: np.ndarray, relevance: np.ndarray, signal: np.ndarray | None) -> Row:
    if len(places) > MOST_COLUMNS:
        return _thinned(places, relevance, signal)
    middles = places[1:] / 2 + places[:-1] / 2  # halved first: a sum may be beyond float64
    first, last = (places[1] - places[0], places[-1] - places[-2]) if len(places) > 1 else (1.0, 1.0)
    edges = np.concatenate([places[:1] - first / 2, middles, places[-1:] + last / 2])
    if signal is None:
        return Row(edges, relevance, None)
    points = np.stack([places, signal], axis=-1)
    halves = points[1:] / 2 + points[:-1] / 2
    before, after = np.concatenate([points[:1], halves]), np.concatenate([halves, points[-1:]])
    return Row(edges, relevance, np.stack([before, points, after], axis=1))


def _thinned(places: np.ndarray, relevance: np.ndarray, signal: np.ndarray | None) -> Row:
    """Columns of several steps: the relevance of the largest magnitude in each, and its range of values."""
    starts = np.unique(np.linspace(0, len(places), MOST_COLUMNS, endpoint=False).astype(int))
    edges = np.append(places[starts], places[-1])
    most, least = (f.reduceat(relevance, starts) for f in (np.maximum, np.minimum))
    strongest = np.where(most >= -least, most, least)
    if signal is None:
        return Row(edges, strongest, None)
    middles = edges[1:] / 2 + edges[:-1] / 2
    ranges = [np.stack([middles, f.reduceat(signal, starts)], axis=-1) for f in (np.minimum, np.maximum)]
    return Row(edges, strongest, np.stack(ranges, axis=1))


# -- drawing ----------------------------------------------------------------------------------------------------------


def _drawn(series: Series, scale: Scale, colors: Colormap, words: tuple[str, str, str], figure: Any) -> Any:
    x_label, unit, title = words
    figure, axes = _axes(figure, len(series.labels), series.signal is not None, title)
    for i, label in enumerate(series.labels):
        one = divmod(i, series.relevance.shape[1])
        row = _row(series.places, series.relevance[one], None if series.signal is None else series.signal[one])
        _draw(axes[i], row, scale.of(one[0]), colors, [label, unit])
    steps = -(-len(series.places) // MOST_COLUMNS)
    note = f" (each bar: the largest relevance of {steps} steps or fewer)" if steps > 1 else ""
    axes[-1, -1].set_xlabel(x_label + note, fontsize=8.5, **PLAIN)
    write_title(figure, title)
    return figure


def _axes(figure: Any, rows: int, has_curves: bool, title: str) -> tuple[Any, np.ndarray]:
    """A column of axes for each row: curve and bars, or bars alone."""
    parts = 2 if has_curves else 1
    if figure is None:
        figure = new_figure(9.0, (1.25 if has_curves else 0.6) * rows + 0.7 + 0.4 * bool(title))
    ratios = [2, 1] * rows if has_curves else [1] * rows
    axes = figure.subplots(parts * rows, 1, sharex=True, squeeze=False, height_ratios=ratios)
    for axis in axes.flat:
        axis.tick_params(labelsize=7.5, length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set(**FRAME)
        axis.margins(x=0.01)
    return figure, axes.reshape(rows, parts)


def _draw(axes: np.ndarray, row: Row, scale: Scale, colors: Colormap, words: list[str]) -> None:
    shades = colored(row.relevance[None], scale, colors)[0] / 255
    _draw_bars(axes[-1], row, shades, scale)
    if row.curve is not None:
        unit = _draw_curve(axes[0], row.curve, shades)
        words = [words[0], in_unit(words[1] or "values" * (unit != 1.0), unit)]
    else:
        words = words[:1]
    label = "\n".join(filter(None, words))
    axes[0].set_ylabel(label, fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8, **PLAIN)


def _draw_bars(axis: Any, row: Row, shades: np.ndarray, scale: Scale) -> None:
    from matplotlib.collections import PolyCollection

    low, high = scale.low.item(), scale.high.item()
    unit = unit_of(scale.reach.item())
    heights = np.clip(row.relevance, low, high) / unit
    left, right, zero = row.edges[:-1], row.edges[1:], np.zeros_like(heights)
    corners = np.stack([left, zero, left, heights, right, heights, right, zero], axis=-1).reshape(-1, 4, 2)
    axis.add_collection(PolyCollection(list(corners), facecolors=shades, edgecolors="none"), autolim=False)
    axis.axhline(0.0, color="0.6", linewidth=0.6)
    axis.set_xlim(row.edges[0], row.edges[-1])
    axis.set_ylim(low / unit, high / unit)
    axis.set_yticks([low / unit, high / unit], labels=[f"{end:.3g}" for end in (low, high)])


def _draw_curve(axis: Any, curve: np.ndarray, shades: np.ndarray) -> float:
    """A wide band in the colours of the relevance, and on it a thin line, so that it is seen where they are pale."""
    from matplotlib.collections import LineCollection

    unit = unit_of(np.abs(curve[..., 1]).max().item() or 1.0)
    pieces = curve / [1.0, unit]
    axis.add_collection(LineCollection(list(pieces), colors=shades, linewidths=4.0, capstyle="butt"), autolim=False)
    axis.plot(*pieces.reshape(-1, 2).T, color="0.25", linewidth=0.7, marker="." if len(curve) == 1 else None)
    return unit
