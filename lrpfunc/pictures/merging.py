"""The parts of a run joined into the file that the run in one piece would have written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.pictures import hdf5, shards
from lrpfunc.pictures.hdf5 import Columns, Failure, Run
from lrpfunc.pictures.parts import files
from lrpfunc.pictures.workfile import check_workfile, claimed

BLOCK_BYTES = 1 << 26


class Merged(NamedTuple):
    """What was written: where, how many rows, the samples without one, and the sentence on what is missing."""

    path: Path
    rows: int
    failures: Sequence[Failure]
    missing: str


def merge(
    paths: Sequence[Path],
    out: Path,
    incomplete: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Join files, which are parts of one run, into one: by their place in the data set, a few rows at a time.

    `paths`: shards, or folders of blocks. `incomplete`: also if parts are missing; what is written can be merged with
    them later. `progress(done, of)`: called with numbers of rows.
    Errors: `FileError` for files as `hdf5.opened` has it, files of different runs or with common samples, a missing
    shard, an `out` that exists; `InputError` for less than two files, or one given twice; `OSError`.
    """
    given, out = [Path(path) for path in paths], Path(out)
    paths = files(given)
    shards.check_files(paths, out, "a merge", least=1 if any(path.is_dir() for path in given) else 2)
    check_workfile(out, overwrite=overwrite)
    with ExitStack() as stack:
        runs = shards.opened(stack, paths)
        shards.check_alike(paths, runs, "a merge")
        missing = shards.check_whole(runs, incomplete)
        workfile = stack.enter_context(claimed(out, resume=False, overwrite=overwrite))
        if os.path.lexists(workfile.work):
            raise FileError(f"{workfile.work} is of an unfinished run, which is to write {out}: choose another --out.")
        rows = sum(run.rows for run in runs)
        schema = runs[0].schema._replace(rows=rows, name_bytes=max(run.schema.name_bytes for run in runs))
        details = shards.details_of_all(runs)
        failures = sorted(failure for run in runs for failure in run.errors)
        blocks = _blocks(runs, schema, progress or (lambda *_: None))
        workfile.write(schema, details, runs[0].categories, failures, blocks)
    return Merged(out, rows, failures, missing)


def _blocks(
    runs: Sequence[Run], schema: hdf5.Schema, progress: Callable[[int, int], None]
) -> Iterator[tuple[int, Columns]]:
    """Rows in the order of their samples; those of one sample stay in theirs."""
    order = np.argsort(np.concatenate([run.column("index")[:] for run in runs]), kind="stable")
    firsts = np.cumsum([0, *(run.rows for run in runs)])
    step = max(1, BLOCK_BYTES // (4 * math.prod(schema.image)))
    for start in range(0, schema.rows, step):
        chosen = order[start : start + step]
        yield start, _gathered(runs, schema, chosen, firsts)
        progress(start + len(chosen), schema.rows)


def _gathered(
    runs: Sequence[Run], schema: hdf5.Schema, chosen: np.ndarray, firsts: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows by their numbers, counted through all files, of which each begins with a number of `firsts`."""
    columns = {name: np.empty((len(chosen), *shape), dtype) for name, (shape, dtype) in schema.columns().items()}
    owner = np.searchsorted(firsts, chosen, side="right") - 1
    for number in np.unique(owner):
        places, run = np.flatnonzero(owner == number), runs[number]
        for piece in np.split(places, np.flatnonzero(np.diff(chosen[places]) != 1) + 1):
            first = int(chosen[piece[0]] - firsts[number])
            for name, values in columns.items():  # rows that follow each other in the file
                values[piece] = run.column(name)[first : first + len(piece)]
    return columns
