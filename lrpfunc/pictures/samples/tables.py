"""Rows of Parquet and Arrow files (extra `parquet`).

A row is read from its group of rows alone; that group stays in memory until another one is asked for. Of files that are
not on this machine, those of Parquet are read so, too; those of Arrow, which are one group, are fetched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError
from lrpfunc.extras import extra
from lrpfunc.pictures.remote import Place, Remote, local

ENDINGS = (".parquet", ".arrow")


class Table:
    """The rows of files, file by file, of which some columns are read; what a file has no column for is None.

    `names`: of the rows; `columns`: of all files; `schema`: of the first one.
    Errors: `FileError` for what Arrow cannot read, and columns of one name; `MissingExtraError`.
    """

    def __init__(self, files: Sequence[Place]):
        self.files = files
        self.schema = _schema(files[0])
        self.columns = list(dict.fromkeys(name for path in files for name in _schema(path).names))
        self._kept: tuple[int, Sequence[str], dict[str, Any]] = (-1, (), {})  # the last group that was read
        self._groups = [(number, group, rows) for number, path in enumerate(files) for group, rows in _groups(path)]
        self._ends = list(accumulate(rows for *_, rows in self._groups))
        counts = Counter[int]()
        for number, _, rows in self._groups:
            counts[number] += rows
        self.names = [f"{path.name}#{row}" for number, path in enumerate(files) for row in range(counts[number])]

    def row(self, index: int, columns: Sequence[str]) -> list[Any]:
        """Entries of a row, as Python has them. Errors: `FileError` for one that is none of its type."""
        group = bisect_right(self._ends, index)
        number, inside, rows = self._groups[group]
        if self._kept[:2] != (group, columns):
            self._kept = group, columns, {name: _column(self.files[number], inside, name) for name in columns}
        place = index - self._ends[group] + rows
        return [_entry(self._kept[2][name][place], name) for name in columns]

    def column(self, name: str) -> list[Any]:
        """All entries of a column."""
        return [value for path in self.files for group, _ in _groups(path) for value in _values(path, group, name)]


def arrow() -> Any:
    """The package that reads them. Errors: `MissingExtraError`."""
    return extra("pyarrow", "parquet", "reading Parquet and Arrow")


@contextmanager
def _errors(path: Place) -> Iterator[None]:
    """Errors: `FileError` for what Arrow cannot read."""
    try:
        yield
    except arrow().ArrowInvalid as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FileError(f"{path} cannot be read: it is damaged, or something else ({reason}).") from error


def _schema(path: Place) -> Any:
    with _errors(path):
        schema = _mapped(path).schema if _is_arrow(path) else _parquet(path).schema_arrow
    if twice := [name for name, number in Counter(schema.names).items() if number > 1]:
        raise FileError(f"{path} has several columns {twice[0]!r}: give each a name of its own.")
    return schema


def _groups(path: Place) -> list[tuple[int, int]]:
    """The numbers of a file's groups of rows, and how many rows each has. Arrow's files lie in memory as one."""
    with _errors(path):
        if _is_arrow(path):
            return [(0, _mapped(path).num_rows)]
        about = _parquet(path).metadata
        return [(group, about.row_group(group).num_rows) for group in range(about.num_row_groups)]


def _column(path: Place, group: int, name: str) -> Any:
    """A column of a group of rows."""
    with _errors(path):
        if _is_arrow(path):
            table = _mapped(path)
        else:
            table = _parquet(path).read_row_group(group, columns=[name], use_threads=False)
        return table.column(name) if name in table.column_names else arrow().nulls(len(table))


def _entry(scalar: Any, name: str) -> Any:
    """As Python has it. Errors: `FileError` for bytes that are no UTF-8, and times that Python has none for."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        raise FileError(f"its '{name}' cannot be read ({str(error).split(chr(10))[0]})") from error


def _values(path: Place, group: int, name: str) -> list[Any]:
    column = _column(path, group, name)
    try:
        return [_entry(scalar, name) for scalar in column]
    except FileError as error:
        raise FileError(f"{path} is damaged: {error}. Write it anew, or without that column.") from error


def _is_arrow(path: Place) -> bool:
    return path.suffix.lower() == ".arrow"


def _mapped(path: Place) -> Any:
    """An Arrow file, which is a stream or a file of record batches, as a table that stays on the disk."""
    return _copied(path, path.version()) if isinstance(path, Remote) else _opened(path)


@lru_cache(maxsize=2)
def _copied(path: Remote, version: str) -> Any:
    with local(path) as file:
        return _opened(file)


def _opened(path: Path) -> Any:
    source = arrow().memory_map(str(path))
    ipc = extra("pyarrow.ipc", "parquet", "reading Arrow")
    try:
        return ipc.open_stream(source).read_all()
    except arrow().ArrowInvalid:
        return ipc.open_file(source).read_all()


def _parquet(path: Place) -> Any:
    if isinstance(path, Remote):
        return _read_in_parts(path, path.version())
    return extra("pyarrow.parquet", "parquet", "reading Parquet").ParquetFile(path, memory_map=True)


@lru_cache(maxsize=8)
def _read_in_parts(path: Remote, version: str) -> Any:
    return extra("pyarrow.parquet", "parquet", "reading Parquet").ParquetFile(path.open("rb"))
