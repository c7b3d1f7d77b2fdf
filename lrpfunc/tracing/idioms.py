"""Functions that are written out become one equation, to be explained as those that are called.

A softmax: exp(x - m) / sum exp(x - m), whatever m is along the axes of the sum (the maximum mostly), with a mask or
without, and exp(log_softmax(x)). Its logarithm: log(softmax(x)). A sigmoid: 1 / (1 + exp(-x)). A clamp at zero:
max(x, 0). A threshold ReLU, as canonical programs have it that are traced again: clamp(x, low, high) with bounds for
each channel, to which slope (x - clamp(x, low, high)) may be added. What takes their place computes what was written,
to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lrpfunc.operations import facts, row_of
from lrpfunc.program import Equation, Program, Variable, functions


def with_idioms(program: Program) -> Program:
    """A program in which each function that is written out is one equation."""
    found = (_quotient, _of_logarithm, _logarithm, _sigmoid, _clamp, _threshold, _leaky_threshold)
    return program.replace(
        equations=tuple(
            next(filter(None, (match(program, equation) for match in found)), equation)
            for equation in program.equations
        )
    )


def _clamp(program: Program, maximum: Equation) -> Equation | None:
    """The larger of a value and a tensor of zeros, of torch.maximum(a, b) or torch.max(a, b)."""
    are_variables = [isinstance(argument, Variable) for argument in maximum.arguments]
    if maximum.operator.removesuffix("imum") != "max" or are_variables != [True, True]:
        return None
    for x, other in (maximum.arguments, maximum.arguments[::-1]):
        maker = program.producers.get(other.name)
        is_zero = maker is not None and maker.operator.removeprefix("new_").removesuffix("_like") == "zeros"
        if is_zero and x.shape == maximum.outputs[0].shape:
            return replace(maximum, function=torch.ops.aten.clamp_min.default, arguments=(x, 0))
    return None


def _threshold(program: Program, clamp: Equation) -> Equation | None:
    if clamp.operator != "clamp" or len(clamp.arguments) != 3 or clamp.keywords:
        return None
    x, *bounds = clamp.arguments
    fixed = facts(program).fixed
    if not all(isinstance(bound, Variable) and bound.name in fixed for bound in bounds):
        return None
    are_of_channels = all(len(bound.shape) == len(x.shape) > 1 == bound.shape[0] for bound in bounds)
    if not are_of_channels or clamp.outputs[0].shape != x.shape or clamp.outputs[0].dtype != x.dtype:
        return None
    return replace(clamp, function=functions.threshold_relu, arguments=(x, *bounds, 0.0))


def _leaky_threshold(program: Program, total: Equation) -> Equation | None:
    if total.operator != "add" or len(total.arguments) != 2:
        return None
    inside, outside = total.arguments[0], _made_by(program, total.arguments[1], "sub")
    clamp = _made_by(program, inside, "clamp")
    known = None if clamp is None else _threshold(program, clamp)
    if known is None or outside is None or outside.keywords or outside.arguments != (known.arguments[0], inside):
        return None
    arguments = (*known.arguments[:3], total.keywords.get("alpha", 1))
    return replace(total, function=functions.threshold_relu, arguments=arguments, keywords={})


def _quotient(program: Program, quotient: Equation) -> Equation | None:
    parts = _numerator_and_denominator(program, quotient)
    if parts is None:
        return None
    numerator, (denominator, epsilon) = parts[0], _without_epsilon(program, parts[1])
    axes = _axes_summed(program, numerator, denominator)
    if axes is None:
        return None
    powers, factor = _without_factor(program, numerator)
    if (exp := _made_by(program, powers, "exp")) is None or powers.shape != numerator.shape:
        return None
    x, shift = _without_shift(program, exp.arguments[0], axes)
    arguments = (x, axes, shift, factor, epsilon, quotient.operator == "mul")
    return replace(quotient, function=functions.exp_over_sum, arguments=arguments)


def _numerator_and_denominator(program: Program, quotient: Equation) -> tuple | None:
    """Of a division, or a product with a reciprocal."""
    if quotient.keywords or len(quotient.arguments) != 2:
        return None
    if quotient.operator == "div":
        return quotient.arguments
    for numerator, factor in (quotient.arguments, quotient.arguments[::-1]) if quotient.operator == "mul" else ():
        if (denominator := _inverted(program, factor)) is not None:
            return numerator, denominator
    return None


def _inverted(program: Program, value) -> Variable | None:
    """What a value is one over, which 1 / x is traced as its reciprocal times one."""
    times_one = _made_by(program, value, "mul")
    inverse = times_one.arguments[0] if times_one is not None and times_one.arguments[1:] == (1,) else value
    reciprocal = _made_by(program, inverse, "reciprocal")
    return None if reciprocal is None else reciprocal.arguments[0]


def _sigmoid(program: Program, last: Equation) -> Equation | None:
    match _made_by(program, _inverted(program, last.outputs[0]), "add"):
        case Equation(arguments=(Variable() as powers, 1), keywords={}):
            exp = _made_by(program, powers, "exp")
            negative = None if exp is None else _made_by(program, exp.arguments[0], "neg")
            return negative and replace(last, function=functions.sigmoid_by_exp, arguments=negative.arguments)
    return None


def _of_logarithm(program: Program, exp: Equation) -> Equation | None:
    """exp(log_softmax(x)) or exp(x - logsumexp(x))."""
    if exp.operator != "exp":
        return None
    logarithm = _made_by(program, exp.arguments[0], "log_softmax")
    if logarithm is not None and set(logarithm.arguments[2:]) <= {None} and not logarithm.keywords:
        return replace(exp, function=functions.exp_of_log_softmax, arguments=logarithm.arguments[:2])
    difference = _made_by(program, exp.arguments[0], "sub")
    x, total = difference.arguments if difference is not None and not difference.keywords else (None, None)
    norm = _made_by(program, total, "logsumexp")
    if norm is None or norm.arguments[0] is not x or norm.arguments[2:] != (True,):
        return None
    return replace(exp, function=functions.exp_of_log_softmax, arguments=(x, norm.arguments[1], total))


def _logarithm(program: Program, log: Equation) -> Equation | None:
    softmax = _made_by(program, log.arguments[0], "softmax") if log.operator == "log" else None
    if softmax is None or not set(softmax.arguments[2:]) <= {None} or softmax.keywords:
        return None
    return replace(log, function=functions.log_of_softmax, arguments=softmax.arguments[:2])


def _made_by(program: Program, value, operator: str) -> Equation | None:
    maker = program.producers.get(value.name) if isinstance(value, Variable) else None
    return maker if maker is not None and maker.operator == operator else None


def _without_epsilon(program: Program, denominator) -> tuple:
    """What a small number was added to, so that nothing is divided by zero, and that number."""
    match _made_by(program, denominator, "add"):
        case Equation(arguments=(Variable() as total, (int() | float()) as epsilon), keywords={}) if epsilon > 0:
            return total, epsilon
    return denominator, 0.0


def _axes_summed(program: Program, numerator, denominator) -> list[int] | None:
    """The axes along which a denominator is the sum of its numerator, if that is what it is."""
    if not isinstance(numerator, Variable) or not isinstance(denominator, Variable):
        return None
    shape, maker = denominator.shape, program.producers.get(denominator.name)
    while maker is not None and (row_of(maker).keeps_values or _repeats(maker) or _is_whole(maker)):
        shape = maker.arguments[0].shape if _repeats(maker) else shape
        maker = program.producers.get(maker.arguments[0].name)
    if maker is None or maker.operator != "sum" or maker.arguments[0] is not numerator:
        return None
    if maker.keywords or len(maker.arguments) > 3:  # a sum in another dtype
        return None
    count = len(numerator.shape)
    given = maker.arguments[1] if len(maker.arguments) > 1 else None
    axes = sorted(axis % count for axis in given or range(count))
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(numerator.shape))
    is_aligned = (1,) * (count - len(shape)) + tuple(shape) == kept
    return axes if is_aligned else None


def _repeats(equation: Equation) -> bool:
    return equation.operator.removesuffix("_as") == "expand"


def _is_whole(slice: Equation) -> bool:
    """Whether a slice is all that it is of, as in x[:, None]."""
    return slice.operator == "slice" and slice.outputs[0].shape == slice.arguments[0].shape


def _without_factor(program: Program, numerator: Variable) -> tuple[Variable, Variable | None]:
    """Powers, and the constant by which they are multiplied: a mask."""
    product = _made_by(program, numerator, "mul")
    if product is not None and all(isinstance(factor, Variable) for factor in product.arguments):
        for powers, factor in (product.arguments, product.arguments[::-1]):
            if factor.name not in facts(program).active and _made_by(program, powers, "exp") is not None:
                return powers, factor
    return numerator, None


def _without_shift(program: Program, x: Variable, axes: Sequence[int]) -> tuple[Variable, Variable | None]:
    """A value, and what is subtracted from all of it along the axes alike."""
    difference = _made_by(program, x, "sub")
    if difference is None or difference.keywords:
        return x, None
    value, shift = difference.arguments
    if not isinstance(value, Variable) or not isinstance(shift, Variable) or value.shape != x.shape:
        return x, None
    aligned = (1,) * (len(x.shape) - len(shift.shape)) + tuple(shift.shape)
    return (value, shift) if all(aligned[axis] == 1 for axis in axes) else (x, None)
