"""Kinds: what an equation is to relevance, by its operator and by which of its arguments are active."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, ELEMENTWISE, AFFINE, SUM = (
    "convolution", "dense", "batch_norm", "activation", "elementwise", "affine", "sum",
)  # fmt: skip
THRESHOLD_RELU = "threshold_relu"
AVERAGE_POOL, MAX_POOL, PRODUCT, BILINEAR = "average_pool", "max_pool", "product", "bilinear"
SOFTMAX, ATTENTION, NORMALIZATION, EMBEDDING = "softmax", "attention", "normalization", "embedding"
RECURRENT = "recurrent"
MOVEMENT, TRANSFORM, OTHER = "movement", "transform", "other"
LINEAR = "linear"

KINDS = (
    CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, THRESHOLD_RELU, ELEMENTWISE, AFFINE, SUM, AVERAGE_POOL, MAX_POOL,
    PRODUCT, BILINEAR, SOFTMAX, ATTENTION, NORMALIZATION, EMBEDDING, RECURRENT, MOVEMENT, TRANSFORM, OTHER,
)  # fmt: skip

# A rule for the latter is one for the former, too, if that has none of its own.
COVERED_BY = {CONVOLUTION: LINEAR, DENSE: LINEAR, THRESHOLD_RELU: ACTIVATION}

ONE_INPUT = (ACTIVATION, ELEMENTWISE)
OF_COMPLEX = (CONVOLUTION, DENSE, BILINEAR, AFFINE, SUM, PRODUCT, NORMALIZATION, MOVEMENT, TRANSFORM)


class Activity(NamedTuple):
    """Which arguments of an equation are active: by their positions, and how many active inputs there are in all."""

    positions: tuple[bool, ...]
    total: int

    def at(self, position: int | None) -> bool:
        return position is not None and position < len(self.positions) and self.positions[position]


# A kind, or what gives one from an equation's arguments and which of them are active.
KindOf = Callable[[Sequence, Activity], str]


def by_count(one: str, several: str) -> KindOf:
    """A kind with one active input and another with several."""

    def kind(arguments: Sequence, active: Activity) -> str:
        return several if active.total > 1 else one

    return kind


def of_first(one: str, other: str = OTHER) -> KindOf:
    """A kind if the first argument alone is active: what normalizes a fixed value by an active one is another thing."""

    def kind(arguments: Sequence, active: Activity) -> str:
        return one if active.total == 1 and active.at(0) else other

    return kind


def at_first(one: str) -> KindOf:
    """A kind if the first argument is active, whatever else is."""

    def kind(arguments: Sequence, active: Activity) -> str:
        return one if active.at(0) else OTHER

    return kind


def layer(one: str, input: int | None, weight: int, bias: int | None) -> KindOf:
    """A layer if its input alone is active, a product of two values if its weight is as well.

    `input` None: either operand may be the input. A weight that is active while the input is not, an active bias and
    another number of operands make no layer to a rule.
    """

    def kind(arguments: Sequence, active: Activity) -> str:
        if active.total > 1:
            return OTHER if active.total > 2 or active.at(bias) else BILINEAR
        is_layer = weight < len(arguments) and (input is None or active.at(input))
        return one if is_layer else OTHER

    return kind


def steps(arguments: Sequence, active: Activity) -> str:
    """Of a recurrent layer, whose weight and bias are fixed."""
    return OTHER if active.at(2) or active.at(3) else RECURRENT


def power(arguments: Sequence, active: Activity) -> str:
    """Of an active base and a number."""
    is_of_base = active.total == 1 and active.at(0) and isinstance(arguments[1], Real)
    return ELEMENTWISE if is_of_base else OTHER


def quotient(arguments: Sequence, active: Activity) -> str:
    """Affine in the numerator; a fixed value divided by x is no multiple of x."""
    if active.total > 1:
        return PRODUCT
    return AFFINE if active.at(0) else ELEMENTWISE


def lookup(arguments: Sequence, active: Activity) -> str:
    """A table that was made of the input gives its rows away; what ids get, who looks rows up by them, says `facts`."""
    return MOVEMENT if active.at(0) else OTHER


def interpolation(arguments: Sequence, active: Activity) -> str:
    """Between two values, with a fixed weight."""
    return OTHER if active.at(2) else by_count(AFFINE, SUM)(arguments, active)


def reduction(arguments: Sequence, active: Activity) -> str:
    """By its name, which is the only word among the arguments."""
    how = next((argument for argument in arguments if isinstance(argument, str)), None)
    return {"sum": SUM, "mean": SUM, "amax": MAX_POOL, "amin": MAX_POOL}.get(how or "", OTHER)


def write(arguments: Sequence, active: Activity) -> str:
    """What is written replaces what was there, or is added to it; by a name it may be multiplied as well.

    Two values may be written to one place, and then no relevance of the place is that of both.
    """
    how = next((argument for argument in arguments if isinstance(argument, str)), None)
    adds = len(arguments) > 3 and arguments[3] is True
    return {None: SUM if adds else TRANSFORM, "add": SUM}.get(how, OTHER)
