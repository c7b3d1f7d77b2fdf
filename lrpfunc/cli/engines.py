"""`--engine` of `lrpfunc dataset` and `text`: many processes on many machines, a file for each block of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lrpfunc.errors import InputError
from lrpfunc.extras import need

if TYPE_CHECKING:
    from lrpfunc.pictures.distributed import Task, TextTask
    from lrpfunc.pictures.progress import ProgressBar
    from lrpfunc.pictures.runs import Outcome

RAY, RANKS = "ray", "ranks"
WHOLE = "1/1"

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
    int | None,
    typer.Option(help="Samples or prompts in each file.", min=1, show_default="256", rich_help_panel="With --engine"),
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


def check_cluster(cluster: Cluster, shard: str = WHOLE, overwrite: bool = False, in_blocks: bool = False) -> None:
    """Ask before a model is loaded whether the options fit. `in_blocks`: also without an engine.

    Errors: `InputError`, `MissingExtraError`.
    """
    if cluster.engine not in (RAY, RANKS, None):
        raise InputError(f"an engine is {RAY} or {RANKS}, but '{cluster.engine}' is none.")
    given = [name for name, value in cluster._asdict().items() if value is not None and name != "engine"]
    others = [name for name in given if name != "block_size"]
    if others and cluster.engine != RAY:
        raise InputError(f"--{others[0].replace('_', '-')} is for --engine {RAY}.")
    if given and cluster.engine is None and not in_blocks:
        raise InputError(f"--block-size is for --engine {RAY} or {RANKS}.")
    if cluster.engine and shard != WHOLE:
        raise InputError("--engine does all blocks of a data set: leave --shard out.")
    if (cluster.engine or in_blocks) and overwrite:
        raise InputError("blocks that are there are kept: choose another --out, or remove the folder.")
    if cluster.engine == RAY:
        need("ray", "ray", "--engine ray")


def run_blocks(cluster: Cluster, task: Task | TextTask, bar: ProgressBar) -> Outcome:
    """Do the blocks of a run, or those of this process; all of them without an engine.

    Errors: as the engines have them.
    """
    from lrpfunc.pictures import distributed

    if cluster.block_size is not None:
        task = task._replace(block=cluster.block_size)
    if cluster.engine is None:
        return distributed.ranks.run(task, progress=bar)
    if cluster.engine == RANKS:
        return distributed.ranks.run(task, distributed.ranks.place(), bar)
    cpus, gpus = cluster.cpus_per_process or 1, cluster.gpus_per_process
    if gpus is None:
        gpus = float(task.device.startswith("cuda"))
    share = distributed.ray_engine.Share(cluster.processes, cpus, gpus)
    return distributed.ray_engine.run(task, cluster.address, share, bar)
