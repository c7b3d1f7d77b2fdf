"""Relevance of tokens as HTML: a page that needs no script and no network, or a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lrpfunc.heatmaps import COLORS
from lrpfunc.text.rows import Mask, Relevance, Row, Scale, Tokens, ends, headings, paints, rows, short
from lrpfunc.text.tokens import BREAK, visible

if TYPE_CHECKING:
    import jinja2
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

    `title` is the page's. With `fragment=True` it is a part of a page, for `IPython.display.HTML` in a notebook.
    The other arguments and errors: those of `text.render`.
    """
    shown = rows(tokens, relevance, mask, titles, limit, scale)
    return _template().render(
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


def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.jinja")
