"""Names of classes in files: one per line, or a JSON list."""

from __future__ import annotations

import json
from pathlib import Path

from lrpfunc.errors import FileError


def read_categories(path: Path) -> tuple[str, ...]:
    """The names in a file. Errors: `FileError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark before the first name
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read class names from {path} ({error}).") from error
    if path.suffix.lower() == ".json":
        return _from_json(path, text)
    listed = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not listed:
        raise FileError(f"{path} must hold a class name per line, but has none.")
    return listed


def _from_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        listed = json.loads(text)
    except ValueError as error:
        raise FileError(f"{path} is no JSON ({error}).") from error
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise FileError(f"{path} must hold a JSON list of class names.")
    return tuple(listed)
