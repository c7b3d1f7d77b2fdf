"""What commands say of their results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from lrpfunc.cli.failures import INCOMPLETE, complain

if TYPE_CHECKING:
    from rich.console import Console

    from lrpfunc.pictures.runs import Outcome

SAID = 10  # samples that could not be explained


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


def tell(outcome: Outcome, is_among_others: bool, what: str = "sample", listed: str = "'errors'") -> None:
    """Say what a run has done, and end with the exit code for samples that could not be explained, if there are some.

    `is_among_others`: an exit code that is not 0 would have the launcher end the other processes. `listed`: where the
    file has all errors.
    """
    notes(outcome.notes)
    console = output()
    if outcome.was_finished:
        console.print(f"nothing left to do: {outcome.path} was finished.", markup=False)
    console.print(f"{outcome.path}: {counted(outcome.rows, 'explanation')}", markup=False)
    if outcome.unknown:
        console.print(
            f"the true class of {counted(outcome.unknown, 'sample')} is not known: no class of the model is named "
            "like their folders.",
            markup=False,
        )
    if outcome.failures:
        complain(f"{counted(len(outcome.failures), what)} could not be explained:")
    for failure in outcome.failures[:SAID]:
        complain(f"{failure.file} {failure.reason}")
    if len(outcome.failures) > SAID:
        complain(f"and {len(outcome.failures) - SAID} more: all are in {listed} in {outcome.path}")
    if outcome.failures and not is_among_others:
        raise typer.Exit(INCOMPLETE)
