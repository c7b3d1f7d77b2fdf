"""When an operation's result is zero everywhere, whatever the input: the column `vanishes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrpfunc.program import Equation

Vanishes = Callable[["Equation", Callable[[Any], bool]], bool]


def always(equation: Equation, is_zero) -> bool:
    return True


def filled(position: int) -> Vanishes:
    """With a number that is an argument."""

    def vanishes(equation, is_zero):
        return is_zero(equation.arguments[position])

    return vanishes


def of_first(equation: Equation, is_zero) -> bool:
    return is_zero(equation.arguments[0])


def of_any(equation: Equation, is_zero) -> bool:
    """A product, of which one factor is enough."""
    return any(is_zero(factor) for factor in equation.arguments)
