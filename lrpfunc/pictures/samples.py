"""The samples of a data set: image files in folders, or arrays in a file, as inputs of a classifier."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import FileError, LrpError, MissingExtraError, near_misses
from lrpfunc.pictures import images
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.hdf5 import UNKNOWN, Failure
from lrpfunc.pictures.weights import first_sentence, unpickled

ARRAYS = (".pt", ".npz")
INPUT_KEYS, LABEL_KEYS = ("data", "x", "images", "inputs", "arr_0"), ("label", "labels", "y", "targets", "arr_1")


class Samples(Protocol):
    """Samples in a fixed order. `names` says which; `identity` is what tells this data set from others."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def identity(self) -> str: ...

    def labels(self, classes: int, names: Sequence[str] | None = None) -> np.ndarray:
        """The class (N,) of each sample for a model of so many classes, -1 where it is not known.

        `names`: of the classes; the classifier's own, unless given.
        """

    def load(self, index: int) -> Tensor:
        """One input (C, H, W). Errors: `FileError` with the reason if it cannot be had."""


def open_samples(source: Path, classifier: Classifier) -> Samples:
    """The samples of a folder of images, whose subfolders are classes, or of a file `.pt` or `.npz`.

    Errors: `FileError` if there is nothing there, or nothing of use.
    """
    if source.is_dir():
        return _folder(source, classifier)
    if not source.exists():
        raise FileError(f"there is no folder or file {source}.")
    if source.suffix.lower() not in ARRAYS:
        raise FileError(f"{source} is neither a folder of images nor a file {' or '.join(ARRAYS)}.")
    return _arrays(source, classifier)


# -- folders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """Image files below a folder; the names are paths relative to it, and their first part is the class."""

    root: str
    names: list[str]
    classifier: Classifier
    identity: str

    def labels(self, classes: int, names: Sequence[str] | None = None) -> np.ndarray:
        known = self.classifier.categories if names is None else names
        folders = [name.split(os.sep, 1)[0] if os.sep in name else "" for name in self.names]
        numbers = class_numbers(sorted(set(folders) - {""}), known, classes)
        return np.array([numbers.get(folder, UNKNOWN) for folder in folders], dtype=np.int64)

    def load(self, index: int) -> Tensor:
        return preprocessed(self.classifier, images.read(Path(self.root, self.names[index])))


def _folder(root: Path, classifier: Classifier) -> Folder:
    names = [os.path.relpath(path, root) for path in images.listed(root)]
    if not names:
        raise FileError(
            f"there are no images in {root} or below it. Images end in {', '.join(sorted(images.ENDINGS))}."
        )
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
    return Folder(str(root), names, classifier, digest)


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


def preprocessed(classifier: Classifier, image: Any) -> Tensor:
    """The input (C, H, W) of an RGB picture.

    Errors: `FileError` if preprocessing fails or gives something else; `MissingExtraError`.
    """
    try:
        x = classifier.preprocess(image)
    except MissingExtraError:  # which other images would meet, too
        raise
    except Exception as error:  # the user's own code may raise anything, and one image must not end a long run
        raise FileError(f"preprocessing failed: {type(error).__name__}: {error}") from error
    if not isinstance(x, Tensor) or x.dim() != 3:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise FileError(f"preprocessing must give a tensor (C, H, W), but gave {got}")
    return x


# -- arrays -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrays:
    """Samples of a file: bytes are pictures (N, H, W, 3), (N, 3, H, W) or gray, numbers are inputs (N, C, H, W)."""

    inputs: Tensor
    classes: Tensor | None
    names: Sequence[str]
    classifier: Classifier
    identity: str

    def labels(self, classes: int, names: Sequence[str] | None = None) -> np.ndarray:
        if self.classes is None:
            return np.full(len(self.names), UNKNOWN, dtype=np.int64)
        labels = self.classes.numpy().astype(np.int64)
        wrong = labels[(labels < UNKNOWN) | (labels >= classes)]
        if len(wrong):
            raise FileError(f"the labels must be 0 to {classes - 1}, or -1 for unknown, but one is {wrong[0]}.")
        return labels

    def load(self, index: int) -> Tensor:
        sample = self.inputs[index]
        if sample.dtype == torch.uint8:
            from PIL import Image

            pixels = sample.movedim(0, -1) if sample.dim() == 3 and sample.shape[-1] not in (1, 3) else sample
            return preprocessed(self.classifier, Image.fromarray(pixels.squeeze(-1).numpy()).convert("RGB"))
        if not sample.isfinite().all():
            raise FileError("has values that are nan or infinite")
        return sample.float()


class _Numbers(Sequence):
    """The names of samples that have only numbers."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        return str(range(self._count)[index])


def _arrays(path: Path, classifier: Classifier) -> Arrays:
    found = _read_arrays(path)
    inputs = next((found[key] for key in INPUT_KEYS if key in found), None)
    labels = next((found[key] for key in LABEL_KEYS if key in found), None)
    if inputs is None:
        raise FileError(
            f"{path} must hold samples under one of the names {', '.join(INPUT_KEYS)}, but holds "
            f"{', '.join(found) or 'nothing'}.{near_misses(next(iter(found), ''), INPUT_KEYS)}"
        )
    is_picture = inputs.dtype == torch.uint8
    fits = inputs.dim() == 3 or _has_colors(inputs.shape) if is_picture else inputs.dim() == 4
    if not fits or not inputs.numel():
        needed = "bytes (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3" if is_picture else "numbers (N, C, H, W)"
        raise FileError(f"the samples in {path} must be {needed}, at least one, but have shape {tuple(inputs.shape)}.")
    if not (is_picture or inputs.is_floating_point()):
        raise FileError(
            f"the samples in {path} must be bytes, which are pictures, or floating-point numbers, which are inputs as "
            f"the model takes them, but are {inputs.dtype}."
        )
    if labels is not None and (labels.is_floating_point() or labels.shape != inputs.shape[:1]):
        raise FileError(
            f"the labels in {path} must be {len(inputs)} whole numbers, one per sample, but are "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    return Arrays(inputs, labels, _Numbers(len(inputs)), classifier, _identity(path))


def _identity(path: Path) -> str:
    """What tells a file from others: the checksums in it, which need not be computed, if it is an archive."""
    if not zipfile.is_zipfile(path):
        return f"{path.name} of {path.stat().st_size} bytes"
    with zipfile.ZipFile(path) as archive:
        parts = [f"{entry.filename} {entry.file_size} {entry.CRC}" for entry in archive.infolist()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _has_colors(shape: Sequence[int]) -> bool:
    """Whether pictures (N, ..., ...) have one colour channel or three, first or last."""
    return len(shape) == 4 and (shape[-1] in (1, 3) or shape[1] in (1, 3))


def _read_arrays(path: Path) -> dict[str, Tensor | None]:
    """What a file holds, None for what is not read."""
    try:
        if path.suffix.lower() == ".npz":
            # Opened here, since numpy does not close what it cannot read.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
                known = (*INPUT_KEYS, *LABEL_KEYS)  # others, such as names, may be anything
                return {key: _tensor(loaded[key]) if key in known else None for key in loaded.files}
        content = unpickled(path, mmap=True)
    # zip, pickle and numpy have errors of their own for files that are broken or something else
    except Exception as error:
        raise FileError(
            f"{path} cannot be read ({first_sentence(error)}). Write it by torch.save(tensors, path) or numpy.savez."
        ) from error
    if isinstance(content, Tensor):
        return {"data": content}
    if isinstance(content, (tuple, list)) and len(content) <= 2 and all(isinstance(part, Tensor) for part in content):
        return dict(zip(("data", "label"), content, strict=False))
    if isinstance(content, Mapping):
        return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    raise FileError(f"{path} must hold a tensor, a pair (samples, labels) or a dict of tensors.")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


# -- batches ----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Samples that could be read, as inputs (n, C, H, W) and as seen, bytes (n, C, H, W), and those that could not."""

    indices: list[int]
    inputs: Tensor
    pixels: Tensor
    failures: list[Failure]


class Loader:
    """Reads lists of samples as batches; worker processes have a copy each."""

    def __init__(self, samples: Samples, classifier: Classifier, shape: tuple[int, ...]):
        self.samples, self.classifier, self.shape = samples, classifier, shape

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The samples at some positions."""
        good, inputs, failures = [], [], []
        for index in indices:
            try:
                inputs.append(self._sample(index))
                good.append(index)
            except LrpError as error:
                failures.append(Failure(index, images.printable(self.samples.names[index]), str(error)))
        stacked = torch.stack(inputs) if inputs else torch.empty(0, *self.shape)
        pixels = (self.classifier.pixels(stacked) * 255).round().to(torch.uint8)
        return Batch(good, stacked, pixels, failures)

    def _sample(self, index: int) -> Tensor:
        x = self.samples.load(index)
        if tuple(x.shape) != self.shape:
            raise FileError(f"is an input of shape {tuple(x.shape)}, but the first one has {self.shape}")
        return x
