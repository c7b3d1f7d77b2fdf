"""Relevance of tokens through the layers, as a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import COLORS, PLAIN, colormap, new_figure, tail
from lrpfunc.text.fonts import families, note
from lrpfunc.text.rows import Mask, Relevance, Scale, as_array, check_scale, end_of
from lrpfunc.text.tokens import check_tokens, heading, visible

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

CELL, LABEL = 0.24, 0.17  # inches: a row or column, and what a name needs of it
BAR = 0.16  # inches across
LARGEST = (16.0, 11.0)  # inches across and up, for the cells
UNITS = {"all": "relevance", "each": "relevance / largest magnitude of its layer"}


def layers(
    tokens: Sequence[str],
    relevances: Mapping[str, Relevance],
    mask: Mask = None,
    title: str = "",
    colors: str | Colormap = COLORS,
    limit: float | None = None,
    scale: Scale = "all",
    figure: Figure | SubFigure | None = None,
) -> Any:
    """A figure of layers x tokens, the first layer at the bottom, with a colour bar in units of the relevance.

    It displays itself in a notebook; `heatmaps.save` writes it. The colours run from -m to m.

    Args:
        tokens: the strings of one sequence (length,).
        relevances: by name of the layer, (length,), (length, width), which is summed over the width, or (heads, length,
            width), which gives a row "name.head" each.
        mask: (length,), zero at tokens to leave out.
        title: stands above all.
        colors: see `heatmaps.colormap`.
        limit: m, in units of the relevance; the largest magnitude of all, unless given.
        scale: "each" divides each layer, its heads together, by its own largest magnitude.
        figure: draw into this one and return it.
    Errors: `InputError` for another shape, values that are not finite, no layers or tokens, a bad scale.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> drawn = text.layers(["The", " key"], {"block1": torch.randn(2, 8), "block2": torch.randn(2, 8)})
    >>> [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    ['block1', 'block2']
    """
    check_scale(limit, scale)
    pieces = check_tokens(tokens)
    kept = _kept(mask, len(pieces))
    bands = _bands(relevances, len(pieces), kept, scale)
    words = [heading(piece) for piece, keep in zip(pieces, kept, strict=True) if keep]
    names = [name for band in bands for name in band.names]
    across, up = min(CELL * len(words), LARGEST[0]), min(CELL * len(names), LARGEST[1])
    figure = _new_figure(words, names, across, up) if figure is None else figure
    axis = figure.subplots()
    drawn = _draw(axis, np.concatenate([band.values for band in bands]), colors, limit)
    _name(axis, words, names, across, up)
    _write(axis, figure, title)
    _separate(axis, bands)
    _add_bar(figure, axis, drawn, UNITS[scale], max(1.6, up))
    return figure


def _new_figure(words: list[str], names: list[str], across: float, up: float) -> Figure:
    """A figure with room for cells of so many inches and the names of their columns and rows."""
    return new_figure(max(3.0, across) + 0.08 * _widest(names) + 1.5, max(1.6, up) + 0.08 * _widest(words) + 0.6)


def _draw(axis: Any, values: np.ndarray, colors: str | Colormap, limit: float | None) -> Any:
    end = end_of(values) if limit is None else limit
    return axis.imshow(
        values, cmap=colormap(colors), vmin=-end, vmax=end, aspect="auto", origin="lower", interpolation="nearest"
    )


def _add_bar(figure: Figure | SubFigure, axis: Any, drawn: Any, unit: str, up: float) -> None:
    bar = figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.02, aspect=up / BAR)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set(color="0.75", linewidth=0.8)
    bar.set_label(unit, fontsize=8.5)


class _Band(NamedTuple):
    """The rows of one layer: a name and values for each, (rows, tokens)."""

    names: list[str]
    values: np.ndarray


def _kept(mask: Mask, length: int) -> np.ndarray:
    kept = np.ones(length, bool) if mask is None else as_array(mask, "mask") != 0
    if kept.shape != (length,):
        raise InputError(f"mask must have one number per token, shape ({length},), but has {kept.shape}.")
    if not kept.any():
        raise InputError("there are no tokens to show.")
    return kept


def _bands(relevances: Mapping[str, Relevance], length: int, kept: np.ndarray, scale: Scale) -> list[_Band]:
    if not isinstance(relevances, Mapping):
        raise InputError(f"relevances are {{layer: relevance}}, but got {type(relevances).__name__}.")
    bands = [_band(name, relevance, length, kept) for name, relevance in relevances.items()]
    if not bands:
        raise InputError("a figure of layers needs one layer at least, but relevances is empty.")
    if scale == "all":
        return bands
    return [band._replace(values=band.values / end_of(band.values)) for band in bands]


def _band(name: str, relevance: Relevance, length: int, kept: np.ndarray) -> _Band:
    values = as_array(relevance)
    if values.ndim not in (1, 2, 3) or values.shape[0 if values.ndim < 3 else 1] != length:
        raise InputError(
            f"relevance of layer '{name}' must have shape ({length},), ({length}, width) or (heads, {length}, width), "
            f"but has {values.shape}. Of a batch, index one sample."
        )
    summed = values if values.ndim == 1 else values.sum(-1)
    summed = summed.reshape(-1, length)[:, kept]
    if not np.isfinite(summed).all():
        raise InputError(
            f"relevance of layer '{name}' must be finite, but {np.count_nonzero(~np.isfinite(summed))} of "
            f"{summed.size} values are nan or infinite."
        )
    name = visible(name)
    return _Band([f"{name}.{head}" for head in range(len(summed))] if values.ndim == 3 else [name], summed)


def _name(axis: Any, words: list[str], names: list[str], across: float, up: float) -> None:
    """Names of tokens and layers, as many as there is room for in inches."""
    for labels, room, set_ticks, keywords in (
        ([_head(word) for word in words], across, axis.set_xticks, {"rotation": 90}),
        ([tail(name) for name in names], up, axis.set_yticks, {}),
    ):
        every = math.ceil(len(labels) * LABEL / room)
        set_ticks(range(0, len(labels), every), labels[::every], fontsize=8, **keywords, **PLAIN)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set(color="0.75", linewidth=0.8)


def _write(axis: Any, figure: Figure | SubFigure, title: str) -> None:
    """Add the title, and have all words drawn by fonts that have their letters, with a note where none has."""
    labels = [*axis.get_xticklabels(), *axis.get_yticklabels()]
    if title:
        labels.append(figure.suptitle(title, fontsize=12, fontweight="bold", **PLAIN))
    fonts, lacking = families([label.get_text() for label in labels])
    for label in labels:
        label.set_fontfamily(fonts)
    if lacking:
        axis.set_xlabel(note(lacking), fontsize=8, color="0.4", wrap=True)


def _head(word: str, length: int = 18) -> str:
    """The begin of a long word."""
    return word if len(word) <= length else f"{word[:length]}…"


def _widest(labels: list[str]) -> int:
    """How many letters the longest label has that is drawn whole."""
    return min(45, max(map(len, labels)))


def _separate(axis: Any, bands: list[_Band]) -> None:
    """Lines between layers, where heads would run into each other."""
    if any(len(band.names) > 1 for band in bands):
        for edge in np.cumsum([len(band.names) for band in bands])[:-1]:
            axis.axhline(edge - 0.5, color="0.1", linewidth=1)
