"""The one way to a data set: by its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lrpfunc.errors import FileError
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.remote import Place, place
from lrpfunc.pictures.samples import columns, tables, tars
from lrpfunc.pictures.samples.arrays import ENDINGS, arrays
from lrpfunc.pictures.samples.folders import file_of_pages, folder, listed
from lrpfunc.pictures.samples.packed import Packed, Store
from lrpfunc.pictures.samples.sample import Samples

Kind = TypeVar("Kind")

LIST = ".txt"
PROMPTS = (".jsonl", ".ndjson")
STORES: dict[str, Callable[[Sequence[Place]], Store]] = {
    tars.ENDING: tars.Tars,
    **dict.fromkeys(tables.ENDINGS, columns.Columns),
}


def open_samples(source: str | Place, classifier: Classifier) -> Samples:
    """The samples of a folder of images, whose subfolders are classes, of a file of arrays, or of an image's pages.

    Or of a list of files, `.txt`; or of files that hold images: tar archives (WebDataset), Parquet or Arrow, one of
    them or a folder without images. A string may be a URL.
    Errors: `FileError` if there is nothing there, or nothing of use; `OSError`; `MissingExtraError`.
    """
    source = place(source)
    if source.is_dir():
        try:
            return folder(source, classifier)
        except FileError:
            inside = _stores(source)
            if not inside:
                raise
            return _packed(source, inside, classifier)
    if not source.exists():
        raise FileError(f"there is no folder or file {source}.")
    if source.suffix.lower() == LIST:
        return listed(source, classifier)
    if source.suffix.lower() in STORES:
        return _packed(source, [source], classifier)
    if source.suffix.lower() in ENDINGS:
        return arrays(source, classifier)
    if images.ending(Path(source.name)) in images.ENDINGS:
        return file_of_pages(source, classifier)
    if source.suffix.lower() in PROMPTS:
        raise FileError(f"{source} holds no pictures. Prompts go to `lrpfunc text --prompts {source}`.")
    raise FileError(f"{source} is neither a folder of images nor a file {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")


def _stores(root: Place) -> list[Place]:
    """All larger files below a folder."""
    if isinstance(root, Path):
        return sorted(path for path in root.rglob("*") if path.suffix.lower() in STORES and path.is_file())
    return [root / name for name in root.below() if Path(name).suffix.lower() in STORES]


def _packed(source: Place, files: Sequence[Place], classifier: Classifier) -> Samples:
    """Files of one kind. Errors: as `kind_of` and the stores have them."""
    return Packed(kind_of(source, files, STORES)(files), classifier)


def kind_of(source: str | Place, files: Sequence[Place], kinds: Mapping[str, Kind]) -> Kind:
    """What the endings of files all stand for. Errors: `FileError` for several kinds."""
    endings = sorted({path.suffix.lower() for path in files})
    if len({kinds[ending] for ending in endings}) > 1:
        raise FileError(f"{source} holds {' and '.join(endings)} files: give the folder of one kind, or one file.")
    return kinds[endings[0]]
