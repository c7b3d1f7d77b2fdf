"""What is known of a program without any value: computed once, and kept with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch

from lrpfunc.operations.factors import DENOMINATOR, Constant, constant_factor, exponents
from lrpfunc.operations.ids import Ids, sources
from lrpfunc.operations.kinds import (
    EMBEDDING,
    MOVEMENT,
    NORMALIZATION,
    OF_COMPLEX,
    ONE_INPUT,
    OTHER,
    PRODUCT,
    TRANSFORM,
    Activity,
)
from lrpfunc.operations.table import row_of
from lrpfunc.program import DEVICE, DTYPE, Equation, Program, Variable, variables_in


@dataclass(frozen=True, eq=False)
class Facts:
    """The facts of one program. Equations are known by their first output, whose name is never given twice.

    `active`: the variables that relevance can come to: real and complex ones that depend on an input, and ids on their
    way to a table. `equations`: those that relevance can come to. `fixed`: the variables that depend on
    parameters alone. `zeros`: those that are zero whatever the input, and so constants. `inputs`: each equation's
    active inputs. `readers`: the equations that read a variable, each once, in the program's order. `results`: the
    variables that leave the program. `kinds`: each equation's kind. `exponents`: the variables that exponentials are
    made of. `factors`: of products, the factor that may count as a constant. `signs`: by stated ranges of inputs, what
    is never below zero (`ranges.nonnegative` fills it).
    """

    program: Program
    active: frozenset[str]
    equations: tuple[Equation, ...]
    fixed: frozenset[str]
    zeros: frozenset[str]
    inputs: Mapping[str, tuple[Variable, ...]]
    readers: Mapping[str, list[Equation]]
    results: frozenset[str]
    kinds: Mapping[str, str] = field(default_factory=dict)
    exponents: frozenset[str] = frozenset()
    factors: Mapping[str, Constant] = field(default_factory=dict)
    signs: dict[tuple, frozenset[str]] = field(default_factory=dict)

    def inputs_of(self, equation: Equation) -> tuple[Variable, ...]:
        """The variables that an equation reads and relevance goes to, in the order of its arguments."""
        return self.inputs[equation.outputs[0].name]

    def kind_of(self, equation: Equation) -> str:
        """The kind of an equation, one of `kinds.KINDS`."""
        return self.kinds[equation.outputs[0].name]

    def factor_of(self, equation: Equation) -> Constant | None:
        """Which factor of a product may count as a constant, and why."""
        return self.factors.get(equation.outputs[0].name)

    def is_active(self, equation: Equation) -> bool:
        """Whether relevance can come to an equation."""
        return any(variable.name in self.active for variable in equation.outputs)

    def makes_constant(self, equation: Equation) -> bool:
        """Whether an equation reads what relevance can come to and makes a constant of it: detached, or a step."""
        readers = self.readers.get(equation.outputs[0].name, [])
        gives_shape = bool(readers) and all(row_of(reader).shape_giver is not None for reader in readers)
        is_fixed = is_constant(equation) or equation.outputs[0].name in self.zeros
        return bool(self.inputs_of(equation)) and is_fixed and not gives_shape

    def is_fixed(self, argument) -> bool:
        """Whether an argument depends on nothing but parameters."""
        return all(variable.name in self.fixed for variable in variables_in(argument))


def facts(program: Program) -> Facts:
    """The facts of a program: made at the first call, kept with the program."""
    known = program.facts
    if known is None:
        whole = program.whole
        known = _made(program) if whole is program else _of_part(program, facts(whole))
        if not torch.compiler.is_compiling():  # a compiled call must leave nothing behind
            object.__setattr__(program, "facts", known)
    return known


def kind(program: Program, equation: Equation) -> str:
    """The kind of an equation, one of `kinds.KINDS`."""
    return facts(program).kind_of(equation)


def is_active(program: Program, equation: Equation) -> bool:
    """Whether relevance can come to an equation."""
    return facts(program).is_active(equation)


def active_equations(program: Program) -> tuple[Equation, ...]:
    """The equations that relevance can come to."""
    return facts(program).equations


def _made(program: Program) -> Facts:
    zeros = _zeros(program)
    active, ids = _active(program, zeros)
    inputs = {e.outputs[0].name: _inputs(e, active, ids) for e in program.equations}
    equations, results = _among(program, active), _results(program)
    known = Facts(program, active, equations, _fixed(program), zeros, inputs, program.readers(), results)
    known = replace(known, kinds={e.outputs[0].name: _kind(known, e) for e in program.equations})
    known = replace(known, exponents=exponents(known))
    factors = {}
    for equation in program.equations:
        factor = constant_factor(known, equation)
        if factor is not None:
            factors[equation.outputs[0].name] = factor
    kinds = dict(known.kinds)
    for name, factor in factors.items():
        if factor.role == DENOMINATOR and kinds[name] == PRODUCT:
            kinds[name] = NORMALIZATION  # written out
    return replace(known, kinds=kinds, factors=factors)


def _of_part(program: Program, known: Facts) -> Facts:
    """The facts of a program that was cut off another: what its values are was decided by the whole."""
    return replace(
        known,
        program=program,
        equations=_among(program, known.active),
        fixed=_fixed(program),
        readers=program.readers(),
        results=_results(program),
        signs={},
    )


def _among(program: Program, active: Collection[str]) -> tuple[Equation, ...]:
    return tuple(e for e in program.equations if any(variable.name in active for variable in e.outputs))


def _results(program: Program) -> frozenset[str]:
    return frozenset(variable.name for variable in variables_in(program.output_leaves))


def _kind(known: Facts, equation: Equation) -> str:
    row, inputs = row_of(equation), known.inputs_of(equation)
    if any(not variable.is_differentiable for variable in inputs):  # ids
        return EMBEDDING if equation.outputs[0].is_differentiable else MOVEMENT
    kind = row.kind if isinstance(row.kind, str) else row.kind(_given(equation), _activity(known, equation))
    if kind in ONE_INPUT and len(inputs) > 1:
        return OTHER
    are_complex = {variable.is_complex for variable in (*inputs, *equation.outputs)}
    if kind == MOVEMENT and len(are_complex) > 1:  # a cast
        return TRANSFORM
    return kind if are_complex == {False} or kind in OF_COMPLEX or row.takes_complex else OTHER


def _given(equation: Equation) -> tuple:
    """The arguments, those by keyword last."""
    return (*equation.arguments, *equation.keywords.values())


def _activity(known: Facts, equation: Equation) -> Activity:
    return Activity(
        tuple(isinstance(given, Variable) and given.name in known.active for given in equation.arguments),
        len(known.inputs_of(equation)),
    )


def _fixed(program: Program) -> frozenset[str]:
    fixed = {variable.name for variable in program.parameters.values()}
    if program.reference is not None and program.reference.name in fixed:
        fixed |= {DEVICE, DTYPE}
    for equation in program.equations:
        if all(variable.name in fixed for variable in equation.reads):
            fixed.update(variable.name for variable in equation.outputs)
    return frozenset(fixed)


# -- what relevance can come to ---------------------------------------------------------------------------------------


def _zeros(program: Program) -> frozenset[str]:
    zeros: set[str] = set()

    def is_zero(value) -> bool:
        return value.name in zeros if isinstance(value, Variable) else isinstance(value, (int, float)) and value == 0

    for equation in program.equations:
        vanishes = row_of(equation).vanishes
        if vanishes is not None and vanishes(equation, is_zero):
            zeros.update(variable.name for variable in equation.outputs)
    return frozenset(zeros)


def _active(program: Program, zeros: Collection[str]) -> tuple[frozenset[str], Ids]:
    leaves = [leaf.value for leaf in program.input_leaves if isinstance(leaf.value, Variable)]
    active = {variable.name for variable in leaves if variable.is_differentiable}
    ids = Ids(leaves)
    for equation in program.equations:
        ids.pass_through(equation, active)
        is_active = any(variable.name in active for variable in equation.reads) or ids.looked_up(equation)
        if is_active and not is_constant(equation):
            active.update(v.name for v in equation.outputs if v.is_differentiable and v.name not in zeros)
    return frozenset(active | ids.on_their_way(program)), ids


def is_constant(equation: Equation) -> bool:
    """Whether an equation's result counts as a constant, whatever it reads."""
    constant = row_of(equation).is_constant
    return constant if isinstance(constant, bool) else constant(equation)


def _inputs(equation: Equation, active: Collection[str], ids: Ids) -> tuple[Variable, ...]:
    """Ids take relevance on their way to a table only, as what they are; elsewhere they are just integers."""
    if equation.outputs[0].is_differentiable:
        moved = ids.looked_up(equation)
    else:
        moved = list(sources(equation)) if equation.outputs[0].name in active else []
    names = {variable.name for variable in moved}
    return tuple(v for v in equation.reads if v.name in active and (v.is_differentiable or v.name in names))
