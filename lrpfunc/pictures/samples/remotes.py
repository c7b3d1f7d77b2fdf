"""The pictures in a folder by its URL, by the names that they have in a folder of this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lrpfunc.pictures import images
from lrpfunc.pictures.remote import Place, Remote, local, part


def listing(folder: Remote) -> images.Listing:
    """As `images.listing` has it, by names relative to the folder; a file is looked into only if its ending says so.

    Which is: to count its pages, for which it is fetched, or for its first bytes where there is no ending.
    Errors: `OSError` if there is no such folder.
    """
    entries: list[images.Entry] = []
    endings, hidden, several = Counter[str](), set[tuple[str, ...]](), 0
    for name in folder.below():
        path = Path(name)
        ending = images.ending(path)
        first = next((i for i, each in enumerate(path.parts, 1) if each.startswith(".") or each == "__MACOSX"), None)
        if first is not None:
            hidden.add(path.parts[:first])
        elif ending not in images.ENDINGS and not (images.may_be_any(path) and _is_picture(folder / name)):
            endings[ending or "without an ending"] += 1
        else:
            numbered = pages(folder / name)
            entries += [images.Entry(path.with_name(each)) for each in numbered]
            several += len(numbered) > 1
    return images.Listing(entries, endings, len(hidden), several)


def pages(path: Place) -> list[str]:
    """The names of a file's pages. Errors: `ConnectionError`."""
    name = Path(path.name)
    if isinstance(path, Remote) and images.ending(name) not in images.PAGED and not images.may_be_any(name):
        return [path.name]
    try:
        with local(path) as file:
            numbers = [images.page_of(each)[1] for each in images.pages(file)]
    except ConnectionError:
        raise
    except OSError:  # what is wrong with it is said when it is read
        numbers = [0]
    return [images.numbered(name, number).name if number else path.name for number in numbers]


def _is_picture(file: Remote) -> bool:
    """Errors: `ConnectionError`."""
    try:
        return images.is_picture(part(file, 0, images.LONGEST))
    except ConnectionError:
        raise
    except OSError:
        return False
