"""The file of a run is made whole, with room for all rows; rows are then written where they belong.

The HDF5 library works in memory alone, and all that is written to the disk is written here: while a run goes on nothing
but numbers changes, so that a process that is killed leaves a file that opens.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrpfunc.extras import extra
from lrpfunc.pictures import sidefiles
from lrpfunc.pictures.hdf5.schema import CATEGORIES, DETAILS, ERRORS, MAGIC, Contents, Failure, Schema
from lrpfunc.pictures.sidefiles import SIGNATURE

Columns = Mapping[str, np.ndarray]  # entries by the name of their column, all as many


class Writer:
    """A file of a run that is open, to write rows where they belong."""

    def __init__(self, path: Path, descriptor: int, contents: Contents):
        self.path, self.descriptor, self.contents = path, descriptor, contents

    def write(self, row: int, columns: Columns) -> None:
        """Write entries of some columns from `row` on. Errors: `OSError`."""
        for name, entries in columns.items():
            shape, dtype = self.contents.schema.columns()[name]
            values = np.ascontiguousarray(entries, dtype=dtype)
            assert values.shape[1:] == shape, (name, values.shape, shape)
            if len(values):
                with sidefiles.named(self.path):
                    data = memoryview(values.reshape(-1).view("u1").data)
                    sidefiles.write_at(self.descriptor, data, self.contents.place(name, row))

    def sync(self) -> None:
        """Wait until all that was written would survive a power cut. Errors: `OSError`."""
        with sidefiles.named(self.path):
            sidefiles.sync(self.descriptor)

    def seal(self) -> None:
        """Make it an HDF5 file, which it is not before all else is on the disk. Errors: `OSError`."""
        self.sync()
        with sidefiles.named(self.path):
            sidefiles.write_at(self.descriptor, memoryview(MAGIC), 0)
        self.sync()


def made(
    path: Path,
    schema: Schema,
    details: Mapping[str, Any],
    categories: Sequence[str],
    failures: Sequence[Failure] = (),
) -> Writer:
    """Make a file with room for all rows, which it takes from the disk at once. It is none of HDF5 until `Writer.seal`.

    `details`: what else is known of the run, as JSON takes it. Who gets it closes its descriptor.
    Errors: `FileExistsError`; other `OSError`, of which "no space left" comes here and not hours later.
    """
    memory, contents = built(schema, details, categories, failures)
    with sidefiles.named(path):
        descriptor = sidefiles.made(path)
        try:
            _reserve(descriptor, memory.size)
            for offset, data in memory.parts(len(MAGIC)):
                sidefiles.write_at(descriptor, data, offset)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
    return Writer(path, descriptor, contents)


def is_begun(descriptor: int) -> bool:
    """Whether a file is one that `made` began and nobody sealed, or not to the last byte."""
    head = os.pread(descriptor, len(MAGIC), 0)
    return sidefiles.is_signed(descriptor) or (
        head != MAGIC and head in [MAGIC[:n] + SIGNATURE[n:] for n in range(len(MAGIC))]
    )


def write(
    path: Path,
    schema: Schema,
    details: Mapping[str, Any],
    categories: Sequence[str],
    failures: Sequence[Failure] = (),
    blocks: Iterable[tuple[int, Columns]] = (),
) -> None:
    """Make a whole file: `blocks` are rows, each with the number of the first one. What fails leaves nothing behind.

    Errors: as `made` has them.
    """
    writer = made(path, schema, details, categories, failures)
    try:
        for row, columns in blocks:
            writer.write(row, columns)
        writer.seal()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(writer.descriptor)


# -- what is not rows -------------------------------------------------------------------------------------------------


def built(
    schema: Schema, details: Mapping[str, Any], categories: Sequence[str], failures: Sequence[Failure]
) -> tuple[Memory, Contents]:
    """A file without its rows, as the HDF5 library makes it."""
    h5py = extra("h5py", "cli", "writing HDF5")
    memory, offsets = Memory(), {}
    text = h5py.string_dtype()
    failure = np.dtype([("index", "<i8"), ("file", text), ("reason", text)])
    with h5py.File(memory, "w") as file:
        file.attrs[DETAILS] = json.dumps(details)
        file.create_dataset(CATEGORIES, data=list(categories), dtype=text, shape=(len(categories),))
        file.create_dataset(ERRORS, data=np.array([tuple(each) for each in failures], dtype=failure))
        # Early allocation gives every dataset its place now; never filling leaves that empty.
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for name, (shape, dtype) in schema.columns().items():
            dataset = file.create_dataset(name, (schema.rows, *shape), dtype, dcpl=creation)
            if schema.rows:
                offsets[name] = dataset.id.get_offset()
    return memory, Contents(schema, offsets, dict(details), list(categories), list(failures))


class Memory(io.RawIOBase):
    """A file in memory that takes room for what is written only, in pages."""

    PAGE = 1 << 16

    def __init__(self) -> None:
        self.size, self._position = 0, 0
        self._pages: dict[int, bytearray] = {}

    def parts(self, start: int) -> Iterator[tuple[int, memoryview]]:
        """What was written from `start` on, each with its place."""
        for number, page in sorted(self._pages.items()):
            first, last = max(start, number * self.PAGE), min(self.size, (number + 1) * self.PAGE)
            if first < last:
                yield first, memoryview(page)[first - number * self.PAGE : last - number * self.PAGE]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for page, inside, here in self._spans(len(view)):
            page[inside] = view[here]
        self._position += len(view)
        self.size = max(self.size, self._position)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for page, inside, here in self._spans(len(view)):
            view[here] = page[inside]
        self._position += len(view)
        return len(view)

    def _spans(self, count: int) -> Iterator[tuple[bytearray, slice, slice]]:
        """The pages of the next bytes: for each, where they are in it and which of these bytes they are."""
        done = 0
        while done < count:
            number, start = divmod(self._position + done, self.PAGE)
            length = min(count - done, self.PAGE - start)
            page = self._pages.setdefault(number, bytearray(self.PAGE))
            yield page, slice(start, start + length), slice(done, done + length)
            done += length


def _reserve(descriptor: int, size: int) -> None:
    """Take a file's bytes from the disk, where the system can. Errors: `OSError` if there is no room."""
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
