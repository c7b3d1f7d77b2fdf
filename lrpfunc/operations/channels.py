"""How a scale and a shift per channel, such as a batch norm's, move through a program.

y = a x + b moves left into the layers that make x, or right into the layers that read y. This says which layers would
take it up, or why they cannot; what becomes of their parameters is the canonizers' business. How it passes single
operations is in the table (`moves`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lrpfunc.operations import forms
from lrpfunc.operations.facts import Facts, facts
from lrpfunc.operations.kinds import CONVOLUTION, DENSE, MAX_POOL
from lrpfunc.operations.moves import Bounds, Immovable, described, resized, source_of, spatial_axes
from lrpfunc.operations.row import Index
from lrpfunc.operations.table import row_of
from lrpfunc.program import Equation, Program, Variable


class Absorber(NamedTuple):
    """A layer (or batch norm) that scales its output channel i by a[channels[i]] and adds share * b[channels[i]]."""

    layer: Equation
    channels: Index
    share: float


class Arrival(NamedTuple):
    """A scale and shift at an equation's input, as on the way to the right.

    `channels` says where its channels are. `origin` is the variable of the last activation that it came through, None
    for the batch norm itself. Behind an operation that does not keep uniform values (zero padding) the shift is no
    longer the same everywhere: it is what `path`, from there on, makes of it.
    """

    equation: Equation
    channels: Index
    origin: str | None
    path: tuple[Equation, ...] = ()


class Route(NamedTuple):
    """Where a batch norm's scale and shift arrive on the way to the right, in the program's order."""

    activations: list[Arrival]
    pools: list[Arrival]
    layers: list[Arrival]


# -- what takes a scale and a shift -----------------------------------------------------------------------------------


def takes_scale(known: Facts, equation: Equation) -> bool:
    """A convolution or dense layer with a fixed weight and the usual positions of its parameters."""
    row = row_of(equation)
    if not row.takes_scale or known.kind_of(equation) not in (CONVOLUTION, DENSE):
        return False
    weight = equation.arguments[positions(equation).weight]
    has_factors = any(value != 1 for value in equation.keywords.values())
    return known.is_fixed(weight) and len(weight.shape) > 1 and not has_factors


def batch_norms(program: Program) -> list[Equation]:
    """The batch norms that relevance comes to; those of weights are fixed."""
    known = facts(program)
    return [e for e in program.equations if is_batch_norm(e) and known.is_active(e)]


def is_batch_norm(equation: Equation) -> bool:
    """Whether an equation normalizes by statistics that are given."""
    return row_of(equation).form is forms.BATCH_NORM


def bounds(activation: Equation) -> Bounds | None:
    """An activation as a clamp with a slope outside, None if it is none."""
    find = row_of(activation).bounds
    return None if find is None else find(activation)


def is_convolution(layer: Equation) -> bool:
    """Of a layer: whether its channels are counted by one axis before others."""
    return layer.operator.startswith("conv")


class LayerPositions(NamedTuple):
    """The positions of a layer that has an input, a weight and a bias; see `row.Positions`."""

    input: int
    weight: int
    bias: int
    output_axis: int | None


def positions(layer: Equation) -> LayerPositions:
    """Where a layer has its input, weight and bias among its arguments."""
    found = row_of(layer).positions
    assert found is not None
    assert found.input is not None
    assert found.bias is not None
    return LayerPositions(found.input, found.weight, found.bias, found.output_axis)


def channel_axis(layer: Equation) -> int:
    """The axis of a layer's input and output that counts channels."""
    rank = len(layer.outputs[0].shape)
    return rank + 1 - len(layer.arguments[positions(layer).weight].shape) if is_convolution(layer) else rank - 1


def _behind(batch_norm: Equation) -> Index:
    """Where a batch norm's channels are in its output. Errors: `Immovable` for an empty batch, which has none."""
    shape = batch_norm.outputs[0].shape
    if len(shape) < 2:
        raise Immovable("there are no channels")
    return np.arange(shape[1]).reshape([-1 if axis == 1 else 1 for axis in range(len(shape))])


def _along(equation: Equation, index: Index, size: int | str, axis: int) -> Index:
    """The channel at each position of one axis. Errors: `Immovable` if channels vary along other axes too."""
    if any(n != 1 for i, n in enumerate(index.shape) if i != axis) or isinstance(size, str):
        raise Immovable(f"its channels are not the features of {equation.name}")
    return np.broadcast_to(index.reshape(-1), (size,))


# -- to the left ------------------------------------------------------------------------------------------------------


def leftwards(known: Facts, batch_norm: Equation) -> list[Absorber]:
    """The layers before a batch norm that can take it up together. Errors: `Immovable`."""
    _check_parameters(known, batch_norm)
    return _absorbers(known, batch_norm, batch_norm.arguments[0], _behind(batch_norm), 1.0)


def _check_parameters(known: Facts, batch_norm: Equation) -> None:
    if not known.is_fixed(batch_norm.arguments[1:]):
        raise Immovable("its own parameters depend on the input")


def _absorbers(known: Facts, reader: Equation, value: Variable, index: Index, share: float) -> list[Absorber]:
    """The layers that together can scale a value and add a share of the shift."""
    maker = known.program.producers.get(value.name)
    if maker is None or not known.is_active(maker):
        is_input = any(leaf.value is value for leaf in known.program.input_leaves)
        raise Immovable("an input" if is_input else "a constant")
    is_read_once = _readers(known, value.name) == [reader] and [v.name for v in reader.reads].count(value.name) == 1
    if not is_read_once or value.name in known.results:
        raise Immovable(f"others read {maker.name} too")
    if len(maker.outputs) > 1:
        raise Immovable(f"only a part of {maker.name}")
    if takes_scale(known, maker) or is_batch_norm(maker):
        return [_absorber(known, maker, index, share)]
    if maker.operator == "cat":
        return _in_parts(known, maker, index, share)
    if maker.operator == "add" or maker.operator == "sub":
        return _in_terms(known, maker, index, share)
    if row_of(maker).moves is not None:
        moved, keeps_uniform = _moved(maker, index, to_left=True)
        if share and not keeps_uniform:
            raise Immovable(f"{described(maker)} changes constants")
        return _absorbers(known, maker, source_of(maker), moved, share)
    if known.kind_of(maker) == DENSE:
        raise Immovable(f"{described(maker)} has no place for a bias")
    raise Immovable(f"{described(maker)} is no linear layer")


def _absorber(known: Facts, layer: Equation, index: Index, share: float) -> Absorber:
    if is_batch_norm(layer):
        axis, parameters = 1, layer.arguments[1:]
    else:
        axis, parameters = channel_axis(layer), layer.arguments[positions(layer).bias]
    if not known.is_fixed(parameters):
        raise Immovable(f"the bias of {layer.name} is not constant")
    return Absorber(layer, _along(layer, index, layer.outputs[0].shape[axis], axis), share)


def _in_parts(known: Facts, cat: Equation, index: Index, share: float) -> list[Absorber]:
    """A concatenation along the channels has a range of them for each part, along other axes all of them."""
    parts, axis = _parts(cat)
    ranges = [index] * len(parts)
    if index.shape[axis] != 1:
        ranges = np.split(index, np.cumsum([part.shape[axis] for part in parts])[:-1], axis)
    found = []
    for part, own in zip(parts, ranges, strict=True):
        found += _absorbers(known, cat, part, own, share)
    return found


def _in_terms(known: Facts, total: Equation, index: Index, share: float) -> list[Absorber]:
    """In a sum both terms are scaled, and the shift goes to the first one that can take it."""
    second = total.keywords.get("alpha", 1) * (-1 if total.operator == "sub" else 1)
    ways = [(share, 0.0)] if not share or not second else [(share, 0.0), (0.0, share / second)]
    obstacles = []
    for shares in ways:
        try:
            found = []
            for term, own in zip(total.arguments[:2], shares, strict=True):
                found += _absorbers(known, total, term, _of_term(total, term, index), own)
            return found
        except Immovable as obstacle:
            obstacles.append(obstacle)
    raise obstacles[0]


def _of_term(total: Equation, term, index: Index) -> Index:
    """Where channels are in a term of a sum, which may have fewer dimensions."""
    if not isinstance(term, Variable):
        raise Immovable(f"{described(total)} has a constant term")
    missing = index.ndim - len(term.shape)
    full = (*[1] * missing, *term.shape)
    if any(n > 1 and size == 1 for n, size in zip(index.shape, full, strict=True)):
        raise Immovable(f"{described(total)} broadcasts its channels")
    return index.reshape(index.shape[missing:])


# -- to the right -----------------------------------------------------------------------------------------------------


def rightwards(known: Facts, batch_norm: Equation, through_activations: bool) -> Route:
    """The layers behind a batch norm that can take it up together, and the activations and maxima before them.

    Errors: `Immovable`, also for activations where `through_activations` is false.
    """
    _check_parameters(known, batch_norm)
    route = Route([], [], [])
    value = batch_norm.outputs[0].name
    carried: dict[str, Arrival] = {value: Arrival(batch_norm, _behind(batch_norm), None)}
    order = {equation.outputs[0].name: number for number, equation in enumerate(known.program.equations)}
    waiting = _in_order(known, value, order)
    while waiting:
        equation = waiting.pop(min(waiting))
        sources = [carried[v.name] for v in equation.reads if v.name in carried]
        output = equation.outputs[0].name
        arrival = sources[0]._replace(equation=equation)
        if equation.operator == "cat":
            carried[output] = _joined(equation, carried)
        elif len(sources) > 1 or len(equation.outputs) > 1:
            raise Immovable(f"{described(equation)} is no linear layer")
        elif takes_scale(known, equation):
            route.layers.append(_at_layer(known, arrival, carried))
        elif bounds(equation) is not None and through_activations and not arrival.path:
            route.activations.append(arrival)
            renumbered = np.arange(arrival.channels.size).reshape(arrival.channels.shape)
            carried[output] = Arrival(equation, renumbered, output)
        elif known.kind_of(equation) == MAX_POOL and row_of(equation).is_spatial and not arrival.path:
            route.pools.append(arrival)
            carried[output] = arrival._replace(channels=resized(equation, arrival.channels, to_left=False))
        elif row_of(equation).moves is not None:
            carried[output] = _passed(arrival)
        else:
            raise Immovable(f"{described(equation)} is no linear layer")
        if output in carried:
            waiting |= _in_order(known, output, order)
    if any(name in known.results for name in carried):
        raise Immovable("an output")
    return route


def _at_layer(known: Facts, arrival: Arrival, carried: dict[str, Arrival]) -> Arrival:
    layer, at = arrival.equation, positions(arrival.equation)
    x, axis = layer.arguments[at.input], channel_axis(layer)
    has_map = layer.operator.endswith("_bias_map")
    can_shift = has_map or known.is_fixed(layer.arguments[at.bias])
    fits = axis == 1 if is_convolution(layer) else not arrival.path
    if x.name not in carried or not (can_shift and fits):
        raise Immovable(f"{described(layer)} cannot take up a shift")
    return arrival._replace(channels=_along(layer, arrival.channels, x.shape[axis], axis))


def _passed(arrival: Arrival) -> Arrival:
    """A scale and shift behind a movement or an average."""
    equation = arrival.equation
    index, keeps_uniform = _moved(equation, arrival.channels, to_left=False)
    if keeps_uniform and not arrival.path:
        return arrival._replace(channels=index)
    if not row_of(equation).is_spatial:
        raise Immovable(f"{described(equation)} comes behind zero padding")
    if spatial_axes(equation) > arrival.channels.ndim - 2:  # of a batch norm with one channel
        raise Immovable(f"{described(equation)} pads its channels")
    return arrival._replace(channels=index, path=(*arrival.path, equation))


def _joined(cat: Equation, carried: dict[str, Arrival]) -> Arrival:
    """A scale and shift of some parts of a concatenation, the identity for the others."""
    parts, axis = _parts(cat)
    arrivals = [carried.get(part.name) for part in parts]
    known = [arrival for arrival in arrivals if arrival is not None]
    first = known[0]._replace(equation=cat)
    if any(arrival.origin != first.origin or arrival.path for arrival in known):
        raise Immovable(f"{described(cat)} joins what came on different ways")
    is_even = len(known) == len(parts) and all(np.array_equal(arrival.channels, first.channels) for arrival in known)
    if is_even and first.channels.shape[axis] == 1:
        return first
    if any(isinstance(part.shape[axis], str) for part in parts):
        raise Immovable(f"{described(cat)} joins {'other sizes' if axis else 'batches'}")
    shape = np.max([arrival.channels.shape for arrival in known], axis=0)
    spread = []
    for part, arrival in zip(parts, arrivals, strict=True):
        own = np.full([1] * len(shape), -1) if arrival is None else arrival.channels
        full: list = [part.shape[i] if i == axis else n for i, n in enumerate(shape)]
        spread.append(np.broadcast_to(own, full))
    return first._replace(channels=np.concatenate(spread, axis))


def _moved(equation: Equation, index: Index, to_left: bool) -> tuple[Index, bool]:
    """Where channels are on the other side of a movement or an average, and whether it keeps uniform values."""
    row = row_of(equation)
    assert row.moves is not None
    return row.moves(equation, index, to_left), row.keeps_uniform is None or row.keeps_uniform(equation)


def _readers(known: Facts, value: str) -> list[Equation]:
    """The equations that read a value, and not its shape only."""
    return [equation for equation in known.readers.get(value, ()) if not row_of(equation).reads_shape]


def _in_order(known: Facts, value: str, order: Mapping[str, int]) -> dict[int, Equation]:
    """The equations that read a value, by their number in the program."""
    return {order[equation.outputs[0].name]: equation for equation in _readers(known, value)}


def _parts(cat: Equation) -> tuple[Sequence[Variable], int]:
    """What a concatenation joins, and along which axis."""
    rank = len(cat.outputs[0].shape)
    if any(len(part.shape) != rank for part in cat.arguments[0]):  # torch lets empty tensors of any rank join
        raise Immovable(f"{described(cat)} joins an empty tensor")
    return cat.arguments[0], (cat.arguments[1] if len(cat.arguments) > 1 else 0) % rank
