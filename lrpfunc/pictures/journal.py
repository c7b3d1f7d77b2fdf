"""The journal of a run: a line for each batch whose rows are written. It is locked as long as the run lives.

It begins with our signature; its first line, the head, says of which run it is. A line is whole, or it is the last.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError
from lrpfunc.pictures import sidefiles
from lrpfunc.pictures.sidefiles import SIGNATURE, InTheWayError

Line = dict[str, Any]


class BusyError(FileError):
    """Another process has it, and lives."""


class Journal:
    """A journal that is open and, but for systems without locks, of this process alone."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, descriptor

    @property
    def says_nothing(self) -> bool:
        """Whether it has not even a head."""
        return self._size() <= len(SIGNATURE)

    def begin(self, run: str, replaces: bool) -> None:
        """Forget all. `run`: what tells the run from others; `replaces`: whether it may replace a file at its end."""
        with sidefiles.named(self.path):
            if self.says_nothing:
                sidefiles.sign(self._descriptor)
            os.ftruncate(self._descriptor, len(SIGNATURE))
            sidefiles.sync(self._descriptor)  # before something else stands there
        self.append({"run": run, "replaces": replaces})

    def append(self, line: Line) -> None:
        """Note something, and wait until that is on the disk. Errors: `OSError`."""
        with sidefiles.named(self.path):
            data = memoryview(json.dumps(line).encode() + b"\n")
            sidefiles.write_at(self._descriptor, data, self._size())
            sidefiles.sync(self._descriptor)

    def read(self) -> tuple[Line, list[Line]]:
        """The head, {} if there is none, and the other lines. One at which a process died is cut off.

        Errors: `FileError` if any other line is none of ours.
        """
        with sidefiles.named(self.path):
            text = os.pread(self._descriptor, self._size(), 0)
        found: list[Line] = []
        end = len(SIGNATURE)
        for raw in text[end:].splitlines(keepends=True):
            line = _line(raw)
            if line is None or not _follows(found, line):
                break
            found.append(line)
            end += len(raw)
        if b"\n" in text[end:].rstrip(b"\n"):  # more than the last line
            raise self.damaged()
        if end < len(text):
            with sidefiles.named(self.path):
                os.ftruncate(self._descriptor, end)
                sidefiles.sync(self._descriptor)  # before something else stands there
        return (found[0], found[1:]) if found else ({}, [])

    def damaged(self) -> FileError:
        """What is said of one that cannot be."""
        return FileError(f"{self.path} is damaged: begin anew with --overwrite.")

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size


def _line(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _follows(before: Sequence[Line], line: Line) -> bool:
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


# -- the lock ---------------------------------------------------------------------------------------------------------


def locked(path: Path, out: Path) -> int:
    """The journal of who writes `out`, open and locked. Errors: `FileError` if another has it, or if it is none."""
    while True:
        descriptor = sidefiles.taken(path, create=True)
        try:
            _lock(descriptor, out)
            if sidefiles.is_at(path, descriptor):
                if not sidefiles.is_signed(descriptor):
                    raise InTheWayError(path, "something else")
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
            raise BusyError(f"another process is writing {out}. Give each shard a file of its own.") from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
