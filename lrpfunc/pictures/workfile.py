"""Where a run writes: the work file and the journal beside its file, and what may be in the way there."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5, sidefiles
from lrpfunc.pictures.hdf5 import Columns, Failure, Run, Schema, Writer
from lrpfunc.pictures.journal import Journal, locked
from lrpfunc.pictures.sidefiles import InTheWayError

COPIED_BYTES = 1 << 26

# What must be the same in a run that goes on. Of fingerprints, a message says what they are of.
SAME = (
    "model", "parameters", "preprocess", "mean", "std", "categories", "output", "composite", "canonized", "targets",
    "shard", "samples", "names", "batch",
)  # fmt: skip
FINGERPRINTS = {
    "parameters": "parameters",
    "categories": "names of classes",
    "names": "files",
    "tokenizer": "tokenizer",
    "contents": "prompts",
}


class Workfile:
    """The file that a run is to write, with its work file and its journal, which is open and locked."""

    def __init__(self, out: Path, journal: Journal, resume: bool, overwrite: bool):
        self.out, self.work, self.journal = out, _part(out), journal
        self.new, self.copy = (self.work.with_name(f"{self.work.name}.{end}") for end in ("new", "copy"))
        self._resume, self._overwrite = resume, overwrite
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
        replaces = self.journal.read()[0].get("replaces") is True
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
        self.journal.begin(self._run_id, self._overwrite)
        writer = hdf5.made(self.new, schema, details, categories)
        self._stack.callback(os.close, writer.descriptor)
        try:
            writer.seal()
            is_ours = self._work is not None and sidefiles.is_at(self.work, self._work.descriptor)
            if os.path.lexists(self.work) and not is_ours:
                raise InTheWayError(self.work, "something that has come into being meanwhile")
            os.replace(self.new, self.work)
        except BaseException:
            self.new.unlink(missing_ok=True)
            raise
        sidefiles.sync_folder(self.work.parent)
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
        _discard(self.copy)  # again, as a run takes long
        hdf5.write(self.copy, schema, details, categories, failures, blocks)
        try:
            self._move(self.copy)
        except BaseException:
            self.copy.unlink(missing_ok=True)
            raise

    def _move(self, path: Path) -> None:
        if os.path.lexists(self.out) and not self._overwrite:
            raise FileError(f"{self.out} has come into being meanwhile: move it, then --resume ends this run.")
        os.replace(path, self.out)
        sidefiles.sync_folder(self.out.parent)

    def progress(self) -> tuple[int, int, list[Failure]]:
        """Batches done, rows written, samples failed. A line that was not whole when the process died is cut off."""
        head, lines = self.journal.read()
        if head.get("run") != self._run_id:  # of another run, or of none
            self.journal.begin(self._run_id, self._overwrite)
            return 0, 0, []
        assert self._work is not None
        if lines and lines[-1]["rows"] > self._work.rows:
            raise self.journal.damaged()
        failures = [Failure(*failure) for line in lines for failure in line["failures"]]
        return len(lines), lines[-1]["rows"] if lines else 0, failures

    def record(self, number: int, rows: int, failures: Sequence[Failure]) -> None:
        """Note that a batch is done, and wait until that is on the disk. Its rows must be there already."""
        self.journal.append({"batch": number, "rows": rows, "failures": failures})


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


def _part(out: Path) -> Path:
    """The work file."""
    return out.with_name(f"{out.name}.part")


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
    work = _part(out)
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
    path = out.with_name(f"{out.name}.journal")
    descriptor = locked(path, out)
    try:
        check_workfile(out, resume, overwrite)  # what another process did before it let go
        with Workfile(out, Journal(path, descriptor), resume, overwrite) as workfile:
            yield workfile
    finally:
        says_nothing = Journal(path, descriptor).says_nothing
        # Nothing has begun, or all is finished.
        if (says_nothing or not os.path.lexists(_part(out))) and sidefiles.is_at(path, descriptor):
            path.unlink()
        os.close(descriptor)


def check_same(path: Path, begun: Run, details: Mapping[str, Any]) -> None:
    """A begun run may go on with these details if they are the same. Errors: `FileError` naming what differs."""
    differing = differences(begun.details, details)
    if differing:
        raise FileError(
            f"{path} is of another run, with {', '.join(differing)}. "
            "Give the same options to resume it, another --out, or --overwrite."
        )


def differences(begun: Mapping[str, Any], details: Mapping[str, Any], keys: Iterable[str] = SAME) -> list[str]:
    """What differs between the details of a begun run and those of another, in words."""
    return [
        f"other {FINGERPRINTS[key]}" if key in FINGERPRINTS else f"{key} {begun.get(key)!r} (now {details[key]!r})"
        for key in keys
        if begun.get(key) != details[key]
    ]
