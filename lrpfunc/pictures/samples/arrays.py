"""Samples in files of arrays: mapped into memory, so that only what is looked at is read, where a file allows that."""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import FileError, near_misses
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.pictures.hdf5 import UNKNOWN
from lrpfunc.pictures.remote import Place, local
from lrpfunc.pictures.samples.sample import Sample, kind, preprocessed
from lrpfunc.pictures.weights import first_sentence, unpickled

ENDINGS = (".pt", ".npz", ".npy")
INPUT_KEYS, LABEL_KEYS = ("data", "x", "images", "inputs", "arr_0"), ("label", "labels", "y", "targets", "arr_1")
FLOATS = ("torch.float", "torch.bfloat")
LOCAL_HEADER = 30  # bytes before the name in a zip archive


@dataclass(frozen=True)
class Arrays:
    """Samples of a file: bytes are pictures (N, H, W, 3), (N, 3, H, W) or gray, numbers are inputs (N, C, H, W)."""

    inputs: Tensor | np.ndarray
    classes: Tensor | None
    names: Sequence[str]
    classifier: Classifier
    identity: str
    files: Sequence[Place]
    notes: Sequence[str] = ()

    def labels(self, classes: int, names: Sequence[str] | None = None) -> np.ndarray:
        if self.classes is None:
            return np.full(len(self.names), UNKNOWN, dtype=np.int64)
        labels = self.classes.numpy().astype(np.int64)
        wrong = labels[(labels < UNKNOWN) | (labels >= classes)]
        if len(wrong):
            raise FileError(f"the labels must be 0 to {classes - 1}, or -1 for unknown, but one is {wrong[0]}.")
        return labels

    def sample(self, index: int) -> Sample:
        values = _copied(self.inputs[index])
        if values.dtype == torch.uint8:
            from PIL import Image

            pixels = values.movedim(0, -1) if values.dim() == 3 and values.shape[-1] not in (1, 3) else values
            image = Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1).numpy())).convert("RGB")
            return Sample(preprocessed(self.classifier, image))
        if not values.isfinite().all():
            raise FileError("has values that are nan or infinite")
        return Sample(values)

    def load(self, index: int) -> Tensor:
        return self.sample(index).x


class _Numbers(Sequence):
    """The names of samples that have only numbers."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        return str(range(self._count)[index])


def arrays(path: Place, classifier: Classifier) -> Arrays:
    """The samples in a file, with labels if it has them. Errors: `FileError` that says what is wrong with it."""
    with local(path) as file:  # of which a copy may lose its name: what is mapped stays
        found, identity = _read(file, path), _identity(file, path.name)
    inputs = next((found[key] for key in INPUT_KEYS if key in found), None)
    labels = next((found[key] for key in LABEL_KEYS if key in found), None)
    if inputs is None:
        raise FileError(
            f"{path} must hold samples under one of the names {', '.join(INPUT_KEYS)}, but holds "
            f"{', '.join(found) or 'nothing'}.{near_misses(next(iter(found), ''), INPUT_KEYS)}"
        )
    _check_inputs(path, inputs)
    names = _Numbers(len(inputs))
    return Arrays(inputs, _labels(path, labels, len(inputs)), names, classifier, identity, [path])


def _copied(values: Tensor | np.ndarray) -> Tensor:
    """A sample of its own in memory: bytes, or float32."""
    if isinstance(values, np.ndarray):
        with np.errstate(over="ignore"):  # what is infinite then is refused as such
            return torch.from_numpy(np.array(values, np.uint8 if values.dtype == np.uint8 else np.float32, order="C"))
    values = values.clone(memory_format=torch.contiguous_format)
    return values if values.dtype == torch.uint8 else values.float()


# -- what may be in them ----------------------------------------------------------------------------------------------


def _check_inputs(path: Place, inputs: Tensor | np.ndarray) -> None:
    """Errors: `FileError` for what would fail later, sample by sample."""
    what = str(inputs.dtype) if isinstance(inputs, np.ndarray) else kind(inputs)
    is_picture = what in ("uint8", "torch.uint8")
    is_float = inputs.dtype.kind == "f" if isinstance(inputs, np.ndarray) else what.startswith(FLOATS)
    if not (is_picture or is_float):
        raise FileError(
            f"the samples in {path} must be bytes, which are pictures, or floating-point numbers, which are inputs as "
            f"the model takes them, but are {what}."
        )
    shape = tuple(inputs.shape)
    fits = len(shape) == 3 or _has_colors(shape) if is_picture else len(shape) == 4
    if not fits or 0 in shape:
        needed = "bytes (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3" if is_picture else "numbers (N, C, H, W)"
        raise FileError(f"the samples in {path} must be {needed}, at least one, but have shape {shape}.")
    if isinstance(inputs, Tensor) and len(inputs) > 1 and inputs.stride(0) == 0:
        raise FileError(
            f"the {len(inputs)} samples in {path} are one and the same in memory (expanded). Save tensor.clone(), or "
            "that one."
        )


def _has_colors(shape: Sequence[int]) -> bool:
    """Whether pictures (N, ..., ...) have one colour channel or three, first or last."""
    return len(shape) == 4 and (shape[-1] in (1, 3) or shape[1] in (1, 3))


def _labels(path: Place, labels: Any, samples: int) -> Tensor | None:
    """The classes of samples. Errors: `FileError` if they are no whole numbers, one for each."""
    if labels is None:
        return None
    if isinstance(labels, np.ndarray):
        is_whole, what = labels.dtype.kind in "iub", str(labels.dtype)
    else:
        what = kind(labels)
        is_whole = what.startswith(("torch.int", "torch.uint", "torch.bool"))
    if not is_whole or tuple(labels.shape) != (samples,):
        raise FileError(
            f"the labels in {path} must be {samples} whole numbers, one per sample, but are "
            f"{what} of shape {tuple(labels.shape)}."
        )
    return torch.from_numpy(labels.astype(np.int64)) if isinstance(labels, np.ndarray) else labels.to(torch.int64)


def _identity(path: Path, name: str) -> str:
    """What tells a file from others: the checksums in it, which need not be computed, if it is an archive."""
    if not zipfile.is_zipfile(path):
        return f"{name} of {path.stat().st_size} bytes"
    with zipfile.ZipFile(path) as archive:
        parts = [f"{entry.filename} {entry.file_size} {entry.CRC}" for entry in archive.infolist()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------


def _read(path: Path, called: Place) -> dict[str, Any]:
    """The arrays in a file, None for what is not read."""
    ending = path.suffix.lower()
    try:
        if ending == ".npy":
            return {"data": np.load(path, mmap_mode="r", allow_pickle=False)}
        if ending == ".npz":
            return _in_archive(path)
        content = unpickled(path, mmap=True).content
    except FileError:
        raise
    # zip, pickle and numpy have errors of their own for files that are broken or something else
    except Exception as error:
        raise FileError(
            f"{called} cannot be read ({first_sentence(error)}). Write it by torch.save(tensors, path) or numpy.savez."
        ) from error
    if isinstance(content, Tensor):
        return {"data": content.detach()}
    if isinstance(content, (tuple, list)) and len(content) <= 2 and all(isinstance(part, Tensor) for part in content):
        return dict(zip(("data", "label"), (part.detach() for part in content), strict=False))
    if isinstance(content, Mapping):
        return {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    raise FileError(f"{called} must hold a tensor, a pair (samples, labels) or a dict of tensors.")


def _in_archive(path: Path) -> dict[str, Any]:
    """Arrays that are stored as they are stay in the file; packed ones are read once."""
    known = (*INPUT_KEYS, *LABEL_KEYS)  # others, such as names, may be anything
    # Opened here, since numpy does not close what it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded, zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        found: dict[str, Any] = dict.fromkeys(loaded.files)
        for key in found:
            if key in known:
                mapped = _mapped(path, file, entries[key])
                found[key] = loaded[key] if mapped is None else mapped
    return found


def _mapped(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> np.ndarray | None:
    """An array in an archive as it lies there, None if it is packed, or of objects, which are refused by numpy."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    file.seek(entry.header_offset)
    name, extra = struct.unpack("<26xHH", file.read(LOCAL_HEADER))
    start = entry.header_offset + LOCAL_HEADER + name + extra
    file.seek(start)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        return None
    shape, is_fortran, dtype = read[version](file)
    if dtype.hasobject or 0 in shape or not shape:
        return None
    if file.tell() + math.prod(shape) * dtype.itemsize > start + entry.file_size:  # what follows is not of this array
        raise ValueError(f"{entry.filename} is shorter than it says")
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")
