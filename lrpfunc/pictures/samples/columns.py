"""Pictures in a column of Parquet and Arrow files, as Hugging Face's `datasets` keeps them (extra `parquet`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lrpfunc.errors import FileError
from lrpfunc.pictures.remote import Place
from lrpfunc.pictures.samples.tables import Table, arrow

IMAGES, CLASSES = ("image", "img", "picture", "jpg", "png", "bytes", "data"), ("label", "labels", "class", "cls", "y")


class Columns:
    """The pictures of tables, row by row and file by file."""

    def __init__(self, files: Sequence[Place]):
        self.files, self._table = files, Table(files)
        schema = self._table.schema
        self._column = _image_column(files[0], schema)
        self.names = self._table.names
        labels = next((name for name in CLASSES if name in self._table.columns), None)
        self.classes: list[int | str | None] = [None] * len(self.names)
        if labels:
            self.classes = [_class(value) for value in self._table.column(labels)]
        self.class_names = _class_names(schema, labels) if labels else []

    def read(self, index: int) -> bytes:
        (value,) = self._table.row(index, (self._column,))
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise FileError("has no bytes: the table says where the picture is, and not what")
        return data


def _image_column(path: Place, schema: Any) -> str:
    """The column with pictures. Errors: `FileError` if none is called as such."""
    types = arrow().types

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


def _class_names(schema: Any, column: str) -> list[str]:
    """The names of classes that `datasets` keeps beside, none if it did not write the table."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _class(value: Any) -> int | str | None:
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None
