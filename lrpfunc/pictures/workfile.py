"""Where a run writes: the work file and the journal beside its file, and what may be in the way there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5
from lrpfunc.pictures.hdf5 import Failure, Run, Schema

# What must be the same in a run that goes on. Of fingerprints, a message says what they are of.
SAME = (
    "model", "parameters", "preprocess", "mean", "std", "categories", "output", "composite", "canonized", "targets",
    "shard", "samples", "names", "batch",
)  # fmt: skip
FINGERPRINTS = {"parameters": "parameters", "categories": "names of classes", "names": "files"}


class Workfile:
    """The file that a run is to write, with its work file and its journal, which is open and locked."""

    def __init__(self, out: Path, descriptor: int, resume: bool):
        self.out = out
        self.work, self.journal = _beside(out)
        self.new = self.work.with_name(f"{self.work.name}.new")
        self.new.unlink(missing_ok=True)  # of a process that was killed
        self._descriptor, self._resume = descriptor, resume

    @property
    def is_finished(self) -> bool:
        """Whether a run to be resumed has ended already."""
        return self._resume and self.out.exists() and not self.work.exists()

    def resumes(self, details: dict[str, Any]) -> bool:
        """Whether there is something to go on with. Errors: `FileError` if it is of another run."""
        if not (self._resume and self.work.exists()):
            return False
        with hdf5.opened(self.work) as begun:
            check_same(self.work, begun, details)
        return True

    def begin(self, schema: Schema, details: dict[str, Any], categories: Sequence[str]) -> None:
        """Make a work file, whole before it has its name; until then nothing is done, as the journal must say."""
        os.ftruncate(self._descriptor, 0)
        try:
            hdf5.create(self.new, schema, details, categories)
            os.replace(self.new, self.work)
        finally:
            self.new.unlink(missing_ok=True)

    def progress(self) -> tuple[int, int, list[Failure]]:
        """Batches done, rows written, samples failed. A line that was not whole when the process died is cut off."""
        text = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        whole = text[: text.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            failures = [Failure(*failure) for line in lines for failure in line["failures"]]
            return len(lines), lines[-1]["rows"] if lines else 0, failures
        except (ValueError, TypeError, KeyError) as error:
            raise FileError(f"{self.journal} is damaged: begin anew with --overwrite.") from error

    def record(self, number: int, rows: int, failures: Sequence[Failure]) -> None:
        """Note that a batch is done. Its rows must be written."""
        line = json.dumps({"batch": number, "rows": rows, "failures": failures}) + "\n"
        hdf5.write_at(self._descriptor, memoryview(line.encode()), os.fstat(self._descriptor).st_size)


def _beside(out: Path) -> tuple[Path, Path]:
    """The work file and the journal."""
    return out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.journal")


def check_out(out: Path, replaces: bool, example: str) -> None:
    """Ask whether a file can be written. `example`: a name to suggest to who gives a folder. Errors: `FileError`."""
    if out.is_dir():
        raise FileError(f"{out} is a folder: name a file in it, such as --out {out / example}.")
    if out.exists() and not out.is_file():
        raise FileError(f"{out} is no regular file: choose another --out.")
    if not out.parent.is_dir():
        raise FileError(f"cannot write {out}: there is no folder {out.parent}.")
    if out.exists() and not replaces:
        raise FileError(f"{out} exists: choose another --out, or give --overwrite.")


def check_workfile(out: Path, resume: bool = False, overwrite: bool = False) -> None:
    """Ask before long work whether a run can write to `out`. Errors: `FileError` if something is in the way."""
    if resume and overwrite:
        raise InputError("a run is either resumed or begun anew: give --resume or --overwrite, not both.")
    check_out(out, resume or overwrite, "explanations.h5")
    work, _ = _beside(out)
    if work.exists() and not (resume or overwrite):
        raise FileError(
            f"{work} is of an unfinished run. Give --resume to go on with it, or --overwrite to begin anew."
        )


@contextmanager
def claimed(out: Path, resume: bool, overwrite: bool) -> Iterator[Workfile]:
    """The work file of a run, for this process alone. Errors: as `check_workfile`, and if another process has it."""
    out = out.resolve() if out.is_symlink() else out  # the link stays, and what it leads to is written
    check_workfile(out, resume, overwrite)
    work, journal = _beside(out)
    descriptor = _locked(journal, out)
    try:
        check_workfile(out, resume, overwrite)  # what another process did before it let go
        yield Workfile(out, descriptor, resume)
    finally:
        if not work.exists():  # nothing has begun, or all is finished
            journal.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(journal: Path, out: Path) -> int:
    """The journal, open and locked. Errors: `FileError` if another process has it."""
    while True:
        descriptor = os.open(journal, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, out)
            if journal.exists() and os.path.samestat(os.fstat(descriptor), journal.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who had it before has removed it: it is no one's journal any more


def _lock(descriptor: int, out: Path) -> None:
    """Keep other processes out, where the file system can.

    A record lock goes when this process does, also if processes that it forked live on.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise FileError(f"another process is writing {out}. Give each shard a file of its own.") from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def check_same(path: Path, begun: Run, details: dict[str, Any]) -> None:
    """A begun run may go on with these details if they are the same. Errors: `FileError` naming what differs."""
    differing = [
        f"other {FINGERPRINTS[key]}"
        if key in FINGERPRINTS
        else f"{key} {begun.details.get(key)!r} (now {details[key]!r})"
        for key in SAME
        if begun.details.get(key) != details[key]
    ]
    if differing:
        raise FileError(
            f"{path} is of another run, with {', '.join(differing)}. "
            "Give the same options to resume it, another --out, or --overwrite."
        )
