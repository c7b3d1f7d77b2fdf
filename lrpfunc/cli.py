"""The command line: `lrpfunc demo`. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from lrpfunc import __version__
from lrpfunc.errors import LrpError

_BAD_PATHS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class _Commands(TyperGroup):
    """Commands whose expected errors are one red line: exit code 1 for an `LrpError`, 2 for a path."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except LrpError as error:
            _complain(error)
            raise typer.Exit(1) from error
        except _BAD_PATHS as error:
            _complain(error)
            raise typer.Exit(2) from error


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _complain(error: Exception) -> None:
    typer.secho(f"error: {' '.join(str(error).split())}", fg="red", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lrpfunc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Layer-wise relevance propagation for PyTorch."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("lrpfunc-demo.png"),
    digits: Annotated[int, typer.Option(help="How many digits to show.")] = 6,
    seed: Annotated[int, typer.Option(help="Chooses the digits and the random orders.")] = 0,
) -> None:
    """Explain handwritten digits under several composites: a picture, and figures on what it is worth."""
    from rich.console import Console

    from lrpfunc import demo

    console = Console()
    result = demo.run(out, digits, seed)
    demo.tables(result, console)
    console.print(f"picture: {result.path}", soft_wrap=True, markup=False, highlight=False)


def main() -> None:
    """The entry point of the `lrpfunc` command."""
    app()
