"""Where a run writes: the work file and the journal beside its file, and what may be in the way there."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5, sidefiles
from lrpfunc.pictures.hdf5 import Columns, Failure, Run, Schema, Writer
from lrpfunc.pictures.sidefiles import SIGNATURE, InTheWayError

COPIED_BYTES = 1 << 26

# What must be the same in a run that goes on. Of fingerprints, a message says what they are of.
SAME = (
    "model", "parameters", "preprocess", "mean", "std", "categories", "output", "composite", "canonized", "targets",
    "shard", "samples", "names", "batch",
)  # fmt: skip
FINGERPRINTS = {"parameters": "parameters", "categories": "names of classes", "names": "files"}


class Workfile:
    """The file that a run is to write, with its work file and its journal, which is open and locked."""

    def __init__(self, out: Path, journal: int, resume: bool, overwrite: bool):
        self.out = out
        self.work, self.journal = _beside(out)
        self.new, self.copy = (self.work.with_name(f"{self.work.name}.{end}") for end in ("new", "copy"))
        self._journal, self._resume, self._overwrite = journal, resume, overwrite
        self._run_id = ""
        self._work: Run | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Workfile:
        """Ask whether what is there is ours, before anything of it changes. Errors: `FileError`."""
        with self._stack:
            if os.path.lexists(self.work):
                file = self._stack.enter_context(io.FileIO(sidefiles.taken(self.work), "r+b"))
                self._work = _own_run(self.work, file)
            for left in (self.new, self.copy):
                _discard(left)  # of a process that was killed
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def is_finished(self) -> bool:
        """Whether a run to be resumed has ended already."""
        return self._resume and self.out.exists() and self._work is None

    def begun(self, details: dict[str, Any]) -> Writer | None:
        """What there is to go on with. Errors: `FileError` if it is of another run."""
        self._run_id = _run_id(details)
        if self._work is None or not self._resume:
            return None
        check_same(self.work, self._work, details)
        replaces = self._lines()[0].get("replaces") is True
        if self.out.exists() and not replaces:
            self._check_ended(details)
        self._overwrite = replaces or self.out.exists()
        return Writer(self.work, self._work.descriptor, self._work.contents)

    def _check_ended(self, details: dict[str, Any]) -> None:
        """The file is what this run wrote, whose process was killed before its work file was gone, or in the way."""
        try:
            with hdf5.opened(self.out) as ended:
                check_same(self.out, ended, details)
        except FileError as error:
            raise FileError(
                f"{self.out} exists, and this run has not written it: move it, then --resume goes on."
            ) from error

    def begin(self, schema: Schema, details: dict[str, Any], categories: Sequence[str]) -> Writer:
        """Make a work file, whole before it has its name; until then nothing is done, as the journal must say."""
        self._begin_journal()
        writer = hdf5.made(self.new, schema, details, categories)
        self._stack.callback(os.close, writer.descriptor)
        try:
            writer.seal()
            os.replace(self.new, self.work)
            sidefiles.sync_folder(self.work.parent)
        finally:
            self.new.unlink(missing_ok=True)
        file = self._stack.enter_context(io.FileIO(writer.descriptor, "rb", closefd=False))
        self._work = Run(self.work, file, writer.contents)
        writer.path = self.work
        return writer

    def finish(self, rows: int, failures: Sequence[Failure]) -> None:
        """Give the work file, whose first `rows` rows are written, its final name.

        At once if it is full and nothing failed, else by way of a copy, which takes its space once more. Whenever the
        process dies, either the work file is as it was or `out` is whole. Errors: `FileError` if something has taken
        the name meanwhile; `OSError`.
        """
        assert self._work is not None
        if rows == self._work.rows and not failures:
            self._move(self.work)
            return
        schema = self._work.schema._replace(rows=rows)
        self.write(schema, self._work.details, self._work.categories, failures, _blocks(self._work, rows))
        self.work.unlink()
        sidefiles.sync_folder(self.work.parent)  # before the journal goes, which says that all is done

    def write(
        self,
        schema: Schema,
        details: dict[str, Any],
        categories: Sequence[str],
        failures: Sequence[Failure],
        blocks: Iterable[tuple[int, Columns]],
    ) -> None:
        """Write the whole file at once, under another name until it is whole. Errors: as `finish`."""
        try:
            hdf5.write(self.copy, schema, details, categories, failures, blocks)
            self._move(self.copy)
        finally:
            self.copy.unlink(missing_ok=True)

    def _move(self, path: Path) -> None:
        if os.path.lexists(self.out) and not self._overwrite:
            raise FileError(f"{self.out} has come into being meanwhile: move it, then --resume ends this run.")
        os.replace(path, self.out)
        sidefiles.sync_folder(self.out.parent)

    # -- the journal --------------------------------------------------------------------------------------------------

    def progress(self) -> tuple[int, int, list[Failure]]:
        """Batches done, rows written, samples failed. A line that was not whole when the process died is cut off."""
        head, lines = self._lines()
        if head.get("run") != self._run_id:  # of another run, or of none
            self._begin_journal()
            return 0, 0, []
        assert self._work is not None
        if lines and lines[-1]["rows"] > self._work.rows:
            raise self._damaged()
        failures = [Failure(*failure) for line in lines for failure in line["failures"]]
        return len(lines), lines[-1]["rows"] if lines else 0, failures

    def record(self, number: int, rows: int, failures: Sequence[Failure]) -> None:
        """Note that a batch is done, and wait until that is on the disk. Its rows must be there already."""
        self._append({"batch": number, "rows": rows, "failures": failures})

    def _begin_journal(self) -> None:
        with sidefiles.named(self.journal):
            if os.fstat(self._journal).st_size <= len(SIGNATURE):
                sidefiles.sign(self._journal)
            os.ftruncate(self._journal, len(SIGNATURE))
            sidefiles.sync(self._journal)  # before something else stands there
        self._append({"run": self._run_id, "replaces": self._overwrite})

    def _append(self, line: dict[str, Any]) -> None:
        with sidefiles.named(self.journal):
            data = memoryview(json.dumps(line).encode() + b"\n")
            sidefiles.write_at(self._journal, data, os.fstat(self._journal).st_size)
            sidefiles.sync(self._journal)

    def _lines(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The head of the journal, {} if there is none, and its other lines.

        What is behind the last whole line is cut off. Errors: `FileError` if any other line is none of ours.
        """
        text = os.pread(self._journal, os.fstat(self._journal).st_size, 0)
        found: list[dict[str, Any]] = []
        end = len(SIGNATURE)
        for raw in text[end:].splitlines(keepends=True):
            line = _line(raw)
            if line is None or not _follows(found, line):
                break
            found.append(line)
            end += len(raw)
        if b"\n" in text[end:].rstrip(b"\n"):  # more than the one line that a process died at
            raise self._damaged()
        if end < len(text):
            os.ftruncate(self._journal, end)
            sidefiles.sync(self._journal)  # before something else stands there
        return (found[0], found[1:]) if found else ({}, [])

    def _damaged(self) -> FileError:
        return FileError(f"{self.journal} is damaged: begin anew with --overwrite.")


def _line(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _follows(before: Sequence[dict[str, Any]], line: dict[str, Any]) -> bool:
    """Whether a line of a journal may come after these."""
    if not before:
        return isinstance(line.get("run"), str)
    batch, rows, failures = line.get("batch"), line.get("rows"), line.get("failures")
    return (
        batch == len(before) - 1
        and isinstance(rows, int)
        and rows >= before[-1].get("rows", 0)
        and isinstance(failures, list)
        and all(isinstance(f, list) and len(f) == 3 and [type(part) for part in f] == [int, str, str] for f in failures)
    )


def _run_id(details: dict[str, Any]) -> str:
    """What tells the journals of different runs from each other."""
    return hashlib.sha256(json.dumps([details[key] for key in SAME]).encode()).hexdigest()


def _blocks(run: Run, rows: int) -> Iterator[tuple[int, Columns]]:
    """The first rows, as many at once as fit into memory with ease."""
    step = max(1, COPIED_BYTES // (4 * math.prod(run.schema.image)))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield start, {name: run.column(name)[start:stop] for name in run.schema.columns()}


# -- what is in the way -----------------------------------------------------------------------------------------------


def _beside(out: Path) -> tuple[Path, Path]:
    """The work file and the journal."""
    return out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.journal")


def _own_run(path: Path, file: io.FileIO) -> Run:
    """The run of a work file, of which not all rows need be there. Errors: `FileError` if it is none of ours."""
    try:
        return Run(path, file, hdf5.examined(path, file))
    except FileError as error:
        raise FileError(
            f"{error} It is in the way, and not ours to replace: move it, or choose another --out."
        ) from error


def _discard(path: Path) -> None:
    """Remove a file that a process of ours left when it was killed. Errors: `FileError` if it is something else."""
    try:
        descriptor = sidefiles.taken(path)
    except FileNotFoundError:
        return
    with io.FileIO(descriptor, "r+b") as file:
        if not hdf5.is_begun(descriptor):
            _own_run(path, file)
        if sidefiles.is_at(path, descriptor):
            path.unlink()


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
    out = _led_to(out)
    check_out(out, resume or overwrite, "explanations.h5")
    work, _ = _beside(out)
    if os.path.lexists(work) and not (resume or overwrite):
        with io.FileIO(sidefiles.taken(work), "r+b") as file:
            _own_run(work, file)
        raise FileError(
            f"{work} is of an unfinished run. Give --resume to go on with it, or --overwrite to begin anew."
        )


def _led_to(out: Path) -> Path:
    """What a link leads to: the link stays, and that is written. Errors: `FileError` for links in a circle."""
    found = Path(os.path.realpath(out)) if out.is_symlink() else out
    if found.is_symlink():
        raise FileError(f"{out} is a link that leads in a circle: choose another --out.")
    return found


@contextmanager
def claimed(out: Path, resume: bool, overwrite: bool) -> Iterator[Workfile]:
    """The work file of a run, for this process alone. Errors: as `check_workfile`, and if another process has it."""
    out = _led_to(out)
    check_workfile(out, resume, overwrite)
    work, journal = _beside(out)
    descriptor = _locked(journal, out)
    try:
        check_workfile(out, resume, overwrite)  # what another process did before it let go
        with Workfile(out, descriptor, resume, overwrite) as workfile:
            yield workfile
    finally:
        says_nothing = os.fstat(descriptor).st_size <= len(SIGNATURE)
        # Nothing has begun, or all is finished.
        if (says_nothing or not os.path.lexists(work)) and sidefiles.is_at(journal, descriptor):
            journal.unlink()
        os.close(descriptor)


def _locked(journal: Path, out: Path) -> int:
    """The journal, open and locked. Errors: `FileError` if another process has it, or if it is none."""
    while True:
        descriptor = sidefiles.taken(journal, create=True)
        try:
            _lock(descriptor, out)
            if sidefiles.is_at(journal, descriptor):
                if not sidefiles.is_signed(descriptor):
                    raise InTheWayError(journal, "something else")
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
