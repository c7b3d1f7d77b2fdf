"""The pictures in a folder and below it, what cannot be looked into, and what is left out, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lrpfunc.pictures.images.kinds import ENDINGS, ending, first_bytes, is_picture, may_be_any
from lrpfunc.pictures.images.reading import pages


class Entry(NamedTuple):
    """A picture, by its file and page, or a file or folder that cannot be looked into, and why."""

    path: Path
    reason: str = ""
    is_folder: bool = False


class Listing(NamedTuple):
    """What there is in a folder, in a fixed order.

    `endings`: of the files left out, and how many. `hidden`: files and folders. `several`: files with several pages.
    """

    entries: list[Entry]
    endings: Counter[str]
    hidden: int
    several: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of it, in lines."""
        lines = []
        if self.endings:
            count = sum(self.endings.values())
            each = ", ".join(f"{many} {name}" for name, many in sorted(self.endings.items(), key=_by_count)[:6])
            more = ", ..." if len(self.endings) > 6 else ""
            what = "files left out that are no images" if count > 1 else "file left out that is no image"
            lines.append(f"{count:,} {what}: {each}{more}")
        if self.hidden:
            what = "hidden files or folders" if self.hidden > 1 else "hidden file or folder"
            lines.append(f"{self.hidden:,} {what} left out")
        if self.several:
            lines.append(f"{self.several:,} file{'s' * (self.several != 1)} with several pages: each page is a sample")
        return tuple(lines)


def listing(folder: Path) -> Listing:
    """The pictures in a folder and below it: by their endings, and by their bytes where there is none.

    Each page of a file with several is one. Hidden files are left out, as are links to a folder above.
    Errors: `OSError` if the folder itself cannot be read.
    """
    found = Listing([], Counter(), 0, 0)
    # An explicit stack: folders may lie deeper in each other than Python's functions may.
    waiting: list[Iterator[Path]] = [iter(_inside(folder))]
    above = [_identity(folder)]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
            above.pop()
        elif path.name.startswith(".") or path.name == "__MACOSX":
            found = found._replace(hidden=found.hidden + 1)
        else:
            is_folder = False
            try:
                is_folder = path.is_dir()
                if not is_folder:
                    found = _with(found, path)
                elif (identity := _identity(path)) not in above:
                    waiting.append(iter(_inside(path)))
                    above.append(identity)
            except (OSError, RuntimeError) as error:  # links in circles are RuntimeErrors in some versions of Python
                found.entries.append(Entry(path, _why(error), is_folder))
    return found


def _identity(folder: Path) -> tuple[int, int]:
    """What tells a folder from others, by whatever name."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: path.name)


def _with(found: Listing, path: Path) -> Listing:
    """A listing with a file more."""
    name = ending(path)
    if name not in ENDINGS and not (may_be_any(path) and path.is_file() and is_picture(first_bytes(path))):
        found.endings[name or "without an ending"] += 1
        return found
    numbered = pages(path)
    found.entries.extend(map(Entry, numbered))
    return found._replace(several=found.several + (len(numbered) > 1))


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _why(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read: {' '.join(said.split())}"
