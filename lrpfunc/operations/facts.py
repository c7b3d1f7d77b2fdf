"""What is known of a program without any value: computed once, and kept with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from lrpfunc.operations.factors import DENOMINATOR, Constant, constant_factor
from lrpfunc.operations.kinds import EMBEDDING, NORMALIZATION, PRODUCT, Activity
from lrpfunc.operations.table import row_of
from lrpfunc.program import DEVICE, DTYPE, Equation, Program, Variable, variables_in


@dataclass(frozen=True, eq=False)
class Facts:
    """The facts of one program. Equations are known by their first output, whose name is never given twice.

    `active`: the variables that relevance can come to: floating-point ones that depend on an input, and token ids from
    the input to an embedding. `equations`: those that relevance can come to. `fixed`: the variables that depend on
    parameters alone. `inputs`: each equation's active inputs. `readers`: the equations that read a variable, each once,
    in the program's order. `results`: the variables that leave the program. `kinds`: each equation's kind. `factors`:
    of products, the factor that may count as a constant. `signs`: by stated ranges of inputs, what is never below zero
    (`ranges.nonnegative` fills it).
    """

    program: Program
    active: frozenset[str]
    equations: tuple[Equation, ...]
    fixed: frozenset[str]
    inputs: Mapping[str, tuple[Variable, ...]]
    readers: Mapping[str, list[Equation]]
    results: frozenset[str]
    kinds: Mapping[str, str] = field(default_factory=dict)
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

    def is_fixed(self, argument) -> bool:
        """Whether an argument depends on nothing but parameters."""
        return all(variable.name in self.fixed for variable in variables_in(argument))


def facts(program: Program) -> Facts:
    """The facts of a program: made at the first call, kept with the program."""
    known = program.facts
    if known is None:
        known = _made(program)
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


def is_active_input(equation: Equation, variable: Variable, active: Collection[str]) -> bool:
    """Whether relevance goes from an equation to a variable that it reads. Token ids take it on their way to an
    embedding only, as what they are; elsewhere they are just integers."""
    if variable.is_floating or variable.name not in active:
        return variable.name in active
    if equation.operator == EMBEDDING:  # of a table that is fixed
        return equation.arguments[0].name not in active
    return not equation.outputs[0].is_floating


def _made(program: Program) -> Facts:
    active = _active(program)
    inputs = {e.outputs[0].name: tuple(v for v in e.reads if is_active_input(e, v, active)) for e in program.equations}
    results = frozenset(variable.name for variable in variables_in(program.output_leaves))
    equations = tuple(e for e in program.equations if any(variable.name in active for variable in e.outputs))
    known = Facts(program, active, equations, _fixed(program), inputs, program.readers(), results)
    known = replace(known, kinds={e.outputs[0].name: _kind(known, e) for e in program.equations})
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


def _kind(known: Facts, equation: Equation) -> str:
    kind = row_of(equation).kind
    return kind if isinstance(kind, str) else kind(equation.arguments, _activity(known, equation))


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


def _active(program: Program) -> frozenset[str]:
    leaves = [leaf.value for leaf in program.input_leaves if isinstance(leaf.value, Variable)]
    active = {variable.name for variable in leaves if variable.is_floating}
    tokens = _tokens(program)
    for equation in program.equations:
        is_active = any(variable.name in active for variable in equation.reads)
        embeds = equation.operator == EMBEDDING and equation.arguments[1].name in tokens
        if (is_active or embeds) and not row_of(equation).is_constant:
            active.update(variable.name for variable in equation.outputs if variable.is_floating)
    return frozenset(active | tokens)


def _tokens(program: Program) -> set[str]:
    """Integer inputs whose rows an embedding looks up, and the variables on the way: each has its row's relevance."""
    lookups = [equation.arguments[:2] for equation in program.equations if equation.operator == EMBEDDING]
    if not lookups:
        return set()
    leaves = {leaf.value.name for leaf in program.input_leaves if isinstance(leaf.value, Variable)}
    given = set(leaves)  # what depends on an input
    for equation in program.equations:
        if any(variable.name in given for variable in equation.reads):
            given.update(variable.name for variable in equation.outputs)
    tokens: set[str] = set()
    for table, ids in lookups:
        path = list(_way_back(program, ids, given)) if table.name not in given else []
        if path and path[-1].name in leaves:
            tokens.update(step.name for step in path)
    return tokens


def _way_back(program: Program, variable: Variable, given: Collection[str]) -> Iterator[Variable]:
    """A variable, what it was moved from, and so on, as long as that is the input's own."""
    yield variable
    while (maker := program.producers.get(variable.name)) is not None and row_of(maker).moves_tokens:
        reads = maker.reads[:1] if row_of(maker).moves_tokens == "first" else maker.reads
        sources = [read for read in reads if read.is_tensor and read.dtype != torch.bool]
        sources = [read for read in sources if read.name in given or read.name not in program.producers]
        if len(sources) != 1 or sources[0].is_floating:
            return
        variable = sources[0]
        yield variable
