"""Files of runs, read without trust: they may be damaged, or made by someone to do harm.

The HDF5 library sees them in another process alone (`examination`); columns are read from the bytes where they lie.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.extras import need
from lrpfunc.pictures.hdf5.examination import examined
from lrpfunc.pictures.hdf5.schema import UNKNOWN, Contents

CHECKED_ROWS = 1 << 16


class Column:
    """A dataset with one entry per row; slices of it are arrays."""

    def __init__(self, path: Path, file: io.FileIO, contents: Contents, name: str):
        self._path, self._file, self._contents, self._name = path, file, contents, name
        shape, self.dtype = contents.schema.columns()[name]
        self.shape = (contents.schema.rows, *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Entries of some rows, one after another. Errors: `FileError` if the file has become shorter; `OSError`."""
        start, stop, step = rows.indices(len(self))
        assert step == 1, "rows are read one after another"
        found = np.empty((max(stop - start, 0), *self.shape[1:]), self.dtype)
        if found.size:
            self._file.seek(self._contents.place(self._name, start))
            view = memoryview(found.reshape(-1).view("u1").data)
            while view:
                count = self._file.readinto(view)
                if not count:
                    raise FileError(f"{self._path} became shorter while it was read.")
                view = view[count:]
        return found


class Run:
    """The file of a run, open to read."""

    def __init__(self, path: Path, file: io.FileIO, contents: Contents):
        self.contents = contents
        self.schema, _, self.details, self.categories, self.errors = contents
        self._path, self._file = path, file

    @property
    def rows(self) -> int:
        """How many explanations there are."""
        return self.schema.rows

    @property
    def descriptor(self) -> int:
        """The open file's."""
        return self._file.fileno()

    def column(self, name: str) -> Column:
        """A dataset with one entry per row."""
        return Column(self._path, self._file, self.contents, name)


@contextmanager
def opened(path: Path) -> Iterator[Run]:
    """Open a file to read.

    Errors: `FileError` if it is missing, no HDF5 file, not of `lrpfunc dataset`, or damaged; `OSError`.
    """
    need("h5py", "cli", "reading HDF5")
    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no file {path}. `lrpfunc dataset FOLDER --model ... --out {path}` writes one.")
    with io.FileIO(path, "rb", opener=_without_waiting) as file:
        run = Run(path, file, examined(path, file))
        _check_values(path, run)
        yield run


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # for a pipe that took the file's place


def _check_values(path: Path, run: Run) -> None:
    """Numbers that point at something do not point beside it. Errors: `FileError`."""
    choices = run.contents.choices
    limits = {"label": (UNKNOWN, choices), "target": (0, choices), "index": (0, 1 << 62)}
    for name, (low, high) in limits.items():
        column = run.column(name)
        for start in range(0, run.rows, CHECKED_ROWS):
            values = column[start : start + CHECKED_ROWS]
            wrong = values[(values < low) | (values >= high)]
            if len(wrong):
                raise FileError(
                    f"{path} is an HDF5 file, but not one that `lrpfunc dataset` wrote: '{name}' should be from {low} "
                    f"to {high - 1}, but one is {wrong[0]}."
                )
    names = len(run.categories)
    if names not in (0, choices):
        raise FileError(
            f"{path} is an HDF5 file, but not one that `lrpfunc dataset` wrote: it has {choices} classes, but {names} "
            "names for them."
        )
