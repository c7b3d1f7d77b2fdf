"""How a scale and a shift per channel, such as a batch norm's, move through a program.

y = a x + b moves left into the layers that make x, or right into the layers that read y. This is structure alone:
which layers would take it up, or why they cannot; what becomes of their parameters is the canonizers' business.

Where the channels are in a value is an array of channel numbers that broadcasts to it, -1 for what belongs to none:
behind a batch norm its shape is (1, C, 1, 1). So views need no axes to be followed, they act on the array.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lrpfunc.operations.kinds import is_active, kind
from lrpfunc.operations.table import BATCH_NORM, CONVOLUTION, DENSE, OPERATORS, UNKNOWN
from lrpfunc.program import DEVICE, DTYPE, Equation, Program, Variable, variables_in

Index = np.ndarray


class Immovable(Exception):
    """A scale and shift cannot move; the message says what is in the way."""


def _described(equation: Equation) -> str:
    is_clear = equation.operator in equation.name
    return equation.name if is_clear else f"{equation.name} ({equation.operator})"


class Absorber(NamedTuple):
    """A layer (or batch norm) that scales its output channel i by a[channels[i]] and adds share * b[channels[i]]."""

    layer: Equation
    channels: Index
    share: float


class Arrival(NamedTuple):
    """A scale and shift at an equation's input, as on the way to the right.

    `channels` says where its channels are. `origin` is the variable of the last activation that it came through, None
    for the batch norm itself. Behind an operation that does not keep constants (zero padding) the shift is no longer
    the same everywhere: it is what `path`, from there on, makes of it.
    """

    equation: Equation
    channels: Index
    origin: str | None
    path: tuple[Equation, ...] = ()


class Route(NamedTuple):
    """Where a batch norm's scale and shift arrive on the way to the right, in the program's order."""

    activations: list[Arrival]
    layers: list[Arrival]


class Bounds(NamedTuple):
    """An activation f(x) = c + slope (x - c), where c is x clamped between low and high (numbers or leaves)."""

    low: float | Variable
    high: float | Variable
    slope: float = 0.0


# What reads a value for its shape only.
SHAPE_READERS = ("size", "ones_of")


# -- structure --------------------------------------------------------------------------------------------------------


class Structure:
    """A program's readers, results and constants, computed once."""

    def __init__(self, program: Program):
        self.program = program
        self.inputs = {leaf.value.name for leaf in program.input_leaves if isinstance(leaf.value, Variable)}
        self.positions = {equation.outputs[0].name: i for i, equation in enumerate(program.equations)}
        self.readers: dict[str, list[Equation]] = {}
        for name, readers in program.readers().items():
            self.readers[name] = [equation for equation in readers if equation.operator not in SHAPE_READERS]
        self.results = {variable.name for variable in variables_in(program.output_leaves)}
        self.constants = {variable.name for variable in program.parameters.values()}
        if program.reference is not None and program.reference.name in self.constants:
            self.constants |= {DEVICE, DTYPE}
        for equation in program.equations:
            if all(variable.name in self.constants for variable in equation.reads):
                self.constants.update(variable.name for variable in equation.outputs)

    def readers_of(self, value: str) -> dict[int, Equation]:
        """The equations that read a value, by their position in the program."""
        return {self.positions[equation.outputs[0].name]: equation for equation in self.readers.get(value, [])}

    def is_constant(self, argument) -> bool:
        """Whether an argument depends on nothing but parameters."""
        return all(variable.name in self.constants for variable in variables_in(argument))

    def is_layer(self, equation: Equation) -> bool:
        """A convolution or dense layer with a constant weight and the usual places for its parameters."""
        operator = OPERATORS.get(equation.operator, UNKNOWN)
        layout = operator.layout
        return (
            layout is not None
            and layout.input is not None
            and equation.operator.startswith(("conv", "linear", "addmm"))
            and kind(self.program, equation) in (CONVOLUTION, DENSE)
            and self.is_constant(equation.arguments[layout.weight])
            and len(equation.arguments[layout.weight].shape) > 1
            and not any(value != 1 for value in equation.keywords.values())
        )


def batch_norms(program: Program) -> list[Equation]:
    """The batch norms that relevance comes to; those of weights are constants."""
    return [e for e in program.equations if is_batch_norm(e) and is_active(program, e)]


def is_batch_norm(equation: Equation) -> bool:
    """Whether an equation normalizes by statistics that are given."""
    return OPERATORS.get(equation.operator, UNKNOWN).kind == BATCH_NORM


class Places(NamedTuple):
    """Where a layer has its input, weight and bias, and its weight the output channels (None if it is transposed)."""

    input: int
    weight: int
    bias: int
    output_axis: int | None


def places(layer: Equation) -> Places:
    """Those of a layer, which has an input, a weight and a bias."""
    layout = OPERATORS[layer.operator].layout
    assert layout is not None
    assert layout.input is not None
    assert layout.bias is not None
    return Places(layout.input, layout.weight, layout.bias, layout.output_axis)


def channel_axis(layer: Equation) -> int:
    """The axis of a layer's input and output that counts channels."""
    rank = len(layer.outputs[0].shape)
    is_convolution = OPERATORS[layer.operator].kind == CONVOLUTION
    return rank + 1 - len(layer.arguments[places(layer).weight].shape) if is_convolution else rank - 1


def _behind(batch_norm: Equation) -> Index:
    """Where a batch norm's channels are in its output."""
    shape = batch_norm.outputs[0].shape
    return np.arange(shape[1]).reshape([-1 if axis == 1 else 1 for axis in range(len(shape))])


def _along(equation: Equation, index: Index, size: int | str, axis: int) -> Index:
    """The channel at each position of one axis. Errors: `Immovable` if channels vary along other axes too."""
    if any(n != 1 for i, n in enumerate(index.shape) if i != axis) or isinstance(size, str):
        raise Immovable(f"its channels are not the features of {equation.name}")
    return np.broadcast_to(index.reshape(-1), (size,))


# -- to the left ------------------------------------------------------------------------------------------------------


def leftwards(structure: Structure, batch_norm: Equation) -> list[Absorber]:
    """The layers before a batch norm that can take it up together. Errors: `Immovable`."""
    _check_parameters(structure, batch_norm)
    return _absorbers(structure, batch_norm, batch_norm.arguments[0], _behind(batch_norm), 1.0)


def _check_parameters(structure: Structure, batch_norm: Equation) -> None:
    if not structure.is_constant(batch_norm.arguments[1:]):
        raise Immovable("its own parameters depend on the input")


def _absorbers(structure: Structure, reader: Equation, value: Variable, index: Index, share: float) -> list[Absorber]:
    """The layers that together can scale a value and add a share of the shift."""
    maker = structure.program.producers.get(value.name)
    if maker is None or not is_active(structure.program, maker):
        raise Immovable("an input" if value.name in structure.inputs else "a constant")
    is_read_once = structure.readers[value.name] == [reader] and [v.name for v in reader.reads].count(value.name) == 1
    if not is_read_once or value.name in structure.results:
        raise Immovable(f"others read {maker.name} too")
    if len(maker.outputs) > 1:
        raise Immovable(f"only a part of {maker.name}")
    if structure.is_layer(maker) or maker.operator in ("batch_norm", "frozen_batch_norm"):
        return [_absorber(structure, maker, index, share)]
    if maker.operator == "cat":
        return _in_parts(structure, maker, index, share)
    if maker.operator in ("add", "sub"):
        return _in_terms(structure, maker, index, share)
    if maker.operator in MOVES:
        moved, keeps_constants = _moved(maker, index, to_left=True)
        if share and not keeps_constants:
            raise Immovable(f"{_described(maker)} changes constants")
        return _absorbers(structure, maker, _source(maker), moved, share)
    if kind(structure.program, maker) == DENSE:
        raise Immovable(f"{_described(maker)} has no place for a bias")
    raise Immovable(f"{_described(maker)} is no linear layer")


def _absorber(structure: Structure, layer: Equation, index: Index, share: float) -> Absorber:
    if is_batch_norm(layer):
        axis, parameters = 1, layer.arguments[1:]
    else:
        axis, parameters = channel_axis(layer), layer.arguments[places(layer).bias]
    if not structure.is_constant(parameters):
        raise Immovable(f"the bias of {layer.name} is not constant")
    return Absorber(layer, _along(layer, index, layer.outputs[0].shape[axis], axis), share)


def _in_parts(structure: Structure, cat: Equation, index: Index, share: float) -> list[Absorber]:
    """A concatenation along the channels has a range of them for each part, along other axes all of them."""
    parts, axis = _parts(cat)
    ranges = [index] * len(parts)
    if index.shape[axis] != 1:
        ranges = np.split(index, np.cumsum([part.shape[axis] for part in parts])[:-1], axis)
    found = []
    for part, own in zip(parts, ranges, strict=True):
        found += _absorbers(structure, cat, part, own, share)
    return found


def _in_terms(structure: Structure, total: Equation, index: Index, share: float) -> list[Absorber]:
    """In a sum both terms are scaled, and the shift goes to the first one that can take it."""
    second = total.keywords.get("alpha", 1) * (-1 if total.operator == "sub" else 1)
    ways = [(share, 0.0)] if not share or not second else [(share, 0.0), (0.0, share / second)]
    obstacles = []
    for shares in ways:
        try:
            found = []
            for term, own in zip(total.arguments[:2], shares, strict=True):
                found += _absorbers(structure, total, term, _of_term(total, term, index), own)
            return found
        except Immovable as obstacle:
            obstacles.append(obstacle)
    raise obstacles[0]


def _of_term(total: Equation, term, index: Index) -> Index:
    """Where channels are in a term of a sum, which may have fewer dimensions."""
    if not isinstance(term, Variable):
        raise Immovable(f"{_described(total)} has a constant term")
    missing = index.ndim - len(term.shape)
    full = (*[1] * missing, *term.shape)
    if any(n > 1 and size == 1 for n, size in zip(index.shape, full, strict=True)):
        raise Immovable(f"{_described(total)} broadcasts its channels")
    return index.reshape(index.shape[missing:])


# -- to the right -----------------------------------------------------------------------------------------------------


def rightwards(structure: Structure, batch_norm: Equation, through_activations: bool) -> Route:
    """The layers behind a batch norm that can take it up together, and the activations before them.

    Errors: `Immovable`, also for activations where `through_activations` is false.
    """
    _check_parameters(structure, batch_norm)
    route = Route([], [])
    value = batch_norm.outputs[0].name
    carried: dict[str, Arrival] = {value: Arrival(batch_norm, _behind(batch_norm), None)}
    waiting = structure.readers_of(value)
    while waiting:
        equation = waiting.pop(min(waiting))
        sources = [carried[v.name] for v in equation.reads if v.name in carried]
        output = equation.outputs[0].name
        arrival = sources[0]._replace(equation=equation)
        if equation.operator == "cat":
            carried[output] = _joined(equation, carried)
        elif len(sources) > 1 or len(equation.outputs) > 1:
            raise Immovable(f"{_described(equation)} is no linear layer")
        elif structure.is_layer(equation):
            route.layers.append(_at_layer(structure, arrival, carried))
        elif bounds(equation) is not None and through_activations and not arrival.path:
            route.activations.append(arrival)
            renumbered = np.arange(arrival.channels.size).reshape(arrival.channels.shape)
            carried[output] = Arrival(equation, renumbered, output)
        elif equation.operator in MOVES:
            carried[output] = _passed(arrival)
        else:
            raise Immovable(f"{_described(equation)} is no linear layer")
        if output in carried:
            waiting |= structure.readers_of(output)
    if any(name in structure.results for name in carried):
        raise Immovable("an output")
    return route


def _at_layer(structure: Structure, arrival: Arrival, carried: dict[str, Arrival]) -> Arrival:
    layer, at = arrival.equation, places(arrival.equation)
    x, axis = layer.arguments[at.input], channel_axis(layer)
    has_map = layer.operator.endswith("_bias_map")
    can_shift = has_map or structure.is_constant(layer.arguments[at.bias])
    if OPERATORS[layer.operator].kind == CONVOLUTION:
        can_shift = can_shift and axis == 1
    else:
        can_shift = can_shift and not arrival.path
    if x.name not in carried or not can_shift:
        raise Immovable(f"{_described(layer)} cannot take up a shift")
    return arrival._replace(channels=_along(layer, arrival.channels, x.shape[axis], axis))


def _passed(arrival: Arrival) -> Arrival:
    """A scale and shift behind a movement or an average."""
    equation = arrival.equation
    index, keeps_constants = _moved(equation, arrival.channels, to_left=False)
    if keeps_constants and not arrival.path:
        return arrival._replace(channels=index)
    if equation.operator not in SPATIAL:
        raise Immovable(f"{_described(equation)} comes behind zero padding")
    if _dimensions(equation) > arrival.channels.ndim - 2:  # of a batch norm with one channel
        raise Immovable(f"{_described(equation)} pads its channels")
    return arrival._replace(channels=index, path=(*arrival.path, equation))


def _joined(cat: Equation, carried: dict[str, Arrival]) -> Arrival:
    """A scale and shift of some parts of a concatenation, the identity for the others."""
    parts, axis = _parts(cat)
    arrivals = [carried.get(part.name) for part in parts]
    known = [arrival for arrival in arrivals if arrival is not None]
    first = known[0]._replace(equation=cat)
    if any(arrival.origin != first.origin or arrival.path for arrival in known):
        raise Immovable(f"{_described(cat)} joins what came on different ways")
    is_even = len(known) == len(parts) and all(np.array_equal(arrival.channels, first.channels) for arrival in known)
    if is_even and first.channels.shape[axis] == 1:
        return first
    if any(isinstance(part.shape[axis], str) for part in parts):
        raise Immovable(f"{_described(cat)} joins batches")
    shape = np.max([arrival.channels.shape for arrival in known], axis=0)
    spread = []
    for part, arrival in zip(parts, arrivals, strict=True):
        own = np.full([1] * len(shape), -1) if arrival is None else arrival.channels
        full: list = [part.shape[i] if i == axis else n for i, n in enumerate(shape)]
        spread.append(np.broadcast_to(own, full))
    return first._replace(channels=np.concatenate(spread, axis))


def bounds(equation: Equation) -> Bounds | None:
    """An activation as a clamp with a slope outside, None if it is none."""
    _, *arguments = equation.arguments
    infinity = float("inf")
    match equation.operator, arguments:
        case "relu", []:
            return Bounds(0.0, infinity)
        case "relu6", []:
            return Bounds(0.0, 6.0)
        case "leaky_relu", [slope]:
            return Bounds(0.0, infinity, slope)
        case "hardtanh" | "clamp", [(int() | float() | None) as low, (int() | float() | None) as high]:
            # of bounds that cross the upper one wins, which is another one for negative scales
            crosses = low is not None and high is not None and low > high
            return None if crosses else Bounds(-infinity if low is None else low, infinity if high is None else high)
        case "clamp_min", [(int() | float()) as low]:
            return Bounds(low, infinity)
        case "clamp_max", [(int() | float()) as high]:
            return Bounds(-infinity, high)
        case "threshold_relu", [low, high, slope]:
            return Bounds(low, high, slope)
    return None


# -- movements and averages -------------------------------------------------------------------------------------------


def _moved(equation: Equation, index: Index, to_left: bool) -> tuple[Index, bool]:
    """Where channels are on the other side of a movement or an average, and whether it keeps constants."""
    return MOVES[equation.operator](equation, index, to_left), _keeps_constants(equation)


def _keeps_constants(equation: Equation) -> bool:
    """Whether of a constant comes that constant; not where zeros at the border count as values."""
    arguments = equation.arguments
    if equation.operator.startswith("avg_pool"):
        padding, count_include_pad, divisor = arguments[3], arguments[5], arguments[6:7]
        is_padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
        return not (is_padded and count_include_pad) and divisor in ((), (None,))
    return equation.operator not in PADS or arguments[2:3] in (("reflect",), ("replicate",), ("circular",))


def _source(equation: Equation) -> Variable:
    source = equation.arguments[0]
    assert isinstance(source, Variable)
    return source


def _parts(cat: Equation) -> tuple[Sequence[Variable], int]:
    """What a concatenation joins, and along which axis."""
    rank = len(cat.outputs[0].shape)
    if any(len(part.shape) != rank for part in cat.arguments[0]):  # torch lets empty tensors of any rank join
        raise Immovable(f"{_described(cat)} joins an empty tensor")
    return cat.arguments[0], (cat.arguments[1] if len(cat.arguments) > 1 else 0) % rank


def _same(equation: Equation, index: Index, to_left: bool) -> Index:
    return index


def _reshaped(equation: Equation, index: Index, to_left: bool) -> Index:
    before, after = _source(equation).shape, equation.outputs[0].shape
    if to_left:
        before, after = after, before
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    head, middle, tail = index.shape[:start], index.shape[start : start + len(old)], index.shape[start + len(old) :]
    if all(n == 1 for n in middle):
        return index.reshape(*head, *[1] * len(new), *tail)
    if any(isinstance(n, str) for n in (*old, *new)):
        raise Immovable(f"{_described(equation)} mixes its channels with the batch")
    full: list = [*head, *old, *tail]
    spread = np.broadcast_to(index, full).reshape(*head, *new, *tail)
    for axis in range(start, start + len(new)):
        first = spread.take([0], axis)
        spread = first if (spread == first).all() else spread
    return spread


def _common(one: Sequence, other: Sequence) -> int:
    """How many sizes two shapes begin with that are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (n, m) in pairs if n != m), min(len(one), len(other)))


def _transposed(equation: Equation, index: Index, to_left: bool) -> Index:
    return index.swapaxes(*equation.arguments[1:3])


def _permuted(equation: Equation, index: Index, to_left: bool) -> Index:
    order = [axis % index.ndim for axis in equation.arguments[1]]
    return index.transpose(np.argsort(order) if to_left else order)


def _resized(equation: Equation, index: Index, to_left: bool) -> Index:
    """Of what changes the last axes."""
    return _unless_mixed(equation, index, range(-_dimensions(equation), 0))


def _dimensions(equation: Equation) -> int:
    if equation.operator in PADS:
        return len(equation.arguments[1]) // 2
    return int(re.findall(r"(\d)d", equation.operator)[0])


def _padded(equation: Equation, index: Index, to_left: bool) -> Index:
    if any(isinstance(value, (int, float)) and value != 0 for value in equation.arguments[2:]):
        raise Immovable(f"{_described(equation)} adds values other than zero")
    return _resized(equation, index, to_left)


def _averaged(equation: Equation, index: Index, to_left: bool) -> Index:
    rank = len(_source(equation).shape)
    given = equation.arguments[1] if len(equation.arguments) > 1 else None
    axes = tuple(axis % rank for axis in given or range(rank))  # none and [] mean all
    keeps_rank = len(equation.outputs[0].shape) == rank
    if to_left:
        return index if keeps_rank else np.expand_dims(index, axes)
    index = _unless_mixed(equation, index, axes)
    return index if keeps_rank else index.squeeze(axes)


def _unless_mixed(equation: Equation, index: Index, axes: Sequence[int]) -> Index:
    if any(index.shape[axis] != 1 for axis in axes):
        raise Immovable(f"{_described(equation)} mixes its channels")
    return index


PADS = ("pad", "constant_pad_nd")

RESIZES = """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
"""

# What acts on the last axes only, on each channel alike.
SPATIAL = {**dict.fromkeys(RESIZES.split(), _resized), **dict.fromkeys(PADS, _padded)}

MOVES: dict[str, Callable[[Equation, Index, bool], Index]] = {
    **SPATIAL,
    **dict.fromkeys(("contiguous", "clone"), _same),
    **dict.fromkeys(("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed),
    "permute": _permuted,
    "mean": _averaged,
}
