"""The command line: `lrpfunc image`, `inspect`, `dataset`, `report`, `digits`, `demo`, `check`.

Each command imports what it needs when it runs: torch takes seconds, `--help` and completion should not.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lrpfunc.errors import FileError, InputError, LrpError
from lrpfunc.pictures import DEFAULT_COMPOSITE
from lrpfunc.pictures.progress import ProgressBar

if TYPE_CHECKING:
    from rich.console import Console

    from lrpfunc.pictures.classifiers import Classifier

_BAD_PATHS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_REMEDIES = {
    errno.ENOSPC: "There is no space left: make some. A dataset run then goes on with --resume.",
    errno.EDQUOT: "Your quota is used up: make space. A dataset run then goes on with --resume.",
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.EFBIG: "The file would be larger than files may be here.",
}
FAILED, BAD_PATH, INCOMPLETE, INTERRUPTED = 1, 2, 3, 130


class _Commands(TyperGroup):
    """Commands whose expected errors are one red line: exit code 2 if it is about a file or a disk, else 1."""

    def parse_args(self, ctx, args):
        wanted = [arg for arg in args if arg == "--debug"]  # wherever it stands, also behind the command
        return super().parse_args(ctx, [*wanted, *(arg for arg in args if arg != "--debug")])

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (LrpError, OSError) as error:
            expected = isinstance(error, (LrpError, *_BAD_PATHS)) or getattr(error, "errno", None) in _REMEDIES
            if ctx.params.get("debug") or not expected:
                raise
            remedy = _REMEDIES.get(getattr(error, "errno", None) or 0, "")
            _complain(f"{error}. {remedy}" if remedy else str(error))
            about_files = isinstance(error, (FileError, OSError))
            raise typer.Exit(BAD_PATH if about_files else FAILED) from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError" or ctx.params.get("debug"):  # of torch, which may be absent
                raise
            _complain(f"the memory of the device is used up ({error}) Fewer samples at once need less: --batch.")
            raise typer.Exit(FAILED) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _complain(message: str) -> None:
    from lrpfunc.pictures.images import printable

    typer.secho(f"error: {printable(' '.join(message.split()))}", fg="red", err=True)


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


# -- options that several commands have -------------------------------------------------------------------------------

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="One of torchvision's classifiers, timm's as timm:NAME, 'efficientnet_lite0' or 'digits' (need no "
        "download), or your own: module.path:factory.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="DEFAULT or another of torchvision's names, a file (.safetensors, or a state dict by torch.save), or "
        "'random'.",
        show_default="DEFAULT; what your factory gives",
    ),
]
CompositeName = Annotated[
    str, typer.Option("--composite", "-c", help="The rules: a name, or your own as module.path:composite.")
]
Canonize = Annotated[bool, typer.Option("--canonize/--no-canonize", help="Fold batch norms into layers.")]
Size = Annotated[
    int | None,
    typer.Option(help="Height and width of the input, instead of the model's own.", min=1, show_default=False),
]
Numbers = Annotated[
    str | None, typer.Option(help="Of the input, instead of the model's own, as in 0.5,0.5,0.5.", show_default=False)
]
Categories = Annotated[
    Path | None,
    typer.Option("--categories", help="A file with a class name per line, or a JSON list.", show_default=False),
]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep traces of models that packages bring.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Colors = Annotated[str, typer.Option(help="A colour map of matplotlib or zennit.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]


def _classifier(
    model: str,
    weights: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    categories: Path | None,
    cache: bool,
) -> Classifier:
    from lrpfunc.pictures import classifiers

    classifier = classifiers.load(model, weights, size, _numbers("--mean", mean), _numbers("--std", std), categories)
    return classifier if cache else replace(classifier, packages=())


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{option} takes numbers with commas between, such as 0.5,0.5,0.5, but got '{text}'."
        ) from error


def _console(**options: Any) -> Console:
    """A console for results. In a pipe there is no width to fit into, and lines stay whole."""
    from rich.console import Console

    console = Console(highlight=False, **options)
    return console if console.is_terminal else Console(highlight=False, width=1000, **options)


# -- commands ---------------------------------------------------------------------------------------------------------


@app.command()
def image(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Image files.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the pictures.")] = Path("lrpfunc-heatmaps"),
    weights: Weights = None,
    composite: CompositeName = DEFAULT_COMPOSITE,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="A class to explain: top, top5 (the five highest), a number or a name. May be given several times.",
            show_default="top",
        ),
    ] = None,
    canonize: Canonize = True,
    size: Size = None,
    mean: Numbers = None,
    std: Numbers = None,
    categories: Categories = None,
    cache: Cache = True,
    device: Device = "cpu",
    colors: Colors = "seismic",
    quantile: Annotated[
        float, typer.Option(help="Colours reach to this quantile of the magnitudes; 0.99 mutes outliers.")
    ] = 1.0,
) -> None:
    """Explain images: a heatmap, an overlay and a panel with both for each image and class.

    Images that cannot be read are named and left out; the exit code is then 3.
    """
    from lrpfunc.pictures import panels

    classifier = _classifier(model, weights, size, mean, std, categories, cache)
    style = panels.Style(colors, quantile)
    with ProgressBar("explaining") as bar:
        written, failed = panels.write(
            files, out, classifier, composite, target or ["top"], canonize, device, style, progress=bar
        )
    console = _console()
    panels.table(written, console)
    console.print(f"{3 * len(written)} pictures in {out}", markup=False)
    for failure in failed:
        _complain(f"{failure.image} {failure.reason}")
    if failed:
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
    cache: Cache = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what becomes of each batch norm, and which rule each layer gets."""
    from lrpfunc.pictures import inspection

    found = inspection.inspect(_classifier(model, weights, size, mean, std, categories, cache), composite, canonize)
    if as_json:
        typer.echo(json.dumps(inspection.as_json(found), indent=2))
    else:
        inspection.tables(found, _console())


@app.command()
def dataset(
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder of images (subfolders are classes), or a .pt or .npz file."),
    ],
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HDF5 file to write.")],
    weights: Weights = None,
    composite: CompositeName = DEFAULT_COMPOSITE,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--targets",
            "--target",
            "-t",
            help="Classes to explain, a row each: top, top5 (the five highest), label (the true one), a number or a "
            "name. May be given several times.",
            show_default="top",
        ),
    ] = None,
    canonize: Canonize = True,
    size: Size = None,
    mean: Numbers = None,
    std: Numbers = None,
    categories: Categories = None,
    cache: Cache = True,
    device: Device = "cpu",
    batch: Annotated[int, typer.Option(help="Samples at once.", min=1)] = 16,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read images.", min=0, show_default="as many as help"),
    ] = None,
    shard: Annotated[str, typer.Option(help="Only the I-th of N parts of the data set.", metavar="I/N")] = "1/1",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Explain a whole data set into an HDF5 file, which `lrpfunc report` and ViRelAy read.

    Samples that cannot be read are listed in the file's `errors`; the exit code is then 3.
    """
    from lrpfunc.pictures import runs, workfile

    part = runs.shard(shard)
    workfile.check_workfile(out, resume, overwrite)  # before a model is loaded, or even downloaded
    try:
        with ProgressBar("explaining") as bar:
            outcome = runs.run(
                source,
                out,
                _classifier(model, weights, size, mean, std, categories, cache),
                composite=composite,
                targets=targets or ["top"],
                canonize=canonize,
                device=device,
                batch=batch,
                workers=_default_workers() if workers is None else workers,
                part=part,
                resume=resume,
                overwrite=overwrite,
                progress=bar,
            )
    except KeyboardInterrupt:
        typer.secho("\nstopped. The same command with --resume goes on from here.", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _tell(outcome)


def _default_workers() -> int:
    """One core stays with the model; more than four read faster than a CPU explains, and a GPU has a flag."""
    return max(1, min(4, (os.cpu_count() or 1) - 1))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _tell(outcome: Any) -> None:
    console = _console()
    if outcome.was_finished:
        console.print(f"nothing left to do: {outcome.path} was finished.", markup=False)
    console.print(f"{outcome.path}: {_count(outcome.rows, 'explanation')}", markup=False)
    if outcome.unknown:
        console.print(
            f"the true class of {_count(outcome.unknown, 'sample')} is not known: no class of the model is named "
            "like their folders.",
            markup=False,
        )
    if outcome.failures:
        _complain(f"{_count(len(outcome.failures), 'sample')} could not be explained:")
    for failure in outcome.failures[:10]:
        _complain(f"{failure.file} {failure.reason}")
    if len(outcome.failures) > 10:
        _complain(f"and {len(outcome.failures) - 10} more: all are in 'errors' in {outcome.path}")
    if outcome.failures:
        raise typer.Exit(INCOMPLETE)


@app.command()
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.h5...", help="What `lrpfunc dataset` wrote; all shards.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="The page's title.")] = "",
    size: Annotated[int, typer.Option(help="Pixels of the longer side of each picture.")] = 128,
    overwrite: Overwrite = False,
) -> None:
    """Make a page to look through: one HTML file with all pictures in it."""
    from lrpfunc.pictures.report import page

    with ProgressBar("writing") as bar:
        summary = page.write(files, out, title=title, size=size, overwrite=overwrite, progress=bar)
    _console().print(f"{summary.path}: {_count(summary.samples, 'sample')}, {summary.bytes / 1e6:.1f} MB", markup=False)


@app.command()
def digits(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; must not exist.")]) -> None:
    """Write the sample digits as a folder of images, to try the other commands with `--model digits`."""
    from lrpfunc import digits

    count = digits.write_images(folder)
    _console().print(f"{folder}: {count} images in 10 folders", markup=False)


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
) -> None:
    """Explain photos, or handwritten digits, under several composites: a picture, and figures on what it is worth."""
    from rich.console import Console

    from lrpfunc.pictures import demo

    console = Console()
    path = demo.show(out, console, photos, digits, seed)
    console.print(f"picture: {path}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def check(device: Device = "cpu") -> None:
    """Check the laws of an explanation on this machine, with its torch and a device of it; takes some seconds.

    The exit code is 1 if one does not hold.
    """
    from lrpfunc.pictures import selfcheck

    result = selfcheck.run(device)
    selfcheck.table(result, _console())
    if not result.holds:
        raise typer.Exit(FAILED)
