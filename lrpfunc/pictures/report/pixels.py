"""Pictures as a page holds them: maps averaged down and packed into bytes, images as data URLs, colours as tables."""

from __future__ import annotations

import io
import zlib

import numpy as np

from lrpfunc import heatmaps
from lrpfunc.text.templates import base64_of

# By name; True where the middle colour stands for zero, so that positive values have the upper half to themselves.
COLORS = {"seismic": True, "bwr": True, "coldnhot": True, "viridis": False, "hot": False, "gray": False}
LEVELS = 127  # on each side of zero: relevance is kept in 255 steps, zero being one of them
TRIED_PIXELS = 64 * 64  # up to here PNG may well be smaller than JPEG


def colour_table(name: str) -> str:
    """A colour map's RGB bytes in base64: as many colours as there are levels, zero's in the middle."""
    steps = np.arange(2 * LEVELS + 1)
    return base64_of(heatmaps.colormap(name).resampled(len(steps))(steps, bytes=True)[:, :3].tobytes())


def displayed(data: np.ndarray) -> np.ndarray:
    """Pixels (N, C, H, W) as images (N, H, W, 1 or 3): RGB of three or four channels, else their mean in gray."""
    channels = data[:, :3] if data.shape[1] in (3, 4) else data.mean(axis=1, keepdims=True)
    return np.moveaxis(channels, 1, -1).astype(np.float64)


def fitted(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Height and width, at most `size`, in proportion."""
    height, width = shape
    factor = min(1.0, size / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def averaged(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Maps (N, H, W) or (N, H, W, C) of a shape, by area, so that no pixel of (H, W) counts more than another."""
    if maps.shape[1:3] == shape:
        return maps
    down, across = (_shares(n, m) for n, m in zip(maps.shape[1:3], shape, strict=True))
    return np.einsum("ih,nhw...,jw->nij...", down, maps, across, optimize=True)


def _shares(pixels: int, wanted: int) -> np.ndarray:
    """(wanted, pixels): how much of each new pixel each old one fills; rows sum to one."""
    edges = np.arange(wanted + 1)[:, None] * pixels / wanted
    starts = np.arange(pixels)
    overlap = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return np.clip(overlap, 0.0, None) * wanted / pixels


def packed(values: np.ndarray) -> tuple[str, float]:
    """A map as bytes, deflated, in base64, and its largest magnitude m: byte b stands for m (b - 128) / 127.

    Raw bytes and no image: browsers that guard against fingerprinting alter what a script reads back from images.
    """
    largest = float(np.abs(values).max())
    levels = np.rint(values * (LEVELS / (largest or 1.0))) + (LEVELS + 1)
    return base64_of(zlib.compress(levels.astype(np.uint8).tobytes())), largest


def image_url(pixels: np.ndarray) -> str:
    """A data URL of an image (H, W, 1 or 3): JPEG, or PNG where that is smaller."""
    from PIL import Image

    levels = np.rint(pixels).astype(np.uint8)
    picture = Image.fromarray(levels if levels.shape[-1] == 3 else levels[..., 0])
    formats = ("PNG", "JPEG") if picture.width * picture.height <= TRIED_PIXELS else ("JPEG",)
    coded = {}
    for name in formats:
        buffer = io.BytesIO()
        picture.save(buffer, name, quality=85, optimize=True)
        coded[name] = buffer.getvalue()
    smallest = min(coded, key=lambda name: len(coded[name]))
    return f"data:image/{smallest.lower()};base64,{base64_of(coded[smallest])}"
