"""The files of one run: that they are its shards, are alike, have no sample in common, and which of them is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures.hdf5 import Run

# What all shards of a run have in common, of its details.
SHARED = (
    "model", "parameters", "preprocess", "mean", "std", "output", "composite", "canonized", "targets", "samples",
    "names",
)  # fmt: skip
NAMED = 8  # shards that a message lists, at most


class Part(NamedTuple):
    """Some of the `of` shards of a run; one file may hold several after `lrpfunc merge`."""

    numbers: frozenset[int]
    of: int

    def __str__(self) -> str:
        return f"{'+'.join(map(str, sorted(self.numbers)))}/{self.of}"


def part_of(run: Run) -> Part | None:
    """Which shards a file holds, None if it does not say."""
    match = re.fullmatch(r"(\d{1,9}(?:\+\d{1,9})*)/(\d{1,9})", str(run.details.get("shard", "")))
    return Part(frozenset(map(int, match[1].split("+"))), int(match[2])) if match else None


def check_files(paths: Sequence[Path], out: Path, what: str, least: int = 1) -> None:
    """Ask before they are opened whether something can be made of files. `what`: "a report", "a merge".

    Errors: `InputError` for too few or one that is given twice, `FileError` for unfinished ones and `out` itself.
    """
    if len(paths) < least:
        number = "one file" if least == 1 else "two files"
        raise InputError(f"{what} needs {number} of `lrpfunc dataset` at least, but got {len(paths) or 'none'}.")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError(f"{what} needs each file once: its samples would be there twice.")
    for path in paths:
        if path.suffix == ".part":
            raise FileError(f"{path} is of an unfinished run: finish it by the same command with --resume.")
    if out.exists() and any(path.exists() and out.samefile(path) for path in paths):
        raise FileError(f"{out} is one of the files to read: choose another --out.")


def check_alike(paths: Sequence[Path], runs: Sequence[Run], what: str) -> None:
    """Ask whether files are shards of one run that share no sample. Errors: `FileError`."""
    first = _identity(runs[0])
    for path, run in zip(paths[1:], runs[1:], strict=True):
        other = _identity(run)
        different = [what for what in first if first[what] != other[what]]
        if different:
            raise FileError(
                f"{what} needs files of one run, but {paths[0]} and {path} differ in {', '.join(different)}. "
                f"Make {what} of each."
            )
    indices = np.concatenate([_samples(run) for run in runs])
    twice = len(indices) - len(np.unique(indices))
    if twice:
        raise FileError(f"{what} needs shards that share no sample, but {twice:,} of these are in two or more files.")


def _identity(run: Run) -> dict[str, Any]:
    part = part_of(run)
    return {
        "image size": run.schema.image,
        "number of classes": run.schema.classes,
        "class names": run.categories,
        **{name: run.details.get(name) for name in SHARED},
        "number of shards": part and part.of,
    }


def _samples(run: Run) -> np.ndarray:
    """The positions of the samples in a file, also of those without a row."""
    failed = np.array([failure.sample for failure in run.errors], dtype=np.int64)
    return np.unique(np.concatenate([run.column("index")[:], failed]))


def joined(runs: Sequence[Run]) -> Part | None:
    """Which shards files hold together, None if one does not say."""
    parts = [part_of(run) for run in runs]
    if any(part is None for part in parts):
        return None
    return Part(frozenset().union(*(part.numbers for part in parts if part)), parts[0].of if parts[0] else 1)


def missing(runs: Sequence[Run]) -> str:
    """The sentence that names the shards that are not there, "" if all are. Files are alike.

    A shard beyond the number of samples has none, and no file.
    """
    part, samples = joined(runs), runs[0].details.get("samples")
    if part is None:
        return ""
    needed = min(part.of, samples) if samples else part.of
    lacking = needed - sum(1 <= number <= needed for number in part.numbers)
    if lacking <= 0:
        return ""
    some = list(islice((number for number in count(1) if number not in part.numbers), min(lacking, NAMED)))
    what = "shard {} is" if lacking == 1 else "shards {} are"
    lacked = _listed([f"{number}/{part.of}" for number in some], lacking)
    return f"{what.format(lacked)} missing: have {_listed(list(map(str, sorted(part.numbers))), len(part.numbers))}."


def _listed(names: Sequence[str], number: int) -> str:
    """The first names of so many."""
    shown = [*names[:NAMED], *([f"{number - NAMED:,} more"] if number > NAMED else [])]
    return ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1]
