"""When an operation's result is a constant by its arguments: the column `is_constant` where it is a function."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrpfunc.program import Equation


def to_the_zeroth(equation: Equation) -> bool:
    """x ** 0 is one."""
    exponent = equation.arguments[1]
    return isinstance(exponent, (int, float)) and exponent == 0


def if_rounded(equation: Equation) -> bool:
    """A quotient that is rounded is a step function."""
    return equation.keywords.get("rounding_mode") is not None


def of_real_numbers(equation: Equation) -> bool:
    """The sign of a real number is a step function, that of a complex one its phase."""
    return not equation.outputs[0].is_complex
