"""Pictures that lie in larger files, by their bytes: in tar archives, in Parquet and Arrow tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from lrpfunc.errors import FileError
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.hdf5 import UNKNOWN
from lrpfunc.pictures.remote import Place
from lrpfunc.pictures.samples.folders import class_numbers
from lrpfunc.pictures.samples.sample import Sample, preprocessed


class Store(Protocol):
    """Where pictures lie.

    `files`: the larger files. `names`: of the pictures. `classes`: the number or the name of each one's class, None
    where it is not known. `class_names`: what the numbers are called there, if it is said.
    """

    @property
    def files(self) -> Sequence[Place]: ...

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[int | str | None]: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    def read(self, index: int) -> bytes:
        """A picture's bytes. Errors: `FileError` if they cannot be had."""


@dataclass(frozen=True)
class Packed:
    """The samples of a store."""

    store: Store
    classifier: Classifier
    notes: Sequence[str] = ()

    @property
    def names(self) -> Sequence[str]:
        return self.store.names

    @property
    def files(self) -> Sequence[Place]:
        return self.store.files

    @property
    def identity(self) -> str:
        return hashlib.sha256("\0".join(self.names).encode(errors="surrogateescape")).hexdigest()

    def labels(self, classes: int, names: Sequence[str] | None = None) -> np.ndarray:
        """Numbers are classes, or what they are called there if the model has such a class; names are as of folders."""
        known = self.classifier.categories if names is None else names
        words = class_numbers(sorted({each for each in self.store.classes if isinstance(each, str)}), known, classes)
        called = _by_name(self.store.class_names, known)

        def number(each: int | str | None) -> int:
            if isinstance(each, int):
                return called.get(each, UNKNOWN) if called else each
            return UNKNOWN if each is None else words.get(each, UNKNOWN)

        labels = np.array([number(each) for each in self.store.classes], np.int64)
        wrong = labels[(labels < UNKNOWN) | (labels >= classes)]
        if len(wrong):
            raise FileError(f"the labels must be 0 to {classes - 1}, or -1 for unknown, but one is {wrong[0]}.")
        return labels

    def sample(self, index: int) -> Sample:
        name = images.page_of(Path(self.names[index]))[0]
        seen = images.look_at(self.store.read(index), images.ending(name), self.classifier.reading)
        return Sample(preprocessed(self.classifier, seen.image), seen.notices)

    def load(self, index: int) -> Tensor:
        return self.sample(index).x


def _by_name(theirs: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """Which of the model's classes each number is by its name; empty if none is."""
    folded = [name.casefold() for name in known]
    return {i: folded.index(n.casefold()) for i, n in enumerate(theirs) if folded.count(n.casefold()) == 1}
