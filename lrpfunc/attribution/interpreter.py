"""Attribution: one loop forwards under the rules, one loop backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.plans import Naming, Plan, Step, bound_operation, make_plan
from lrpfunc.attribution.targets import Target, check_relevance, seed, seeds
from lrpfunc.composites import Entries
from lrpfunc.errors import InputError, RuleError, TargetError, near_misses
from lrpfunc.operations import InputRange, Operation, active_equations, facts
from lrpfunc.program import NAMESPACE, Equation, Program, Variable, is_plain
from lrpfunc.rules import Flow
from lrpfunc.rules.declarations import check_declared


def attribute(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    strict: bool = False,
    input_range: InputRange = None,
    checkpoint: int | None = None,
):
    """The relevance of the inputs, in the structure of `x` and in units of the explained output.

    `x`: one tensor, a tuple of inputs (each a pytree), or a dict by input name for a program traced with keywords.
    Leaves that relevance cannot reach (integers, masks) come back as zeros; token ids that a table is looked up with
    have relevance, that of their rows. `rules`: a composite, a mapping
    {name pattern: rule} or one rule for all weighted equations. `target`: None (arg-max), an int, an index tensor, a
    tuple, a list per sample, or a function output -> relevance. `at`: names of layers at whose outputs relevance is
    wanted too; the result is then `(relevance, {name: tensor})`. `strict`: no equation may fall back to the gradient.
    `input_range`: what the inputs are known to lie in, (low, high), for all or by the input's name; rules that treat
    signs apart save work where low >= 0. `checkpoint`: in how many segments to run the model; all but the last are run
    twice, so that the residuals of only one are in memory.

    Errors: `ParameterError`, `InputError`, `TargetError`, `RuleError`.
    """
    return Prepared(make_plan(fmodel, params, rules, strict, input_range))(x, target, at, checkpoint)


def attribute_each(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    targets: Sequence[Target] | Tensor,
    strict: bool = False,
    input_range: InputRange = None,
    chunk_size: int | None = None,
):
    """The relevance for each of several targets: that of `attribute`, with a first dimension for the targets.

    All share one forward pass, and their backward passes are one batch, or batches of `chunk_size` targets to save
    memory. `targets`: a sequence of what `attribute` takes as target, or an index tensor, (targets,) or
    (targets, batch).
    Errors: those of `attribute`; `TargetError` if there is no target.
    """
    return Prepared(make_plan(fmodel, params, rules, strict, input_range)).each(x, targets, chunk_size)


def vjp(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    strict: bool = False,
    input_range: InputRange = None,
    checkpoint: int | None = None,
) -> tuple[Any, Callable]:
    """The output and a pullback `R_out -> R_x`, as `torch.func.vjp` has them. The pullback may be called again.

    Errors: `ParameterError`, `InputError`, `RuleError`; `TargetError` for an R_out that is not shaped like the output.
    """
    return Prepared(make_plan(fmodel, params, rules, strict, input_range)).vjp(x, checkpoint)


# -- prepared ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Prepared:
    """An explanation that has its parameters; `prepare` makes it."""

    plan: Plan

    def __call__(self, x, target: Target = None, at: str | Sequence[str] | None = None, checkpoint: int | None = None):
        """The relevance of the inputs; see `attribute`."""
        names = [at] if isinstance(at, str) else list(at or ())
        if not all(isinstance(name, str) for name in names):
            raise RuleError(f"`at` takes names of layers, but got {at!r}.")
        wanted = {name: _output_named(self.plan.program, name) for name in names}
        run = _forward(self.plan, x, wanted, checkpoint, is_final=True)
        relevance, inner = _backward(run, seed(run.output, target))
        return relevance if at is None else (relevance, inner)

    def vjp(self, x, checkpoint: int | None = None) -> tuple[Any, Callable]:
        """The output and a pullback; see the function of the same name."""
        run = _forward(self.plan, x, {}, checkpoint, is_final=False)

        def pullback(relevance):
            return _backward(run, check_relevance(relevance, run.output))[0]

        return run.output, pullback

    def each(self, x, targets: Sequence[Target] | Tensor, chunk_size: int | None = None):
        """The relevance for each of several targets; see `attribute_each`."""
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise TargetError(f"chunk_size must be a number of targets >= 1, but is {chunk_size!r}.")
        run = _forward(self.plan, x, {}, None, is_final=False)
        entering = [optree.tree_leaves(each, namespace=NAMESPACE) for each in seeds(run.output, targets)]

        def back(*tensors):  # vmap takes and gives nothing but tensors
            relevance, _ = _backward(run, _refilled(entering[0], tensors))
            return tuple(
                leaf for leaf in optree.tree_leaves(relevance, namespace=NAMESPACE) if isinstance(leaf, Tensor)
            )

        stacked = [torch.stack(leaves) for leaves in zip(*entering, strict=True) if isinstance(leaves[0], Tensor)]
        return run.pack(_refilled(run.inputs, torch.func.vmap(back, chunk_size=chunk_size)(*stacked)))

    def __repr__(self) -> str:
        return f"Prepared({len(self.plan.steps)} equations, inputs {', '.join(self.plan.program.input_names)})"


def prepare(fmodel: Program, params, rules: Entries, strict: bool = False, input_range: InputRange = None) -> Prepared:
    """An explanation as a function of x: what depends on parameters only (W+, W^2, ...) is computed here, once.

    `explain = prepare(fmodel, params, rules)`; then `explain(x, target, at, checkpoint)` equals `attribute` with the
    same arguments, `explain.vjp(x)` equals `vjp` and `explain.each(x, targets)` equals `attribute_each`. Prepare
    again after parameters were changed in place.
    Errors: `ParameterError`, `RuleError`; `InputError` for an `input_range` that names no input or is none.
    """
    return Prepared(make_plan(fmodel, params, rules, strict, input_range, hoists=True))


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


def _refilled(tree, tensors: Sequence[Tensor]):
    """A pytree with other tensors in the place of its own."""
    filled = iter(tensors)
    return optree.tree_map(lambda leaf: next(filled) if isinstance(leaf, Tensor) else leaf, tree, namespace=NAMESPACE)


# -- forwards ---------------------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    step: Step
    operation: Operation
    residuals: Any


class _Segment:
    """Some steps in a row, and what a pass through them under the rules leaves behind; None: they are yet to be run."""

    def __init__(self, steps: Sequence[Step], values: dict[str, Any]):
        self.steps, self.values = steps, values
        self.records: list[_Record] | None = None


class _Run(NamedTuple):
    """What a forward pass leaves behind for backward passes; `is_final`: for one, which may use it up."""

    plan: Plan
    inputs: tuple
    pack: Callable[[tuple], Any]
    segments: list[_Segment]
    output: Any
    at: dict[str, str]
    is_final: bool


def _forward(plan: Plan, x, at: dict[str, str], checkpoint: int | None, is_final: bool) -> _Run:
    program = plan.program
    inputs, pack = unpack(program, x)
    values = _lay_out(plan, program.bind_inputs(inputs, dict(plan.values)))
    _refuse_dead_ends(program)
    _check_ranges(plan, inputs)
    segments = []
    parts = _split(plan.steps, checkpoint)
    for part in parts[:-1]:
        segments.append(_Segment(part, dict(values)))
        for step in part:
            program.store(step.equation, step.equation.evaluate(values), values)
            _forget(values, step, ())
    segments.append(_Segment(parts[-1], values))
    _run_segment(plan, segments[-1], at, is_final)
    return _Run(plan, inputs, pack, segments, _contiguous(program.result(values)), at, is_final)


def _run_segment(plan: Plan, segment: _Segment, at: Mapping[str, str], is_final: bool) -> None:
    program, values, records = plan.program, segment.values, []
    needed = plan.kept.union(at.values())
    for step in segment.steps:
        equation, rule = step.equation, step.rule
        if rule is None:
            program.store(equation, equation.evaluate(values), values)
        else:
            tensors = [values[variable.name] for variable in step.inputs]
            bound = step.operation or bound_operation(program, step, values, hoists=False)
            operation = bound.at(tensors, is_final)
            with Naming(rule, equation):
                output, residuals = checked_pair(rule.forward(operation, *tensors))
                outputs = output if isinstance(output, (tuple, list)) else (output,)
                _check_outputs(equation, outputs)
            program.store(equation, outputs, values)
            records.append(_Record(step, operation, residuals))
        _forget(values, step, needed)
    segment.records = records


def _forget(values: dict[str, Any], step: Step, needed) -> None:
    for name in step.dead:
        if name not in needed:
            values.pop(name, None)


def _split(steps: Sequence[Step], checkpoint: int | None) -> list[Sequence[Step]]:
    """Steps in segments whose results take about the same memory. Errors: `RuleError`."""
    if checkpoint is None:
        return [steps]
    if isinstance(checkpoint, bool) or not isinstance(checkpoint, int) or checkpoint < 1:
        raise RuleError(f"checkpoint must be a number of segments >= 1, but is {checkpoint!r}.")
    sizes = [sum(_size(variable) for variable in step.equation.outputs) for step in steps]
    parts: list[list[Step]] = [[] for _ in range(checkpoint)]
    passed = 0
    for step, size in zip(steps, sizes, strict=True):
        parts[min(checkpoint - 1, passed * checkpoint // max(sum(sizes), 1))].append(step)
        passed += size
    return [part for part in parts if part] or [steps]


def _size(variable: Variable) -> int:
    size = 1
    for n in variable.shape:
        size *= n if isinstance(n, int) else 1
    return size if variable.is_tensor else 0


def _checked_range(relevance: Tensor) -> Tensor:
    """A relevance in half precision, if it did not overflow, where that can be seen. Errors: `InputError`."""
    can_be_seen = relevance.dtype == torch.float16 and is_plain(relevance) and not relevance.is_meta
    if can_be_seen and not relevance.isfinite().all():
        raise InputError(
            "relevance overflowed in float16, which ends at 65504. Cast inputs and params to bfloat16 or float32: "
            "optree.tree_map(lambda p: p.bfloat16() if p.is_floating_point() else p, params)."
        )
    return relevance


def _contiguous(tree):
    """Results as tensors that may be viewed and written to, whatever layout they had in here."""

    def lay(leaf):
        return leaf.contiguous() if isinstance(leaf, Tensor) else leaf

    return optree.tree_map(lay, tree, namespace=NAMESPACE)


def checked_pair(result) -> tuple:
    """What a rule's forward returned, if it is a pair. Errors: `RuleError`."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise RuleError(f"forward must return (output, residuals), but returned {type(result).__name__}.")
    return result


def _check_outputs(equation: Equation, outputs: Sequence) -> None:
    for variable, output in zip(equation.outputs, outputs, strict=True):
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        sizes = zip(variable.shape, shape, strict=False)
        if len(shape) != len(variable.shape) or any(n != m for n, m in sizes if isinstance(n, int)):
            raise RuleError(f"forward must return the equation's output, of shape {variable}, but returned {shape}.")


def unpack(program: Program, x) -> tuple[tuple, Callable[[tuple], Any]]:
    """The tuple of inputs that `x` means, and how to give a tuple of relevances the structure of `x`."""
    if isinstance(x, Mapping) and program.takes_keywords:
        return program.collect((), x), lambda relevance: dict(zip(program.input_names, relevance, strict=True))
    if type(x) is tuple:
        return program.collect(x, {}), lambda relevance: relevance
    return program.collect((x,), {}), lambda relevance: relevance[0]


def _refuse_dead_ends(program: Program) -> None:
    """Relevance must be able to flow: from a floating-point output to a floating-point input, or to embedded tokens."""
    active = facts(program).active
    if not any(isinstance(leaf.value, Variable) and leaf.value.name in active for leaf in program.input_leaves):
        raise InputError(
            "relevance needs a floating-point input, or token ids that go to an embedding, but all inputs are integers "
            "that go elsewhere. Trace the model from its embeddings (inputs_embeds), or cast the input if it is data."
        )
    if not any(isinstance(v, Variable) and v.name in active for v in program.output_leaves):
        raise InputError(
            "no relevance can flow: no output depends on a floating-point input through floating-point values. "
            "Complex and integer values in between stop it, and so does detach."
        )


def _output_named(program: Program, name: str) -> str:
    """The variable that leaves a layer: of an equation by its name, or the last one below a module's path."""
    equations = list(active_equations(program))
    exact = [e for e in equations if e.name == name]
    below = [e for e in equations if e.name.startswith(f"{name}.")]
    if not exact and not below:
        paths = {e.name.rpartition(".")[0] for e in equations} - {""}
        hint = near_misses(name, [*(e.name for e in equations), *paths])
        raise RuleError(f"no layer is called '{name}'.{hint} `print(fmodel)` lists all names.")
    equation = (exact or below)[-1]
    if len(equation.outputs) > 1:
        raise RuleError(f"'{name}' has {len(equation.outputs)} outputs: name a layer that reads the one you want.")
    return equation.outputs[0].name


def _check_ranges(plan: Plan, inputs: tuple) -> None:
    """What was stated of the inputs, where it can be seen."""
    if not plan.ranges:
        return
    leaves = optree.tree_leaves(inputs, namespace=NAMESPACE)
    for leaf, value in zip(plan.program.input_leaves, leaves, strict=True):
        if leaf.label in plan.ranges and is_plain(value) and value.numel() and not value.is_meta:
            low, high = plan.ranges[leaf.label]
            smallest, largest = value.min().item(), value.max().item()
            if not (low <= smallest and largest <= high):
                raise InputError(
                    f"input_range says that '{leaf.label}' lies in {low:g} to {high:g}, "
                    f"but it goes from {smallest:g} to {largest:g}."
                )


# -- backwards --------------------------------------------------------------------------------------------------------


def _backward(run: _Run, entering) -> tuple[Any, dict[str, Tensor]]:
    program = run.plan.program
    active = facts(program).active
    flows: dict[str, Flow] = {}
    inner: dict[str, Tensor] = {}
    for variable, relevance in zip(
        program.output_leaves, optree.tree_leaves(entering, namespace=NAMESPACE), strict=True
    ):
        if isinstance(variable, Variable) and variable.name in active:
            _add(flows, variable, Flow(relevance=relevance), run.segments[-1].values)
    for segment in reversed(run.segments):
        passed = segment
        if segment.records is None:
            passed = _Segment(segment.steps, dict(segment.values))
            _run_segment(run.plan, passed, run.at, is_final=True)
        _retreat(run, passed, flows, inner, uses_up=run.is_final or passed is not segment)
    inner = {name: _contiguous(inner[name]) for name in run.at}
    return _input_relevance(run, flows), inner


def _retreat(run: _Run, segment: _Segment, flows: dict[str, Flow], inner: dict[str, Tensor], uses_up: bool) -> None:
    """Move what has arrived at a segment's end to its beginning."""
    assert segment.records is not None
    values, remaining = segment.values, segment.records if uses_up else list(segment.records)
    for name, asked in run.at.items():
        if asked in values:  # zero if no relevance comes there
            inner.setdefault(name, torch.zeros_like(values[asked]))
    while remaining:
        step, operation, residuals = remaining.pop()
        assert step.rule is not None
        _keep(run, step, flows, inner, values)
        flow = _collect(step, flows, values)
        if uses_up:
            for variable in step.equation.outputs:
                values.pop(variable.name, None)
        if flow is None:
            continue
        with Naming(step.rule, step.equation):
            moved = step.rule.backward(operation, residuals, flow)
        del residuals
        who = f"{step.rule.label} at layer '{step.equation.name}'"
        sent = checked_flows(who, moved, operation.shapes)
        check_declared(step.rule, who, operation, flow, sent)
        for variable, flow in zip(step.inputs, sent, strict=True):
            if flow is not None:
                _add(flows, variable, flow, values)


def _add(flows: dict[str, Flow], variable: Variable, flow: Flow, values: Mapping[str, Any]) -> None:
    """Add to what has arrived at a variable. Coefficients stay coefficients; mixed forms meet as relevance."""
    before = flows.get(variable.name)
    if before is None:
        flows[variable.name] = flow
    elif before.is_relevance == flow.is_relevance:
        flows[variable.name] = flow.moved(before.tensor + flow.tensor)
    else:
        value = values[variable.name]
        flows[variable.name] = Flow(relevance=before.relevance(value) + flow.relevance(value))


def _collect(step: Step, flows: dict[str, Flow], values: Mapping[str, Any]) -> Flow | None:
    """What has arrived at an equation's outputs as one flow, None if nothing has."""
    outputs = [v for v in step.equation.outputs if v.is_floating] or list(step.equation.outputs)
    arrived = [flows.pop(variable.name, None) for variable in outputs]
    if all(flow is None for flow in arrived):
        return None
    if len(step.equation.outputs) == 1:
        return arrived[0]
    tensors = [values[variable.name] for variable in outputs]
    if all(flow is None or not flow.is_relevance for flow in arrived):
        parts = (torch.zeros_like(v) if f is None else f.tensor for f, v in zip(arrived, tensors, strict=True))
        return Flow(coefficient=tuple(parts))
    parts = (torch.zeros_like(v) if f is None else f.relevance(v) for f, v in zip(arrived, tensors, strict=True))
    return Flow(relevance=tuple(parts))


def _keep(run: _Run, step: Step, flows: Mapping[str, Flow], inner: dict[str, Tensor], values) -> None:
    """Note the relevance of an output that `at` asks for, now that all its readers have sent theirs."""
    for name, variable in run.at.items():
        if any(variable == output.name for output in step.equation.outputs):
            value = values[variable]
            flow = flows.get(variable)
            inner[name] = torch.zeros_like(value) if flow is None else flow.relevance(value)


def checked_flows(who: str, moved, shapes: Sequence[torch.Size]) -> list[Flow | None]:
    """What a rule's backward returned as one flow (or None) for each input, of its shape."""
    flows = list(moved) if isinstance(moved, (tuple, list)) else [moved]
    if len(flows) != len(shapes):
        raise RuleError(f"{who} must return {len(shapes)} flow(s), one per input, but returned {len(flows)}.")
    for needed, flow in zip(shapes, flows, strict=True):
        if flow is None:
            continue
        if not isinstance(flow, Flow):
            kind = type(flow).__name__
            raise RuleError(f"{who} must return Flow(relevance=...) or Flow(coefficient=...), but returned {kind}.")
        if flow.shape != needed:
            raise RuleError(
                f"{who} must return the shape of its input, {tuple(needed)}, but returned {tuple(flow.shape)}."
            )
    return flows


def _input_relevance(run: _Run, flows: Mapping[str, Flow]):
    relevance = []
    leaves, structure = optree.tree_flatten(run.inputs, namespace=NAMESPACE)
    for leaf, value in zip(run.plan.program.input_leaves, leaves, strict=True):
        flow = flows.get(leaf.value.name) if isinstance(leaf.value, Variable) else None
        if flow is not None:
            relevance.append(_checked_range(flow.relevance(value)))
        else:
            relevance.append(torch.zeros_like(value) if isinstance(value, Tensor) else value)
    return run.pack(_contiguous(optree.tree_unflatten(structure, relevance)))
