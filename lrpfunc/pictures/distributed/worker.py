"""What each process of a run does: a model is traced and prepared once, then block after block is written."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lrpfunc.errors import FileError
from lrpfunc.pictures.distributed.manifest import agree
from lrpfunc.pictures.distributed.tasks import Task, TextTask
from lrpfunc.pictures.journal import BusyError
from lrpfunc.pictures.parts import Block, block_file, blocks
from lrpfunc.pictures.runs import Outcome, Progress

PATIENCE = 60  # seconds; a process that is taken for dead may live that long
MOST_NOTES = 16


class Job(Protocol):
    """A data set that is ready to be explained, part by part.

    `kind`: pictures or texts. `size`: how many samples there are. `contents`: changes with its files. `details`: what
    is known of the run, of which `same` must be the same whenever it goes on. `ending`: of files.
    """

    @property
    def kind(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def contents(self) -> str: ...

    @property
    def details(self) -> Mapping[str, Any]: ...

    @property
    def same(self) -> Sequence[str]: ...

    @property
    def ending(self) -> str: ...

    def run_part(self, part: Block, out: Path, progress: Progress | None = None) -> Outcome:
        """Write a part, unless its file is there."""


class Worker:
    """A process of a run.

    Errors: as `runs.prepared` or `texts.runs.prepared`, `parts.blocks` and `manifest.agree` have them.
    """

    def __init__(self, task: Task | TextTask):
        self.folder = task.folder
        self.job: Job = task.prepared()
        self.blocks = blocks(self.samples, task.block)
        mine = {"kind": self.job.kind, "block": task.block, "contents": self.job.contents, **self.job.details}
        agree(self.folder, mine, self.job.same)

    @property
    def samples(self) -> int:
        """How many there are in the data set."""
        return self.job.size

    def do(self, number: int, progress: Progress | None = None) -> Outcome:
        """Write a block, by its number from 1; nothing is done if its file is there.

        Of pictures no more than one batch is computed again where a process died in the midst of the block.
        `progress`: of this block. Errors: as `runs.run_part` or `texts.runs.run_part` has them.
        """
        late, out = time.monotonic() + PATIENCE, block_file(self.folder, number, self.job.ending)
        while True:
            try:
                return self.job.run_part(self.blocks[number - 1], out, progress)
            except BusyError:
                if time.monotonic() > late:
                    raise
                time.sleep(1)
            except FileError as error:
                if not out.exists():
                    raise
                raise FileError(f"{error} Move {out} away, and the same command makes it anew.") from error


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
