"""The one way to a data set: by its path."""

from __future__ import annotations

from pathlib import Path

from lrpfunc.errors import FileError
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.samples.arrays import ENDINGS, arrays
from lrpfunc.pictures.samples.folders import file_of_pages, folder
from lrpfunc.pictures.samples.sample import Samples


def open_samples(source: Path, classifier: Classifier) -> Samples:
    """The samples of a folder of images, whose subfolders are classes, of a file of arrays, or of an image's pages.

    Errors: `FileError` if there is nothing there, or nothing of use; `OSError`.
    """
    if source.is_dir():
        return folder(source, classifier)
    if not source.exists():
        raise FileError(f"there is no folder or file {source}.")
    if source.suffix.lower() in ENDINGS:
        return arrays(source, classifier)
    if images.ending(source) in images.ENDINGS:
        return file_of_pages(source, classifier)
    raise FileError(f"{source} is neither a folder of images nor a file {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")
