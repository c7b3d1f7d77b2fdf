"""The relevance of parameters: what each weight, bias, scale and row of a table has contributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import checked_range
from lrpfunc.attribution.interpreter import add, no_relevance
from lrpfunc.attribution.plans import Plan, Step, bound_operation, make_plan, named
from lrpfunc.attribution.records import followed
from lrpfunc.attribution.targets import Target
from lrpfunc.composites import Entries
from lrpfunc.errors import RuleError
from lrpfunc.operations import MOVEMENT, InputRange, Operation, bind, facts, forms, is_constant, row_of
from lrpfunc.program import NAMESPACE, Equation, Program, Variable, is_plain, refilled, variables_in
from lrpfunc.rules import Flow, stabilizer

EXACT = stabilizer(0)


def parameter_relevance(
    fmodel: Program,
    params,
    x,
    rules: Entries,
    target: Target = None,
    strict: bool = False,
    input_range: InputRange = None,
):
    """The relevance of the parameters, in the structure of `params` and in units of the explained output, over a batch.

    A layer's relevance is shared among its weights and its bias by the terms that its rule shares by: under epsilon
    R_W = W * (s x^T) and R_b = b * s, with s = R / S(z); under zplus W+ x+, W- x- and b+; under flat all weights alike.
    So it sums to what arrived at the layer, less the stabilizer, for every rule that conserves. What is no layer (a
    scale, a shift, a norm, a table) gets its value times the derivative of what is shared, and so does a parameter of
    what it makes before that meets the inputs: a weight that is normalized, a token that is expanded, queries that pass
    layers of their own. Of a complex parameter the relevance is real, Re(w conj(c)). Buffers, running statistics and
    integers get zeros. Per sample by `vmap` over samples.

    Args:
        fmodel, params, x, rules, target, strict, input_range: as `attribute` takes them.

    Errors: those of `attribute`; `RuleError` where torch has no derivative of what parameters pass.
    Source: Yeom et al. 2021, doi:10.1016/j.patcog.2021.107899, who prune by what arrives at a filter.

    >>> import lrpfunc, torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> fmodel, _ = lrpfunc.functionalize(layer, torch.ones(1, 2))
    >>> params = {"weight": torch.tensor([[2.0, -1.0]]), "bias": torch.tensor([0.5])}
    >>> lrpfunc.parameter_relevance(fmodel, params, torch.tensor([[3.0, 1.0]]), lrpfunc.rules.epsilon(0))
    {'weight': tensor([[ 6., -1.]]), 'bias': tensor([0.5000])}
    """
    plan = make_plan(fmodel, params, rules, strict, input_range)
    reading = _reading(fmodel)
    names = dict.fromkeys(v.name for equation, _ in reading for v in (*equation.reads, *equation.outputs))
    values, flows = followed(plan, x, names, target)
    steps = {step.equation.name: step for step in plan.steps if step.rule is not None}
    for equation, reads in reversed(reading):
        arrived = {v.name: flows[v.name] for v in equation.outputs if v.name in flows}
        if arrived:
            shares = _shares(plan, steps.get(equation.name), equation, reads, values, arrived)
            for variable, flow in zip(reads, shares, strict=True):
                if flow is not None:
                    add(flows, variable.name, flow, values)
    leaves = zip(fmodel.parameters.items(), optree.tree_leaves(params, namespace=NAMESPACE), strict=True)
    learned = ((flows.get(v.name) if name not in fmodel.buffers else None, leaf) for (name, v), leaf in leaves)
    return refilled(params, [_of_leaf(flow, leaf) for flow, leaf in learned])


def _of_leaf(flow: Flow | None, leaf: Tensor) -> Tensor:
    """The relevance of a leaf."""
    if flow is None:
        return no_relevance(leaf)
    relevance = checked_range(flow.relevance(leaf if flow.is_relevance else _finite(leaf, flow.tensor)))
    return relevance.real if relevance.is_complex() else relevance


def _finite(leaf: Tensor, c: Tensor) -> Tensor:
    """A leaf with zeros in place of infinite numbers, as masks have them, that nothing depends on."""
    is_known = is_plain(leaf) and not leaf.is_meta and bool(leaf.sum().isfinite())
    return leaf if is_known else leaf.masked_fill(leaf.isinf() & (c == 0), 0)


# -- what reads parameters --------------------------------------------------------------------------------------------


def _reading(program: Program) -> list[tuple[Equation, list[Variable]]]:
    """The equations that read parameters, or what was made of them before it met an input, and what they read of that.

    What is made of parameters may be made of other things as well that relevance does not come to: sizes, masks, what
    is detached.
    """
    known = facts(program)
    made = {v.name for name, v in program.parameters.items() if v.is_differentiable and name not in program.buffers}
    reading = []
    for equation in program.equations:
        reads = [variable for variable in _contributing(equation) if variable.name in made]
        if not reads or is_constant(equation):
            continue
        if not known.is_active(equation):
            made.update(variable.name for variable in equation.outputs if variable.is_differentiable)
        reading.append((equation, reads))
    return reading


def _contributing(equation: Equation) -> Sequence[Variable]:
    """What an equation reads; the statistics of a batch norm are no parameters that contribute."""
    if row_of(equation).form is forms.BATCH_NORM:
        return list(variables_in(equation.arguments[:3]))
    return equation.reads


# -- what they get ----------------------------------------------------------------------------------------------------


def _shares(
    plan: Plan,
    step: Step | None,
    equation: Equation,
    reads: Sequence[Variable],
    values: Mapping[str, Any],
    arrived: Mapping[str, Flow],
) -> Sequence[Flow | None]:
    """What each of the parameters gets that an equation reads, by its rule or by value times derivative."""
    opened = bind(plan.program, equation, values, inputs=reads).at([values[v.name] for v in reads])
    if step is not None and step.rule is not None:
        are_arguments = step.rule.takes_steps or len(opened.slots) == len(reads)  # none is in a list of them
        shares = _by_rule(plan, step, opened, values, arrived) if are_arguments else None
        if shares is not None and len(shares) == len(reads):
            return shares
        if opened.row.shifts and any(flow.is_relevance and not flow.by_value for flow in arrived.values()):
            return [None] * len(reads)  # as the rule of what is shifted has it
    return _by_derivative(equation, opened, reads, values, arrived)


def _by_rule(
    plan: Plan, step: Step, opened: Operation, values: Mapping[str, Any], arrived: Mapping[str, Flow]
) -> Sequence[Flow | None] | None:
    """By the terms that a rule shares by, None if it has no word on it."""
    rule, outputs = step.rule, step.equation.outputs
    if rule is None or rule.parameters is None or len(outputs) > 1:
        return None
    inputs = tuple(values[variable.name] for variable in step.inputs)
    operation = bound_operation(plan.program, step, values).at(inputs)
    try:
        return rule.parameters(operation, inputs, values[outputs[0].name], arrived[outputs[0].name], opened)
    except RuleError as error:
        raise named(error, rule, step.equation) from error


def _by_derivative(
    equation: Equation,
    opened: Operation,
    reads: Sequence[Variable],
    values: Mapping[str, Any],
    arrived: Mapping[str, Flow],
) -> list[Flow | None]:
    """Value times derivative of what is shared. What is only moved keeps its relevance, whatever its value."""
    outputs = [variable for variable in equation.outputs if variable.is_differentiable]
    moves = opened.kind == MOVEMENT and not any(variable.is_complex for variable in (*reads, *outputs))
    are_relevances = moves and any(flow.is_relevance for flow in arrived.values())

    def entering(variable: Variable) -> Tensor:
        value, flow = values[variable.name], arrived.get(variable.name)
        if flow is None:
            return torch.zeros_like(value)
        return flow.relevance(value) if are_relevances else flow.coefficient(value, EXACT, as_it_is=True)

    seeds = [entering(variable) for variable in outputs]
    try:
        moved = opened.vjp([values[v.name] for v in reads], seeds[0] if len(equation.outputs) == 1 else tuple(seeds))
    except RuleError as error:
        raise RuleError(
            f"torch has no derivative of '{equation.name}' ({equation.operator}), so it cannot be said what parameters "
            "contribute there. Give it a rule with `parameters`, or make what it gives a leaf of params."
        ) from error
    flows = moved if isinstance(moved, tuple) else (moved,)
    return [Flow(relevance=one) if are_relevances else Flow(coefficient=one) for one in flows]
