"""`lrpfunc demo`, `digits` and `check`: trying things out, and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrpfunc.cli.application import app
from lrpfunc.cli.failures import FAILED
from lrpfunc.cli.options import Device, Overwrite
from lrpfunc.cli.words import output


@app.command()
def digits(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; must not exist.")]) -> None:
    """Write the sample digits as a folder of images, to try the other commands with `--model digits`."""
    from lrpfunc import digits

    count = digits.write_images(folder)
    output().print(f"{folder}: {count} images in 10 folders", markup=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("lrpfunc-demo.png"),
    photos: Annotated[
        int | None, typer.Option(help="How many photos to explain.", show_default="all 7; digits without the extra")
    ] = None,
    digits: Annotated[
        int | None, typer.Option(help="How many handwritten digits to show instead.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the digits and the random orders.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Explain photos, or handwritten digits, under several composites: a picture, and figures on what it is worth."""
    from rich.console import Console

    from lrpfunc.pictures import demo

    console = Console()
    demo.show(out, console, photos, digits, seed, overwrite)
    console.print(f"picture: {out}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def check(device: Device = "cpu") -> None:
    """Check the laws of an explanation on this machine, with its torch and a device of it; takes some seconds.

    The exit code is 1 if one does not hold.
    """
    from lrpfunc.pictures import selfcheck

    result = selfcheck.run(device)
    selfcheck.table(result, output())
    if not result.holds:
        raise typer.Exit(FAILED)
