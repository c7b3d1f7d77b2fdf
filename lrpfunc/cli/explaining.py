"""`lrpfunc image` and `lrpfunc inspect`: a model and what decides it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpfunc.cli.application import app
from lrpfunc.cli.failures import INCOMPLETE, complain
from lrpfunc.cli.options import (
    METHODS,
    AsIs,
    Cache,
    Canonize,
    Categories,
    Colors,
    CompositeName,
    Device,
    MaxPixels,
    Model,
    MultiLabel,
    Numbers,
    Overwrite,
    Regression,
    Size,
    Unit,
    Weights,
    Window,
    classifier_of,
    here,
    meaning_of,
    reading_of,
)
from lrpfunc.cli.words import counted, notes, output
from lrpfunc.pictures import DEFAULT_COMPOSITE
from lrpfunc.pictures.progress import ProgressBar


class Scale(StrEnum):
    """Scales of a comparison sheet."""

    own = "own"
    one = "one"


class Format(StrEnum):
    """Formats of relevance."""

    npz = "npz"
    npy = "npy"


@app.command()
def image(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Image files.", parser=here)],
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the pictures.", parser=here)] = Path(
        "lrpfunc-heatmaps"
    ),
    weights: Weights = None,
    composite: Annotated[
        list[str] | None,
        typer.Option(
            "--composite",
            "-c",
            help="The rules: a name, or your own as module.path:composite. Several are also laid side by side.",
            show_default=DEFAULT_COMPOSITE,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Beside composites, or alone: {METHODS}. Several are laid side by side.", show_default=False
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="A class to explain: top, top5 (the five highest), a number or a name. May be given several times.",
            show_default="top; of one logit, the class that it is of",
        ),
    ] = None,
    canonize: Canonize = True,
    size: Size = None,
    mean: Numbers = None,
    std: Numbers = None,
    categories: Categories = None,
    max_pixels: MaxPixels = None,
    window: Window = None,
    multi_label: MultiLabel = False,
    regression: Regression = False,
    unit: Unit = None,
    as_is: AsIs = False,
    cache: Cache = True,
    device: Device = "cpu",
    colors: Colors = "seismic",
    quantile: Annotated[
        float, typer.Option(help="Colours reach to this quantile of the magnitudes; 0.99 mutes outliers.")
    ] = 1.0,
    scale: Annotated[
        Scale, typer.Option(help="Of maps that are laid side by side: each its own, or one for all of a sheet.")
    ] = Scale.own,
    save_relevance: Annotated[
        Format | None, typer.Option(help="Write the relevance itself, too: numpy's npy, or npz with input and output.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Explain images: a heatmap, an overlay and a panel with both for each image, class and composite.

    Images that cannot be read are named and left out; the exit code is then 3.
    """
    from lrpfunc.pictures import panels
    from lrpfunc.pictures.drawing import Style

    meaning = meaning_of(multi_label, regression, unit, as_is)
    reading = reading_of(max_pixels, window)
    classifier = classifier_of(model, weights, size, mean, std, categories, cache, meaning, reading)
    with ProgressBar("explaining") as bar:
        written = panels.write(
            files,
            out,
            classifier,
            composites=[*(composite or []), *(method or [])] or [DEFAULT_COMPOSITE],
            targets=target or [],
            canonize=canonize,
            device=device,
            style=Style(colors, quantile, scale.value),
            overwrite=overwrite,
            relevance=save_relevance and save_relevance.value,
            progress=bar,
        )
    notes(written.notes)
    console = output()
    panels.table(written, console)
    pictures = [file for file in written.files if file.suffix == ".png"]
    numbers = len(written.files) - len(pictures)
    also = f", and the relevance of {counted(numbers, 'map')}" if numbers else ""
    console.print(f"{counted(len(pictures), 'picture')} in {out}{also}", markup=False)
    for failure in written.failed:
        complain(f"{failure.image} {failure.reason}")
    if written.failed:
        raise typer.Exit(INCOMPLETE)


@app.command()
def inspect(
    model: Model,
    weights: Weights = None,
    composite: CompositeName = DEFAULT_COMPOSITE,
    canonize: Canonize = True,
    size: Size = None,
    mean: Numbers = None,
    std: Numbers = None,
    categories: Categories = None,
    multi_label: MultiLabel = False,
    regression: Regression = False,
    unit: Unit = None,
    as_is: AsIs = False,
    cache: Cache = True,
    plan: Annotated[
        bool, typer.Option("--plan", help="Also show what explaining takes of memory: images at once, in segments.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what becomes of each batch norm, and which rule each layer gets."""
    from lrpfunc.pictures import inspection

    meaning = meaning_of(multi_label, regression, unit, as_is)
    classifier = classifier_of(model, weights, size, mean, std, categories, cache, meaning)
    found = inspection.inspect(classifier, composite, canonize)
    memory = inspection.planned(found) if plan else []
    if as_json:
        typer.echo(json.dumps(inspection.as_json(found, memory), indent=2))
    else:
        inspection.tables(found, output(), memory)
