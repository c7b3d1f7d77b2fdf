"""Whether arguments are of the types that the drawing functions take: one line that names what is not, or the value."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from lrpfunc.errors import InputError

PLAIN_TYPES = (str, bytes, bool, int, float, complex, type(None))  # those whose repr says more than their type


def refuse(who: str, needed: str, value: Any, hint: str = "") -> NoReturn:
    """Raise `InputError`: who needed what, and what came."""
    raise InputError(f"{who} must be {needed}, but is {described(value)}." + f" {hint}" * bool(hint))


def described(value: Any) -> str:
    """A value in a few words and one line, whatever it is."""
    kind = type(value).__name__
    if isinstance(value, Tensor | np.ndarray) and not getattr(value, "is_nested", False):  # that has no shape
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, PLAIN_TYPES):
        with suppress(ValueError):  # some Pythons refuse to write out whole numbers of thousands of digits
            return " ".join(reprlib.repr(value).split())
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def text(who: str, value: Any) -> str:
    """A text. Errors: `InputError`."""
    if not isinstance(value, str):
        refuse(who, "text", value)
    return value


def flag(who: str, value: Any) -> bool:
    """True or False. Errors: `InputError`."""
    if not isinstance(value, bool | np.bool_):
        refuse(who, "True or False", value)
    return bool(value)


def number(
    who: str,
    value: Any,
    needed: str = "a finite number",
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    """A finite number from low to high as a float."""
    if isinstance(value, Tensor | np.ndarray):
        refuse(who, needed, value, "Take .item() of it.")
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        refuse(who, needed, value)
    try:
        found = float(value)
    except OverflowError:
        refuse(who, f"{needed} that a float holds", value)
    if not low <= found <= high or not above < found < math.inf:
        raise InputError(f"{who} must be {needed}, but is {value!r}.")
    return found


def whole(who: str, value: Any) -> int:
    """A whole number. Errors: `InputError`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or abs(int(value)) >= 2**31:
        refuse(who, "a whole number (of 32 bits)", value)
    return int(value)


def pair(who: str, value: Any) -> tuple[Any, Any]:
    """Two values. Errors: `InputError`."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        refuse(who, "None or a pair (low, high)", value)
    return value[0], value[1]


def printable(path: Path) -> str:
    """A path in one line, whatever letters it has."""
    return str(path) if str(path).isprintable() else repr(str(path))


def file_path(who: str, value: Any) -> Path:
    """A path. Errors: `InputError`."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        refuse(who, "a str or a pathlib.Path", value)
    if "\0" in os.fspath(value):
        refuse(who, "a path without the character NUL", value)
    return Path(value)


def texts_by_name(who: str, value: Any) -> Mapping[str, str]:
    """Texts by names that are texts. Errors: `InputError`."""
    if not isinstance(value, Mapping):
        refuse(who, "a mapping of names to texts", value)
    for name, words in value.items():
        text(f"a name in {who}", name)
        text(f"what {who} says under {name!r}", words)
    return value


def canvas(value: Any) -> Any:
    """What is given to draw into: a figure or a part of one, or None."""
    from matplotlib.figure import FigureBase

    if value is None or isinstance(value, FigureBase):
        return value
    hint = "Give its .figure." if hasattr(value, "figure") and not callable(value.figure) else ""
    refuse("the figure to draw into", "a matplotlib Figure or SubFigure", value, hint)


def words(who: str, value: Any) -> Sequence[str]:
    """Several texts. One text alone is one as well, of its letters, and is hardly meant."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        refuse(who, "a list of texts", value, "Put it in brackets." if isinstance(value, str) else "")
    for i, one in enumerate(value):
        text(f"number {i} of {who}", one)
    return value
