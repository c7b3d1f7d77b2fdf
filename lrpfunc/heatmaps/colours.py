"""Numbers to colours: colour maps by name, where a scale ends, and relevance as arrays of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError, near_misses
from lrpfunc.heatmaps import checks
from lrpfunc.heatmaps.maps import summed

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
    Errors: `InputError` for an unknown name, and for what is neither a name nor a colour map.

    >>> from lrpfunc import heatmaps
    >>> heatmaps.colormap("bwr")([0.0, 0.5, 1.0], bytes=True)[:, :3].tolist()
    [[0, 0, 255], [255, 255, 255], [255, 0, 0]]
    """
    from matplotlib import colormaps
    from matplotlib.colors import Colormap, LinearSegmentedColormap

    if isinstance(colors, Colormap):
        return colors.resampled(257)
    if not isinstance(colors, str):
        hint = "matplotlib.colors.ListedColormap makes one of a list of colours." if isinstance(colors, list) else ""
        checks.refuse("colors", "the name of a colour map or a matplotlib Colormap", colors, hint)
    if colors in ZENNIT:
        return LinearSegmentedColormap.from_list(colors, ZENNIT[colors], N=257)
    if colors not in colormaps:
        hint = near_misses(colors, [*ZENNIT, *colormaps])
        raise InputError(
            f"no colour map is called {colors!r}.{hint} There are those that matplotlib lists, and {', '.join(ZENNIT)}."
        )
    return colormaps[colors].resampled(257)


def is_diverging(colors: str | Colormap) -> bool:
    """Whether a map has its neutral colour in the middle: grayish, and lighter or darker than two ends that differ."""
    ends_and_middle = colormap(colors)(np.array([0.0, 0.5, 1.0]))[:, :3]
    low, middle, high = ends_and_middle @ [0.299, 0.587, 0.114]  # how light they are, as in ITU-R BT.601
    is_extreme = max(min(middle - low, middle - high), min(low - middle, high - middle)) > 0.02
    ends_differ = np.abs(ends_and_middle[0] - ends_and_middle[2]).max() > 0.1
    return bool(is_extreme and ends_differ and np.ptp(ends_and_middle[1]) < 0.3)


def colorize(
    relevance: Tensor | np.ndarray,
    colors: str | Colormap = COLORS,
    limits: Limits = None,
    joint: bool = False,
    quantile: float = 1.0,
    channels: str = "sum",
) -> np.ndarray:
    """Relevance as bytes: an array (H, W, 3), or (N, H, W, 3) for a batch. `heatmap` makes images of them.

    Args:
        relevance: (H, W), (C, H, W) or (N, C, H, W), in any units.
        colors: see `colormap`.
        limits: see `heatmap`, as are all that follow.
        joint: one scale for all maps.
        quantile: of the magnitudes that the colours reach to.
        channels: "sum", or "each" for arrays (C, H, W, 3) and (N, C, H, W, 3).
    Errors: those of `heatmap`.

    >>> import lrpfunc, torch
    >>> from lrpfunc import heatmaps
    >>> heatmaps.colorize(torch.tensor([[-2.0, 0.0, 2.0]]), "bwr").tolist()
    [[[0, 0, 255], [255, 255, 255], [255, 0, 0]]]
    """
    values = summed(relevance, channels)
    maps = values.reshape(-1, *values.shape[-2:])
    scale = scale_of(maps, limits, joint, quantile)
    return colored(maps, scale, colors).reshape(*values.shape, 3)


# -- scales -----------------------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """The low and the high end of each map's colours, arrays (N, 1, 1)."""

    low: np.ndarray
    high: np.ndarray

    @property
    def reach(self) -> np.ndarray:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def of(self, i: int) -> Scale:
        return Scale(self.low[i], self.high[i])

    def ends(self, i: int, colors: str | Colormap) -> tuple[float, float]:
        """What has the first and the last colour of a map of colours."""
        low, high, reach = (one.flat[i].item() for one in (self.low, self.high, self.reach))
        return (-reach, reach) if is_diverging(colors) else (low, high)


def scale_of(maps: np.ndarray, limits: Limits, joint: bool, quantile: float) -> Scale:
    """The scale of maps (N, H, W), checked."""
    floor, ceiling = _checked(limits)
    quantile = checks.number("quantile", quantile, "above 0 and at most 1", above=0.0, high=1.0)
    magnitudes = np.abs(np.clip(maps, floor, ceiling))
    axes = (0, 1, 2) if checks.flag("joint", joint) else (1, 2)
    largest = magnitudes.max(axis=axes, keepdims=True)
    reached = np.quantile(magnitudes, quantile, axis=axes, keepdims=True)
    reached = np.where(reached > 0, reached, largest)  # nearly everything is zero
    reached = np.where(reached > 0, reached, 1.0)  # everything is, and any scale will do
    reached = np.broadcast_to(reached, (len(maps), 1, 1))
    low = np.full_like(reached, floor) if math.isfinite(floor) else -reached
    high = np.full_like(reached, ceiling) if math.isfinite(ceiling) else reached
    return Scale(low, high)


def _checked(limits: Limits) -> tuple[float, float]:
    """Limits, an infinite one where the data are to decide."""
    if limits is None:
        return -math.inf, math.inf
    low, high = (None if end is None else _end(end) for end in checks.pair("limits", limits))
    floor = -math.inf if low is None else low
    ceiling = math.inf if high is None else high
    beyond_zero = (high is None and floor > 0) or (low is None and ceiling < 0)
    is_finite = all(math.isfinite(end) for end in (low, high) if end is not None)
    if not is_finite or not floor < ceiling or beyond_zero:
        raise InputError(
            f"limits must be finite and rise, (low, high) with low < high, but are {limits!r}. "
            "Beside None, which leaves an end to the relevance, the other may not lie beyond zero."
        )
    return floor, ceiling


def _end(value: Any) -> float:
    """An end as a float; one that is not finite is refused later, with the other."""
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return float(value)
    return checks.number("each of limits", value, "None or a number")


def colored(maps: np.ndarray, scale: Scale, colors: str | Colormap) -> np.ndarray:
    """Maps (N, H, W) as bytes (N, H, W, 3).

    In a diverging map zero is the middle whatever the limits, and equal magnitudes are equally far from it: limits
    clip. In others the limits are the ends.
    """
    clipped, reach = np.clip(maps, scale.low, scale.high), scale.reach
    if is_diverging(colors):
        levels = 0.5 + 0.5 * (clipped / reach)
    else:  # divided before the difference, which may be beyond float64
        low, high = scale.low / reach, scale.high / reach
        levels = (clipped / reach - low) / (high - low)
    return colormap(colors)(levels, bytes=True)[..., :3]
