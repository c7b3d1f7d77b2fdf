"""Tables of results: lines on a terminal, plain columns in a pipe, and an entry below the other where it is narrow."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from lrpfunc.pictures.images import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FOLDED = 24  # letters that a name may be folded to


def print_table(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    styles: Sequence[str] = (),
    numbers: Collection[str] = (),
) -> None:
    """Print rows below a header. `styles`: of each row; `numbers`: the headings of columns that stand to the right.

    What a terminal would take for a command, as a class's name may hold it, is shown by its number.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for heading in header:
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    cells = [[_clean(cell) for cell in row] for row in rows]
    for row, style in zip(cells, styles or [""] * len(rows), strict=True):
        table.add_row(*row, style=style)
    if _fits(header, cells, console):
        console.print(table)
    else:
        _print_entries(console, header, cells)


def _clean(cell: str | Text) -> Text:
    from rich.text import Text

    return Text(printable(cell)) if isinstance(cell, str) else cell


def _fits(header: Sequence[str], rows: Sequence[Sequence[Text]], console: Console) -> bool:
    """Whether each word has room in its column, but for long names, which may be folded."""
    columns = zip(header, *([cell.plain for cell in row] for row in rows), strict=True)
    longest = [max((len(word) for text in column for word in text.split()), default=0) for column in columns]
    return sum(min(length, FOLDED) + 3 for length in longest) <= console.width


def _print_entries(console: Console, header: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    """Each row as lines `heading: cell`, with a line between."""
    from rich.text import Text

    for row in rows:
        for heading, cell in zip(header, row, strict=True):
            if cell.plain:
                console.print(Text(f"{heading}: " if heading else "").append_text(cell), soft_wrap=True)
        console.print()
