"""Numbers to colours: colour maps by name, where a scale ends, and relevance as arrays of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError, near_misses

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

COLORS = "seismic"
Limits = tuple[float | None, float | None] | None

# zennit's colour maps as (position, colour) pairs, where matplotlib has none of that name or another one.
ZENNIT: dict[str, Sequence[tuple[float, str]]] = {
    "wred": ((0, "#ffffff"), (1, "#ff0000")),
    "wblue": ((0, "#ffffff"), (1, "#0000ff")),
    "cold": ((0, "#000000"), (1 / 2, "#0000ff"), (1, "#00ffff")),
    "coldnhot": ((0, "#00ffff"), (1 / 4, "#0000ff"), (1 / 2, "#000000"),
                 (0.6654, "#ff0000"), (0.8307, "#ffff00"), (1, "#ffffff")),
    "france": ((0, "#0055a4"), (1 / 2, "#ffffff"), (1, "#ef4135")),
    "coolio": ((0, "#00d0d0"), (1 / 2, "#d0d0d0"), (1, "#d000d0")),
    "coleus": ((0, "#00d000"), (1 / 2, "#d0d0d0"), (1, "#d000d0")),
    "zennit:hot": ((0, "#000000"), (1 / 3, "#ff0000"), (2 / 3, "#ffff00"), (1, "#ffffff")),
    "zennit:seismic": ((0, "#0000d0"), (1 / 2, "#d0d0d0"), (1, "#d00000")),
}  # fmt: skip


def colormap(colors: str | Colormap) -> Colormap:
    """A matplotlib colour map with 257 colours, so that the middle of its range, zero, has one of its own.

    Args:
        colors: a colour map, or the name of one of matplotlib's or of zennit's: wred, wblue, cold, coldnhot, france,
            coolio, coleus. "gray" and "bwr" are the same in both. "hot" and "seismic" are not, and mean matplotlib's;
            zennit's are "zennit:hot" and "zennit:seismic".
    Errors: `InputError` for an unknown name.

    >>> from lrpfunc import heatmaps
    >>> heatmaps.colormap("bwr")([0.0, 0.5, 1.0], bytes=True)[:, :3].tolist()
    [[0, 0, 255], [255, 255, 255], [255, 0, 0]]
    """
    from matplotlib import colormaps
    from matplotlib.colors import Colormap, LinearSegmentedColormap

    if isinstance(colors, Colormap):
        return colors.resampled(257)
    if colors in ZENNIT:
        return LinearSegmentedColormap.from_list(colors, ZENNIT[colors], N=257)
    if colors not in colormaps:
        hint = near_misses(str(colors), [*ZENNIT, *colormaps])
        raise InputError(
            f"no colour map is called {colors!r}.{hint} There are those that matplotlib lists, and {', '.join(ZENNIT)}."
        )
    return colormaps[colors].resampled(257)


def colorize(
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
) -> np.ndarray:
    """Relevance as bytes: an array (H, W, 3), or (N, H, W, 3) for a batch. `heatmap` makes images of them.

    Args:
        relevance: (H, W), (C, H, W) or (N, C, H, W), in any units.
        colors: see `colormap`.
        limits: see `heatmap`, as are all that follow.
        joint: one scale for all maps.
        quantile: of the magnitudes that the colours reach to.
    Errors: those of `heatmap`.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> heatmaps.colorize(torch.tensor([[-2.0, 0.0, 2.0]]), "bwr").tolist()
    [[[0, 0, 255], [255, 255, 255], [255, 0, 0]]]
    """
    values = summed(relevance)
    maps = values.reshape(-1, *values.shape[-2:])
    low, high = scale_of(maps, limits, joint, quantile)
    return colored(maps, low, high, colors).reshape(*values.shape, 3)


# -- numbers ----------------------------------------------------------------------------------------------------------


def summed(relevance: Tensor | np.ndarray) -> np.ndarray:
    """Maps (H, W) or (N, H, W) in float64, checked."""
    values = as_array(relevance).astype(np.float64)
    if values.ndim not in (2, 3, 4):
        raise InputError(
            f"a heatmap needs relevance of shape (H, W), (C, H, W) or (N, C, H, W), but got {values.shape}. "
            "Sum, index or reshape it first."
        )
    if values.size == 0:
        raise InputError(f"a heatmap needs at least one value, but the relevance has shape {values.shape}.")
    wrong = np.count_nonzero(~np.isfinite(values))
    if wrong:
        raise InputError(
            f"a heatmap needs finite relevance, but {wrong} of {values.size} values are nan or infinite. "
            "A larger stabilizer, or float32 instead of a half precision, often helps."
        )
    return values if values.ndim == 2 else values.sum(axis=-3)


def as_array(values: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16


def scale_of(maps: np.ndarray, limits: Limits, joint: bool, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """The low and the high end (N, 1, 1) of each map's colours, checked."""
    floor, ceiling = _checked(limits)
    if not 0 < quantile <= 1:
        raise InputError(f"quantile must be above 0 and at most 1, but is {quantile!r}.")
    magnitudes = np.abs(np.clip(maps, floor, ceiling))
    axes = (0, 1, 2) if joint else (1, 2)
    largest = magnitudes.max(axis=axes, keepdims=True)
    reached = np.quantile(magnitudes, quantile, axis=axes, keepdims=True)
    reached = np.where(reached > 0, reached, largest)  # nearly everything is zero
    reached = np.where(reached > 0, reached, 1.0)  # everything is, and any scale will do
    reached = np.broadcast_to(reached, (len(maps), 1, 1))
    low = np.full_like(reached, floor) if math.isfinite(floor) else -reached
    high = np.full_like(reached, ceiling) if math.isfinite(ceiling) else reached
    return low, high


def _checked(limits: Limits) -> tuple[float, float]:
    """Limits, an infinite one where the data are to decide."""
    low, high = (None, None) if limits is None else limits
    floor = -math.inf if low is None else float(low)
    ceiling = math.inf if high is None else float(high)
    is_finite = all(math.isfinite(end) for end in (low, high) if end is not None)
    beyond_zero = (high is None and floor > 0) or (low is None and ceiling < 0)
    if not is_finite or not floor < ceiling or beyond_zero:
        raise InputError(
            f"limits must be finite and rise, (low, high) with low < high, but are {limits!r}. "
            "Beside None, which leaves an end to the relevance, the other may not lie beyond zero."
        )
    return floor, ceiling


def colored(maps: np.ndarray, low: np.ndarray, high: np.ndarray, colors: str | Colormap) -> np.ndarray:
    """Maps (N, H, W) as bytes (N, H, W, 3)."""
    return colormap(colors)((maps - low) / (high - low), bytes=True)[..., :3]
