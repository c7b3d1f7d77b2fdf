"""Blocks by rank, for clusters that start the same command many times: torchrun, slurm, mpirun.

Rank and world size decide who does which blocks, and nothing else: processes do not talk to each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from lrpfunc.errors import InputError
from lrpfunc.pictures.distributed.tasks import Task, TextTask
from lrpfunc.pictures.distributed.worker import Worker, together
from lrpfunc.pictures.runs import Outcome, Progress

# How launchers tell a process its number, how many there are, and its number on its machine.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


class Place(NamedTuple):
    """A process among others: its `rank` of `world`, and among those of its machine."""

    rank: int
    world: int
    local: int = 0


ALONE = Place(0, 1)


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Where this process stands, by what its launcher says. Errors: `InputError` if none does, or not in numbers."""
    names = next((each for each in LAUNCHERS if each[0] in environment and each[1] in environment), None)
    if names is None:
        raise InputError(
            "--engine ranks is for processes that a launcher starts, such as `torchrun --nproc-per-node 2 -m lrpfunc "
            "dataset ...` or `srun lrpfunc dataset ...`, but RANK and WORLD_SIZE are not set."
        )
    try:
        found = Place(*(int(environment.get(name, "0")) for name in names))
    except ValueError:
        found = Place(-1, 0)
    if not 0 <= found.rank < found.world:
        said = ", ".join(f"{name} {environment[name]!r}" for name in names[:2])
        raise InputError(f"a rank is from 0 to below the world size, but the launcher says {said}.")
    return found


def run(task: Task | TextTask, where: Place = ALONE, progress: Progress | None = None) -> Outcome:
    """Do every `world`-th block, from the one of this rank on; all of them, if there is one process.

    Errors: as `Worker` and `Worker.do` have them.

    A device without a number, such as cuda, becomes that of the process's number on its machine.
    """
    worker = Worker(task._replace(device=_own(task.device, where)))
    tell = progress or (lambda *_: None)
    mine = worker.blocks[where.rank :: where.world]
    samples = sum(len(block.positions(worker.samples)) for block in mine)
    outcomes: list[Outcome] = []
    done = failures = 0
    for block in mine:
        outcomes.append(worker.do(block.number, _after(tell, done, samples, failures)))
        done += len(block.positions(worker.samples))
        failures += len(outcomes[-1].failures)
        if outcomes[-1].was_finished:  # else it was told along the way
            tell(done, samples, failures)
    return together(task.folder, outcomes)


def _after(tell: Progress, done: int, samples: int, failures: int) -> Progress:
    """Progress in a block, told as progress of a process that has done some blocks before."""
    return lambda here, _, failed: tell(done + here, samples, failures + failed)


def _own(device: str, where: Place) -> str:
    """The device of a process: where launchers hide the others, there is one, and it has the number 0."""
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        return device
    return f"cuda:{where.local % torch.cuda.device_count()}"
