"""The files of a run over prompts: that they are its blocks, which of them is missing, and all of them in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError
from lrpfunc.pictures import shards
from lrpfunc.pictures.merging import Merged
from lrpfunc.pictures.outfiles import check_outfile
from lrpfunc.pictures.parts import files
from lrpfunc.pictures.texts.files import ENDING, TextRun, write_tables
from lrpfunc.pictures.texts.runs import SAME
from lrpfunc.pictures.workfile import differences

# What all files of a run have in common, of their details.
SHARED = (*(name for name in SAME if name != "shard"), "contents")


def opened(paths: Sequence[Path], out: Path, what: str) -> list[TextRun]:
    """Files by their first block, which are blocks of one run, or folders of such. `what`: "a merge", "a report".

    Errors: `FileError` for files of something else or of different runs, and blocks that are there twice; as
    `shards.check_files` has them.
    """
    found = files(paths)
    shards.check_files(found, out, what)
    runs = [TextRun(path) for path in found]
    for run in runs[1:]:
        if differing := differences(runs[0].details, run.details, SHARED):
            raise FileError(
                f"{what} needs files of one run, but {runs[0].path} and {run.path} differ: {', '.join(differing)}."
            )
    parts = [part.numbers if (part := shards.part_of(run)) else frozenset() for run in runs]
    if twice := sorted(number for number in set().union(*parts) if sum(number in each for each in parts) > 1):
        raise FileError(f"{what} needs each block once, but block {twice[0]} is in two or more files.")
    order = sorted(range(len(runs)), key=lambda number: min(parts[number], default=0))
    return [runs[number] for number in order]


def merge(
    paths: Sequence[Path],
    out: Path,
    incomplete: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Join files, which are blocks of one run, into one Parquet file, in the order of the prompts.

    `incomplete`: also if blocks are missing; what is written can be merged with them later. `progress(done, of)`:
    called with numbers of prompts.
    Errors: as `opened` has them; `FileError` for a missing block and an `out` that exists; `OSError`.
    """
    if out.suffix.lower() != ENDING:
        raise FileError(f"{out} is to hold texts: give it a name that ends in {ENDING}.")
    check_outfile(out, overwrite)
    runs = opened(paths, out, "a merge")
    missing = shards.check_whole(runs, incomplete)
    write_tables(out, shards.details_of_all(runs), _groups(runs, progress or (lambda *_: None)), overwrite)
    failures = sorted(failure for run in runs for failure in run.failures)
    return Merged(out, sum(map(len, runs)) - len(failures), failures, missing)


def _groups(runs: Sequence[TextRun], progress: Callable[[int, int], None]) -> Iterator[Any]:
    """Groups of rows by their first prompt: each is of one block, also in files that hold several."""
    done, rows = 0, sum(map(len, runs))
    groups = [(first, run, number) for run in runs for number, first in enumerate(run.firsts)]
    for _, run, number in sorted(groups, key=lambda group: group[0]):
        table = run.group(number)
        yield table
        done += len(table)
        progress(done, rows)
