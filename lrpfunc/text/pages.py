"""Relevance of tokens as HTML: a page that needs no script and no network, or a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lrpfunc.heatmaps import COLORS
from lrpfunc.text.rows import Mask, Relevance, Row, Scale, Tokens, ends, headings, paints, rows, short
from lrpfunc.text.templates import template
from lrpfunc.text.tokens import BREAK, visible

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

STOPS = 33  # of the legend's colours, between which the browser interpolates


def html(
    tokens: Tokens,
    relevance: Relevance,
    mask: Mask = None,
    titles: Sequence[str] = (),
    title: str = "",
    colors: str | Colormap = COLORS,
    limit: float | None = None,
    scale: Scale = "all",
    fragment: bool = False,
) -> str:
    """A page of tokens on the colours of their relevance, with a legend, and the number where the pointer rests.

    Args:
        tokens: the strings of one sequence (length,), or a list of several.
        relevance: (length,), or of several (batch, length) or one for each, in any units.
        mask: shaped as the relevance, zero at what to leave out, as padding.
        titles: stand above the sequences, one each.
        title: the page's.
        colors: see `heatmaps.colormap`.
        limit: the end m of the colours, in units of the relevance; the largest magnitude, unless given.
        scale: "all" for one scale, "each" for one per sequence.
        fragment: only a part of a page, for `IPython.display.HTML` in a notebook.
    Errors: those of `text.render`.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> text.html(["The", " key"], torch.tensor([-0.5, 1.0]))[:15]
    '<!DOCTYPE html>'
    """
    shown = rows(tokens, relevance, mask, titles, limit, scale)
    return template(Path(__file__).parent).render(
        rows=[(heading, _spans(row, colors)) for heading, row in zip(headings(shown), shown, strict=True)],
        title=visible(title) if title else "",
        ends=ends(shown),
        gradient=", ".join(paint.background for paint in paints(np.linspace(-1, 1, STOPS), colors)),
        fragment=fragment,
    )


def _spans(row: Row, colors: str | Colormap) -> list[dict]:
    painted = paints(row.values / row.limit, colors)
    return [
        {"word": word, "paint": paint, "number": short(value, 4), "is_break": word.endswith(BREAK)}
        for word, value, paint in zip(row.words, row.values, painted, strict=True)
    ]
