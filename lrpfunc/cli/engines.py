"""`lrpfunc dataset --engine`: many processes on many machines, a file for each block of samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lrpfunc.errors import InputError
from lrpfunc.extras import need

if TYPE_CHECKING:
    from lrpfunc.pictures.progress import ProgressBar
    from lrpfunc.pictures.runs import Outcome

RAY, RANKS = "ray", "ranks"

Engine = Annotated[
    str | None,
    typer.Option(
        help="ray: on a Ray cluster. ranks: by rank and world size, as torchrun and srun tell them. Blocks of samples "
        "go to the folder --out.",
        metavar="ray|ranks",
        show_default=False,
    ),
]
BlockSize = Annotated[
    int | None, typer.Option(help="Samples in each file.", min=1, show_default="256", rich_help_panel="With --engine")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT.",
        show_default="RAY_ADDRESS; else Ray on this machine",
        rich_help_panel="With --engine",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="That explain, on all machines.", min=1, show_default="as many as fit", rich_help_panel="With --engine"
    ),
]
CpusPerProcess = Annotated[
    int | None,
    typer.Option(
        help="Cores: one explains or feeds the GPU, the others read.",
        min=1,
        show_default="1",
        rich_help_panel="With --engine",
    ),
]
GpusPerProcess = Annotated[
    float | None,
    typer.Option(
        help="May be a part, such as 0.5.", min=0, show_default="1 with --device cuda", rich_help_panel="With --engine"
    ),
]


class Cluster(NamedTuple):
    """What is said of engine and cluster."""

    engine: str | None = None
    block_size: int | None = None
    address: str | None = None
    processes: int | None = None
    cpus_per_process: int | None = None
    gpus_per_process: float | None = None


def check_cluster(cluster: Cluster, shard: str, overwrite: bool) -> None:
    """Ask before a model is loaded whether the options fit. Errors: `InputError`, `MissingExtraError`."""
    if cluster.engine not in (RAY, RANKS, None):
        raise InputError(f"an engine is {RAY} or {RANKS}, but '{cluster.engine}' is none.")
    given = [name for name, value in cluster._asdict().items() if value is not None and name != "engine"]
    others = [name for name in given if name != "block_size"]
    if others and cluster.engine != RAY:
        raise InputError(f"--{others[0].replace('_', '-')} is for --engine {RAY}.")
    if given and cluster.engine is None:
        raise InputError(f"--block-size is for --engine {RAY} or {RANKS}.")
    if cluster.engine and shard != "1/1":
        raise InputError("--engine does all blocks of a data set: leave --shard out.")
    if cluster.engine and overwrite:
        raise InputError("--engine keeps the blocks that are there: choose another --out, or remove the folder.")
    if cluster.engine == RAY:
        need("ray", "ray", "--engine ray")


def run_blocks(
    cluster: Cluster, source: Path, out: Path, options: dict[str, Any], workers: int | None, bar: ProgressBar
) -> Outcome:
    """Do the blocks of a run, or those of this process. Errors: as the engines have them."""
    from lrpfunc.pictures import distributed

    cpus = cluster.cpus_per_process or 1
    size = cluster.block_size or distributed.BLOCK
    targets = tuple(options.pop("targets"))
    task = distributed.Task(
        source, out, **options, targets=targets, workers=cpus - 1 if workers is None else workers, block=size
    )
    if cluster.engine == RANKS:
        return distributed.ranks.run(task, distributed.ranks.place(), bar)
    gpus = cluster.gpus_per_process
    if gpus is None:
        gpus = float(task.device.startswith("cuda"))
    share = distributed.ray_engine.Share(cluster.processes, cpus, gpus)
    return distributed.ray_engine.run(task, cluster.address, share, bar)
