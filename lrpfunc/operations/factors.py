"""Which factor of a product counts as a constant, and why: found by data flow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

from lrpfunc.operations.kinds import (
    ACTIVATION,
    AFFINE,
    AVERAGE_POOL,
    BILINEAR,
    CONVOLUTION,
    DENSE,
    ELEMENTWISE,
    MAX_POOL,
    MOVEMENT,
    PRODUCT,
    SOFTMAX,
    SUM,
    THRESHOLD_RELU,
)
from lrpfunc.operations.moves import INFINITY, Bounds
from lrpfunc.operations.table import row_of
from lrpfunc.program import Equation, Variable

if TYPE_CHECKING:
    from lrpfunc.operations.facts import Facts

# What makes a factor a constant. A denominator: of a division, or the reciprocal root, norm, ... that a normalization
# written out multiplies by. A slope: f(x) / x of an activation written out, such as the sigmoid(x) in x * sigmoid(x).
# A decay: what comes from an exponential, or is the step that one is made of, as exp(dt A) and dt = softplus(x) are in
# a state space; step by step it scales what was there before, so that half a product each would leave nothing of that.
# A gate: what comes from a sigmoid, tanh or erf. Weights: what comes from a softmax. An activated factor: what comes
# from any other activation, where the other factor does not, as in SwiGLU, and is not scaled by a decay either, as a
# state is.
DENOMINATOR, SLOPE, DECAY = "denominator", "slope", "decay"
GATE, WEIGHTS, ACTIVATED = "gate", "weights", "activated"


class Constant(NamedTuple):
    """The factor of a product that may count as a constant, 0 or 1, and why."""

    factor: int
    role: str


def constant_factor(facts: Facts, equation: Equation) -> Constant | None:
    """Which of two active factors counts as a constant to rules that want one; None if neither does."""
    factors = facts.inputs_of(equation)
    if len(factors) != 2:
        return None
    if equation.operator == "div":
        return Constant(1, DENOMINATOR)
    of_matrices = facts.kind_of(equation) == BILINEAR
    tests = (_decay, _gate, _activated) if of_matrices else (_denominator, _slope, _decay, _gate, _activated)
    return next(filter(None, (test(facts, factors) for test in tests)), None)


def exponents(facts: Facts) -> frozenset[str]:
    """The values that exponentials are made of by sums, scales and shifts, their arguments among them."""
    powers = [e for e in facts.equations if _is_exponential(facts, e)]
    return frozenset(v.name for e in powers for x in facts.inputs_of(e) for v in _sources(facts, x, OF_EXPONENTS))


def _one_of(role: str, has_role: list[bool]) -> Constant | None:
    return Constant(has_role.index(True), role) if has_role.count(True) == 1 else None


def _gate(facts: Facts, factors: Sequence[Variable]) -> Constant | None:
    """A gate or weights. Between two of them a tanh is the signal."""
    weights = [_comes_from(facts, factor, _is_softmax, THROUGH_LAYERS) for factor in factors]
    gates = [w or _comes_from(facts, f, _is_gate, THROUGH) for f, w in zip(factors, weights, strict=True)]
    if all(gates):
        gates = [not _comes_from(facts, factor, _is_tanh, THROUGH) for factor in factors]
    gate = _one_of(GATE, gates)
    return gate._replace(role=WEIGHTS) if gate is not None and weights[gate.factor] else gate


def _denominator(facts: Facts, factors: Sequence[Variable]) -> Constant | None:
    return _one_of(DENOMINATOR, [_normalizes(facts, *pair) for pair in (factors, factors[::-1])])


def _decay(facts: Facts, factors: Sequence[Variable]) -> Constant | None:
    return _one_of(DECAY, [_comes_from(facts, factor, _is_decay, THROUGH_PRODUCTS) for factor in factors])


def _activated(facts: Facts, factors: Sequence[Variable]) -> Constant | None:
    constant = _one_of(ACTIVATED, [_comes_from(facts, factor, _is_activation, THROUGH_POWERS) for factor in factors])
    if constant is None or _comes_from(facts, factors[1 - constant.factor], _is_scaled_by_decay, THROUGH):
        return None
    return constant


# What a factor's origin is seen through: 1 - sigmoid(x) is a gate too, and so are the largest of some, or some divided
# by their sum. A power of an activation is one, as relu(x)^2 is. Attention's probabilities may pass layers that mix its
# heads.
THROUGH = (MOVEMENT, AFFINE, MAX_POOL)
THROUGH_POWERS = (*THROUGH, ELEMENTWISE)
THROUGH_PRODUCTS = (*THROUGH_POWERS, SUM, PRODUCT)
THROUGH_LAYERS = (*THROUGH, DENSE, CONVOLUTION)
OF_EXPONENTS = (MOVEMENT, AFFINE, SUM)

RELU = Bounds(0.0, INFINITY)  # which a clamp may be

Test = Callable[["Facts", Equation], bool]


def _comes_from(facts: Facts, variable: Variable, is_origin: Test, through: Collection[str]) -> bool:
    """Whether a value, all of it, was made by such equations and then only moved, scaled, shifted or clamped."""
    pending, seen = [variable], set()
    while pending:
        variable = pending.pop()
        equation = facts.program.producers.get(variable.name)
        if equation is None:
            return False
        if variable.name in seen or is_origin(facts, equation):
            continue
        seen.add(variable.name)
        sources = facts.inputs_of(equation)
        numerator = _numerator(facts, equation)
        if numerator is None and facts.kind_of(equation) not in through and not row_of(equation).is_clamp:
            return False
        pending += sources if numerator is None else [numerator]
    return True


def _numerator(facts: Facts, equation: Equation) -> Variable | None:
    """What is divided, or multiplied by the reciprocal of something that it was made of."""
    sources = facts.inputs_of(equation)
    if equation.operator == "div":
        return sources[0]
    if facts.kind_of(equation) != PRODUCT or len(sources) != 2:
        return None
    constant = _denominator(facts, sources)
    return None if constant is None else sources[1 - constant.factor]


def _normalizes(facts: Facts, factor: Variable, other: Variable) -> bool:
    """Whether a factor comes from the reciprocal, root or norm of something that the other factor was made of."""
    if not _comes_from(facts, factor, _is_normalizer, THROUGH):
        return False
    made_of = {v.name for v in _sources(facts, other, (MOVEMENT, AFFINE, SUM))}
    kinds = (MOVEMENT, AFFINE, SUM, ELEMENTWISE, AVERAGE_POOL, PRODUCT)
    return any(v.name in made_of for v in _sources(facts, factor, kinds))


def _sources(facts: Facts, variable: Variable, through: Collection[str]) -> Iterator[Variable]:
    """A value and what it was made of by equations of such kinds, by statistics and by clamps."""
    pending, seen = [variable], set()
    while pending:
        variable = pending.pop()
        if variable.name in seen:
            continue
        seen.add(variable.name)
        yield variable
        equation = facts.program.producers.get(variable.name)
        if equation is not None and (_is_statistic(equation) or facts.kind_of(equation) in through):
            pending += facts.inputs_of(equation)


def _is_statistic(equation: Equation) -> bool:
    row = row_of(equation)
    return row.is_statistic or row.is_clamp


def _is_normalizer(facts: Facts, equation: Equation) -> bool:
    if equation.operator == "pow":
        exponent = equation.arguments[1]
        return isinstance(exponent, Real) and float(exponent) < 0
    return row_of(equation).is_normalizer


def _is_decay(facts: Facts, equation: Equation) -> bool:
    """An exponential, or an activation that one is made of."""
    is_step = facts.kind_of(equation) == ACTIVATION and equation.outputs[0].name in facts.exponents
    return is_step or _is_exponential(facts, equation)


def _is_exponential(facts: Facts, equation: Equation) -> bool:
    """A number to the power of what depends on the input, which is the last argument."""
    return row_of(equation).is_exponential and facts.inputs_of(equation) == equation.arguments[-1:]


def _is_scaled_by_decay(facts: Facts, equation: Equation) -> bool:
    return facts.kind_of(equation) in (PRODUCT, BILINEAR) and _decay(facts, facts.inputs_of(equation)) is not None


def _is_gate(facts: Facts, equation: Equation) -> bool:
    return row_of(equation).is_gate


def _is_softmax(facts: Facts, equation: Equation) -> bool:
    return facts.kind_of(equation) == SOFTMAX and row_of(equation).is_gate


def _is_tanh(facts: Facts, equation: Equation) -> bool:
    return equation.operator == "tanh"


def _is_activation(facts: Facts, equation: Equation) -> bool:
    if facts.kind_of(equation) in (ACTIVATION, THRESHOLD_RELU):
        row = row_of(equation)
        return not row.is_clamp or (row.bounds is not None and row.bounds(equation) == RELU)
    return facts.kind_of(equation) == PRODUCT and _slope(facts, facts.inputs_of(equation)) is not None


def _slope(facts: Facts, factors: Sequence[Variable]) -> Constant | None:
    """Of a product of x, but for a scale, and something that was made of the same x element by element."""
    for position, factor in enumerate(factors):
        other = factors[1 - position]
        if any(_is_function_of(facts, other, root) for root in _unscaled(facts, factor)):
            return Constant(1 - position, SLOPE)
    return None


def _unscaled(facts: Facts, variable: Variable) -> Iterator[Variable]:
    """A value and what it was, but for fixed factors, before."""
    yield variable
    equation = facts.program.producers.get(variable.name)
    while equation is not None and row_of(equation).rescales:
        sources = facts.inputs_of(equation)
        if len(sources) != 1 or sources[0].shape != variable.shape:
            return
        yield sources[0]
        equation = facts.program.producers.get(sources[0].name)


def _is_function_of(facts: Facts, variable: Variable, root: Variable) -> bool:
    """Whether a value was made of `root` alone, element by element."""
    pending, seen = [variable], {root.name}
    while pending:
        variable = pending.pop()
        if variable.name in seen:
            continue
        seen.add(variable.name)
        equation = facts.program.producers.get(variable.name)
        if equation is None or variable.shape != root.shape or not _is_elementwise(facts, equation):
            return False
        pending += facts.inputs_of(equation)
    return True


def _is_elementwise(facts: Facts, equation: Equation) -> bool:
    row = row_of(equation)
    kinds = (ACTIVATION, THRESHOLD_RELU, ELEMENTWISE, AFFINE, SUM, PRODUCT)
    return row.is_elementwise or (facts.kind_of(equation) in kinds and not row.reduces)
