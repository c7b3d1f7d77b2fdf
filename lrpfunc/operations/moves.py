"""How a scale and shift per channel pass an operation: the columns `moves`, `keeps_uniform` and `bounds` of the table.

Where the channels are in a value is an array of channel numbers that broadcasts to it, -1 for what belongs to none:
behind a batch norm its shape is (1, C, 1, 1). So views need no axes to be followed, they act on the array.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrpfunc.operations.row import Index
from lrpfunc.program import Equation, Variable


class Immovable(Exception):
    """A scale and shift cannot move; the message says what is in the way."""


def described(equation: Equation) -> str:
    """An equation in a message: its name, and its operator where the name does not say it."""
    is_clear = equation.operator in equation.name
    return equation.name if is_clear else f"{equation.name} ({equation.operator})"


def source_of(equation: Equation) -> Variable:
    """What an operation of one tensor works on."""
    source = equation.arguments[0]
    assert isinstance(source, Variable)
    return source


# -- movements and averages -------------------------------------------------------------------------------------------


def same(equation: Equation, index: Index, to_left: bool) -> Index:
    return index


def reshaped(equation: Equation, index: Index, to_left: bool) -> Index:
    before, after = source_of(equation).shape, equation.outputs[0].shape
    if to_left:
        before, after = after, before
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    head, middle, tail = index.shape[:start], index.shape[start : start + len(old)], index.shape[start + len(old) :]
    if all(n == 1 for n in middle):
        return index.reshape(*head, *[1] * len(new), *tail)
    if any(isinstance(n, str) for n in (*old, *new)):
        raise Immovable(f"{described(equation)} mixes its channels with the batch")
    full: list = [*head, *old, *tail]
    spread = np.broadcast_to(index, full).reshape(*head, *new, *tail)
    for axis in range(start, start + len(new)):
        first = spread.take([0], axis)
        spread = first if (spread == first).all() else spread
    return spread


def _common(one: Sequence, other: Sequence) -> int:
    """How many sizes two shapes begin with that are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (n, m) in pairs if n != m), min(len(one), len(other)))


def transposed(equation: Equation, index: Index, to_left: bool) -> Index:
    return index.swapaxes(*equation.arguments[1:3])


def permuted(equation: Equation, index: Index, to_left: bool) -> Index:
    order = [axis % index.ndim for axis in equation.arguments[1]]
    return index.transpose(np.argsort(order) if to_left else order)


def resized(equation: Equation, index: Index, to_left: bool) -> Index:
    """Of what changes the last axes, as many as its name says: `avg_pool2d`."""
    return _unless_mixed(equation, index, range(-spatial_axes(equation), 0))


def padded(equation: Equation, index: Index, to_left: bool) -> Index:
    if any(isinstance(value, (int, float)) and value != 0 for value in equation.arguments[2:]):
        raise Immovable(f"{described(equation)} adds values other than zero")
    return resized(equation, index, to_left)


def averaged(equation: Equation, index: Index, to_left: bool) -> Index:
    rank = len(source_of(equation).shape)
    given = equation.arguments[1] if len(equation.arguments) > 1 else None
    axes = tuple(axis % rank for axis in given or range(rank))  # none and [] mean all
    keeps_rank = len(equation.outputs[0].shape) == rank
    if to_left:
        return index if keeps_rank else np.expand_dims(index, axes)
    index = _unless_mixed(equation, index, axes)
    return index if keeps_rank else index.squeeze(axes)


def spatial_axes(equation: Equation) -> int:
    """On how many of the last axes an operation works."""
    named = re.findall(r"(\d)d", equation.operator)
    return int(named[0]) if named else len(equation.arguments[1]) // 2  # padding has two numbers for each


def _unless_mixed(equation: Equation, index: Index, axes: Sequence[int]) -> Index:
    if any(index.shape[axis] != 1 for axis in axes):
        raise Immovable(f"{described(equation)} mixes its channels")
    return index


# -- whether a uniform value stays what it is, so that a shift can pass ------------------------------------------------


def unless_zeros_count(average: Equation) -> bool:
    """Of pooling, where zeros at the border may count as values."""
    arguments = average.arguments
    padding, count_include_pad, divisor = arguments[3], arguments[5], arguments[6:7]
    is_padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    return not (is_padded and count_include_pad) and divisor in ((), (None,))


def unless_padded_with_numbers(pad: Equation) -> bool:
    return pad.arguments[2:3] in (("reflect",), ("replicate",), ("circular",))


# -- activations as clamps --------------------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """An activation f(x) = c + slope (x - c), where c is x clamped between low and high (numbers or leaves)."""

    low: float | Variable
    high: float | Variable
    slope: float = 0.0


INFINITY = float("inf")


def of_relu(equation: Equation) -> Bounds:
    return Bounds(0.0, INFINITY)


def of_relu6(equation: Equation) -> Bounds:
    return Bounds(0.0, 6.0)


def of_leaky_relu(equation: Equation) -> Bounds | None:
    slopes = equation.arguments[1:]
    return Bounds(0.0, INFINITY, slopes[0]) if len(slopes) == 1 else None


def of_clamp(equation: Equation) -> Bounds | None:
    """Of two numbers; where they cross the upper one wins, which is another one for negative scales."""
    match equation.arguments[1:]:
        case [(int() | float() | None) as low, (int() | float() | None) as high]:
            if low is not None and high is not None and low > high:
                return None
            return Bounds(-INFINITY if low is None else low, INFINITY if high is None else high)
    return None


def of_clamp_min(equation: Equation) -> Bounds | None:
    (low,) = equation.arguments[1:]
    return Bounds(low, INFINITY) if isinstance(low, (int, float)) else None


def of_clamp_max(equation: Equation) -> Bounds | None:
    (high,) = equation.arguments[1:]
    return Bounds(-INFINITY, high) if isinstance(high, (int, float)) else None


def of_threshold_relu(equation: Equation) -> Bounds:
    return Bounds(*equation.arguments[1:4])
