"""Relevance as PIL images: alone, over its input, and many tiled into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.colours import COLORS, Limits, Scale, colored, colorize, scale_of
from lrpfunc.heatmaps.inputs import one_per_map, picture, rows_of_pictures
from lrpfunc.heatmaps.maps import summed

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from PIL.Image import Image

MOST_PIXELS = 2**28  # of a grid


def heatmap(
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    channels: str = "sum",
) -> Image | list[Image]:
    """Relevance as an RGB image: one for (H, W) or (C, H, W), a list of them for a batch (N, C, H, W).

    The colours run from -m to m, m the largest magnitude in each map, so that zero has the middle colour. In diverging
    maps of colours, neutral in the middle, that is so with any limits, and equal magnitudes are equally far from it:
    with limits (-1, 3) the colours run from -3 to 3, and what is below -1 has the colour of -1. In others, such as
    "gray" and "viridis", limits are the first and the last colour.

    Args:
        relevance: (H, W), (C, H, W) or (N, C, H, W), in any units.
        colors: see `colormap`; by default blue for negative, white for zero, red for positive.
        limits: (low, high), the ends of the scale in units of the relevance. None in place of an end leaves it to the
            relevance: (0, None) shows what is positive.
        joint: whether m is the largest magnitude of all maps together.
        quantile: in (0, 1]; m is the magnitude that this part of the pixels stays below, unless that is zero, and what
            is larger has the colour of the end.
        channels: "sum", or "each" for an image of each channel: a list of C images, or of N times C, sample by sample.
    Errors: `InputError` for what is no tensor or array of real numbers, another rank, an empty map, values that are not
    finite, shapes that look like channels in the last axis, (H, W, 3), or like series, (C, T) (the message says how to
    draw both, and how to insist), unknown colours, limits that do not rise, a quantile outside (0, 1].

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> image = heatmaps.heatmap(torch.tensor([[-2.0, 0.0, 2.0]]), "bwr")
    >>> image.size, image.getpixel((2, 0))
    ((3, 1), (255, 0, 0))
    >>> len(heatmaps.heatmap(torch.randn(5, 3, 8, 8), joint=True))
    5
    """
    from PIL import Image

    colored = colorize(relevance, colors, limits, joint, quantile, channels)
    if colored.ndim == 3:
        return Image.fromarray(colored)
    return [Image.fromarray(one) for one in colored.reshape(-1, *colored.shape[-3:])]


def overlay(
    image: Image | Sequence[Image] | Tensor | np.ndarray,
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    opacity: float = 1.0,
    channels: str = "sum",
) -> Image | list[Image]:
    """Relevance over its input in gray: where it is zero the input shows, where it is largest only the colour.

    The colour of R covers by opacity * abs(R) / m, m the end of the scale.

    Args:
        image: a PIL image or a list of them, an array of bytes (H, W), (H, W, 3) or (N, H, W, 3), or a tensor (H, W),
            (C, H, W) or (N, C, H, W) of values from 0 to 1 or of bytes, C being 1 or 3; one image serves all maps.
        relevance: as in `heatmap`; gives one image or a list. Maps of another size are resized to the image's,
            bilinearly.
        colors: see `colormap`.
        limits: as in `heatmap`, as are all that follow but for the opacity.
        joint: one scale for all maps.
        quantile: of the magnitudes that the colours reach to.
        opacity: from 0, the input alone, to 1.
        channels: "sum", or "each" for each channel over its sample.
    Errors: `InputError` for an image that is none (paths are not opened), has more than eight bits, values outside of
    [0, 1], another shape, number or aspect ratio; for an opacity outside of [0, 1]; those of `heatmap`.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> image = heatmaps.overlay(torch.full((1, 1, 2), 0.6), torch.tensor([[0.0, 3.0]]), "bwr")
    >>> image.getpixel((0, 0)), image.getpixel((1, 0))
    ((153, 153, 153), (255, 0, 0))
    """
    from PIL import Image

    opacity = checks.number("opacity", opacity, "from 0 to 1", low=0.0, high=1.0)
    values = summed(relevance, channels)
    maps = values.reshape(-1, *values.shape[-2:])
    scale = scale_of(maps, limits, joint, quantile)
    overlaid = []
    for i, (one, under) in enumerate(zip(maps, one_per_map(image, values), strict=True)):
        resized = _resized(one, under.size)
        gray = np.asarray(under.convert("L"), dtype=np.float64)
        overlaid.append(Image.fromarray(mixed(gray, resized, scale.of(i), colors, opacity)))
    return overlaid[0] if values.ndim == 2 else overlaid


def mixed(gray: np.ndarray, one: np.ndarray, scale: Scale, colors: str | Colormap, opacity: float = 1.0) -> np.ndarray:
    """A map (H, W) over gray (H, W) from 0 to 255, as bytes (H, W, 3)."""
    cover = opacity * np.abs(np.clip(one, scale.low, scale.high) / scale.reach)[..., None]
    return np.rint((1 - cover) * gray[..., None] + cover * colored(one, scale, colors)).astype(np.uint8)


def _resized(one: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) at an image's size (width, height). Errors: `InputError` if it would be squeezed by over 2%."""
    height, width = one.shape
    if (width, height) == size:
        return one
    ratio = (size[0] * height) / (size[1] * width)
    if not 0.98 < ratio < 1.02:
        raise InputError(
            f"relevance of {height} x {width} does not fit an image of {size[1]} x {size[0]} (height x width): "
            "crop the image as the model's input was cropped."
        )
    # As PIL does it, but that has float32 only.
    whole = torch.from_numpy(one)[None, None]
    return F.interpolate(whole, (size[1], size[0]), mode="bilinear", antialias=True)[0, 0].numpy()


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
    Errors: `InputError` for no images, what is none, images of several sizes, rows of unequal length, numbers below
    one, an unknown colour.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> maps = heatmaps.heatmap(torch.randn(6, 1, 8, 8))
    >>> heatmaps.grid(maps, columns=3, gap=1, scale=10).size
    (242, 161)
    """
    from PIL import Image

    rows = _rows(images, columns)
    scale, gap = checks.whole("the scale of a grid", scale), checks.whole("the gap of a grid", gap)
    if scale < 1 or gap < 0:
        raise InputError(f"a grid needs a scale >= 1 and a gap >= 0, but got {scale!r} and {gap!r}.")
    background = _color(background)
    sizes = {image.size for row in rows for image in row}
    if len(sizes) > 1:
        raise InputError(f"a grid needs images of one size, but they have {sorted(sizes)}: resize them first.")
    width, height = (scale * side for side in sizes.pop())
    across = max(map(len, rows))
    whole = (across * (width + gap) - gap, len(rows) * (height + gap) - gap)
    if whole[0] * whole[1] > MOST_PIXELS:
        raise InputError(f"a grid has room for {MOST_PIXELS:,} pixels, but would have {whole[0]} x {whole[1]}.")
    tiled = Image.new("RGB", whole, background)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            tiled.paste(enlarged, (j * (width + gap), i * (height + gap)))
    return tiled


def _rows(images: Any, columns: int | None) -> list[list[Image]]:
    if not isinstance(images, list | tuple) or any(isinstance(row, list | tuple) for row in images):
        rows = rows_of_pictures(images, is_array_fine=False)
        if columns is not None:
            raise InputError("a grid takes `columns` with a flat list of images only: these are rows already.")
        width_of(rows)
        return rows
    across = len(images) if columns is None else checks.whole("columns of a grid", columns)
    if not images or across < 1:
        raise InputError(f"a grid needs one image and one column at least, but got {len(images)} and {across!r}.")
    listed = [picture(f"image {i} of a grid", one, is_array_fine=False) for i, one in enumerate(images)]
    return [listed[i : i + across] for i in range(0, len(listed), across)]


def width_of(images: Sequence[Sequence[Any]]) -> int:
    widths = {len(row) for row in images}
    if len(widths) != 1 or 0 in widths:
        raise InputError(f"a grid needs rows of equally many images, one at least, but they have {sorted(widths)}.")
    return widths.pop()


def _color(name: str) -> str:
    from PIL import ImageColor

    try:
        ImageColor.getrgb(checks.text("the background of a grid", name))
    except ValueError:
        raise InputError(f'no colour is called {name!r}: PIL has names such as "white" and "#ffffff".') from None
    return name
