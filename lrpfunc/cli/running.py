"""`lrpfunc dataset`, `merge` and `report`: a data set explained, its shards joined, and looked through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lrpfunc.cli.application import app
from lrpfunc.cli.engines import (
    RANKS,
    WHOLE,
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
    here,
    meaning_of,
    reading_of,
)
from lrpfunc.cli.words import counted, notes, output, tell
from lrpfunc.errors import InputError
from lrpfunc.pictures import DEFAULT_COMPOSITE
from lrpfunc.pictures.progress import ProgressBar


@app.command()
def dataset(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="A folder of images (subfolders are classes), a .pt, .npz or .npy file, a list of images (.txt), "
            "or .tar, .parquet, .arrow files. Or its URL, such as s3://bucket/photos.",
        ),
    ],
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The HDF5 file to write; with --engine, the folder.", parser=here)
    ],
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
    shard: Annotated[str, typer.Option(help="Only the I-th of N parts of the data set.", metavar="I/N")] = WHOLE,
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
    from lrpfunc.pictures import distributed, parts, runs, workfile

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
            task = distributed.Task(
                source, out, **options | {"targets": tuple(options["targets"]), "workers": _beside(cluster, workers)}
            )
            outcome = run_blocks(cluster, task, bar)
        else:
            options["workers"] = _default_workers() if workers is None else workers
            outcome = runs.run(source, out, **options, part=part, resume=resume, overwrite=overwrite, progress=bar)
    tell(outcome, is_among_others=engine == RANKS)


def _beside(cluster: Cluster, workers: int | None) -> int:
    """Processes that read for one of an engine: the cores that it does not need itself."""
    return (cluster.cpus_per_process or 1) - 1 if workers is None else workers


def _default_workers() -> int:
    """One core stays with the model; more than four read faster than a CPU explains, and a GPU has a flag."""
    return max(1, min(4, (os.cpu_count() or 1) - 1))


@app.command()
def merge(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="The shards of a run, or a folder of its blocks.", parser=here),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: HDF5, of texts Parquet.", parser=here)],
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Merge what there is, if shards are missing.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Join the shards or blocks of a run into one file, as the run in one piece writes it."""
    from lrpfunc.pictures import merging, texts

    module, listed = (texts.merging, "the column 'error'") if _are_texts(files) else (merging, "'errors'")
    with ProgressBar("merging") as bar:
        merged = module.merge(files, out, incomplete, overwrite, progress=bar)
    if merged.missing:
        notes([f"the file has a part of the run: {merged.missing}"])
    if merged.failures:
        notes([f"{counted(len(merged.failures), 'sample')} could not be explained: see {listed} in {merged.path}"])
    output().print(f"{merged.path}: {counted(merged.rows, 'explanation')}", markup=False)


def _are_texts(paths: list[Path]) -> bool:
    """Whether files or folders are of `lrpfunc text --prompts`."""
    from lrpfunc.pictures import parts, texts

    return all(path.suffix.lower() == texts.files.ENDING for path in parts.files(paths))


@app.command()
def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="What `lrpfunc dataset` or `text --prompts` wrote: all shards, or a folder of blocks.",
            parser=here,
        ),
    ],
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE.h5",
            help="Another run on the same data set, to be shown side by side: another composite, other weights or "
            "targets. Given again for each of its shards.",
            parser=here,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.", parser=here)] = Path("report.html"),
    title: Annotated[str, typer.Option(help="The page's title.")] = "",
    size: Annotated[int, typer.Option(help="Pixels of the longer side of each picture.")] = 128,
    overwrite: Overwrite = False,
) -> None:
    """Make a page to look through: one HTML file with all pictures in it, of a run or of two side by side.

    Of texts it shows up to 200 prompts, evenly through all.
    """
    from lrpfunc.pictures import texts
    from lrpfunc.pictures.report import page

    if _are_texts(files):
        if beside:
            raise InputError("--with is for pictures: of texts make a page of each run.")
        with ProgressBar("writing") as bar:
            made = texts.report.write(files, out, title, overwrite, progress=bar)
        _say_missing(made.missing)
        output().print(
            f"{out}: {made.samples:,} of {counted(made.of, 'prompt')}, {made.bytes / 1e6:.1f} MB", markup=False
        )
        return
    with ProgressBar("writing") as bar:
        summary = page.write(files, out, title=title, size=size, overwrite=overwrite, progress=bar, beside=beside or [])
    _say_missing(summary.missing)
    output().print(f"{summary.path}: {counted(summary.samples, 'sample')}, {summary.bytes / 1e6:.1f} MB", markup=False)


def _say_missing(sentence: str) -> None:
    if sentence:
        notes([f"the page shows a part of the run: {sentence}"])
