"""What commands say of their results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


def output() -> Console:
    """A console for results. In a pipe there is no width to fit into, and lines stay whole."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)


def counted(number: int, what: str) -> str:
    """A number of things: 1 sample, 2 samples."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def notes(lines: Iterable[str]) -> None:
    """Print what people should know of how something was understood; not among the results."""
    from lrpfunc.pictures.images import printable

    for line in lines:
        typer.echo(f"note: {printable(line)}", err=True)
