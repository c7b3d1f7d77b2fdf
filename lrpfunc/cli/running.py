"""`lrpfunc dataset`, `merge` and `report`: a data set explained, its shards joined, and looked through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lrpfunc.cli.application import app
from lrpfunc.cli.engines import (
    RANKS,
    Address,
    BlockSize,
    Cluster,
    CpusPerProcess,
    Engine,
    GpusPerProcess,
    Processes,
    check_cluster,
    run_blocks,
)
from lrpfunc.cli.failures import INCOMPLETE, complain
from lrpfunc.cli.options import (
    METHODS,
    AsIs,
    Cache,
    Canonize,
    Categories,
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
    meaning_of,
    reading_of,
)
from lrpfunc.cli.words import counted, notes, output
from lrpfunc.errors import InputError
from lrpfunc.pictures import DEFAULT_COMPOSITE
from lrpfunc.pictures.progress import ProgressBar


@app.command()
def dataset(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder of images (subfolders are classes), a .pt, .npz or .npy file, a list of images (.txt), "
            "or .tar, .parquet, .arrow files.",
        ),
    ],
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HDF5 file to write; with --engine, the folder.")],
    weights: Weights = None,
    composite: CompositeName = DEFAULT_COMPOSITE,
    method: Annotated[str | None, typer.Option(help=f"In place of a composite: {METHODS}.", show_default=False)] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--targets",
            "--target",
            "-t",
            help="Classes to explain, a row each: top, top5 (the five highest), label (the true one), a number or a "
            "name. May be given several times.",
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
    batch: Annotated[int, typer.Option(help="Samples at once.", min=1)] = 16,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read images.", min=0, show_default="as many as help"),
    ] = None,
    shard: Annotated[str, typer.Option(help="Only the I-th of N parts of the data set.", metavar="I/N")] = "1/1",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    overwrite: Overwrite = False,
    engine: Engine = None,
    block_size: BlockSize = None,
    address: Address = None,
    processes: Processes = None,
    cpus_per_process: CpusPerProcess = None,
    gpus_per_process: GpusPerProcess = None,
) -> None:
    """Explain a whole data set into an HDF5 file, which `lrpfunc report` and ViRelAy read.

    With --engine many processes write blocks into a folder; the same command goes on after any stop. Samples that
    cannot be read are listed in the file's `errors`; the exit code is then 3.
    """
    from lrpfunc.pictures import parts, runs, workfile

    if method and composite != DEFAULT_COMPOSITE:
        raise InputError("a run has one explanation: give --composite or --method, and a second run for the other.")
    cluster = Cluster(engine, block_size, address, processes, cpus_per_process, gpus_per_process)
    check_cluster(cluster, shard, overwrite)
    part = parts.shard(shard)
    if engine is None:
        workfile.check_workfile(out, resume, overwrite)  # before a model is loaded, or even downloaded
    meaning = meaning_of(multi_label, regression, unit, as_is)
    reading = reading_of(max_pixels, window)
    with ProgressBar("explaining") as bar:
        options: dict[str, Any] = {
            "classifier": classifier_of(model, weights, size, mean, std, categories, cache, meaning, reading),
            "composite": method or composite,
            "targets": targets or [],
            "canonize": canonize,
            "device": device,
            "batch": batch,
        }
        if engine is not None:
            outcome = run_blocks(cluster, source, out, options, workers, bar)
        else:
            options["workers"] = _default_workers() if workers is None else workers
            outcome = runs.run(source, out, **options, part=part, resume=resume, overwrite=overwrite, progress=bar)
    _tell(outcome, is_among_others=engine == RANKS)


def _default_workers() -> int:
    """One core stays with the model; more than four read faster than a CPU explains, and a GPU has a flag."""
    return max(1, min(4, (os.cpu_count() or 1) - 1))


def _tell(outcome: Any, is_among_others: bool) -> None:
    """`is_among_others`: an exit code that is not 0 would have the launcher end the other processes."""
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
        complain(f"{counted(len(outcome.failures), 'sample')} could not be explained:")
    for failure in outcome.failures[:10]:
        complain(f"{failure.file} {failure.reason}")
    if len(outcome.failures) > 10:
        complain(f"and {len(outcome.failures) - 10} more: all are in 'errors' in {outcome.path}")
    if outcome.failures and not is_among_others:
        raise typer.Exit(INCOMPLETE)


@app.command()
def merge(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.h5...", help="The shards of a run, or a folder of its blocks.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HDF5 file to write.")],
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Merge what there is, if shards are missing.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Join the shards or blocks of a run into one file, as the run in one piece writes it."""
    from lrpfunc.pictures import merging

    with ProgressBar("merging") as bar:
        merged = merging.merge(files, out, incomplete, overwrite, progress=bar)
    if merged.missing:
        notes([f"the file has a part of the run: {merged.missing}"])
    if merged.failures:
        notes([f"{counted(len(merged.failures), 'sample')} could not be explained: see 'errors' in {merged.path}"])
    output().print(f"{merged.path}: {counted(merged.rows, 'explanation')}", markup=False)


@app.command()
def report(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.h5...", help="What `lrpfunc dataset` wrote: all shards, or a folder of blocks."),
    ],
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE.h5",
            help="Another run on the same data set, to be shown side by side: another composite, other weights or "
            "targets. Given again for each of its shards.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="The page's title.")] = "",
    size: Annotated[int, typer.Option(help="Pixels of the longer side of each picture.")] = 128,
    overwrite: Overwrite = False,
) -> None:
    """Make a page to look through: one HTML file with all pictures in it, of a run or of two side by side."""
    from lrpfunc.pictures.report import page

    with ProgressBar("writing") as bar:
        summary = page.write(files, out, title=title, size=size, overwrite=overwrite, progress=bar, beside=beside or [])
    if summary.missing:
        notes([f"the page shows a part of the run: {summary.missing}"])
    output().print(f"{summary.path}: {counted(summary.samples, 'sample')}, {summary.bytes / 1e6:.1f} MB", markup=False)
