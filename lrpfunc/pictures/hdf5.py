"""The HDF5 file of a dataset run: rows of explanations, in the form that ViRelAy reads, and what else is known.

A file is made whole, with room for all rows; rows are then written where they belong, past the HDF5 library. While
a run goes on nothing but numbers changes, so that a process that is killed leaves a file that opens.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.extras import extra

if TYPE_CHECKING:
    import h5py

DETAILS, CATEGORIES, ERRORS = "lrpfunc", "category", "errors"
UNKNOWN = -1  # the label of a sample whose class is not known
COPIED_BYTES = 1 << 26


class Schema(NamedTuple):
    """How large a file is: rows, (channels, height, width), classes, and the bytes of the longest sample's name."""

    rows: int
    image: tuple[int, int, int]
    classes: int
    name_bytes: int

    def columns(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The datasets with one entry per row: shape and type of an entry. What they hold is in RUNS.md."""
        number, integer = np.dtype("<f4"), np.dtype("<i8")
        return {
            "attribution": (self.image, number),
            "prediction": ((self.classes,), number),
            "label": ((), integer),
            "index": ((), integer),
            "target": ((), integer),
            "logit": ((), number),
            "relevance_sum": ((), number),
            "data": (self.image, np.dtype("u1")),
            "file": ((), np.dtype(f"S{max(self.name_bytes, 1)}")),
        }


class Failure(NamedTuple):
    """A sample without a row: its position in the data set, its name, the reason."""

    sample: int
    file: str
    reason: str


# -- writing ----------------------------------------------------------------------------------------------------------


def create(
    path: Path,
    schema: Schema,
    details: Mapping[str, Any],
    categories: Sequence[str],
    failures: Sequence[Failure] = (),
) -> None:
    """Make a file with room for all rows, which it takes from the disk at once.

    `details`: what else is known of the run, as JSON takes it. A file that is there is replaced.
    Errors: `OSError`, of which "no space left" comes here and not hours later.
    """
    h5py = extra("h5py", "cli", "writing HDF5")
    text = h5py.string_dtype()
    failure = np.dtype([("index", "<i8"), ("file", text), ("reason", text)])
    with h5py.File(path, "w") as file:
        file.attrs[DETAILS] = json.dumps(details)
        file.create_dataset(CATEGORIES, data=list(categories), dtype=text, shape=(len(categories),))
        file.create_dataset(ERRORS, data=np.array([tuple(each) for each in failures], dtype=failure))
        # Early allocation takes the bytes of every dataset now; never filling leaves the disk alone.
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for name, (shape, dtype) in schema.columns().items():
            file.create_dataset(name, (schema.rows, *shape), dtype, dcpl=creation)
    with open(path, "r+b") as written:
        _reserve(written.fileno(), os.path.getsize(path))


def _reserve(descriptor: int, size: int) -> None:
    """Take a file's bytes from the disk, where the system can. Errors: `OSError` if there is no room."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise


class Writer:
    """Writes rows where they belong in a file that `create` made; for `writing`."""

    def __init__(self, descriptor: int, columns: Mapping[str, tuple[int, tuple[int, ...], np.dtype]]):
        self._descriptor, self._columns = descriptor, columns

    def write(self, row: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write entries of some columns, all as many, from `row` on. Errors: `OSError`."""
        for name, entries in columns.items():
            offset, shape, dtype = self._columns[name]
            values = np.ascontiguousarray(entries, dtype=dtype)
            assert values.shape[1:] == shape, (name, values.shape, shape)
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            write_at(self._descriptor, memoryview(values.reshape(-1).view("u1").data), offset + row * size)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes; the system may take several turns. Errors: `OSError`."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Open a file that `create` made, to write rows. Errors: `FileError` as `opened` has them; `OSError`."""
    with opened(path) as run:
        columns = {}
        for name, (shape, dtype) in run.schema.columns().items():
            if run.rows:
                columns[name] = (run.column(name).id.get_offset(), shape, dtype)
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield Writer(descriptor, columns)
    finally:
        os.close(descriptor)


def finish(work: Path, out: Path, rows: int, failures: Sequence[Failure]) -> None:
    """Give a work file whose first `rows` rows are written its final name.

    At once if it is full and nothing failed, else by way of a copy, which takes its space once more. Whenever the
    process dies, either `work` is as it was or `out` is whole. Errors: `OSError`.
    """
    with opened(work) as run:
        if rows == run.rows and not failures:
            _move(work, out)
            return
        copy = work.with_name(f"{work.name}.copy")
        try:
            _copy(run, copy, rows, failures)
            _move(copy, out)
        finally:
            copy.unlink(missing_ok=True)
    work.unlink()


def _move(path: Path, to: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    os.replace(path, to)


def _copy(run: Run, to: Path, rows: int, failures: Sequence[Failure]) -> None:
    schema = run.schema._replace(rows=rows)
    create(to, schema, run.details, run.categories, failures)
    step = max(1, COPIED_BYTES // (4 * int(np.prod(schema.image))))
    with writing(to) as writer:
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            writer.write(start, {name: run.column(name)[start:stop] for name in schema.columns()})


# -- reading ----------------------------------------------------------------------------------------------------------


class Run:
    """The file of a run, open to read; for `opened`."""

    def __init__(self, file: h5py.File):
        self.file = file
        self.details: dict[str, Any] = dict(json.loads(str(file.attrs[DETAILS])))
        rows, *image = file["attribution"].shape
        classes, name_bytes = file["prediction"].shape[1], file["file"].dtype.itemsize
        self.schema = Schema(rows, tuple(image), classes, name_bytes)

    @property
    def rows(self) -> int:
        """How many explanations there are."""
        return self.schema.rows

    def column(self, name: str) -> h5py.Dataset:
        """A dataset with one entry per row."""
        return self.file[name]

    @property
    def categories(self) -> list[str]:
        """The names of the classes, none if they have no names."""
        return list(self.file[CATEGORIES].asstr()[:])

    @property
    def errors(self) -> list[Failure]:
        """The samples without a row."""
        return [Failure(int(i), name.decode(), reason.decode()) for i, name, reason in self.file[ERRORS][:]]


@contextmanager
def opened(path: Path) -> Iterator[Run]:
    """Open a file to read. Errors: `FileError` if it is missing, no HDF5 file, or not of `lrpfunc dataset`."""
    h5py = extra("h5py", "cli", "reading HDF5")
    if not Path(path).is_file():
        raise FileError(f"there is no file {path}. `lrpfunc dataset FOLDER --model ... --out {path}` writes one.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FileError(f"{path} is no HDF5 file, or a damaged one.") from error
    with file:
        names = Schema(0, (0, 0, 0), 0, 0).columns()
        try:
            if any(name not in file for name in (*names, CATEGORIES, ERRORS)):
                raise KeyError
            run = Run(file)
        except (KeyError, ValueError, TypeError) as error:  # of what is missing, no JSON, no array
            raise FileError(f"{path} is an HDF5 file, but not one that `lrpfunc dataset` wrote.") from error
        yield run
