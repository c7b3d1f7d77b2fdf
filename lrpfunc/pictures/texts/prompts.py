"""Prompts, and answers to them, out of files: lines of JSON, lines of text, Parquet and Arrow.

Of a file of lines only where they begin is kept in memory, so that it may have millions of them; one that is not on
this machine is kept whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.pictures.remote import Place, Remote, place
from lrpfunc.pictures.samples import kind_of
from lrpfunc.pictures.samples.tables import ENDINGS as TABLES
from lrpfunc.pictures.samples.tables import Table
from lrpfunc.pictures.texts.languages import plain

# What fields are called; the first that there is counts. None of those that other data sets have beside a context or an
# input, without which they would not be what a model was asked.
PROMPTS = ("prompt", "text")
ANSWERS = ("answer", "completion", "response")
NAMES = ("id", "name")
JSON, PLAIN = (".jsonl", ".ndjson"), (".txt",)
HIDDEN = "._"  # how names begin that are no data
LOOKED_AT = 100  # lines, to see which fields there are
PIECE = 1 << 24  # bytes that are read at once


class Prompt(NamedTuple):
    """What a model is to read, and what is written behind it, "" for the word that it would write. `name`: an id."""

    prompt: str
    answer: str
    name: str


class Prompts(Protocol):
    """Prompts in a fixed order. `digest`: of all that is in the files."""

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Prompt:
        """Errors: `FileError` with the reason, if it cannot be had."""

    def where(self, index: int) -> str:
        """What to call it if it cannot be read."""


def open_prompts(source: str | Place) -> Prompts:
    """The prompts of a file, or of all files of one kind in a folder, by their names. A string may be a URL.

    A line of JSON is an object with a "prompt", perhaps an "answer" and an "id" (or what else `PROMPTS`, `ANSWERS` and
    `NAMES` have), or a string. Tables have columns that are called so. Each line of `.txt` is a prompt.
    Errors: `FileError` if there is nothing there, or nothing of use; `OSError`; `MissingExtraError`.
    """
    source = place(source)
    files = _files(source)
    found = kind_of(source, files, KINDS)(files)
    if not len(found):
        raise FileError(f"there are no prompts in {source}.")
    return found


def _files(source: Place) -> list[Place]:
    endings = f"{', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}"
    if source.is_dir():
        found = [source / name for name in _names(source) if Path(name).suffix.lower() in KINDS]
        if not found:
            raise FileError(f"there are no prompts in {source}: they are in files {endings}.")
        return found
    if not source.exists():
        raise FileError(f"there is no file {source}.")
    if source.suffix.lower() not in KINDS:
        raise FileError(f"{source} is no file of prompts, which end in {endings}.")
    return [source]


def _names(folder: Place) -> list[str]:
    """Of the files in a folder that are not hidden."""
    if isinstance(folder, Path):
        names = [path.name for path in folder.iterdir() if path.is_file()]
    else:
        names = [name for name in folder.below() if "/" not in name]
    return sorted(name for name in names if name[0] not in HIDDEN)


# -- lines ------------------------------------------------------------------------------------------------------------


class Lines:
    """Lines of files that are not blank, each of which stays on the disk."""

    def __init__(self, files: Sequence[Place]):
        self.files = files
        self._fetched = {path: path.read_bytes() for path in files if isinstance(path, Remote)}
        digest, starts, of = hashlib.sha256(), [], []
        for number, path in enumerate(files):
            digest.update(os.fsencode(path.name))  # which ids may be made of
            with self._opened(path) as file:
                found = _starts(file, digest.update)
            starts.append(found)
            of.append(np.full(len(found), number))
        self.digest = digest.hexdigest()
        self._starts, self._of = np.concatenate(starts), np.concatenate(of)

    def _opened(self, path: Place) -> BinaryIO:
        return path.open("rb") if isinstance(path, Path) else io.BytesIO(self._fetched[path])

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        number = self._of[index]
        return f"{self.files[number].name}#{index - np.searchsorted(self._of, number)}"

    def line(self, index: int) -> str:
        """Errors: `FileError` for what is no text."""
        with self._opened(self.files[self._of[index]]) as file:
            file.seek(self._starts[index])
            raw = file.readline()
        try:
            return raw.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FileError(f"is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def _starts(file: BinaryIO, tell: Callable[[bytes], object]) -> np.ndarray:
    """Where the lines of a file begin that are not blank. `tell` is told all bytes."""
    found = []
    position = 0
    for line in file:
        tell(line)
        if line.strip():
            found.append(position)
        position += len(line)
    return np.array(found, dtype=np.int64)


class PlainLines(Lines):
    """A prompt in each line."""

    def read(self, index: int) -> Prompt:
        return Prompt(self.line(index), "", self.where(index))


class JsonLines(Lines):
    """An object or a string in each line."""

    def __init__(self, files: Sequence[Place]):
        super().__init__(files)
        names: dict[str, None] = {}
        reasons: list[FileError] = []
        for index in range(min(len(self), LOOKED_AT)):
            try:
                names |= dict.fromkeys(self._entries(index))
            except FileError as error:
                reasons.append(error)
        if reasons and not names:
            raise FileError(f"{files[0]} needs an object in each line, but the first {reasons[0]}.")
        if len(self):
            _check_fields(names, files[0])

    def _entries(self, index: int) -> dict[str, Any]:
        """Errors: `FileError` with the reason."""
        try:
            found = json.loads(self.line(index))
        except ValueError as error:
            raise FileError(f"is no JSON ({str(error).split(chr(10))[0]})") from error
        except RecursionError as error:
            raise FileError("is no JSON that can be read: it is nested too deeply") from error
        if isinstance(found, str):
            return {PROMPTS[0]: found}
        if not isinstance(found, dict):
            raise FileError(f"is no object with a '{PROMPTS[0]}', but a {type(found).__name__}")
        return found

    def read(self, index: int) -> Prompt:
        return _prompt(self._entries(index), self.where(index))


# -- tables -----------------------------------------------------------------------------------------------------------


class Rows:
    """A prompt in each row of tables."""

    def __init__(self, files: Sequence[Place]):
        self._table = Table(files)
        _check_fields(self._table.columns, files[0])
        self._columns = [name for name in (*PROMPTS, *ANSWERS, *NAMES) if name in self._table.columns]
        digest = hashlib.sha256()
        for path in files:
            digest.update(os.fsencode(path.name))
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._table.names)

    def where(self, index: int) -> str:
        return self._table.names[index]

    def read(self, index: int) -> Prompt:
        entries = dict(zip(self._columns, self._table.row(index, self._columns), strict=True))
        return _prompt(entries, self.where(index))


KINDS: dict[str, Callable[[Sequence[Place]], Prompts]] = {
    **dict.fromkeys(JSON, JsonLines),
    **dict.fromkeys(PLAIN, PlainLines),
    **dict.fromkeys(TABLES, Rows),
}


# -- fields -----------------------------------------------------------------------------------------------------------


def _check_fields(names: Iterable[str], path: Place) -> None:
    """Errors: `FileError` if no field is a prompt."""
    if not set(names) & set(PROMPTS):
        raise FileError(
            f"{path} needs prompts in a field {' or '.join(PROMPTS)}, but has {', '.join(map(repr, names)) or 'none'}."
        )


def _prompt(entries: Mapping[str, Any], where: str) -> Prompt:
    """Errors: `FileError` with the reason."""
    prompt, answer = (_text(entries, known) for known in (PROMPTS, ANSWERS))
    if prompt is None:
        raise FileError(f"has no '{PROMPTS[0]}'")
    name = _first(entries, NAMES)
    return Prompt(prompt, answer or "", where if name is None else plain(str(entries[name])))


def _first(entries: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """The first of some fields that says something."""
    return next((field for field in known if entries.get(field) is not None), None)


def _text(entries: Mapping[str, Any], known: Iterable[str]) -> str | None:
    field = _first(entries, known)
    if field is None:
        return None
    found = entries[field]
    if not isinstance(found, str):
        hint = ": write it out, by the tokenizer's apply_chat_template, say" if isinstance(found, list | dict) else ""
        raise FileError(f"its '{field}' is no text, but a {type(found).__name__}{hint}")
    if found != plain(found):
        raise FileError(f"its '{field}' is no text: it has halves of characters (surrogates)")
    return found
