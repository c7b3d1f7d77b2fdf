"""The application `lrpfunc`: its options, and how its commands end."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.core import TyperGroup

from lrpfunc.cli.failures import Terminated, told


class _Commands(TyperGroup):
    """Commands whose errors are one line, in any terminal; `--debug` shows where they came from."""

    def main(self, *arguments, **options):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # what a terminal's encoding lacks is shown by its number
                stream.reconfigure(errors="backslashreplace")
        return super().main(*arguments, **options)

    def parse_args(self, ctx, args):
        wanted = [arg for arg in args if arg == "--debug"]  # wherever it stands, also behind the command
        return super().parse_args(ctx, [*wanted, *(arg for arg in args if arg != "--debug")])

    def invoke(self, ctx):
        try:
            with _terminable():
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            is_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE  # whoever reads has seen enough
            code = None if ctx.params.get("debug") or is_pipe else told(error, ctx.invoked_subcommand)
            if code is None:
                raise
            raise typer.Exit(code) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as ctrl-C does: where files are whole."""

    def terminate(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from lrpfunc import __version__

        typer.echo(f"lrpfunc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Layer-wise relevance propagation for PyTorch: heatmaps of what decided."""
