"""The loop: forwards under the rules, and backwards with what they left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import (
    check_outputs,
    check_ranges,
    checked_flows,
    checked_pair,
    checked_range,
    refuse_constant_outputs,
    refuse_convolved_shards,
    refuse_other_inputs,
)
from lrpfunc.attribution.memory import Watch, contiguous
from lrpfunc.attribution.plans import Plan, Step, bound_operation, named
from lrpfunc.attribution.segments import Record, Segment, split
from lrpfunc.compat import outside_inference
from lrpfunc.errors import InputError, RuleError
from lrpfunc.operations import facts
from lrpfunc.program import NAMESPACE, Program, Variable, is_plain
from lrpfunc.rules import Flow, check_declared

# -- forwards ---------------------------------------------------------------------------------------------------------


# What becomes of what passes somewhere, and the value there.
Edit = Callable[[Flow, Tensor], Flow]


class Use:
    """Whether what is for one backward pass was used up. All copies share it: their memory is written over as well."""

    def __init__(self) -> None:
        self.is_up = False


class Passed:
    """What a forward pass leaves behind for backward passes.

    `at`: variables by the names that people have for them, where relevance is read, enters or is edited; `values`: of
    these variables. `use`: of what is for one backward pass; else None. `is_watched`: whether inputs and parameters may
    be written to before that.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: tuple,
        pack: Callable[[tuple], Any],
        segments: list[Segment],
        output: Any,
        at: Mapping[str, str],
        use: Use | None,
        is_watched: bool = True,
    ):
        self.plan, self.inputs, self.pack, self.segments = plan, inputs, pack, segments
        self.output, self.at, self.use = output, at, use
        self.values = {variable: segments[-1].values[variable] for variable in at.values()}
        self.watch = Watch(_given(plan, inputs) if is_watched else {})

    def refuse_spent(self) -> None:
        """Errors: `InputError` if this was for one backward pass and had it, or what it needs was written over."""
        if self.use is not None and self.use.is_up:
            raise InputError(
                "this trail was made for one pull, which has used it up: record it again, or without once."
            )
        if written := self.watch.written():
            raise InputError(
                f"{', '.join(map(repr, written))} was written to after this trail was recorded, which needs it as it "
                "was: record it again."
            )

    def content(self) -> tuple:
        """A pytree of all tensors, and `with_content` its inverse."""
        segments: list[tuple[dict[str, Any], list | None]] = []
        for segment in self.segments:
            left = [(record.operation, record.residuals) for record in segment.records or ()]
            segments.append((segment.values, None if segment.records is None else left))
        return self.plan.values, segments, self.inputs, self.output

    def with_content(self, content: tuple) -> Passed:
        """The same with other tensors."""
        values, parts, inputs, output = content
        steps = tuple(step._replace(operation=None) for step in self.plan.steps)  # bound anew where they are needed
        plan = self.plan._replace(values=values, steps=steps)
        segments = []
        for old, (kept, records) in zip(self.segments, parts, strict=True):
            segment = Segment([step._replace(operation=None) for step in old.steps], kept)
            if old.records is not None:
                pairs = zip(old.records, records, strict=True)
                segment.records = [Record(record.step, *left) for record, left in pairs]
            segments.append(segment)
        return Passed(plan, inputs, self.pack, segments, output, self.at, self.use)


def _given(plan: Plan, inputs: tuple) -> dict[str, Any]:
    """The tensors that are somebody else's, inputs and parameters, by what they are called."""
    labels = (leaf.label for leaf in plan.program.input_leaves)
    given = dict(zip(labels, optree.tree_leaves(inputs, namespace=NAMESPACE), strict=True))
    return given | {name: plan.values[v.name] for name, v in plan.program.parameters.items()}


@outside_inference(NAMESPACE)
def forward(
    plan: Plan, x, at: Mapping[str, str], checkpoint: int | None, is_final: bool, is_watched: bool = True
) -> Passed:
    """Pass through a plan's steps under their rules, or, with `checkpoint`, through all but the last segment without.

    Errors: `InputError`, `RuleError`.
    """
    program = plan.program
    inputs, pack = unpack(program, x)
    values = _lay_out(plan, program.bind_inputs(inputs, dict(plan.values)))
    refuse_convolved_shards(program, values)
    refuse_other_inputs(program)
    if not plan.places:
        refuse_constant_outputs(program)
    check_ranges(program, plan.ranges, inputs)
    segments = []
    parts = split(plan, checkpoint)
    for part in parts[:-1]:
        segments.append(Segment(part, dict(values)))
        for step in part:
            program.store(step.equation, step.equation.evaluate(values), values)
            _forget(values, step, at.values())
    segments.append(Segment(parts[-1], values))
    _pass(plan, segments[-1], at, is_final)
    use = Use() if is_final else None
    return Passed(plan, inputs, pack, segments, contiguous(program.result(values)), at, use, is_watched)


def _pass(plan: Plan, segment: Segment, at: Mapping[str, str], is_final: bool) -> None:
    program, values, records = plan.program, segment.values, []
    needed = plan.kept.union(at.values())
    for step in segment.steps:
        equation, rule = step.equation, step.rule
        if rule is None:
            program.store(equation, equation.evaluate(values), values)
        else:
            tensors = [values[variable.name] for variable in step.inputs]
            operation = (step.operation or bound_operation(program, step, values)).at(tensors, is_final)
            try:
                output, residuals = checked_pair(rule.forward(operation, *tensors))
                outputs = output if isinstance(output, (tuple, list)) else (output,)
                check_outputs(equation, outputs)
            except RuleError as error:
                raise named(error, rule, equation) from error
            program.store(equation, outputs, values)
            records.append(Record(step, operation, residuals))
        _forget(values, step, needed)
    segment.records = records


def passed_again(passed: Passed, steps: Sequence[Step], at: Mapping[str, str]) -> Passed:
    """A pass through some steps alone, under their rules, with the values that a pass before it kept."""
    segment = Segment(steps, {**passed.plan.values, **passed.segments[-1].values})
    _pass(passed.plan, segment, at, is_final=False)
    return Passed(passed.plan, passed.inputs, passed.pack, [segment], passed.output, at, None, is_watched=False)


def _forget(values: dict[str, Any], step: Step, needed) -> None:
    for name in step.dead:
        if name not in needed:
            values.pop(name, None)


def unpack(program: Program, x) -> tuple[tuple, Callable[[tuple], Any]]:
    """The tuple of inputs that `x` means, and how to give a tuple of relevances the structure of `x`."""
    if isinstance(x, Mapping) and program.takes_keywords:
        return program.collect((), x), lambda relevance: dict(zip(program.input_names, relevance, strict=True))
    if type(x) is tuple:
        return program.collect(x, {}), lambda relevance: relevance
    _refuse_other_container(program, x)
    return program.collect((x,), {}), lambda relevance: relevance[0]


def _refuse_other_container(program: Program, x) -> None:
    """Errors: `InputError` for a dict of inputs traced by position, and for one of several inputs with names."""
    names = program.input_names
    is_one_leaf = all(len(leaf.path) == 1 for leaf in program.input_leaves if leaf.path[0] == 0)
    if isinstance(x, Mapping) and (len(names) > 1 or is_one_leaf):
        raise InputError(
            f"the inputs are a dict of {', '.join(map(repr, x)) or 'nothing'}, but were traced by position as "
            f"({', '.join(names)}): give {'a tuple' if len(names) > 1 else 'the tensor'}, or trace with inputs by name."
        )
    if program.takes_keywords and len(names) > 1:
        raise InputError(
            f"the inputs were traced by name as {', '.join(names)}: give a dict of them, but got {type(x).__name__}."
        )


def _lay_out(plan: Plan, values: dict[str, Any]) -> dict[str, Any]:
    """Give images on a CPU the layout with channels last, which all that follows takes over: oneDNN, which computes
    convolutions, then need not reorder what it reads and writes, and is a tenth to a third faster."""
    leaves = plan.program.input_leaves if plan.lays_out else ()
    for leaf in leaves:
        if isinstance(leaf.value, Variable) and _prefers_channels_last(values[leaf.value.name]):
            x = values[leaf.value.name]
            values[leaf.value.name] = x.contiguous(memory_format=torch.channels_last)
    return values


def _prefers_channels_last(x: Tensor) -> bool:
    is_image = x.dim() == 4 and x.dtype in (torch.float32, torch.bfloat16)
    return is_image and x.device.type == "cpu" and is_plain(x)


# -- backwards --------------------------------------------------------------------------------------------------------


@outside_inference(NAMESPACE)
def backward(
    passed: Passed, entering: Mapping[str, Flow], edits: Mapping[str, Edit]
) -> tuple[dict[str, Flow], dict[str, Flow | None]]:
    """What arrives at the inputs' variables and at those of `at`, where `entering` enters at some and `edits` work.

    Errors: `RuleError`.
    """
    if passed.use is not None:
        passed.use.is_up = True
    flows, inner = dict(entering), dict.fromkeys(passed.at.values())
    for segment in reversed(passed.segments):
        walked = segment
        if segment.records is None:
            walked = Segment(segment.steps, dict(segment.values))
            _pass(passed.plan, walked, passed.at, is_final=True)
        _retreat(walked, flows, inner, edits, uses_up=passed.use is not None or walked is not segment)
    return flows, inner


def _retreat(
    segment: Segment,
    flows: dict[str, Flow],
    inner: dict[str, Flow | None],
    edits: Mapping[str, Edit],
    uses_up: bool,
) -> None:
    """Move what has arrived at a segment's end to its beginning."""
    assert segment.records is not None
    values, remaining = segment.values, segment.records if uses_up else list(segment.records)
    while remaining:
        step, operation, residuals = remaining.pop()
        assert step.rule is not None
        if inner:
            _visit(step, flows, inner, edits, values)
        flow = _collect(step, flows, values)
        if uses_up:
            _forget_results(step, values, inner)
        if flow is None:
            continue
        try:
            moved = step.rule.backward(operation, residuals, flow)
        except RuleError as error:
            raise named(error, step.rule, step.equation) from error
        del residuals
        who = f"{step.rule.label} at layer '{step.equation.name}'"
        sent = checked_flows(who, moved, operation.shapes)
        check_declared(step.rule, who, operation, flow, sent)
        for variable, flow in zip(step.inputs, sent, strict=True):
            if flow is not None:
                add(flows, variable.name, flow, values)


def _forget_results(step: Step, values: dict[str, Any], kept) -> None:
    for variable in step.equation.outputs:
        if variable.name not in kept:
            values.pop(variable.name, None)


def _visit(
    step: Step,
    flows: dict[str, Flow],
    inner: dict[str, Flow | None],
    edits: Mapping[str, Edit],
    values: Mapping[str, Any],
) -> None:
    """Edit and note what is at the outputs of an equation, now that all their readers have sent theirs."""
    for variable in step.equation.outputs:
        if variable.name in inner:
            flow = flows.get(variable.name)
            if flow is not None and variable.name in edits:
                flow = flows[variable.name] = edits[variable.name](flow, values[variable.name])
            inner[variable.name] = flow


def add(flows: dict[str, Flow], name: str, flow: Flow, values: Mapping[str, Any]) -> None:
    """Add to what has arrived at a variable. Coefficients stay coefficients; mixed forms meet as relevance."""
    before = flows.get(name)
    if before is None:
        flows[name] = flow
    elif before.is_relevance == flow.is_relevance:
        kept = before if before.by_value else flow
        flows[name] = kept.moved(before.tensor + flow.tensor)
    else:
        value = values[name]
        flows[name] = Flow(relevance=before.relevance(value) + flow.relevance(value))


def _collect(step: Step, flows: dict[str, Flow], values: Mapping[str, Any]) -> Flow | None:
    """What has arrived at an equation's outputs as one flow, None if nothing has."""
    if len(step.equation.outputs) == 1:
        return flows.pop(step.equation.outputs[0].name, None)
    outputs = [v for v in step.equation.outputs if v.is_differentiable] or list(step.equation.outputs)
    arrived = [flows.pop(variable.name, None) for variable in outputs]
    if all(flow is None for flow in arrived):
        return None
    tensors = [values[variable.name] for variable in outputs]
    if all(flow is None or not flow.is_relevance for flow in arrived):
        parts = (torch.zeros_like(v) if f is None else f.tensor for f, v in zip(arrived, tensors, strict=True))
        return Flow(coefficient=tuple(parts))
    parts = (no_relevance(v) if f is None else f.relevance(v) for f, v in zip(arrived, tensors, strict=True))
    return Flow(relevance=tuple(parts))


def no_relevance(value: Tensor) -> Tensor:
    """Zeros like a value, real ones of a complex value."""
    return torch.zeros_like(value.real if value.is_complex() else value)


# -- ends -------------------------------------------------------------------------------------------------------------


def of_relevance(tensor: Tensor) -> Flow:
    """A relevance as what travels backwards."""
    return Flow(relevance=tensor)


def at_output(passed: Passed, tree, entering: Callable[[Tensor], Flow] = of_relevance) -> dict[str, Flow]:
    """What enters at the output's variables: `entering` of tensors in the output's structure.

    It stays where it enters if the variable depends on parameters alone. Integers have none but if they are ids, to
    which nothing is proportional: what enters there is relevance, as it is where coefficients come out.
    """
    program = passed.plan.program
    refuse_constant_outputs(program)
    flows: dict[str, Flow] = {}
    active = facts(program).active
    for variable, share in zip(program.output_leaves, optree.tree_leaves(tree, namespace=NAMESPACE), strict=True):
        if isinstance(variable, Variable) and (variable.is_differentiable or variable.name in active):
            flow = entering(share) if variable.is_differentiable else of_relevance(share)
            add(flows, variable.name, flow, passed.segments[-1].values)
    return flows


# What a flow at a named place is read as; there may be none.
Reading = Callable[[str, "Flow | None", Tensor], Tensor]


def at_inputs(passed: Passed, flows: Mapping[str, Flow], read: Reading):
    """What has arrived at the inputs, in their structure."""
    arrived, active = [], facts(passed.plan.program).active
    leaves, structure = optree.tree_flatten(passed.inputs, namespace=NAMESPACE)
    for leaf, value in zip(passed.plan.program.input_leaves, leaves, strict=True):
        flow = flows.get(leaf.value.name) if isinstance(leaf.value, Variable) else None
        if flow is not None and leaf.value.name in active:
            arrived.append(checked_range(read(leaf.label, flow, value)))
        else:
            arrived.append(no_relevance(value) if isinstance(value, Tensor) else value)
    return passed.pack(contiguous(optree.tree_unflatten(structure, arrived)))
