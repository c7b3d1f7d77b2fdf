"""What each process of a run does: a classifier is traced and prepared once, then block after block is written."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lrpfunc.pictures import runs
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.distributed.manifest import agree, manifest
from lrpfunc.pictures.explainers import DEFAULT_COMPOSITE
from lrpfunc.pictures.journal import BusyError
from lrpfunc.pictures.parts import block_file, blocks
from lrpfunc.pictures.runs import Outcome

BLOCK = 256  # samples
PATIENCE = 60  # seconds; a process that is taken for dead may live that long
MOST_NOTES = 16


class Task(NamedTuple):
    """A run, as any process can be told of it: `block` samples in each file of `folder`, the rest as `runs.run`."""

    source: Path
    folder: Path
    classifier: Classifier
    composite: str = DEFAULT_COMPOSITE
    targets: tuple[str, ...] = ()
    canonize: bool = True
    device: str = "cpu"
    batch: int = 16
    workers: int = 0
    block: int = BLOCK


class Worker:
    """A process of a run.

    Errors: as `runs.prepared`, `parts.blocks` and `manifest.agree` have them.
    """

    def __init__(self, task: Task):
        self.folder = task.folder
        self.job = runs.prepared(
            task.source,
            task.classifier,
            task.composite,
            task.targets,
            task.canonize,
            task.device,
            task.batch,
            task.workers,
        )
        self.blocks = blocks(self.samples, task.block)
        agree(self.folder, manifest(self.job, task.block))

    @property
    def samples(self) -> int:
        """How many there are in the data set."""
        return len(self.job.samples.names)

    def do(self, number: int) -> Outcome:
        """Write a block, by its number from 1; nothing is done if its file is there.

        Where a process died in the midst of it, no more than one batch is computed again.
        Errors: as `runs.run_part` has them.
        """
        late = time.monotonic() + PATIENCE
        while True:
            try:
                return runs.run_part(self.job, self.blocks[number - 1], block_file(self.folder, number))
            except BusyError:
                if time.monotonic() > late:
                    raise
                time.sleep(1)


def together(folder: Path, outcomes: Iterable[Outcome]) -> Outcome:
    """What blocks make together."""
    found = list(outcomes)
    notes = {re.sub(r"^.*?: |\d", "", note): note for each in reversed(found) for note in reversed(each.notes)}
    return Outcome(
        folder,
        sum(each.rows for each in found),
        sorted(failure for each in found for failure in each.failures),
        sum(each.written for each in found),
        sum(each.unknown for each in found),
        all(each.was_finished for each in found),
        tuple(reversed(notes.values()))[:MOST_NOTES],
    )
