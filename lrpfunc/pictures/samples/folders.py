"""Image files below a folder, in a fixed order, with the class that their folder means."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from lrpfunc.errors import FileError
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.hdf5 import UNKNOWN
from lrpfunc.pictures.remote import Place, below, local
from lrpfunc.pictures.samples.remotes import listing, pages
from lrpfunc.pictures.samples.sample import Sample, preprocessed


@dataclass(frozen=True)
class Folder:
    """Image files below a folder; the names are paths relative to it, and their first part is the class.

    `broken`: why some names cannot be looked into; those of folders end in a slash. `is_listed`: somebody wrote the
    names down, which may lie anywhere, and the class is the folder that an image lies in.
    """

    root: Place
    names: list[str]
    classifier: Classifier
    identity: str
    notes: Sequence[str] = ()
    broken: dict[str, str] = field(default_factory=dict)
    is_listed: bool = False

    def labels(self, classes: int, names: Sequence[str] | None = None) -> np.ndarray:
        known = self.classifier.categories if names is None else names
        place = -2 if self.is_listed else 0
        parts = [name.replace(os.sep, "/").split("/") for name in self.names]
        folders = [each[place] if len(each) > 1 else "" for each in parts]
        numbers = class_numbers(sorted(set(folders) - {""}), known, classes)
        return np.array([numbers.get(folder, UNKNOWN) for folder in folders], dtype=np.int64)

    @property
    def files(self) -> Iterator[Place]:
        return (self._place(name)[0] for name in self.names)

    def sample(self, index: int) -> Sample:
        name = self.names[index]
        if name in self.broken:
            raise FileError(self.broken[name])
        where, page = self._place(name)
        with _told(), local(where, is_kept=bool(page)) as file:
            seen = images.look(images.numbered(file, page) if page else file, self.classifier.reading)
        return Sample(preprocessed(self.classifier, seen.image), seen.notices)

    def _place(self, name: str) -> tuple[Place, int]:
        """A sample's file, and the number of its page there."""
        where = below(self.root, name)
        if isinstance(where, Path):
            return images.page_of(where)
        file, page = images.split_page(name)
        return below(self.root, file), page

    def load(self, index: int) -> Tensor:
        return self.sample(index).x


@contextmanager
def _told() -> Iterator[None]:
    """What a file system says of a file is its sample's error. Errors: `FileError`; `ConnectionError` if it is dead."""
    try:
        yield
    except ConnectionError:
        raise
    except FileNotFoundError:
        raise FileError("is missing") from None
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}") from error


def folder(root: Place, classifier: Classifier) -> Folder:
    """All that is below a folder. Errors: `FileError` if there are no images; `OSError`."""
    found = images.listing(root) if isinstance(root, Path) else listing(root)
    names, broken = [], {}
    for path, reason, is_folder in found.entries:
        name = os.path.relpath(path, root if isinstance(root, Path) else ".") + (os.sep if is_folder else "")
        names.append(name)
        if reason:
            broken[name] = reason
    if len(broken) == len(names):
        raise FileError(
            f"there are no images in {root} or below it. Images end in {', '.join(sorted(images.ENDINGS))}."
            + "".join(f" {images.printable(name)} {reason}." for name, reason in list(broken.items())[:1])
            + (f" {found.notes[0].capitalize()}." if found.notes else "")
        )
    return Folder(root, names, classifier, _digest(names), found.notes, broken)


def listed(path: Place, classifier: Classifier) -> Folder:
    """The image files that a file names, one in each line, relative to it or by URL. Errors: `FileError` for none."""
    with local(path) as file:
        names = [line for line in file.read_text(errors="surrogateescape").splitlines() if line.strip()]
    if not names:
        raise FileError(f"{path} names no images: it needs the path of one in each line.")
    return Folder(path.parent, names, classifier, _digest(names), is_listed=True)


def file_of_pages(path: Place, classifier: Classifier) -> Folder:
    """One image file, whose pages are samples."""
    names = pages(path)
    return Folder(path.parent, names, classifier, _digest(names))


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def class_numbers(folders: Sequence[str], categories: Sequence[str], classes: int) -> dict[str, int]:
    """Which class each folder's name means: the class of that name, else of that number, else of that position.

    Names count if any fits (the others are unknown, as are names that two classes have); numbers if all do; positions
    in order if there are as many folders as classes.
    Errors: `FileError` if numbers and positions contradict each other.
    """
    known = [name.casefold() for name in categories]
    named = {folder: known.index(folder.casefold()) for folder in folders if known.count(folder.casefold()) == 1}
    if named:
        return named
    numbers = {folder: int(folder) for folder in folders if folder.isdecimal() and int(folder) < classes}
    positions = {folder: i for i, folder in enumerate(folders)} if len(folders) == classes else {}
    if len(numbers) < len(folders):
        return positions
    if positions and numbers != positions:
        odd = next(folder for folder in folders if numbers[folder] != positions[folder])
        raise FileError(
            f"the folder '{odd}' may be class {numbers[odd]} by its name or class {positions[odd]} by its place among "
            "the sorted folders, as torchvision's ImageFolder has it. Say which with --categories: a file with the "
            "names of the folders in the order of the model's classes."
        )
    return numbers
