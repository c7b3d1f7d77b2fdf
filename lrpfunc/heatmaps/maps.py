"""Relevance as arrays of numbers, checked: types, values that are not finite, shapes that mean something else."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import checks

CHANNELS = ("sum", "each")
COLOR_CHANNELS = (1, 3, 4)  # of a picture: gray, RGB, RGBA
STEPS, FLAT = 64, 10  # a map of so many columns, so many times as long as it is high, and no more than 24 rows
ROWS = 24


def summed(relevance: Any, channels: str = "sum") -> np.ndarray:
    """Maps in float64, checked: (H, W) or (N, H, W), and (C, H, W) or (N, C, H, W) if each channel is a map."""
    if checks.text("channels", channels) not in CHANNELS:
        checks.refuse("channels", "'sum' or 'each'", channels)
    values = as_array("relevance", relevance).astype(np.float64)
    if values.ndim not in (2, 3, 4):
        hint = {1: "heatmaps.lines draws series.", 5: "heatmaps.slices draws the volumes of one sample."}
        raise InputError(
            f"a heatmap needs relevance of shape (H, W), (C, H, W) or (N, C, H, W), but got {values.shape}. "
            f"{hint.get(values.ndim, '')} Sum, index or reshape it first.".replace("  ", " ")
        )
    check_values("a heatmap", values)
    _check_channels_first(values.shape)
    _check_no_series(values.shape)
    return values if values.ndim == 2 or channels == "each" else sum_of_channels(values, -3)


def sum_of_channels(values: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(axis=axis)
    if not np.isfinite(total).all():
        raise InputError("the sum over channels is beyond float64: divide the relevance by its largest value first.")
    return total


def check_values(who: str, values: np.ndarray) -> None:
    if values.size == 0:
        raise InputError(f"{who} needs at least one value, but the relevance has shape {values.shape}.")
    wrong = np.count_nonzero(~np.isfinite(values))
    if wrong:
        raise InputError(
            f"{who} needs finite relevance, but {wrong} of {values.size} values are nan or infinite. "
            f"{why_not_finite(values)}"
        )


def why_not_finite(values: np.ndarray) -> str:
    """What may be the reason, and what helps. A few values: denominators near zero. All of them: it began elsewhere."""
    if np.count_nonzero(np.isnan(values)) < 0.9 * values.size:
        return "A larger stabilizer, or float32 instead of a half precision, often helps."
    return (
        "Nearly all are nan: weights or inputs may be nan themselves, torch.isfinite of them and of the model's output "
        "tells. If they are finite, a larger stabilizer, or float32 instead of a half precision, often helps."
    )


# -- types ------------------------------------------------------------------------------------------------------------


def as_array(who: str, values: Any) -> np.ndarray:
    """Numbers as an array of numpy's, whatever tensor they come in."""
    if not isinstance(values, Tensor | np.ndarray):
        checks.refuse(who, "a tensor or an array of numbers", values, _way_out(values))
    if isinstance(values, np.ma.MaskedArray):
        checks.refuse(who, "an array without a mask", values, "Take .filled(0) of it.")
    array = _numpy(who, values) if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "fiu":
        ways = {"c": "Take the real part or the magnitude.", "b": "Take .float() or .astype(float) of it."}
        hint = ways.get(array.dtype.kind, "")
        raise InputError(f"{who} must be real numbers, but has dtype {array.dtype}." + f" {hint}" * bool(hint))
    return array


def _way_out(values: Any) -> str:
    from PIL import Image

    if isinstance(values, str | bytes | os.PathLike):
        return "Load it first."
    if isinstance(values, list | tuple):
        return "Make one of it by torch.stack or torch.tensor."
    if isinstance(values, Image.Image):
        return "heatmaps.overlay takes the image first, heatmaps.show second."
    return "numpy.asarray makes an array of it." if hasattr(values, "__array__") else ""


def _numpy(who: str, values: Tensor) -> np.ndarray:
    if values.is_quantized:
        checks.refuse(who, "a tensor that is not quantized", values, "Take .dequantize() of it.")
    if values.is_nested:
        _refuse_nested(who)
    if values.layout != torch.strided:
        checks.refuse(who, "a dense tensor", values, "Take .to_dense() of it.")
    try:
        values = values.detach().cpu().resolve_conj().resolve_neg()
        return (values.double() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16
    except (RuntimeError, TypeError, NotImplementedError):  # on device meta, inside of a transform, of a dtype of bits
        checks.refuse(who, f"numbers that can be read (dtype {values.dtype}, device {values.device})", values)


def _refuse_nested(who: str) -> NoReturn:
    raise InputError(f"{who} must be one tensor, but is nested. Take the tensors of .unbind() one by one.")


# -- shapes that mean something else ----------------------------------------------------------------------------------


def _check_channels_first(shape: tuple[int, ...]) -> None:
    """Refuse (H, W, 3). Features (C, H, W) may be as narrow, so that both ways out are named."""
    if len(shape) < 3 or shape[-1] not in COLOR_CHANNELS or min(shape[-3:-1]) <= max(COLOR_CHANNELS):
        return
    raise InputError(
        f"relevance of shape {shape} may have its channels last, and a heatmap needs them before height and width. "
        f"Move them, relevance.{'movedim(-1, -3)' if len(shape) > 3 else 'movedim(-1, 0)'}, "
        "or sum them if they are first: relevance.sum(-3, keepdim=True)."
    )


def _check_no_series(shape: tuple[int, ...]) -> None:
    """Refuse (T,) and (C, T) in disguise. What has four axes is a batch of pictures."""
    short, long = sorted(shape[-2:])
    if len(shape) > 3 or short > ROWS or long < max(STEPS, FLAT * short):
        return
    way = "relevance[None, None]" if len(shape) == 2 else "relevance[None]"
    raise InputError(
        f"relevance of shape {shape} looks like a series of {long} steps: heatmaps.lines draws those. "
        f"If it is a picture, say so by giving it as a batch (N, C, H, W): {way}."
    )
