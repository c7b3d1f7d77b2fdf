"""NIfTI volumes as pictures: slices along the third axis as it is stored, turned by 90 degrees as in viewers."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from lrpfunc.errors import FileError
from lrpfunc.extras import extra
from lrpfunc.pictures.images.gray import Window, in_bytes, spread

READING = "reading NIfTI"


def slices(path: Path) -> int:
    """How many slices a file has, of all its volumes. Errors: nearly any."""
    return max(1, math.prod(_image(path).shape[2:]))


def size(path: Path) -> tuple[int, int]:
    """Voxels of a volume, which is read as a whole, as columns and rows; before it is read. Errors: nearly any."""
    columns, rows, deep = (*_image(path).shape, 1, 1, 1)[:3]
    return columns, rows * deep


def picture(path: Path, number: int, window: Window | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """A slice, from 0, as bytes (H, W) or (H, W, 3), with what to say of it. Errors: `FileError`; nearly any."""
    image = _image(path)
    if number >= slices(path):
        raise FileError(f"has {slices(path)} slices, and none with the number {number + 1}")
    deep = (*image.shape, 1, 1)[2]
    volume = _volume(path, path.stat().st_mtime_ns, number // deep)
    plane = np.rot90(volume[:, :, number % deep])
    if plane.ndim == 3:
        return np.ascontiguousarray(plane), ()
    shown, said = _window(image, volume) if window is None else (window, ())
    return in_bytes(np.nan_to_num(plane, nan=shown.low), shown), said


def _image(path: Path) -> Any:
    """The header; voxels are read when they are asked for."""
    return extra("nibabel", "medical", READING).load(path)


@functools.lru_cache(maxsize=1)
def _volume(path: Path, changed: int, number: int) -> np.ndarray:
    """A volume (X, Y, Z) of a file, or (X, Y, Z, 3); the slices of one are asked for one after another."""
    image = _image(path)
    data = image.dataobj
    place = np.unravel_index(number, image.shape[3:]) if image.ndim > 3 else ()
    values = np.asarray(data[(..., *map(int, place))] if place else data)
    values = values.reshape((*values.shape, 1, 1, 1)[:3])
    if values.dtype.fields:  # of colours
        return np.stack([values[name] for name in "RGB"], axis=-1)
    return values if values.dtype.itemsize <= 4 else values.astype(np.float32)


def _window(image: Any, volume: np.ndarray) -> tuple[Window, tuple[str, ...]]:
    """What the file asks for, or the range of the volume."""
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    if high > low:
        return Window(low, high), ()
    if volume.dtype == np.uint8:
        return Window(0, 255), ()
    own = spread(volume, np.isnan(volume) if volume.dtype.kind == "f" else None)
    said = f"it asks for no window, so its values are shown {own.ends}"
    return own, (f"{said}; --window {own} says so for all files",)
