"""The files of one run: that they are its parts, are alike, have no sample in common, and which of them is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5
from lrpfunc.pictures.hdf5 import Run

# What all shards of a run have in common, of its details.
SHARED = (
    "model", "parameters", "preprocess", "mean", "std", "output", "composite", "canonized", "targets", "samples",
    "names",
)  # fmt: skip
NAMED = 8  # shards that a message lists, at most
OTHER_FILES = 64  # that a process has open besides


class Part(NamedTuple):
    """Some of the `of` shards of a run, or of its blocks of `size` samples; a file may hold several after a merge."""

    numbers: frozenset[int]
    of: int
    size: int = 0

    def __str__(self) -> str:
        return f"{'+'.join(map(str, sorted(self.numbers)))}/{self.of}" + (f" of {self.size}" if self.size else "")


class Described(Protocol):
    """A file that says what it holds."""

    @property
    def details(self) -> Mapping[str, Any]: ...


def part_of(run: Described) -> Part | None:
    """Which shards or blocks a file holds, None if it does not say."""
    match = re.fullmatch(r"(\d{1,9}(?:\+\d{1,9})*)/(\d{1,9})(?: of (\d{1,9}))?", str(run.details.get("shard", "")))
    return Part(frozenset(map(int, match[1].split("+"))), int(match[2]), int(match[3] or 0)) if match else None


def opened(stack: ExitStack, paths: Sequence[Path]) -> list[Run]:
    """The files of a run, several at a time as each is looked into by a process. Errors: as `hdf5.opened`."""
    _allow(len(paths) + OTHER_FILES)
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda path: stack.enter_context(hdf5.opened(path)), paths))


def _allow(files: int) -> None:
    """Let this process open so many files, where the system lets it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        most = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


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
        "size of blocks": part and part.size,
    }


def _samples(run: Run) -> np.ndarray:
    """The positions of the samples in a file, also of those without a row."""
    failed = np.array([failure.sample for failure in run.errors], dtype=np.int64)
    return np.unique(np.concatenate([run.column("index")[:], failed]))


def joined(runs: Sequence[Described]) -> Part | None:
    """Which shards files hold together, None if one does not say."""
    parts = [part_of(run) for run in runs]
    if any(part is None for part in parts):
        return None
    first = parts[0] or Part(frozenset(), 1)
    return first._replace(numbers=first.numbers.union(*(part.numbers for part in parts if part)))


def missing(runs: Sequence[Described]) -> str:
    """The sentence that names the shards or blocks that are not there, "" if all are. Files are alike.

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
    one = "block" if part.size else "shard"
    what = f"{one} {{}} is" if lacking == 1 else f"{one}s {{}} are"
    lacked = _listed([f"{number}/{part.of}" for number in some], lacking)
    return f"{what.format(lacked)} missing: have {_listed(list(map(str, sorted(part.numbers))), len(part.numbers))}."


def check_whole(runs: Sequence[Described], incomplete: bool) -> str:
    """The sentence of `missing`, for a merge. Errors: `FileError` where something is, unless `incomplete`."""
    lacking = missing(runs)
    if lacking and not incomplete:
        raise FileError(f"{lacking} Make what is missing, or give --incomplete to merge what there is.")
    return lacking


def details_of_all(runs: Sequence[Described]) -> dict[str, Any]:
    """Those of the first part, in whichever order files are given, but for which parts there are."""
    parts = [part_of(run) for run in runs]
    first = min(range(len(runs)), key=lambda number: min(part.numbers) if (part := parts[number]) else 0)
    together = joined(runs)
    return {**runs[first].details, **({"shard": str(together) if missing(runs) else "1/1"} if together else {})}


def _listed(names: Sequence[str], number: int) -> str:
    """The first names of so many."""
    shown = [*names[:NAMED], *([f"{number - NAMED:,} more"] if number > NAMED else [])]
    return ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1]
