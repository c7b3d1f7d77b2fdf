"""Kinds: what an equation is to relevance, by its operator and by which of its arguments are active."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, ELEMENTWISE, AFFINE, SUM = (
    "convolution", "dense", "batch_norm", "activation", "elementwise", "affine", "sum",
)  # fmt: skip
AVERAGE_POOL, MAX_POOL, PRODUCT, BILINEAR = "average_pool", "max_pool", "product", "bilinear"
SOFTMAX, ATTENTION, NORMALIZATION, EMBEDDING = "softmax", "attention", "normalization", "embedding"
MOVEMENT, OTHER = "movement", "other"
LINEAR = "linear"  # a convolution or a dense layer

KINDS = (
    CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, ELEMENTWISE, AFFINE, SUM, AVERAGE_POOL, MAX_POOL, PRODUCT, BILINEAR,
    SOFTMAX, ATTENTION, NORMALIZATION, EMBEDDING, MOVEMENT, OTHER,
)  # fmt: skip


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


def of_first(one: str) -> KindOf:
    """A kind if the first argument alone is active: what normalizes a fixed value by an active one is another thing."""

    def kind(arguments: Sequence, active: Activity) -> str:
        return one if active.total == 1 and active.at(0) else OTHER

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
    """Tokens get their rows' relevance; a table that was made of the input gives its rows away."""
    return MOVEMENT if active.at(0) else EMBEDDING
