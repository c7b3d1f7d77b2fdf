"""Names of files, as text that any terminal may print, and with the number of a page behind."""

from __future__ import annotations

import os
import re
from pathlib import Path

PAGE = "#"  # scan.tif#2


def printable(name: str | Path) -> str:
    """A file's name in a line that any terminal may print, also where its bytes are no text."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def page_of(path: Path) -> tuple[Path, int]:
    """The file and the number of the page that a name means: `scan.tif#2`, unless a file is called that; 0 for none."""
    name, page = split_page(path.name)
    return (path.with_name(name), page) if page and not os.path.lexists(path) else (path, 0)


def split_page(name: str) -> tuple[str, int]:
    """The name of a file and the number of a page, 0 if there is none."""
    match = re.fullmatch(rf"(.+){PAGE}([1-9]\d*)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def stem(path: Path) -> str:
    """What pictures of a file or a page are called: `scan_2` of `scan.tif#2`."""
    file, page = page_of(path)
    name = file.name[: -len(".nii.gz")] if file.name.lower().endswith(".nii.gz") else file.stem
    return f"{name}_{page}" if page else name


def numbered(path: Path, page: int) -> Path:
    """The name of a page of a file, from 1."""
    return path.with_name(f"{path.name}{PAGE}{page}")
