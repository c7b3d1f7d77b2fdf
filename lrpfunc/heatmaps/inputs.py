"""Input images, in whatever form they come, as PIL images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.maps import as_array

if TYPE_CHECKING:
    from PIL.Image import Image

DIRECT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
DEEP = ("I", "F")  # what the modes of PIL begin with that have more than eight bits for a channel


def one_per_map(image: Any, values: np.ndarray) -> list[Image]:
    """The image of each map (H, W), (N, H, W) or (N, C, H, W), for all channels of a sample the same."""
    found = images(image)
    maps = int(np.prod(values.shape[:-2]))
    samples = len(values) if values.ndim == 4 else maps
    if len(found) not in (1, samples):
        raise InputError(f"{samples} maps need as many images, or one for all, but got {len(found)}.")
    return [one for one in found for _ in range(maps // len(found))]


def images(image: Any) -> list[Image]:
    """PIL images of whatever may be given as input images."""
    if isinstance(image, list | tuple):
        return [one for part in image for one in _images(part)]
    return _images(image)


def _images(image: Any) -> list[Image]:
    from PIL import Image

    if isinstance(image, Image.Image):
        return [eight_bits(image)]
    if not isinstance(image, Tensor | np.ndarray):
        hint = "Open it with PIL.Image.open." if isinstance(image, str | bytes | os.PathLike) else ""
        checks.refuse("an image", "a PIL image, a tensor or an array, or a list of those", image, hint)
    array = as_array("an image", image)
    if isinstance(image, Tensor) or array.dtype != np.uint8:
        array = array if array.ndim < 3 else np.moveaxis(array, -3, -1)
    if array.dtype != np.uint8:
        array = np.rint(255 * _unit(array)).astype(np.uint8)
    if array.ndim > 2 and array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    if array.ndim not in (2, 3, 4) or array.size == 0 or (array.ndim > 2 and array.shape[-1] != 3):
        raise InputError(
            "an image must be a PIL image, bytes (H, W), (H, W, 3) or (N, H, W, 3), or a tensor (H, W), (C, H, W) or "
            f"(N, C, H, W) with one or three channels, but has shape {tuple(np.shape(image))}."
        )
    return [Image.fromarray(one) for one in array] if array.ndim == 4 else [Image.fromarray(array)]


def eight_bits(image: Image) -> Image:
    """The image, as one that PIL turns into gray and RGB with its values as they are meant."""
    if image.mode.startswith(DEEP):
        raise InputError(
            f"an image must have eight bits for a channel, but one is of mode {image.mode}. Scale its values to 0 to 1 "
            "and give them as a tensor (H, W)."
        )
    if image.mode in DIRECT:
        return image
    try:
        return image.convert("RGB")
    except ValueError:
        raise InputError(f"an image must be of a mode that PIL turns into RGB, but one is of {image.mode}.") from None


def rows_of_pictures(images: Any, is_array_fine: bool) -> list[list[Any]]:
    """Rows of PIL images, and of arrays where those are fine, each element checked.

    Errors: `InputError` for what is no list of lists of those.
    """
    rows = []
    for i, row in enumerate(_listed("the images", images, "rows of images, a list of lists")):
        if is_array_fine and isinstance(row, np.ndarray) and row.ndim == 4:  # as `colorize` makes them
            row = list(row)
        listed = _listed(f"row {i} of the images", row, "a list of images")
        rows.append([picture(f"image {j} of row {i}", one, is_array_fine) for j, one in enumerate(listed)])
    return rows


def picture(who: str, value: Any, is_array_fine: bool) -> Any:
    from PIL import Image

    if isinstance(value, Image.Image):
        return eight_bits(value)
    if is_array_fine and isinstance(value, np.ndarray):
        return _shown(who, value)
    needed = "a PIL image or an array" if is_array_fine else "a PIL image"
    checks.refuse(who, needed, value, _advice(value))


def _listed(who: str, value: Any, needed: str) -> Sequence[Any]:
    from PIL import Image

    if not isinstance(value, list | tuple):
        hint = "Put it in brackets." if isinstance(value, Image.Image) else _advice(value)
        checks.refuse(who, needed, value, hint)
    return value


def _advice(value: Any) -> str:
    if isinstance(value, str | bytes | os.PathLike):
        return "Open it with PIL.Image.open."
    if isinstance(value, Tensor | np.ndarray):
        return "heatmaps.heatmap makes images of relevance, PIL.Image.fromarray of bytes (H, W, 3)."
    return ""


def _shown(who: str, array: np.ndarray) -> np.ndarray:
    """An array as matplotlib shows it with no scale of its own: (H, W, 3) or (H, W, 4), bytes or from 0 to 1."""
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or array.size == 0 or array.dtype.kind not in "uf":
        raise InputError(
            f"{who} must be an array (H, W, 3) or (H, W, 4) of bytes or of values from 0 to 1, as heatmaps.colorize "
            f"makes them, but has shape {array.shape} and dtype {array.dtype}."
        )
    return array if array.dtype == np.uint8 else _unit(array)


def _unit(array: np.ndarray) -> np.ndarray:
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise InputError(
            f"a tensor as image must lie in 0 to 1, but goes from {array.min():.3g} to {array.max():.3g}. "
            "If it was normalized for the model, undo that: image = x * std + mean, with one std and mean per channel."
        )
    return array
