"""What operations do to signs: the column `sign` of the table.

Each tells whether an equation's result is never below zero, given a function that tells it of one of its arguments.
"""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

from lrpfunc.operations.row import Sign

if TYPE_CHECKING:
    from lrpfunc.program import Equation


def always(equation: Equation, is_nonnegative) -> bool:
    return True


def keeps(equation: Equation, is_nonnegative) -> bool:
    """If what it works on is, and every other floating-point tensor."""
    others = (variable for variable in equation.reads if variable.is_floating)
    return is_nonnegative(equation.arguments[0]) and all(map(is_nonnegative, others))


def works_on(equation: Equation, is_nonnegative) -> bool:
    """If its first argument is, whatever gives the shape."""
    return is_nonnegative(equation.arguments[0])


def operands(first: int, last: int) -> Sign:
    """If all its operands are, which may be numbers: its arguments from `first` to before `last`."""

    def sign(equation, is_nonnegative):
        operands = (*equation.arguments[first:last], equation.keywords.get("alpha", 1))
        return all(map(is_nonnegative, operands))

    return sign


def product(equation: Equation, is_nonnegative) -> bool:
    """If both factors are, or are the same."""
    first, second = equation.arguments[:2]
    return first is second or (is_nonnegative(first) and is_nonnegative(second))


def power(equation: Equation, is_nonnegative) -> bool:
    base, exponent = equation.arguments[:2]
    return isinstance(exponent, Real) and float(exponent) >= 0 and (is_nonnegative(base) or float(exponent) % 2 == 0)


def all_arguments(equation: Equation, is_nonnegative) -> bool:
    """If all its arguments are."""
    return all(map(is_nonnegative, equation.arguments)) and not equation.keywords


def softplus(equation: Equation, is_nonnegative) -> bool:
    """With a positive beta, and linear only above zero."""
    return all(map(is_nonnegative, equation.arguments[1:])) and not equation.keywords


def averages(equation: Equation, is_nonnegative) -> bool:
    """If what it averages is and it divides by no negative number."""
    divisor = equation.arguments[6] if len(equation.arguments) > 6 else equation.keywords.get("divisor_override")
    return is_nonnegative(equation.arguments[0]) and (divisor is None or is_nonnegative(divisor))


def pools(equation: Equation, is_nonnegative) -> bool:
    """If what it pools is and no window can lie in the padding, which is -inf, as a dilated one can."""
    dilation = equation.arguments[4] if len(equation.arguments) > 4 else equation.keywords.get("dilation", 1)
    is_dense = all(n == 1 for n in dilation) if isinstance(dilation, (list, tuple)) else dilation == 1
    return is_nonnegative(equation.arguments[0]) and is_dense


def fills(position: int) -> Sign:
    """If what it works on is and the number that it fills in, its argument at `position`."""

    def sign(equation, is_nonnegative):
        value = equation.arguments[position] if position < len(equation.arguments) else equation.keywords.get("value")
        return keeps(equation, is_nonnegative) and (value is None or is_nonnegative(value))

    return sign


def clamps(equation: Equation, is_nonnegative) -> bool:
    """If what it clamps is or the lower end, and the upper end, which wins where the two cross."""
    x, low, high = (*equation.arguments, None, None)[:3]
    low, high = equation.keywords.get("min", low), equation.keywords.get("max", high)
    return (is_nonnegative(x) or is_nonnegative(low)) and (high is None or is_nonnegative(high))


def clamps_by_position(equation: Equation, is_nonnegative) -> bool:
    """As `clamps`, of what calls the ends otherwise where they are given by name."""
    return clamps(equation, is_nonnegative) and not equation.keywords


def exp_over_sum(equation: Equation, is_nonnegative) -> bool:
    """If the factor is, where there is one."""
    factor = equation.arguments[3]
    return factor is None or is_nonnegative(factor)
