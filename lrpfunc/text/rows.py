"""What is drawn: sequences of tokens with a number each, checked, and the colours of the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import colormap, why_not_finite
from lrpfunc.text.tokens import check_tokens, visible

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

Tokens = Sequence[str] | Sequence[Sequence[str]]
Relevance = Tensor | np.ndarray | Sequence
Mask = Tensor | np.ndarray | Sequence | None
Scale = Literal["all", "each"]


# -- sums -------------------------------------------------------------------------------------------------------------


def per_token(relevance: Tensor) -> Tensor:
    """The relevance of each token: R_t = sum_d R_td over the width.

    Args:
        relevance: (batch, length, width), or (batch, length), which is returned as it is.
    Errors: `InputError` for another rank, and for what is no tensor.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> text.per_token(torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])).tolist()
    [[3.0, -1.0]]
    """
    if not isinstance(relevance, Tensor):
        raise InputError(f"relevance per token is summed from a tensor, but got {type(relevance).__name__}.")
    if relevance.dim() not in (2, 3):
        raise InputError(
            "relevance per token is summed from (batch, length, width) and may be (batch, length) already, "
            f"but has shape {tuple(relevance.shape)}."
        )
    return relevance if relevance.dim() == 2 else relevance.sum(-1)


# -- rows -------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A sequence to draw: words that can be printed, their relevance (length,), and where its colours end."""

    title: str
    words: list[str]
    values: np.ndarray
    limit: float


def rows(
    tokens: Tokens,
    relevance: Relevance,
    mask: Mask = None,
    titles: Sequence[str] = (),
    limit: float | None = None,
    scale: Scale = "all",
) -> list[Row]:
    """One sequence or several as rows, checked; what the mask leaves out is gone. Errors: `InputError`."""
    several: list[Any] = [tokens]
    relevances, masks = [relevance], [mask]
    if _is_several(tokens):
        several = list(tokens)
        relevances, masks = _one_each("relevance", relevance, several), _one_each("mask", mask, several)
    if titles and (isinstance(titles, str) or len(titles) != len(several)):
        raise InputError(f"titles must be a list with one per sequence, {len(several)}, but are {titles!r}.")
    shown = [_shown(*each) for each in zip(several, relevances, masks, strict=True)]
    limits = _limits([values for _, values in shown], limit, scale)
    titles = [visible(title) if title else "" for title in titles] or [""] * len(shown)
    return [Row(title, *each, end) for title, each, end in zip(titles, shown, limits, strict=True)]


def _is_several(tokens: Tokens) -> bool:
    return not isinstance(tokens, str) and any(isinstance(part, (list, tuple)) for part in tokens)


def _one_each(name: str, values: Any, several: Sequence) -> list:
    if values is None:
        return [None] * len(several)
    if isinstance(values, (str, Mapping)) or not hasattr(values, "__len__"):
        raise InputError(f"{len(several)} sequences need one {name} each, but got {values!r:.80}.")
    if len(values) != len(several):
        raise InputError(f"{len(several)} sequences need one {name} each, but got {len(values)}.")
    return list(values)


def _shown(tokens: Sequence[str], relevance: Relevance, mask: Mask) -> tuple[list[str], np.ndarray]:
    """What is to be seen of one sequence: words and finite values."""
    pieces = check_tokens(tokens)
    values = _one_per_token("relevance", relevance, pieces)
    kept = np.ones(len(pieces), bool) if mask is None else _one_per_token("mask", mask, pieces) != 0
    if not kept.any():
        raise InputError("there are no tokens to show" + (": the mask leaves all of them out." if len(kept) else "."))
    wrong = np.flatnonzero(kept & ~np.isfinite(values))
    if wrong.size:
        first = wrong[0]
        raise InputError(
            f"relevance must be finite, but is {values[first]} at token {first} ({pieces[first]!r})"
            f"{f' and not finite at {wrong.size - 1} more' if wrong.size > 1 else ''}. "
            f"{why_not_finite(values[kept])}"
        )
    return [visible(piece) for piece, keep in zip(pieces, kept, strict=True) if keep], values[kept]


def _one_per_token(name: str, given: Any, pieces: list[str]) -> np.ndarray:
    values = as_array(given, name)
    if values.shape != (len(pieces),):
        raise InputError(
            f"{name} must have one number per token, shape ({len(pieces)},), but has {values.shape}. "
            "`text.per_token` sums over the width; of a batch, index one or give the tokens of each in a list."
        )
    return values


def as_array(values: Any, name: str = "relevance") -> np.ndarray:
    """Numbers in float64, wherever they are. Errors: `InputError` for what are none, or complex ones."""
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be numbers, but is {values!r:.80}.") from error
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    if tensor.is_complex():
        raise InputError(f"{name} must be real numbers, but is complex.")
    return tensor.double().numpy()


# -- scales and colours -----------------------------------------------------------------------------------------------


def check_scale(limit: float | None, scale: Scale) -> None:
    """Errors: `InputError` for an unknown scale, and for a limit that is no size or has no one scale to hold for."""
    if scale not in ("all", "each"):
        raise InputError(f"scale must be 'all' or 'each', but is {scale!r}.")
    if limit is not None and not 0 < limit < math.inf:
        raise InputError(f"limit must be a finite number above zero, but is {limit!r}.")
    if limit is not None and scale == "each":
        raise InputError("limit sets one scale for all, and scale='each' asks for several: give one of the two.")


def end_of(values: np.ndarray) -> float:
    """The largest magnitude, or 1 if all is zero, where any scale will do."""
    return float(np.abs(values).max()) or 1.0


def _limits(values: list[np.ndarray], limit: float | None, scale: Scale) -> list[float]:
    check_scale(limit, scale)
    if scale == "each":
        return [end_of(each) for each in values]
    return [end_of(np.concatenate(values)) if limit is None else float(limit)] * len(values)


class Paint(NamedTuple):
    """A background and the ink that is read best on it, as #rrggbb."""

    background: str
    ink: str


def paints(levels: np.ndarray, colors: str | Colormap) -> list[Paint]:
    """The colours of levels from -1 to 1, those beyond as at the ends."""
    backgrounds = colormap(colors)((levels + 1) / 2, bytes=True)[:, :3]
    inks = np.where(_luminance(backgrounds / 255) > EVEN, "#000000", "#ffffff")
    return [Paint(f"#{bytes(color).hex()}", str(ink)) for color, ink in zip(backgrounds, inks, strict=True)]


# The luminance at which black and white have the same contrast, (L + 0.05) / 0.05 = 1.05 / (L + 0.05).
EVEN = math.sqrt(1.05 * 0.05) - 0.05


def _luminance(colors: np.ndarray) -> np.ndarray:
    """Relative luminance of sRGB colours (N, 3) from 0 to 1. Source: WCAG 2.2, https://www.w3.org/TR/WCAG22/."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def short(value: float, digits: int = 3) -> str:
    """A number with its sign."""
    return f"{value:+.{digits}g}" if value else "0"


def headings(rows: Sequence[Row]) -> list[str]:
    """What stands above each row: its title, and the end of its colours where rows differ in it."""
    if len({row.limit for row in rows}) == 1:
        return [row.title for row in rows]
    return [f"{row.title} (max {short(row.limit)})".lstrip() for row in rows]


def ends(rows: Sequence[Row]) -> tuple[str, str]:
    """The words at the low and the high end of the legend of some rows."""
    limits = {row.limit for row in rows}
    if len(limits) > 1:
        return "-max", "+max"
    limit = limits.pop()
    return short(-limit), short(limit)
