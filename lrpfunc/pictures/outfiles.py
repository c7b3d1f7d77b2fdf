"""Files that appear whole or not at all, replace nothing unasked, and follow no link."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrpfunc.errors import FileError


def check_outfile(path: Path, overwrite: bool) -> None:
    """Ask before work whether a file may be written. Errors: `FileError` for what is there."""
    if path.is_dir() and not path.is_symlink():
        raise FileError(f"{path} is a folder: choose another name.")
    if os.path.lexists(path) and not overwrite:
        raise FileError(f"{path} exists: choose another --out, or give --overwrite.")


@contextmanager
def outfile(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new file beside `path`, of its ending, to be written; it takes the name of `path` at the end, if all went well.

    A link of that name is replaced, and what it leads to stays. What another process put there meanwhile is kept, too.
    Errors: `FileError` as `check_outfile`; `OSError`.
    """
    check_outfile(path, overwrite)
    part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")  # a long name would not have room for more
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield part
        _place(part, path, overwrite)
    finally:
        part.unlink(missing_ok=True)


def _place(part: Path, path: Path, overwrite: bool) -> None:
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    if not overwrite and not _linked(part, path):
        check_outfile(path, overwrite)
        os.replace(part, path)
    elif overwrite:
        os.replace(part, path)


def _linked(part: Path, path: Path) -> bool:
    """Give a file its name only if nothing has it; False where the file system cannot. Errors: `FileError`."""
    try:
        os.link(part, path)
    except FileExistsError:
        check_outfile(path, overwrite=False)
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        return False
    return True
