"""Relevance as PIL images: alone, over its input, and many tiled into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps.colours import COLORS, Limits, as_array, colored, colorize, scale_of, summed

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from PIL.Image import Image


def heatmap(
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
) -> Image | list[Image]:
    """Relevance as an RGB image: one for (H, W) or (C, H, W), a list of them for a batch (N, C, H, W).

    The colours run from -m to m, m the largest magnitude in each map, so that zero has the middle colour.

    Args:
        relevance: (H, W), (C, H, W) or (N, C, H, W), in any units; channels are summed.
        colors: see `colormap`; by default blue for negative, white for zero, red for positive.
        limits: (low, high), the ends of the scale in units of the relevance. None in place of an end leaves it to the
            relevance: (0, None) shows what is positive.
        joint: whether m is the largest magnitude of all maps together.
        quantile: in (0, 1]; m is the magnitude that this part of the pixels stays below, unless that is zero, and what
            is larger has the colour of the end.
    Errors: `InputError` for another rank, an empty map, values that are not finite, unknown colours, limits that do not
    rise, a quantile outside (0, 1].

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> image = heatmaps.heatmap(torch.tensor([[-2.0, 0.0, 2.0]]), "bwr")
    >>> image.size, image.getpixel((2, 0))
    ((3, 1), (255, 0, 0))
    >>> len(heatmaps.heatmap(torch.randn(5, 3, 8, 8), joint=True))
    5
    """
    from PIL import Image

    colored = colorize(relevance, colors, limits, joint, quantile)
    return Image.fromarray(colored) if colored.ndim == 3 else [Image.fromarray(one) for one in colored]


def overlay(
    image: Image | Sequence[Image] | Tensor | np.ndarray,
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    opacity: float = 1.0,
) -> Image | list[Image]:
    """Relevance over its input in gray: where it is zero the input shows, where it is largest only the colour.

    The colour of R covers by opacity * abs(R) / m, m the end of the scale.

    Args:
        image: a PIL image or a list of them, an array of bytes (H, W), (H, W, 3) or (N, H, W, 3), or a tensor (H, W),
            (C, H, W) or (N, C, H, W) of values from 0 to 1 or of bytes, C being 1 or 3; one image serves all maps.
        relevance: as in `heatmap`; gives one image or a list. Maps of another size are resized to the image's,
            bilinearly.
        colors: see `colormap`.
        limits: as in `heatmap`, as are all that follow but for the last.
        joint: one scale for all maps.
        quantile: of the magnitudes that the colours reach to.
        opacity: from 0, the input alone, to 1.
    Errors: `InputError` for values outside of [0, 1], another shape, number or aspect ratio, an opacity outside of
    [0, 1]; those of `heatmap`.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> image = heatmaps.overlay(torch.full((1, 1, 2), 0.6), torch.tensor([[0.0, 3.0]]), "bwr")
    >>> image.getpixel((0, 0)), image.getpixel((1, 0))
    ((153, 153, 153), (255, 0, 0))
    """
    from PIL import Image

    if not 0 <= opacity <= 1:
        raise InputError(f"opacity must be from 0 to 1, but is {opacity!r}.")
    values = summed(relevance)
    maps = values.reshape(-1, *values.shape[-2:])
    low, high = scale_of(maps, limits, joint, quantile)
    overlaid = []
    for one, floor, ceiling, under in zip(maps, low, high, one_per_map(image, maps), strict=True):
        resized = np.clip(_resized(one, under.size), floor, ceiling)
        color = colored(resized, floor, ceiling, colors)
        cover = opacity * np.abs(resized / np.maximum(abs(floor), abs(ceiling)))[..., None]
        gray = np.asarray(under.convert("L"), dtype=np.float64)[..., None]
        overlaid.append(Image.fromarray(np.rint((1 - cover) * gray + cover * color).astype(np.uint8)))
    return overlaid[0] if values.ndim == 2 else overlaid


# -- input images -----------------------------------------------------------------------------------------------------


def one_per_map(image: Image | Sequence[Image] | Tensor | np.ndarray, maps: np.ndarray) -> list[Image]:
    images = _images(image)
    if len(images) not in (1, len(maps)):
        raise InputError(f"{len(maps)} maps need as many images, or one for all, but got {len(images)}.")
    return images if len(images) == len(maps) else images * len(maps)


def _images(image: Image | Sequence[Image] | Tensor | np.ndarray) -> list[Image]:
    """PIL images of whatever may be given as input images."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return [image]
    if isinstance(image, Sequence):
        return [one for part in image for one in _images(part)]
    array = as_array(image)
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


def _unit(array: np.ndarray) -> np.ndarray:
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise InputError(
            f"a tensor as image must lie in 0 to 1, but goes from {array.min():.3g} to {array.max():.3g}. "
            "If it was normalized for the model, undo that: image = x * std + mean, with one std and mean per channel."
        )
    return array


def _resized(one: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) at an image's size (width, height). Errors: `InputError` if it would be squeezed by over 2%."""
    from PIL import Image

    height, width = one.shape
    if (width, height) == size:
        return one
    ratio = (size[0] * height) / (size[1] * width)
    if not 0.98 < ratio < 1.02:
        raise InputError(
            f"relevance of {height} x {width} does not fit an image of {size[1]} x {size[0]} (height x width): "
            "crop the image as the model's input was cropped."
        )
    return np.asarray(Image.fromarray(one.astype(np.float32)).resize(size, Image.Resampling.BILINEAR), np.float64)


# -- tiles ------------------------------------------------------------------------------------------------------------


def grid(
    images: Sequence[Image] | Sequence[Sequence[Image]],
    columns: int | None = None,
    gap: int = 2,
    scale: int = 1,
    background: str = "white",
) -> Image:
    """Images of one size tiled into one image. `figure` adds labels.

    Args:
        images: rows of images, or a flat list.
        columns: how many images of a flat list stand in a row; all, unless given.
        gap: pixels between images.
        scale: how many times to repeat each pixel of tiny images, in both directions.
        background: the colour of the gaps, as PIL names it.
    Errors: `InputError` for no images, images of several sizes, rows of unequal length, numbers below one.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> maps = heatmaps.heatmap(torch.randn(6, 1, 8, 8))
    >>> heatmaps.grid(maps, columns=3, gap=1, scale=10).size
    (242, 161)
    """
    from PIL import Image

    rows = _rows(images, columns)
    if scale < 1 or gap < 0:
        raise InputError(f"a grid needs a scale >= 1 and a gap >= 0, but got {scale!r} and {gap!r}.")
    sizes = {image.size for row in rows for image in row}
    if len(sizes) > 1:
        raise InputError(f"a grid needs images of one size, but they have {sorted(sizes)}: resize them first.")
    width, height = (scale * side for side in sizes.pop())
    across = max(map(len, rows))
    tiled = Image.new("RGB", (across * (width + gap) - gap, len(rows) * (height + gap) - gap), background)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            tiled.paste(enlarged, (j * (width + gap), i * (height + gap)))
    return tiled


def _rows(images: Sequence[Any], columns: int | None) -> list[Sequence[Image]]:
    from PIL import Image

    if not all(isinstance(image, Image.Image) for image in images):
        if columns is not None:
            raise InputError("a grid takes `columns` with a flat list of images only: these are rows already.")
        width_of(images)
        return list(images)
    columns = len(images) if columns is None else columns
    if not images or columns < 1:
        raise InputError(f"a grid needs one image and one column at least, but got {len(images)} and {columns!r}.")
    return [images[i : i + columns] for i in range(0, len(images), columns)]


def width_of(images: Sequence[Sequence[Any]]) -> int:
    widths = {len(row) for row in images}
    if len(widths) != 1 or 0 in widths:
        raise InputError(f"a grid needs rows of equally many images, one at least, but they have {sorted(widths)}.")
    return widths.pop()
