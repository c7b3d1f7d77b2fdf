"""The relevance of parameters: what each weight, bias, scale and row of a table has contributed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import checked_pair
from lrpfunc.attribution.plans import Plan, make_plan
from lrpfunc.attribution.records import recorded
from lrpfunc.attribution.targets import Target
from lrpfunc.composites import Composite, Entries, assign
from lrpfunc.operations import InputRange, Operation, active_equations, forms, row_of
from lrpfunc.operations.row import Slot
from lrpfunc.program import NAMESPACE, Equation, Program, Variable, refilled, substitute
from lrpfunc.rules import Flow, Rule


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
    scale, a shift, a norm, a table) gets its value times the derivative of what is shared. Running statistics and
    integers get zeros. Per sample by `vmap` over samples.

    Args:
        fmodel, params, x, rules, target, strict, input_range: as `attribute` takes them.

    Errors: those of `attribute`.
    Source: Yeom et al. 2021, doi:10.1016/j.patcog.2021.107899, who prune by what arrives at a filter.

    >>> import lrpfunc, torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> fmodel, _ = lrpfunc.functionalize(layer, torch.ones(1, 2))
    >>> params = {"weight": torch.tensor([[2.0, -1.0]]), "bias": torch.tensor([0.5])}
    >>> lrpfunc.parameter_relevance(fmodel, params, torch.tensor([[3.0, 1.0]]), lrpfunc.rules.epsilon(0))
    {'weight': tensor([[ 6., -1.]]), 'bias': tensor([0.5000])}
    """
    found: dict[str, Tensor] = {}
    plan = make_plan(fmodel, params, _watching(rules, found), strict, input_range)
    recorded(plan, x, None, None, once=True).pull(target)
    _to_parameters(plan, found)
    names = iter(fmodel.parameters.values())
    leaves = [_of_leaf(found, next(names), leaf) for leaf in optree.tree_leaves(params, namespace=NAMESPACE)]
    return refilled(params, leaves)


def _of_leaf(found: Mapping[str, Tensor], variable: Variable, leaf: Tensor) -> Tensor:
    relevance = found.get(variable.name)
    return torch.zeros_like(leaf) if relevance is None else relevance


# -- at the equations that read parameters ----------------------------------------------------------------------------


class _Read(NamedTuple):
    """A parameter, or what is made of parameters alone, among an equation's arguments: which leaf, of what name."""

    position: int
    name: str


def _watching(rules: Entries, found: dict[str, Tensor]) -> Composite:
    """The same rules, which also note the relevance of the parameters that their equations read."""

    def composite(program: Program):
        assigned = dict(assign(program, rules))
        made = _made_of_parameters(program)
        for equation in active_equations(program):
            reads = _reads(equation, made)
            if reads and equation.name in assigned:
                assigned[equation.name] = _watched(assigned[equation.name], reads, found)
        return assigned

    return composite


def _made_of_parameters(program: Program) -> set[str]:
    """The names of floating-point variables that are parameters or depend on nothing else."""
    made = {v.name for v in program.parameters.values()}
    for equation in program.equations:
        if equation.reads and all(v.name in made for v in equation.reads):
            made.update(v.name for v in equation.outputs)
    return made


def _leaves(arguments) -> list:
    return optree.tree_leaves(list(arguments), is_leaf=lambda node: isinstance(node, Slot), namespace=NAMESPACE)


def _reads(equation: Equation, made: set[str]) -> list[_Read]:
    """Statistics of a batch norm are no parameters that contribute."""
    last = 3 if row_of(equation).form is forms.BATCH_NORM else None
    leaves = _leaves(equation.arguments)[:last]
    return [
        _Read(i, leaf.name)
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Variable) and leaf.is_floating and leaf.name in made
    ]


def _watched(rule: Rule, reads: list[_Read], found: dict[str, Tensor]) -> Rule:
    def forward(operation, *inputs):
        output, residuals = checked_pair(rule.forward(operation, *inputs))
        return output, (inputs, output, residuals)

    def backward(operation, residuals, flow):
        inputs, output, kept = residuals
        for name, share in _shares(rule, operation, reads, inputs, output, flow):
            found[name] = share if name not in found else found[name] + share
        return rule.backward(operation, kept, flow)

    return rule._replace(forward=forward, backward=backward)


def _shares(rule: Rule, operation: Operation, reads: list[_Read], inputs, output, flow: Flow):
    """The relevance of each parameter that an equation reads."""
    if rule.parameters is not None and operation.is_weighted and isinstance(output, Tensor):
        shares = rule.parameters(operation, inputs, output, flow.relevance(output))
        by_tensor = dict(zip((id(operation.weight), id(operation.bias)), shares, strict=True))
        leaves = _leaves(operation.arguments)
        known = [(read.name, by_tensor.get(id(leaves[read.position]))) for read in reads]
        return [(name, share) for name, share in known if share is not None]
    return _by_derivative(operation, reads, inputs, output, flow)


def _by_derivative(operation: Operation, reads: list[_Read], inputs, output, flow: Flow):
    """Value times derivative of what is shared, for what has no terms of its own."""
    leaves = _leaves(operation.arguments)
    values = [leaves[read.position] for read in reads]

    def function(*given):
        filled = list(leaves)
        for read, value in zip(reads, given, strict=True):
            filled[read.position] = value
        structure = optree.tree_structure(
            list(operation.arguments), is_leaf=lambda node: isinstance(node, Slot), namespace=NAMESPACE
        )
        arguments = optree.tree_unflatten(structure, filled)
        return operation.copy(arguments=arguments, hoists={})(*inputs)

    found: Any = torch.func.vjp(function, *values)
    outputs, pullback = found
    moved = pullback(_coefficient(flow, output, outputs))
    return [(read.name, value * c) for read, value, c in zip(reads, values, moved, strict=True)]


def _coefficient(flow: Flow, output, outputs):
    """c with R = output * c, zero where the output is."""
    if not isinstance(output, Tensor):
        flows = [flow.moved(part) for part in flow.tensor]
        pairs = zip(flows, output, strict=False)
        return type(outputs)([_coefficient(one, value, value) for one, value in pairs])
    return flow.tensor if not flow.is_relevance else _over(flow.tensor, output)


def _over(relevance: Tensor, value: Tensor) -> Tensor:
    is_zero = value == 0
    return torch.where(is_zero, 0.0, relevance / torch.where(is_zero, 1.0, value))


# -- from what is made of parameters to parameters --------------------------------------------------------------------


def _to_parameters(plan: Plan, found: dict[str, Tensor]) -> None:
    """Move the relevance of what parameters alone make, such as a transposed weight, to the parameters."""
    for equation in reversed(plan.program.equations):
        arrived = [found.pop(v.name, None) for v in equation.outputs]
        if all(share is None for share in arrived):
            continue
        for name, share in _moved(plan, equation, arrived):
            found[name] = share if name not in found else found[name] + share


def _moved(plan: Plan, equation: Equation, arrived: list[Tensor | None]):
    """A movement moves relevance as it is; anything else by value times derivative."""
    reads = [v for v in dict.fromkeys(equation.reads) if v.is_floating and v.name in plan.values]
    values = {v.name: plan.values[v.name] for v in equation.reads}

    def function(*tensors):
        given = values | dict(zip((v.name for v in reads), tensors, strict=True))
        keywords = {key: substitute(value, given) for key, value in equation.keywords.items()}
        return equation.function(*substitute(equation.arguments, given), **keywords)

    primals = [values[v.name] for v in reads]
    found: Any = torch.func.vjp(function, *primals)
    outputs, pullback = found
    is_movement = row_of(equation).keeps_values
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    seeds = [_seed(share, value, is_movement) for share, value in zip(arrived, tensors, strict=False)]
    moved = pullback(seeds[0] if isinstance(outputs, Tensor) else type(outputs)(seeds))
    pairs = zip(reads, primals, moved, strict=True)
    return [(v.name, share if is_movement else value * share) for v, value, share in pairs]


def _seed(share: Tensor | None, value: Tensor, is_movement: bool) -> Tensor:
    if share is None:
        return torch.zeros_like(value)
    return share if is_movement else _over(share, value)
