"""Prompts, and answers to them, out of files: lines of JSON, lines of text, Parquet and Arrow.

Only where lines begin is kept in memory, so that a file may have millions of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.pictures.samples.tables import ENDINGS as TABLES
from lrpfunc.pictures.samples.tables import Table

# What fields are called, as the usual data sets have them; the first that there is counts.
PROMPTS = ("prompt", "question", "instruction", "text", "input")
ANSWERS = ("answer", "completion", "response", "output")
NAMES = ("id", "name")
JSON, PLAIN = (".jsonl", ".ndjson"), (".txt",)
LOOKED_AT = 100  # lines, to see which fields there are
PIECE = 1 << 24  # bytes that are read at once


class Prompt(NamedTuple):
    """What a model is to read, and what is written behind it, "" for the word that it would write. `name`: an id."""

    prompt: str
    answer: str
    name: str


class Fields(NamedTuple):
    """What is called how."""

    prompt: str
    answer: str | None = None
    name: str | None = None

    @property
    def given(self) -> list[str]:
        return [field for field in self if field is not None]


class Prompts(Protocol):
    """Prompts in a fixed order. `digest`: of all that is in the files."""

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Prompt:
        """Errors: `FileError` with the reason, if it cannot be had."""

    def where(self, index: int) -> str:
        """What to call it if it cannot be read."""


def open_prompts(source: Path) -> Prompts:
    """The prompts of a file, or of all files of one kind in a folder, by their names.

    A line of JSON is an object with a "prompt", perhaps an "answer" and an "id" (or what else `PROMPTS`, `ANSWERS` and
    `NAMES` have), or a string. Tables have columns that are called so. Each line of `.txt` is a prompt.
    Errors: `FileError` if there is nothing there, or nothing of use; `OSError`; `MissingExtraError`.
    """
    files = _files(source)
    endings = sorted({path.suffix.lower() for path in files})
    kinds = {KINDS[ending] for ending in endings}
    if len(kinds) > 1:
        raise FileError(f"{source} holds {' and '.join(endings)} files: give the folder of one kind, or one file.")
    found = kinds.pop()(files)
    if not len(found):
        raise FileError(f"there are no prompts in {source}.")
    return found


def _files(source: Path) -> list[Path]:
    endings = f"{', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}"
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in KINDS and path.is_file())
        if not found:
            raise FileError(f"there are no prompts in {source}: they are in files {endings}.")
        return found
    if not source.exists():
        raise FileError(f"there is no file {source}.")
    if source.suffix.lower() not in KINDS:
        raise FileError(f"{source} is no file of prompts, which end in {endings}.")
    return [source]


# -- lines ------------------------------------------------------------------------------------------------------------


class Lines:
    """Lines of files that are not blank, each of which stays on the disk."""

    def __init__(self, files: Sequence[Path]):
        self.files = files
        digest, starts, of = hashlib.sha256(), [], []
        for number, path in enumerate(files):
            found = _starts(path, digest.update)
            starts.append(found)
            of.append(np.full(len(found), number))
        self.digest = digest.hexdigest()
        self._starts, self._of = np.concatenate(starts), np.concatenate(of)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        number = self._of[index]
        return f"{self.files[number].name}#{index - np.searchsorted(self._of, number)}"

    def line(self, index: int) -> str:
        """Errors: `FileError` for what is no text."""
        with open(self.files[self._of[index]], "rb") as file:
            file.seek(self._starts[index])
            raw = file.readline()
        try:
            return raw.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FileError(f"is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def _starts(path: Path, tell: Callable[[bytes], object]) -> np.ndarray:
    """Where the lines of a file begin that are not blank. `tell` is told all bytes."""
    found = []
    with open(path, "rb") as file:
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

    def __init__(self, files: Sequence[Path]):
        super().__init__(files)
        names: dict[str, None] = {}
        for index in range(min(len(self), LOOKED_AT)):
            try:
                found = self._parsed(index)
            except FileError:
                continue
            names |= dict.fromkeys(found if isinstance(found, dict) else PROMPTS[:1])
        self._fields = _fields(names, self.files[0]) if len(self) else Fields(PROMPTS[0])

    def _parsed(self, index: int) -> Any:
        try:
            return json.loads(self.line(index))
        except (ValueError, RecursionError) as error:
            raise FileError(f"is no JSON ({str(error).split(chr(10))[0]})") from error

    def read(self, index: int) -> Prompt:
        found = self._parsed(index)
        entries = {self._fields.prompt: found} if isinstance(found, str) else found
        if not isinstance(entries, dict):
            raise FileError(f"is no object with a '{self._fields.prompt}', but a {type(found).__name__}")
        return _prompt(entries, self._fields, self.where(index))


# -- tables -----------------------------------------------------------------------------------------------------------


class Rows:
    """A prompt in each row of tables."""

    def __init__(self, files: Sequence[Path]):
        self._table = Table(files)
        self._fields = _fields(self._table.schema.names, files[0])
        digest = hashlib.sha256()
        for path in files:
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._table.names)

    def where(self, index: int) -> str:
        return self._table.names[index]

    def read(self, index: int) -> Prompt:
        names = self._fields.given
        return _prompt(dict(zip(names, self._table.row(index, names), strict=True)), self._fields, self.where(index))


KINDS: dict[str, Callable[[Sequence[Path]], Prompts]] = {
    **dict.fromkeys(JSON, JsonLines),
    **dict.fromkeys(PLAIN, PlainLines),
    **dict.fromkeys(TABLES, Rows),
}


# -- fields -----------------------------------------------------------------------------------------------------------


def _fields(names: Iterable[str], path: Path) -> Fields:
    """Errors: `FileError` if none is a prompt."""
    there = list(names)
    prompt, answer, name = (
        next((each for each in known if each in there), None) for known in (PROMPTS, ANSWERS, NAMES)
    )
    if prompt is None:
        raise FileError(
            f"{path} needs prompts in a field {', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}, but has "
            f"{', '.join(map(repr, there)) or 'none'}."
        )
    return Fields(prompt, answer, name)


def _prompt(entries: Mapping[str, Any], fields: Fields, where: str) -> Prompt:
    prompt = _text(entries, fields.prompt)
    if prompt is None:
        raise FileError(f"has no '{fields.prompt}'")
    answer = None if fields.answer is None else _text(entries, fields.answer)
    name = None if fields.name is None else entries.get(fields.name)
    return Prompt(prompt, answer or "", where if name is None else str(name))


def _text(entries: Mapping[str, Any], field: str) -> str | None:
    found = entries.get(field)
    if found is not None and not isinstance(found, str):
        hint = ": write it out, by the tokenizer's apply_chat_template, say" if isinstance(found, list | dict) else ""
        raise FileError(f"its '{field}' is no text, but a {type(found).__name__}{hint}")
    return found
