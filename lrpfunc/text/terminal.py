"""Relevance of tokens in a terminal: colours where there are some, else a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lrpfunc.heatmaps import COLORS
from lrpfunc.text.rows import Mask, Relevance, Row, Scale, Tokens, ends, headings, paints, rows, short
from lrpfunc.text.tokens import BREAK

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from rich.console import Console
    from rich.text import Text

STEPS = 21  # of the legend's colours
BAR = 10  # signs at most in a table


def render(
    tokens: Tokens,
    relevance: Relevance,
    mask: Mask = None,
    titles: Sequence[str] = (),
    colors: str | Colormap = COLORS,
    limit: float | None = None,
    scale: Scale = "all",
) -> Text:
    """Tokens on the colours of their relevance, as rich's text, which also shows itself in a notebook.

    The colours run from -m to m. Control characters in tokens become escapes.

    Args:
        tokens: the strings of one sequence (length,), or a list of several.
        relevance: (length,), or of several (batch, length) or one for each, in any units.
        mask: shaped as the relevance, zero at what to leave out, as padding.
        titles: stand above the sequences, one each.
        colors: see `heatmaps.colormap`.
        limit: the end m of the colours, in units of the relevance; the largest magnitude, unless given.
        scale: "all" for one scale, "each" for one per sequence.
    Errors: `InputError` for lengths that differ, values that are not finite, nothing to show, a bad scale.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> shown = text.render(["The", " key"], torch.tensor([0.0, 1.0]), colors="bwr")
    >>> shown.plain, [span.style.bgcolor.name for span in shown.spans]
    ('The key', ['#ffffff', '#ff0000'])
    """
    return _rendered(rows(tokens, relevance, mask, titles, limit, scale), colors)


def show(
    tokens: Tokens,
    relevance: Relevance,
    mask: Mask = None,
    titles: Sequence[str] = (),
    colors: str | Colormap = COLORS,
    limit: float | None = None,
    scale: Scale = "all",
    console: Console | None = None,
) -> None:
    """Print `render` and a legend.

    Where there are no colours, as in a pipe or with NO_COLOR set, it is a table of tokens and numbers.

    Args:
        tokens: the strings of one sequence (length,), or a list of several.
        relevance: (length,), or of several (batch, length) or one for each, in any units.
        mask: shaped as the relevance, zero at what to leave out, as padding.
        titles: stand above the sequences, one each.
        colors: see `heatmaps.colormap`.
        limit: the end m of the colours, in units of the relevance; the largest magnitude, unless given.
        scale: "all" for one scale, "each" for one per sequence.
        console: rich's, to print to; the terminal, unless given.
    Errors: those of `render`.

    >>> import io, lrpfunc, torch
    >>> from rich.console import Console
    >>> from lrpfunc import text
    >>> text.show(["The", " key"], torch.tensor([-0.5, 1.0]), console=(console := Console(file=io.StringIO())))
    >>> print(console.file.getvalue().rstrip())
    The   -0.5  -----
     key    +1  ++++++++++
    """
    from rich.console import Console
    from rich.text import Text

    shown = rows(tokens, relevance, mask, titles, limit, scale)
    drawn = Text("\n\n").join([_rendered(shown, colors), _legend(shown, colors)])
    console = Console() if console is None else console
    if console.color_system is None or console.no_color:
        console.print(Text(table(shown)), soft_wrap=True)
    else:
        console.print(drawn)


def _rendered(shown: Sequence[Row], colors: str | Colormap) -> Text:
    from rich.style import Style
    from rich.text import Text

    parts = []
    for row, heading in zip(shown, headings(shown), strict=True):
        line = Text()
        for word, paint in zip(row.words, paints(row.values / row.limit, colors), strict=True):
            line.append("\n" * line.plain.endswith(BREAK))
            line.append(word, Style(color=paint.ink, bgcolor=paint.background))
        parts.append(Text.assemble((f"{heading}\n", "bold"), line) if heading else line)
    return Text("\n\n").join(parts)


def _legend(shown: Sequence[Row], colors: str | Colormap) -> Text:
    from rich.style import Style
    from rich.text import Text

    low, high = ends(shown)
    bar = [(" ", Style(bgcolor=paint.background)) for paint in paints(np.linspace(-1, 1, STEPS), colors)]
    return Text.assemble(f"relevance {low} ", *bar, f" {high}")


def table(shown: Sequence[Row]) -> str:
    """Rows as plain text: a line for each token, with its number and a bar of signs."""
    from rich.cells import cell_len

    numbers = [[short(value) for value in row.values] for row in shown]
    across = max(cell_len(word) for row in shown for word in row.words)
    digits = max(len(number) for row in numbers for number in row)
    lines: list[str] = []
    for row, column in zip(shown, numbers, strict=True):
        lines += [""] * bool(lines) + [row.title] * bool(row.title)
        for word, number, value in zip(row.words, column, row.values, strict=True):
            space = " " * (across - cell_len(word))
            lines.append(f"{word}{space}  {number:>{digits}}  {_bar(value / row.limit)}".rstrip())
    return "\n".join(lines)


def _bar(level: float) -> str:
    return ("+" if level > 0 else "-") * min(BAR, round(BAR * abs(level)))
