"""What can be decided about an explanation before any input is known: rules, signs, and what parameters alone make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch

from lrpfunc.attribution import keeping
from lrpfunc.compat import outside_inference
from lrpfunc.composites import Assignment, Entries, assign_everywhere, reached, refuse_fallbacks
from lrpfunc.errors import RuleError, TraceError
from lrpfunc.operations import (
    CONVOLUTION,
    Context,
    InputRange,
    Operation,
    bind,
    facts,
    input_ranges,
    kernels,
    nonnegative,
    row_of,
)
from lrpfunc.program import DEVICE, DTYPE, NAMESPACE, Equation, Program, Variable, fast_paths
from lrpfunc.rules import COEFFICIENT, RECTIFIED_COEFFICIENT, Rule, declared
from lrpfunc.rules.rule import RECTIFIED


class Step(NamedTuple):
    """An equation with its rule (None: its value does not depend on the input) and the operation as far as it is known.

    `dead`: the variables that no later equation reads.
    """

    equation: Equation
    rule: Rule | None
    operation: Operation | None
    inputs: tuple[Variable, ...]
    context: Context
    dead: tuple[str, ...]


class Plan(NamedTuple):
    """A program's steps under rules. `values`: of parameters and of what depends on them alone; `ranges`: of inputs, by
    label, as far as they were stated; `kept`: variables whose values are needed on the way back; `lays_out`: whether
    images may take another layout in memory than they have; `assigned`: the rules by equation, also where no relevance
    comes to from an output; `hoists`: whether what rules make of parameters was made; `is_strict`: whether fallbacks
    are refused; `places`: variables at which relevance may enter or be changed, so that either form may arrive there.
    It is pickled as what it was made of."""

    program: Program
    values: Mapping[str, Any]
    steps: tuple[Step, ...]
    ranges: Mapping[str, tuple[float, float]]
    kept: frozenset[str]
    lays_out: bool
    assigned: Mapping[str, Rule]
    hoists: bool
    is_strict: bool
    places: frozenset[str] = frozenset()

    def __reduce__(self):
        given = {DEVICE, DTYPE, *(variable.name for variable in self.program.parameters.values())}
        values = {name: value for name, value in self.values.items() if name in given}
        return planned, (self.program, values, self.ranges, self.assigned, self.hoists, self.is_strict)


class Sketch(NamedTuple):
    """What a plan has without parameters: its steps, with operations where they read none; `kept`, `lays_out`."""

    steps: tuple[Step, ...]
    kept: frozenset[str]
    lays_out: bool


# What becomes of a step's operation that has a weight: one with what the rule makes of that.
Hoisting = Callable[[Rule, Operation], Operation]


@outside_inference(NAMESPACE)
def make_plan(
    fmodel: Program, params, rules: Entries, strict: bool, input_range: InputRange, hoists: bool = False
) -> Plan:
    """All that can be decided without an input. `hoists`: also what rules make of parameters, which takes memory;
    without it what pays is kept with the program, if the same parameters come again and again.

    Errors: `TraceError`, `ParameterError`, `RuleError`, `InputError`.
    """
    if not isinstance(fmodel, Program):
        kind = type(fmodel).__name__
        raise TraceError(f"a program is needed, as functionalize and trace return it first, but got {kind}.")
    ranges = input_ranges(fmodel, input_range)
    assigned = assign_everywhere(fmodel, rules)
    values = fmodel.bind_params(params)
    if hoists:
        return planned(fmodel, values, ranges, assigned, hoists, strict)
    kept = keeping.of(fmodel, assigned, ranges, strict)
    if kept.sketch is None:
        kept.sketch = _sketched(fmodel, assigned, ranges, strict)
    return _filled(fmodel, kept.sketch, values, ranges, kept.assigned, kept.hoisted, strict)


def planned(
    fmodel: Program,
    values: dict[str, Any],
    ranges: Mapping[str, tuple[float, float]],
    assigned: Mapping[str, Rule],
    hoists: bool,
    is_strict: bool,
) -> Plan:
    """The plan of a program with the values of its parameters, which it adds to, ranges and rules.

    Errors: `RuleError`.
    """
    sketch = _sketched(fmodel, assigned, ranges, is_strict)
    plan = _filled(fmodel, sketch, values, ranges, assigned, _all_hoisted if hoists else None, is_strict)
    return plan._replace(hoists=hoists)


def _all_hoisted(rule: Rule, operation: Operation) -> Operation:
    return operation.hoisting(rule.hoists)


def _sketched(fmodel: Program, assigned: Mapping[str, Rule], ranges: Mapping, is_strict: bool) -> Sketch:
    known = facts(fmodel)
    rules = _rules(fmodel, assigned, known.results, is_strict)
    signs = nonnegative(fmodel, ranges) if fast_paths.taken else frozenset()
    rectified, coefficients, recalled = _forms(fmodel, rules, frozenset())
    steps = []
    for equation, dead in zip(fmodel.equations, fmodel.last_reads, strict=True):
        inputs = known.inputs_of(equation)
        context = Context(
            is_nonnegative=all(variable.name in signs for variable in inputs),
            is_rectified=equation.outputs[0].name in rectified,
            gets_coefficients=equation.outputs[0].name in coefficients,
            is_recalled=any(variable.name in recalled for variable in inputs),
        )
        step = Step(equation, rules.get(equation.name), None, inputs, context, dead)
        if step.rule is not None and all(variable in inputs for variable in equation.reads):
            step = step._replace(operation=bound_operation(fmodel, step, {}))
        steps.append(step)
    return Sketch(tuple(steps), _meeting_points(fmodel, coefficients), _lays_out(fmodel, rules))


def _filled(
    fmodel: Program,
    sketch: Sketch,
    values: dict[str, Any],
    ranges: Mapping[str, tuple[float, float]],
    assigned: Mapping[str, Rule],
    hoisting: Hoisting | None,
    is_strict: bool,
) -> Plan:
    """A sketch with the values of parameters: what they alone make, and the operations that take nothing else."""
    steps = []
    for step in sketch.steps:
        equation = step.equation
        is_early = step.rule is None and not row_of(equation).is_deferred
        if is_early and all(variable.name in values for variable in equation.reads):
            fmodel.store(equation, equation.evaluate(values), values)
            continue
        is_known = step.operation is not None or step.rule is None
        if not is_known and all(v.name in values or v in step.inputs for v in equation.reads):
            step = step._replace(operation=bound_operation(fmodel, step, values, hoisting))
        steps.append(step)
    return Plan(fmodel, values, tuple(steps), ranges, sketch.kept, sketch.lays_out, assigned, False, is_strict)


def _rules(program: Program, assigned: Mapping[str, Rule], entered: Collection[str], is_strict: bool) -> Assignment:
    """The rules of what relevance comes to that enters at some variables."""
    rules = reached(program, assigned, entered)
    if is_strict:
        refuse_fallbacks(program, rules)
    return rules


def opened(plan: Plan, places: frozenset[str]) -> Plan:
    """The same plan for relevance that may also enter, or be changed, at some variables. Errors: `RuleError`."""
    if places <= plan.places:
        return plan
    places |= plan.places
    program = plan.program
    rules = _rules(program, plan.assigned, facts(program).results | places, plan.is_strict)
    rectified, coefficients, recalled = _forms(program, rules, places)
    steps = []
    for step in plan.steps:
        name = step.equation.outputs[0].name
        forms = {
            "is_rectified": name in rectified,
            "gets_coefficients": name in coefficients,
            "is_recalled": any(variable.name in recalled for variable in step.inputs),
        }
        operation = None if step.operation is None else step.operation.copy(**forms)
        rule = rules.get(step.equation.name)
        steps.append(step._replace(context=step.context._replace(**forms), operation=operation, rule=rule))
    kept = _meeting_points(program, coefficients) | places
    lays_out = plan.lays_out and _lays_out(program, rules)
    return plan._replace(steps=tuple(steps), kept=kept, places=places, lays_out=lays_out)


def laid_out(plan: Plan) -> Plan:
    """The same plan with weights of convolutions in the layout of its images, for several batches of pullbacks: under
    `vmap`, where no kernel of our own reads them, each batch would lay them out anew."""
    if not plan.lays_out:
        return plan
    return plan._replace(steps=tuple(step._replace(operation=_in_layout(step.operation)) for step in plan.steps))


def _in_layout(operation: Operation | None) -> Operation | None:
    if operation is None or operation.kind != CONVOLUTION or not kernels.suit(operation.weight):
        return operation
    arguments = list(operation.arguments)
    arguments[operation.weight_position] = operation.weight.contiguous(memory_format=torch.channels_last)
    return operation.copy(arguments=arguments)


def bound_operation(
    program: Program, step: Step, values: Mapping[str, Any], hoisting: Hoisting | None = None
) -> Operation:
    """The operation of a step, and with `hoisting` what its rule makes of the parameters."""
    assert step.rule is not None
    operation = bind(program, step.equation, values, step.context)
    if hoisting is None or not operation.is_weighted:
        return operation
    try:
        return hoisting(step.rule, operation)
    except RuleError as error:
        raise named(error, step.rule, step.equation) from error


def named(error: RuleError, rule: Rule, equation: Equation) -> RuleError:
    """A rule's error with the rule and the layer, once both are known."""
    return RuleError(f"{rule.label} at layer '{equation.name}': {error}")


def _forms(
    program: Program, assigned: Mapping[str, Rule], places: frozenset[str]
) -> tuple[set[str], set[str], set[str]]:
    """The variables at which coefficients surely arrive, as rectified flows and as others; and of the former those that
    what is kept in front of the ReLU tells."""
    if not fast_paths.taken:
        return set(), set(), set()
    arriving: set[str] = set()
    rectified: set[str] = set()
    recalled: set[str] = set()
    readers, entered = facts(program).readers, facts(program).results | places
    for equation in reversed(program.equations):
        for variable in equation.outputs:
            active = [reader for reader in readers.get(variable.name, ()) if reader.name in assigned]
            surely = all(_gives(reader, assigned[reader.name], arriving) for reader in active)
            if variable.name in entered or not surely:
                continue
            arriving.add(variable.name)
            is_relu = len(active) == 1 and row_of(active[0]).rectifies
            if is_relu and assigned[active[0].name].gives == RECTIFIED:
                rectified.add(variable.name)
                if equation.name in assigned and assigned[equation.name].recalls:
                    recalled.add(variable.name)
    return rectified, arriving - rectified, recalled


def _gives(equation: Equation, rule: Rule, arriving: set[str]) -> bool:
    """Whether an equation surely sends coefficients back, knowing where they arrive."""
    is_sure = all(variable.name in arriving for variable in equation.outputs if variable.is_differentiable)
    return declared(rule, row_of(equation), not is_sure) in (COEFFICIENT, RECTIFIED_COEFFICIENT)


def _meeting_points(program: Program, coefficients: set[str]) -> frozenset[str]:
    """Variables at which flows of both forms can meet, so that their values are needed on the way back."""
    reads: dict[str, int] = {}
    for equation in program.equations:
        for variable in equation.reads:
            reads[variable.name] = reads.get(variable.name, 0) + 1
    several = {v.name for equation in program.equations if len(equation.outputs) > 1 for v in equation.outputs}
    meeting = {name for name, count in reads.items() if count > 1 and name not in coefficients}
    return frozenset(meeting | facts(program).results | several)


def _lays_out(program: Program, assigned: Mapping[str, Rule]) -> bool:
    """Neither the model nor a rule may see the layout; `view` would fail in one."""
    if not fast_paths.taken:
        return False
    any_layout = all(rule.any_layout for rule in assigned.values())
    return any_layout and not any(row_of(equation).reads_strides for equation in program.equations)
