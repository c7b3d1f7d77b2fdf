"""Files beside the one that a command is to write: taken, emptied, replaced or deleted only if they are its own.

A file of ours begins with `SIGNATURE`, which is on the disk before anything else of it. Links are never followed to
such a file, and what has a second name, or is no regular file, is never one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrpfunc.errors import FileError

SIGNATURE = b"lrpfunc\n"
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe would wait for its other end
_KINDS = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISREG, ""))


class InTheWayError(FileError):
    """What has the name of a file of ours is none."""

    def __init__(self, path: Path, what: str):
        super().__init__(
            f"{path} is in the way: it is {what}, no file of an lrpfunc run. Move it, or choose another --out."
        )

    def __reduce__(self) -> tuple[type[FileError], tuple[str]]:
        return FileError, (str(self),)  # for another process


# -- whose file it is -------------------------------------------------------------------------------------------------


def taken(path: Path, create: bool = False) -> int:
    """Open a regular file with no other name to read and write; nothing in it changes.

    Errors: `FileError` for what is something else, `OSError`.
    """
    with suppress(FileNotFoundError):
        _check_plain(path, os.lstat(path))  # first, as opening a device may do things
    try:
        descriptor = os.open(path, os.O_RDWR | _FLAGS | _NO_WAIT | (os.O_CREAT if create else 0), 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # it has become a link
            raise InTheWayError(path, "a link") from error
        raise
    try:
        _check_plain(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_plain(path: Path, information: os.stat_result) -> None:
    kind = next((name for has_kind, name in _KINDS if has_kind(information.st_mode)), "a device, pipe or socket")
    if kind:
        raise InTheWayError(path, kind)
    if information.st_nlink > 1:
        raise InTheWayError(path, "a file that has other names, too (hard links)")


def is_signed(descriptor: int) -> bool:
    """Whether a file is ours, or would be if the process had lived to sign it: there is nothing to lose in it then."""
    head = os.pread(descriptor, len(SIGNATURE), 0)
    if os.fstat(descriptor).st_size > len(SIGNATURE):
        return head == SIGNATURE
    return SIGNATURE.startswith(head.rstrip(b"\0"))  # zeros are what a power cut leaves of bytes that were on the way


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def made(path: Path) -> int:
    """A new file that is signed, open to read and write. Errors: `FileExistsError`, also for links; `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
    try:
        sign(descriptor)
    except BaseException:
        os.close(descriptor)
        os.unlink(path)
        raise
    return descriptor


def sign(descriptor: int) -> None:
    """Make an empty file ours, for good."""
    write_at(descriptor, memoryview(SIGNATURE), 0)
    sync(descriptor)


# -- what lasts -------------------------------------------------------------------------------------------------------


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes; the system may take several turns. Errors: `OSError`."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def sync(descriptor: int) -> None:
    """Wait until what a file holds would survive a power cut. Errors: `OSError`, such as that the disk failed."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder would survive a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system say which file they are about, also where only a descriptor was at hand."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
