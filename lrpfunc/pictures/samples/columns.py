"""Pictures in a column of Parquet and Arrow files, as Hugging Face's `datasets` keeps them (extra `parquet`).

A row is read from its group of rows alone; that group stays in memory until another one is asked for.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from lrpfunc.errors import FileError
from lrpfunc.extras import extra

ENDINGS = (".parquet", ".arrow")
IMAGES, CLASSES = ("image", "img", "picture", "jpg", "png", "bytes", "data"), ("label", "labels", "class", "cls", "y")


class Columns:
    """The pictures of tables that have the same columns, row by row and file by file."""

    def __init__(self, files: Sequence[Path]):
        self.files = files
        self._kept: tuple[int, Any] = (-1, None)  # the last group that was read
        schema = _schema(files[0])
        self._column = _image_column(files[0], schema)
        labels = next((name for name in CLASSES if name in schema.names), None)
        self._groups = [(number, group, rows) for number, path in enumerate(files) for group, rows in _groups(path)]
        self._ends = list(accumulate(rows for *_, rows in self._groups))
        counts = Counter[int]()
        for number, _, rows in self._groups:
            counts[number] += rows
        self.names = [f"{path.name}#{row}" for number, path in enumerate(files) for row in range(counts[number])]
        self.classes: list[int | str | None] = [None] * len(self.names)
        if labels:
            self.classes = [_class(value) for path in files for value in _values(path, labels)]
        self.class_names = _class_names(schema, labels) if labels else []

    def read(self, index: int) -> bytes:
        group = bisect_right(self._ends, index)
        number, inside, rows = self._groups[group]
        if self._kept[0] != group:
            self._kept = group, _column(self.files[number], inside, self._column)
        value = self._kept[1][index - self._ends[group] + rows].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise FileError("has no bytes: the table says where the picture is, and not what")
        return data


def _arrow() -> Any:
    return extra("pyarrow", "parquet", "reading Parquet and Arrow")


def _image_column(path: Path, schema: Any) -> str:
    """The column with pictures. Errors: `FileError` if none is called as such."""
    types = _arrow().types

    def holds(name: str) -> bool:
        kind = schema.field(name).type
        is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return is_struct or types.is_binary(kind) or types.is_large_binary(kind)

    found = next((name for name in IMAGES if name in schema.names and holds(name)), None)
    if found is None:
        raise FileError(
            f"{path} must hold the bytes of pictures in a column {', '.join(IMAGES[:-1])} or {IMAGES[-1]}, but has "
            f"{', '.join(schema.names) or 'none'}."
        )
    return found


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Errors: `FileError` for what Arrow cannot read."""
    try:
        yield
    except _arrow().ArrowInvalid as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FileError(f"{path} cannot be read: it is damaged, or something else ({reason}).") from error


def _schema(path: Path) -> Any:
    with _errors(path):
        return _mapped(path).schema if _is_arrow(path) else _parquet(path).schema_arrow


def _groups(path: Path) -> list[tuple[int, int]]:
    """The numbers of a file's groups of rows, and how many rows each has. Arrow's files lie in memory as one."""
    with _errors(path):
        if _is_arrow(path):
            return [(0, _mapped(path).num_rows)]
        about = _parquet(path).metadata
        return [(group, about.row_group(group).num_rows) for group in range(about.num_row_groups)]


def _column(path: Path, group: int, name: str) -> Any:
    """A column of a group of rows."""
    with _errors(path):
        if _is_arrow(path):
            return _mapped(path).column(name)
        return _parquet(path).read_row_group(group, columns=[name], use_threads=False).column(0)


def _values(path: Path, name: str) -> list[Any]:
    return [value for group, _ in _groups(path) for value in _column(path, group, name).to_pylist()]


def _is_arrow(path: Path) -> bool:
    return path.suffix.lower() == ".arrow"


def _mapped(path: Path) -> Any:
    """An Arrow file, which is a stream or a file of record batches, as a table that stays on the disk."""
    arrow = _arrow()
    ipc = extra("pyarrow.ipc", "parquet", "reading Arrow")
    source = arrow.memory_map(str(path))
    try:
        return ipc.open_stream(source).read_all()
    except arrow.ArrowInvalid:
        return ipc.open_file(source).read_all()


def _parquet(path: Path) -> Any:
    return extra("pyarrow.parquet", "parquet", "reading Parquet").ParquetFile(path, memory_map=True)


def _class_names(schema: Any, column: str) -> list[str]:
    """The names of classes that `datasets` keeps beside, none if it did not write the table."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _class(value: Any) -> int | str | None:
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None
