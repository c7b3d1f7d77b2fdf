"""What an equation is to relevance: its kind, its active inputs, which factor of a product is a constant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from numbers import Real
from typing import NamedTuple

from lrpfunc.operations.table import (
    ACTIVATION,
    AFFINE,
    AVERAGE_POOL,
    BATCH_NORM,
    BILINEAR,
    CONVOLUTION,
    DENSE,
    ELEMENTWISE,
    EMBEDDING,
    MAX_POOL,
    MOVEMENT,
    NORMALIZATION,
    OPERATORS,
    OTHER,
    PRODUCT,
    SOFTMAX,
    SUM,
    UNKNOWN,
    Operator,
)
from lrpfunc.program import Equation, Program, Variable


def kind(program: Program, equation: Equation) -> str:
    """The kind of an active equation, one of `operators.KINDS`."""
    kind = _kind(program, equation)
    if kind == PRODUCT:
        constant = constant_factor(program, equation)
        return NORMALIZATION if constant is not None and constant.role == DENOMINATOR else PRODUCT
    return kind


def _kind(program: Program, equation: Equation) -> str:
    operator, layout, arguments = _operator(equation), _operator(equation).layout, equation.arguments
    if operator.joint is not None and len(active_inputs(program, equation)) > 1:
        bias = layout.bias if layout is not None else None
        has_active_bias = bias is not None and any(_is_active(program, given) for given in arguments[bias : bias + 1])
        return OTHER if operator.joint == BILINEAR and has_active_bias else operator.joint
    if operator.kind == EMBEDDING and _is_active(program, arguments[0]):
        return MOVEMENT  # rows of a table that was made of the input
    if operator.kind in (NORMALIZATION, BATCH_NORM, SOFTMAX) and not _is_active(program, arguments[0]):
        return OTHER  # of a constant, with a weight that depends on the input
    if equation.operator == "pow" and not (_is_active(program, arguments[0]) and isinstance(arguments[1], Real)):
        return OTHER
    if equation.operator == "div" and not _is_active(program, arguments[0]):
        return ELEMENTWISE  # a constant divided by x is no multiple of x
    if layout is not None and layout.weight >= len(arguments):
        return OTHER  # a product of another number of operands
    if layout is not None and layout.input is not None and not _is_active(program, arguments[layout.input]):
        return OTHER  # a layer whose weight depends on the input while its input does not is no layer to a rule
    return operator.kind


def active_inputs(program: Program, equation: Equation) -> list[Variable]:
    """The variables that an equation reads and relevance goes to, in the order of its arguments."""
    return [variable for variable in equation.reads if is_active_input(equation, variable, program.active)]


def is_active_input(equation: Equation, variable: Variable, active: Collection[str]) -> bool:
    """Whether relevance goes from an equation to a variable that it reads. Token ids take it on their way to an
    embedding only, as what they are; elsewhere they are just integers."""
    if variable.is_floating or variable.name not in active:
        return variable.name in active
    if equation.operator == EMBEDDING:  # of a table that is a constant
        return equation.arguments[0].name not in active
    return not equation.outputs[0].is_floating


def is_active(program: Program, equation: Equation) -> bool:
    """Whether relevance can come to an equation."""
    return any(variable.name in program.active for variable in equation.outputs)


def active_equations(program: Program) -> Iterator[Equation]:
    """The equations that relevance can come to."""
    return (equation for equation in program.equations if is_active(program, equation))


def _operator(equation: Equation) -> Operator:
    return OPERATORS.get(equation.operator, UNKNOWN)


def _is_active(program: Program, argument) -> bool:
    return isinstance(argument, Variable) and argument.name in program.active


# -- the constant factor of a product ---------------------------------------------------------------------------------

# What makes a factor a constant. A denominator: of a division, or the reciprocal root, norm, ... that a normalization
# written out multiplies by. A slope: f(x) / x of an activation written out, such as the sigmoid(x) in x * sigmoid(x).
# A gate: what comes from a sigmoid, tanh, erf or softmax. An activated factor: what comes from any other activation,
# where the other factor does not, as in SwiGLU.
DENOMINATOR, SLOPE, GATE, ACTIVATED = "denominator", "slope", "gate", "activated"


class Constant(NamedTuple):
    """The factor of a product that may count as a constant, 0 or 1, and why."""

    factor: int
    role: str


def constant_factor(program: Program, equation: Equation) -> Constant | None:
    """Which of two active factors counts as a constant to rules that want one; None if neither does."""
    factors = active_inputs(program, equation)
    if len(factors) != 2:
        return None
    if _operator(equation).joint == BILINEAR:
        return _one_of(GATE, [_comes_from(program, factor, _is_softmax, THROUGH_LAYERS) for factor in factors])
    if equation.operator == "div":
        return Constant(1, DENOMINATOR)
    return (
        _one_of(DENOMINATOR, [_normalizes(program, *pair) for pair in (factors, factors[::-1])])
        or _slope(program, factors)
        or _gate(program, factors)
        or _one_of(ACTIVATED, [_comes_from(program, factor, _is_activation, THROUGH) for factor in factors])
    )


def _one_of(role: str, has_role: list[bool]) -> Constant | None:
    return Constant(has_role.index(True), role) if has_role.count(True) == 1 else None


def _gate(program: Program, factors: list[Variable]) -> Constant | None:
    """Between two gates a tanh is the signal."""
    gates = [_comes_from(program, factor, _is_gate, THROUGH) for factor in factors]
    if all(gates):
        gates = [not _comes_from(program, factor, _is_tanh, THROUGH) for factor in factors]
    return _one_of(GATE, gates)


# What a factor's origin is seen through: 1 - sigmoid(x) is a gate too, and so are the largest of some, or some divided
# by their sum. Attention's probabilities may pass layers that mix its heads.
THROUGH = (MOVEMENT, AFFINE, MAX_POOL)
THROUGH_LAYERS = (*THROUGH, DENSE, CONVOLUTION)
CLAMPS = ("clamp", "clamp_min", "clamp_max", "maximum", "nan_to_num")
STATISTICS = ("var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", *CLAMPS)

Test = Callable[[Program, Equation], bool]


def _comes_from(program: Program, variable: Variable, is_origin: Test, through: Collection[str]) -> bool:
    """Whether a value, all of it, was made by such equations and then only moved, scaled, shifted or clamped."""
    pending, seen = [variable], set()
    while pending:
        variable = pending.pop()
        equation = program.producers.get(variable.name)
        if equation is None:
            return False
        if variable.name in seen or is_origin(program, equation):
            continue
        seen.add(variable.name)
        if _kind(program, equation) not in through and equation.operator not in ("div", *CLAMPS):
            return False
        sources = active_inputs(program, equation)
        pending += sources[:1] if equation.operator == "div" else sources  # the numerator
    return True


def _normalizes(program: Program, factor: Variable, other: Variable) -> bool:
    """Whether a factor comes from the reciprocal, root or norm of something that the other factor was made of."""
    if not _comes_from(program, factor, _is_normalizer, THROUGH):
        return False
    made_of = {v.name for v in _sources(program, other, (MOVEMENT, AFFINE, SUM))}
    kinds = (MOVEMENT, AFFINE, SUM, ELEMENTWISE, AVERAGE_POOL, PRODUCT)
    return any(v.name in made_of for v in _sources(program, factor, kinds))


def _sources(program: Program, variable: Variable, through: Collection[str]) -> Iterator[Variable]:
    """A value and what it was made of by equations of such kinds, by statistics and by clamps."""
    pending, seen = [variable], set()
    while pending:
        variable = pending.pop()
        if variable.name in seen:
            continue
        seen.add(variable.name)
        yield variable
        equation = program.producers.get(variable.name)
        passes = equation is not None and (equation.operator in STATISTICS or _kind(program, equation) in through)
        if equation is not None and passes:
            pending += active_inputs(program, equation)


def _is_normalizer(program: Program, equation: Equation) -> bool:
    if equation.operator == "pow":
        exponent = equation.arguments[1]
        return isinstance(exponent, Real) and float(exponent) < 0
    return _operator(equation).is_normalizer


def _is_gate(program: Program, equation: Equation) -> bool:
    return _operator(equation).is_gate


def _is_softmax(program: Program, equation: Equation) -> bool:
    return equation.operator == "softmax"


def _is_tanh(program: Program, equation: Equation) -> bool:
    return equation.operator == "tanh"


def _is_activation(program: Program, equation: Equation) -> bool:
    if _kind(program, equation) == ACTIVATION:
        return equation.operator not in CLAMPS
    return _kind(program, equation) == PRODUCT and _slope(program, active_inputs(program, equation)) is not None


def _slope(program: Program, factors: list[Variable]) -> Constant | None:
    """Of a product of x, but for a scale, and something that was made of the same x element by element."""
    for position, factor in enumerate(factors):
        other = factors[1 - position]
        if any(_is_function_of(program, other, root) for root in _unscaled(program, factor)):
            return Constant(1 - position, SLOPE)
    return None


def _unscaled(program: Program, variable: Variable) -> Iterator[Variable]:
    """A value and what it was, times constants, before."""
    yield variable
    equation = program.producers.get(variable.name)
    while equation is not None and equation.operator in ("mul", "div", "neg", "to", "_to_copy"):
        sources = active_inputs(program, equation)
        if len(sources) != 1 or sources[0].shape != variable.shape:
            return
        yield sources[0]
        equation = program.producers.get(sources[0].name)


def _is_function_of(program: Program, variable: Variable, root: Variable) -> bool:
    """Whether a value was made of `root` alone, element by element."""
    pending, seen = [variable], {root.name}
    while pending:
        variable = pending.pop()
        if variable.name in seen:
            continue
        seen.add(variable.name)
        equation = program.producers.get(variable.name)
        if equation is None or variable.shape != root.shape or not _is_elementwise(program, equation):
            return False
        pending += active_inputs(program, equation)
    return True


def _is_elementwise(program: Program, equation: Equation) -> bool:
    if equation.operator in ("sum", "mean", "cumsum", "index_add", "scatter_add", "col2im"):
        return False
    elementwise = (ACTIVATION, ELEMENTWISE, AFFINE, SUM, PRODUCT)
    return _kind(program, equation) in elementwise or equation.operator in ("erf", "exp", "to", "_to_copy")
