"""Gray values of any depth as bytes: which value is black and which is white, and what to say where that is a guess."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lrpfunc.errors import FileError

DEPTHS = (8, 12, 14, 16)  # bits that cameras and scanners have
FLOAT_WHITES = (1, 255, 4095, 16383, 65535)
STRIP = 2**22  # values that are converted at once: memory stays near that of the picture


class Window(NamedTuple):
    """The values that are black and white."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.10g},{self.high:.10g}"

    @property
    def ends(self) -> str:
        """In words."""
        return f"from {self.low:.10g} to {self.high:.10g}"


def in_bytes(values: np.ndarray, window: Window) -> np.ndarray:
    """Values as bytes: 0 at the window's low end and below, 255 at its high end and above."""
    low, high = window.low, window.high if window.high > window.low else window.low + 1
    out = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // max(1, values[0].size)) if len(values) else 1
    for start in range(0, len(values), rows):
        strip = (values[start : start + rows].astype(np.float64) - low) * (255 / (high - low))
        out[start : start + rows] = np.round(np.clip(strip, 0, 255))
    return out


def spread(values: np.ndarray, left_out: np.ndarray | None = None) -> Window:
    """From the lowest to the highest value, but for those that are left out. Errors: `FileError`."""
    chosen = values if left_out is None or left_out.all() else values[~left_out]
    low, high = float(chosen.min()), float(chosen.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise FileError("has values that are nan or infinite")
    return Window(low, high)


def guessed(values: np.ndarray, bits: int | None = None) -> tuple[Window, tuple[str, ...]]:
    """Black and white of a gray picture of more than 8 bits, with what to say if its depth is not known.

    `bits`: how many the file says that it has. Whole numbers are taken for the least depth that cameras have and that
    holds them, floating-point ones for pixels with white at 1, 255, ...
    Errors: `FileError` for values that no picture has.
    """
    low, high = spread(values)
    if values.dtype.kind == "f":
        whites: tuple[float, ...] = FLOAT_WHITES
    else:
        whites = tuple(2**depth - 1 for depth in ((bits,) if bits else DEPTHS))
    white = next((white for white in whites if high <= white), 0)
    if low < 0 or not white:
        raise FileError(
            f"has gray values {Window(low, high).ends}: which is white? Say it by --window low,high, or save it with 8 "
            "or 16 bits"
        )
    window = Window(0, white)
    is_odd = white not in ((1, 255) if values.dtype.kind == "f" else (2 ** (bits or 16) - 1,))
    note = f"its values end at {high:g}, so {white:g} is taken for white; --window {window} says so for all files"
    return window, (note,) * (is_odd and high > 0)
