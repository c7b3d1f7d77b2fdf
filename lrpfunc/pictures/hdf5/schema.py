"""What is in the file of a dataset run: its datasets, with shapes and types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

DETAILS, CATEGORIES, ERRORS = "lrpfunc", "category", "errors"
UNKNOWN = -1  # the label of a sample whose class is not known
MAGIC = b"\x89HDF\r\n\x1a\n"  # how an HDF5 file begins


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


# Of outputs; True where each is two choices.
KINDS = {"classes": False, "binary": True, "labels": False, "values": False}


class Contents(NamedTuple):
    """What is known of a file but for its rows, and at which byte each column begins (if there are rows)."""

    schema: Schema
    offsets: Mapping[str, int]
    details: dict[str, Any]
    categories: list[str]
    failures: list[Failure]

    @property
    def choices(self) -> int:
        """How many things can be explained: as many as there are outputs, but of a binary one two."""
        kind = self.details.get("output", {}).get("kind")
        return 2 * self.schema.classes if KINDS.get(kind) else self.schema.classes

    def place(self, name: str, row: int) -> int:
        """The byte at which an entry of a column begins."""
        shape, dtype = self.schema.columns()[name]
        return self.offsets[name] + row * math.prod(shape) * dtype.itemsize
