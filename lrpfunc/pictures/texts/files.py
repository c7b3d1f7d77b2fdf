"""Explanations of answers in Parquet files (extra `parquet`): a row for each prompt, what is known of the run beside.

The same rows make the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.extras import extra
from lrpfunc.pictures.hdf5 import Failure
from lrpfunc.pictures.outfiles import outfile
from lrpfunc.pictures.samples.tables import Table, arrow

ENDING = ".parquet"
KIND = "texts"
DETAILS = b"lrpfunc"
GROUP_BYTES = 1 << 26  # of the matrices in a group of rows
COMPRESSION = "zstd"


@dataclass(frozen=True)
class Row:
    """A prompt and its answer. Where `error` says why there is no explanation, what is not known is None.

    Args:
        index: the place among all prompts, from 0.
        id: what the prompt is called in its file, else the file and the line.
        prompt: what the model read.
        answer: what is explained: what was given, or the token that is likeliest next.
        is_given: whether the answer was given.
        tokens: the strings of all tokens, prompt and answer.
        ids: their numbers.
        prompt_length: how many of them are the prompt.
        relevance: (tokens,): of each token to the whole answer, the matrix summed over its rows.
        matrix: (answer, tokens): of each token to each token of the answer; zeros at that token itself and after it.
        logits: (answer,): what is explained of each token of the answer.
        probabilities: (answer,): that the model writes this token there.
    """

    index: int
    id: str
    prompt: str | None = None
    answer: str | None = None
    is_given: bool | None = None
    tokens: Sequence[str] | None = None
    ids: Sequence[int] | None = None
    prompt_length: int | None = None
    relevance: np.ndarray | None = None
    matrix: np.ndarray | None = None
    logits: Sequence[float] | None = None
    probabilities: Sequence[float] | None = None
    error: str | None = None


COLUMNS = tuple(field.name for field in fields(Row))


# -- written ----------------------------------------------------------------------------------------------------------


def write(path: Path, details: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write a file, which appears whole. Errors: as `write_tables` has them."""
    write_tables(path, details, (_table(group) for group in _groups(rows)))


def write_tables(path: Path, details: Mapping[str, Any], tables: Iterable[Any], overwrite: bool = False) -> None:
    """Write tables of Arrow, each as a group of rows. Errors: as `outfile` has them; `MissingExtraError`; `OSError`."""
    schema = _schema().with_metadata({DETAILS: json.dumps(details).encode()})
    with (
        outfile(path, overwrite) as part,
        open(part, "wb") as file,  # Python's own, as Arrow's errors do not say what is full
        _parquet().ParquetWriter(file, schema, compression=COMPRESSION) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(len(table), 1))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows that are neighbours, as many as make a group."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += 0 if row.matrix is None else row.matrix.nbytes
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(rows: Sequence[Row]) -> Any:
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    columns["matrix"] = [None if matrix is None else list(matrix) for matrix in columns["matrix"]]
    schema = _schema()
    arrays = [arrow().array(columns[field.name], field.type) for field in schema]
    return arrow().Table.from_arrays(arrays, schema=schema)


def _schema() -> Any:
    made = arrow()
    word, number, real = made.string(), made.int32(), made.float32()
    kinds = {
        "index": made.int64(),
        "is_given": made.bool_(),
        "prompt_length": number,
        "tokens": made.list_(word),
        "ids": made.list_(number),
        "matrix": made.list_(made.list_(real)),
        **dict.fromkeys(("relevance", "logits", "probabilities"), made.list_(real)),
    }
    return made.schema([(name, kinds.get(name, word)) for name in COLUMNS])


def _parquet() -> Any:
    return extra("pyarrow.parquet", "parquet", "writing Parquet")


# -- read -------------------------------------------------------------------------------------------------------------


class TextRun:
    """A file that `write` made. Errors: `FileError` for one that is something else; `OSError`."""

    def __init__(self, path: Path):
        self.path, self.table = path, Table([path])
        try:
            self.details: dict[str, Any] = json.loads((self.table.schema.metadata or {})[DETAILS])
            is_ours = self.details["kind"] == KIND and self.table.schema.names == list(COLUMNS)
        except (KeyError, TypeError, ValueError):
            is_ours = False
        if not is_ours:
            raise FileError(f"{path} is none that `lrpfunc text --prompts` wrote.")

    def __len__(self) -> int:
        return len(self.table.names)

    @property
    def failures(self) -> list[Failure]:
        """The prompts without an explanation."""
        columns = [self.table.column(name) for name in ("index", "id", "error")]
        return [Failure(*entries) for entries in zip(*columns, strict=True) if entries[2] is not None]

    @property
    def firsts(self) -> list[int]:
        """The first prompt of each group of rows."""
        about = self._file.metadata
        groups = (about.row_group(number) for number in range(about.num_row_groups))
        return [group.column(COLUMNS.index("index")).statistics.min for group in groups]

    def group(self, number: int) -> Any:
        """A table of Arrow."""
        return self._file.read_row_group(number)

    @property
    def _file(self) -> Any:
        return _parquet().ParquetFile(self.path)
