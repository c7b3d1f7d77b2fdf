"""Linear branches of one input, summed, as one layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lrpfunc.canonizers.batch_norms import at_least_single, scale_and_shift
from lrpfunc.canonizers.draft import Draft
from lrpfunc.canonizers.folds import Fold, Subject
from lrpfunc.canonizers.kernels import check_held, embedded, kernel_of
from lrpfunc.canonizers.left import scale_outputs
from lrpfunc.operations import (
    AFFINE,
    SUM,
    Facts,
    Immovable,
    channel_axis,
    facts,
    is_batch_norm,
    positions,
    row_of,
    takes_scale,
)
from lrpfunc.program import Equation, Program, Variable

PARALLEL = "merged parallel"


class Step(NamedTuple):
    """An equation that adds or rescales, and the variable among those it reads that a branch comes by."""

    equation: Equation
    by: Variable


class Branch(NamedTuple):
    """A term of a sum: a layer or a batch norm of the input, None for the input itself, and its way to the sum."""

    layer: Equation | None
    path: tuple[Step, ...]


class Parallel(NamedTuple):
    """What a sum becomes: `host` is the layer whose kernel holds those of all branches, `inner` is what goes."""

    branches: Sequence[Branch]
    host: Equation
    inner: Sequence[Equation]


# -- which branches there are -----------------------------------------------------------------------------------------


def _sums(program: Program) -> list[Equation]:
    """The sums of linear branches of one input, without those that are merged as a part of another."""
    known = facts(program)
    sums: list[Equation] = []
    parts: set[str] = set()
    for equation in reversed(program.equations):
        is_part = equation.name in parts or not _combines(known, equation)
        branches = [] if is_part else _branches(known, equation)
        if branches:
            sums.append(equation)
            if any(_waits(known, branch.layer) for branch in branches) or _is_mergeable(known, equation):
                parts.update(step.equation.name for branch in branches for step in branch.path)
    return sums


def _width(known: Facts, total: Equation) -> int | str:
    layers = _layers(_branches(known, total))
    return total.outputs[0].shape[channel_axis(layers[0]) if layers else 1]


def _combines(known: Facts, equation: Equation) -> bool:
    """Whether an equation adds values of one shape, or rescales one, element by element."""
    active, row = known.inputs_of(equation), row_of(equation)
    is_sum = known.kind_of(equation) == SUM and not row.reduces
    rounds = equation.keywords.get("rounding_mode") is not None
    is_multiple = known.kind_of(equation) == AFFINE and (_adds_nothing(equation) or (row.rescales and not rounds))
    whole = {(variable.shape, variable.dtype) for variable in (*active, *equation.outputs)}
    fixed = [variable for variable in equation.reads if variable not in active]
    return (is_sum or is_multiple) and bool(active) and len(whole) == 1 and known.is_fixed(fixed)


def _adds_nothing(equation: Equation) -> bool:
    """Whether what is added is the zero that Python's `sum` begins with."""
    return not any(isinstance(argument, Variable) or argument for argument in equation.arguments[1:])


def _branches(known: Facts, total: Equation) -> list[Branch]:
    """What a sum is made of, if that is several linear branches of one value, layers among them."""
    terms, makers = _terms(known, total), known.program.producers
    common = set.intersection(*({value.name, *_linear_in(known, value)} for value, _ in terms))
    if not common or len({value.name for value, _ in terms}) < 2:
        return []
    (source,) = common
    branches = [Branch(None if value.name == source else makers[value.name], path) for value, path in terms]
    has_layers = _layers(branches) or any(_waits(known, branch.layer) for branch in branches)
    return branches if has_layers else []


def _waits(known: Facts, norm: Equation | None) -> bool:
    """Whether a branch is the batch norm of a layer, which is to be merged first; others would read the sum's input."""
    return norm is not None and is_batch_norm(norm) and _is_read_by(known, norm.arguments[0], norm)


def _layers(branches: Sequence[Branch]) -> list[Equation]:
    """The dense layers and convolutions among branches."""
    return [branch.layer for branch in branches if branch.layer is not None and not is_batch_norm(branch.layer)]


def _terms(known: Facts, total: Equation) -> list[tuple[Variable, tuple[Step, ...]]]:
    """What a sum is made of, seen through inner sums and multiples that nothing else reads."""
    terms = _read(known, total, ())
    at = 0
    while at < len(terms):
        value, path = terms[at]
        maker = known.program.producers.get(value.name)
        if maker is not None and _combines(known, maker) and _is_read_by(known, value, path[0].equation):
            terms[at : at + 1] = _read(known, maker, path)
        else:
            at += 1
    return terms


def _read(known: Facts, equation: Equation, path: tuple[Step, ...]) -> list[tuple[Variable, tuple[Step, ...]]]:
    inputs = {variable.name: variable for variable in known.inputs_of(equation)}
    return [(variable, (Step(equation, variable), *path)) for variable in inputs.values()]


def _is_read_by(known: Facts, value: Variable, reader: Equation) -> bool:
    """Whether one equation alone reads a value."""
    return known.readers[value.name] == [reader] and value.name not in known.results


def _linear_in(known: Facts, value: Variable) -> list[str]:
    """Of what a value is a batch norm, a layer, or the batch norm of a layer that will take that up."""
    maker = known.program.producers.get(value.name)
    if maker is None or not known.is_active(maker):
        return []
    if takes_scale(known, maker):
        return [maker.arguments[positions(maker).input].name]
    if not is_batch_norm(maker) or not known.is_fixed(maker.arguments[1:]):
        return []
    source = maker.arguments[0]
    return [source.name, *(_linear_in(known, source) if _is_read_by(known, source, maker) else ())]


PARALLEL_SUMS = Subject("parallel sum", "sum", _sums, _width)


# -- whether one layer can be all of them -----------------------------------------------------------------------------


def _is_mergeable(known: Facts, total: Equation) -> bool:
    try:
        return bool(_find(known, total))
    except Immovable:
        return False


def _find(known: Facts, total: Equation) -> Parallel:
    """Errors: `Immovable` for branches that are no one layer."""
    branches = _branches(known, total)
    inner: dict[str, Equation] = {}
    for layer, path in branches:
        for step in path:
            inner[step.equation.name] = step.equation
        if layer is not None:
            _check_reader(known, layer, path[0].equation)
            inner[layer.name] = layer
    for layer in _layers(branches):
        _check_bias(known, layer)
    host = _host(branches)
    axis = channel_axis(host) - len(total.outputs[0].shape)
    for equation in inner.values():
        if _combines(known, equation):
            _check_factors(known, equation, axis)
    del inner[total.name], inner[host.name]
    return Parallel(branches, host, list(inner.values()))


def _touched(found: Parallel) -> list[Equation]:
    return [found.host, *found.inner]


def _check_reader(known: Facts, layer: Equation, reader: Equation) -> None:
    if not _is_read_by(known, layer.outputs[0], reader):
        raise Immovable(f"others read {layer.name} too")
    if _waits(known, layer):
        raise Immovable(f"the batch norm {layer.name} is not merged")


def _check_bias(known: Facts, layer: Equation) -> None:
    bias = layer.arguments[positions(layer).bias]
    if not known.is_fixed(bias):
        raise Immovable(f"the bias of {layer.name} is not constant")
    if bias is not None and len(bias.shape) != 1:
        raise Immovable(f"the bias of {layer.name} is not one number for each channel")


def _check_factors(known: Facts, multiple: Equation, axis: int) -> None:
    """A factor must be the same wherever a channel is; `axis` counts from behind."""
    for variable in multiple.reads:
        if known.is_fixed(variable):
            rank = len(variable.shape)
            if any(size != 1 and i - rank != axis for i, size in enumerate(variable.shape)):
                raise Immovable(f"{multiple.name} scales a channel differently from place to place")


def _host(branches: Sequence[Branch]) -> Equation:
    """The largest layer, if it can be all branches."""
    obstacles = []
    for host in sorted(_layers(branches), key=_size, reverse=True):
        try:
            for branch in branches:
                check_held(host, branch.layer)
        except Immovable as obstacle:
            obstacles.append(obstacle)
        else:
            return host
    raise obstacles[0]


def _size(layer: Equation) -> int:
    return math.prod(layer.arguments[positions(layer).weight].shape)


# -- what becomes of them ---------------------------------------------------------------------------------------------


def _merge(draft: Draft, total: Equation, found: Parallel) -> None:
    host, at = found.host, positions(found.host)
    parts = [_part(draft, host, branch) for branch in found.branches]
    weight, biases = _sum([weight for weight, _ in parts]), [bias for _, bias in parts if bias is not None]
    weight = weight if at.output_axis is None else weight.movedim(0, at.output_axis)
    arguments = list(host.arguments)
    like = arguments[at.weight]
    arguments[at.weight] = draft.write_leaf(host, "weight", like, weight, like)
    if biases:
        arguments[at.bias] = draft.write_leaf(host, "bias", arguments[at.bias], _sum(biases), like)
    for equation in found.inner:
        draft.remove(equation, PARALLEL, host.name)
    draft.exchange(dataclasses.replace(host, arguments=tuple(arguments), outputs=total.outputs))
    draft.notes[total.name] = (PARALLEL, host.name)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0])


def _part(draft: Draft, host: Equation, branch: Branch) -> tuple[Tensor, Tensor | None]:
    """The weight, output channels first, and the bias by which the host's kernel does what a branch does."""
    layer, factor = branch.layer, _factor(draft, host, branch)
    one_each = (-1, 1, *[1] * (len(host.arguments[positions(host).weight].shape) - 2))
    if layer is None:
        weight, bias = factor.reshape(one_each), None
    elif is_batch_norm(layer):
        scale, shift = scale_and_shift(draft, layer)
        weight, bias = (factor * scale).reshape(one_each), factor * shift
    else:
        at = positions(layer)
        weight = scale_outputs(layer, at_least_single(draft.value(layer.arguments[at.weight])), factor)
        weight = weight if at.output_axis is None else weight.movedim(at.output_axis, 0)
        bias = draft.value(layer.arguments[at.bias])
        bias = None if bias is None else factor * bias
    if positions(host).output_axis is None:  # whose branches have all the same geometry
        return weight, bias
    return embedded(weight, kernel_of(host, host), kernel_of(layer, host)), bias


def _factor(draft: Draft, host: Equation, branch: Branch) -> Tensor:
    """How many times each channel of a branch counts in the sum."""
    like = at_least_single(draft.value(host.arguments[positions(host).weight]))
    factor = like.new_ones(host.outputs[0].shape[channel_axis(host)])
    for step, by in branch.path:
        values = {v.name: like.new_full((), v.name == by.name) for v in draft.facts.inputs_of(step)}
        values |= {v.name: draft.value(v) for v in step.reads if v.name not in values}
        factor = factor * step.evaluate(values)[0].flatten()
    return factor


merge_parallel = Fold(
    name="merge_parallel",
    about=PARALLEL_SUMS,
    side="its terms",
    find=_find,
    touched=_touched,
    merge=_merge,
    doc="""Fold linear branches of one input that are summed, as RepVGG is trained, into one layer.

    sum_i f_i (W_i x + b_i) = (sum_i f_i W_i) x + sum_i f_i b_i. A branch is a convolution, a dense layer, a batch norm
    or the input itself; f_i is what sums, differences and multiples (by a number, or one for each channel) make of it.
    The largest layer takes up the others, whose kernels must fit into its own: smaller kernels lie where their padding
    puts them, more groups are fewer with zeros, a batch norm is a 1 x 1 kernel on the diagonal. Nothing but the sum may
    read a branch. What goes leaves its leaves as they are.

    Args:
        program: a program, as `functionalize` and `trace` return it.
        params: its parameters, a flat dict {name: tensor}. Neither is mutated.

    Errors: `CanonizeError` for batch norms whose values cannot be folded, as `canonize`.
    Source: Ding et al. 2021, arXiv:2101.03697, section 3.3.

    >>> import lrpfunc, torch
    >>> def block(params, x):
    ...     return torch.conv2d(x, params["three"], padding=1) + torch.conv2d(x, params["one"]) - 0.5 * x
    >>> weights = {"three": torch.ones(1, 1, 3, 3), "one": torch.full((1, 1, 1, 1), 2.0)}
    >>> fmodel, params = lrpfunc.trace(block, weights, torch.ones(1, 1, 4, 4))
    >>> program, merged = lrpfunc.canonizers.merge_parallel(fmodel, params)
    >>> [equation.name for equation in program.equations]
    ['three']
    >>> merged["three"]  # in the middle 1 + 2 - 0.5
    tensor([[[[1.0000, 1.0000, 1.0000],
              [1.0000, 2.5000, 1.0000],
              [1.0000, 1.0000, 1.0000]]]])
    """,
)
