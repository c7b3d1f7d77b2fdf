"""Canonization: the same function in a form that LRP can explain, as a new program and new parameters.

A pass is a pure function `(program, params) -> (program, params)` on a flat dict of parameters, differentiable in them.
Layers and batch norms are matched by data flow (`channels`): no pass knows modules or the order of their registration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.canonizers.draft import Draft, Parameters, check_flat
from lrpfunc.canonizers.splicing import splice
from lrpfunc.errors import CanonizeError, near_misses
from lrpfunc.operations import (
    Absorber,
    Arrival,
    Facts,
    Immovable,
    Index,
    Route,
    active_equations,
    batch_norms,
    bounds,
    channel_axis,
    facts,
    is_batch_norm,
    is_convolution,
    leftwards,
    positions,
    rightwards,
    takes_scale,
)
from lrpfunc.program import BIAS_MAPS, Equation, Program, Variable, format_table, functions

aten = torch.ops.aten

Pass = Callable[[Program, Parameters], tuple[Program, Parameters]]

MERGED, MERGED_RIGHT, THRESHOLD, REPLACED, LEFT = "merged", "merged right", "threshold", "replaced", "left"
UNREAD = ("gone", "nothing reads it")


class Fate(NamedTuple):
    """What became of a batch norm (merged, merged right, threshold, replaced, gone, left), and into what or why."""

    became: str
    where: str


@dataclass(frozen=True, repr=False)
class Report:
    """What became of each batch norm, by name; `print` shows it as a table."""

    fates: Mapping[str, Fate]

    @property
    def left(self) -> dict[str, str]:
        """The batch norms that stayed, and why."""
        return {name: fate.where for name, fate in self.fates.items() if fate.became == LEFT}

    def __str__(self) -> str:
        if not self.fates:
            return "no batch norms"
        return format_table(("batch norm", "became", "where"), [(name, *fate) for name, fate in self.fates.items()])

    def __repr__(self) -> str:
        return str(self)


class Canonical(NamedTuple):
    """The result of `canonize`. `restore(params)` turns canonical parameters back into the original ones."""

    fmodel: Program
    params: Parameters
    restore: Callable[[Parameters], Parameters]
    report: Report


def canonize(fmodel: Program, params: Parameters, passes: Pass | None = None) -> Canonical:
    """The canonical form: batch norms folded into layers, the same function, nothing mutated.

    `passes` is what to do: by default `merge_batch_norm`, `merge_batch_norm_right` and `threshold_relu`, in this order.
    `restore` gives the original parameters bit for bit: what a pass changed comes from the original, everything else
    from the parameters that are given to it. `report` says what became of each batch norm. The canonical parameters
    alone, given to the original `fmodel`, give the same function wherever only `merge_batch_norm` was needed and no
    weight is shared or computed.
    Errors: `ParameterError` for parameters that do not fit; `CanonizeError` if they are no flat dict, for passes that
    are none, and if a batch norm's variance + eps is not positive or its scale or shift not finite (which nobody can
    see inside vmap and torch.compile).
    """
    check_flat(fmodel, params)
    program, new = _applied(DEFAULT if passes is None else passes, fmodel, params)
    originals = {name: params[name] for name in params if new[name] is not params[name]}

    def restore(canonical_params: Parameters) -> Parameters:
        program.flatten_params(canonical_params)
        return {name: originals.get(name, canonical_params[name]) for name in params}

    return Canonical(program, new, restore, _report(fmodel, program))


def _applied(one: Pass, program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """What a pass makes of a program, checked."""
    if not callable(one):
        raise CanonizeError(
            f"a pass is a function (program, params) -> (program, params), but got {type(one).__name__}. "
            "For several passes use canonizers.chain(first, second)."
        )
    name = getattr(one, "__name__", type(one).__name__)
    made = one(program, params)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Program)):
        raise CanonizeError(
            f"the pass '{name}' must return (program, params), but returned {type(made).__name__}. "
            "If it is made by a function, call that first: canonizers.replace(name, function)."
        )
    check_flat(*made)
    if missing := params.keys() - made[1].keys():
        raise CanonizeError(f"the pass '{name}' dropped the leaf '{min(missing)}': a pass may only add leaves.")
    return made


def _report(before: Program, after: Program) -> Report:
    known = facts(after)
    left = {equation.name: equation for equation in batch_norms(after)}
    fates = {}
    for name in (equation.name for equation in batch_norms(before)):
        is_left = name in left
        fates[name] = Fate(LEFT, _obstacles(known, left[name])) if is_left else Fate(*after.notes.get(name, UNREAD))
    return Report(fates)


def _obstacles(known: Facts, batch_norm: Equation) -> str:
    found = []
    for where, find in (("before it", leftwards), ("behind it", _rightwards)):
        try:
            find(known, batch_norm)
        except Immovable as obstacle:
            found.append(f"{where}: {obstacle}")
    return "; ".join(found) if len(found) == 2 else "no pass was told to fold it"


# -- passes -----------------------------------------------------------------------------------------------------------


def chain(*passes: Pass) -> Pass:
    """Passes one after another, as one pass."""

    def chained(program: Program, params: Parameters) -> tuple[Program, Parameters]:
        for one in passes:
            program, params = _applied(one, program, params)
        return program, params

    return chained


def merge_batch_norm(program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """Fold each batch norm into the linear layer before it, if nothing else reads that layer.

    W' = s W, b' = s (b - mean) + beta, s = gamma / sqrt(var + eps). Views and averages may come between; of layers that
    are concatenated each gets its channels, of layers that are added all are scaled and one is shifted. The batch
    norm's equation goes; its leaves, unless another equation still reads them, become the identity: mean 0, var 1,
    weight 1, bias 0, eps 0. A weight that other equations read too, or that is computed from others, is left as it is,
    and the layer gets its own leaf.
    Errors: `CanonizeError` for batch norms whose values cannot be folded, as `canonize`.
    Source: Guillemot et al. 2020, arXiv:2002.11018.
    """
    return _fold_all(program, params, leftwards, _merge_left)


def merge_batch_norm_right(program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """Fold each batch norm into the linear layers behind it, if all that reads it are such.

    With y = a x + d: W' = W a, b' = b + W d. Where a layer pads with zeros, and in a transposed convolution, W d
    differs from place to place: the bias becomes the map that the layer makes of the shift, computed for the size at
    hand. The layer's sum of W d over input channels is a new leaf, "conv.shift".
    Errors: `CanonizeError` for batch norms whose values cannot be folded, as `canonize`.
    """
    return _fold_all(program, params, partial(rightwards, through_activations=False), _merge_right)


def threshold_relu(program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """Fold each batch norm before ReLUs into the linear layers behind them, as in DenseNet; averages may come between.

    relu(a x + b) = a t(x) + b, where t(x) = max(x, -b / a) for a > 0 and min(x, -b / a) for a < 0; where a = 0 it is
    the constant relu(b). The threshold ReLU t passes relevance on as any activation, but is not non-negative; a and b
    move on as in `merge_batch_norm_right`. So do ReLU6, hardtanh, clamps by numbers and LeakyReLU, whose bends all
    move. The bends are new leaves, "relu.low" and "relu.high", infinite where there is none.
    Errors: `CanonizeError` for batch norms whose values cannot be folded, as `canonize`.
    Source: zennit pull request 171; Motzkus et al. 2022, arXiv:2202.06621.
    """
    return _fold_all(program, params, _rightwards, _merge_right)


def replace(name: str, function: Callable) -> Pass:
    """Replace an equation, or all equations below a module's path, by a function `f(params, *inputs)`.

    `params` are all parameters, as canonize has them; `inputs` are the values that the equations read from outside, in
    the order in which they read them (one for an activation). f returns what others read from them: one tensor, or a
    tuple of several. It is traced: the rules see its operations. An equation that has a name of its own is replaced at
    each call ("relu", "relu:1"); all equations below a module's path make one block.
    Errors: `CanonizeError` for an unknown name, a block with others in between, a function that cannot be traced, and
    results of another shape or dtype.
    """

    if not isinstance(name, str) or not callable(function):
        given = f"{type(name).__name__} and {type(function).__name__}"
        raise CanonizeError(f"replace needs a name and a function f(params, *inputs), but got {given}.")

    def replaced(program: Program, params: Parameters) -> tuple[Program, Parameters]:
        return splice(program, params, name, function)

    return replaced


def merge_named(pairs: Iterable[tuple[str | Sequence[str], str]]) -> Pass:
    """Fold only the batch norms that are named, each with the layer (or layers) that must take it up.

    `pairs`: `[("conv1", "bn1"), (("branch1.fc", "branch2.fc"), "bn2")]`, or a mapping, by the names that
    `print(fmodel)` lists. The layers may come before the batch norm or behind it. Nothing is taken on trust: the
    function stays the same.
    Errors: `CanonizeError` for unknown names, widths that do not fit, and where the data flow allows no such fold.
    """
    named = [_checked_pair(pair) for pair in (pairs.items() if isinstance(pairs, Mapping) else pairs)]

    def merge(program: Program, params: Parameters) -> tuple[Program, Parameters]:
        for layers, batch_norm in named:
            program, params = _merge_one(program, params, layers, batch_norm)
        return program, params

    return merge


DEFAULT = chain(merge_batch_norm, merge_batch_norm_right, threshold_relu)


# -- folding ----------------------------------------------------------------------------------------------------------

Found = list[Absorber] | Route
Find = Callable[[Facts, Equation], Any]  # something Found, which the Merge beside it takes
Merge = Callable[[Draft, Equation, Any], None]
_rightwards = partial(rightwards, through_activations=True)


def _fold_all(program: Program, params: Parameters, find: Find, merge: Merge):
    """Fold all batch norms that `find` finds a place for, again until there is none: one may make place for another."""
    while True:
        draft = Draft(program, params)
        for batch_norm in batch_norms(program):
            try:
                found = find(draft.facts, batch_norm)
            except Immovable:
                continue
            if draft.is_free([batch_norm, *_touched(found)]):  # else in the next round
                merge(draft, batch_norm, found)
        if not draft.bypassed:
            return program, params
        program, params = draft.finish()


def _touched(found: Found) -> list[Equation]:
    if isinstance(found, Route):
        return [arrival.equation for arrival in (*found.activations, *found.layers)]
    return [absorber.layer for absorber in found]


def _merge_one(program: Program, params: Parameters, layers: tuple[str, ...], name: str):
    draft = Draft(program, params)
    batch_norm = _named(program, name)
    if not is_batch_norm(batch_norm):
        raise CanonizeError(
            f"'{name}' is no batch norm but {batch_norm.operator}: name the layer first, then the norm."
        )
    for layer in layers:
        _check_width(draft.facts, _named(program, layer), batch_norm)
    obstacles = []
    ways: list[tuple[Find, Merge]] = [(leftwards, _merge_left), (_rightwards, _merge_right)]
    for find, merge in ways:
        try:
            found = find(draft.facts, batch_norm)
        except Immovable as obstacle:
            obstacles.append(str(obstacle))
            continue
        taking = [equation.name for equation in _touched(found) if takes_scale(draft.facts, equation)]
        if sorted(taking) == sorted(layers):
            merge(draft, batch_norm, found)
            return draft.finish()
        obstacles.append("it would go into " + " and ".join(map(repr, taking)))
    raise CanonizeError(
        f"batch norm '{name}' cannot be merged into {' and '.join(map(repr, layers))}. "
        f"Before it: {obstacles[0]}; behind it: {obstacles[1]}."
    )


def _checked_pair(pair) -> tuple[tuple[str, ...], str]:
    match pair:
        case str(layer), str(batch_norm):
            return (layer,), batch_norm
        case [*layers], str(batch_norm) if layers and all(isinstance(layer, str) for layer in layers):
            return tuple(layers), batch_norm
    raise CanonizeError(
        f'merge_named needs pairs of names, [("conv1", "bn1"), (("fc1", "fc2"), "bn2")], but got {pair!r}.'
    )


def _named(program: Program, name: str) -> Equation:
    names = {equation.name: equation for equation in active_equations(program)}
    if name not in names:
        raise CanonizeError(f"no layer is called '{name}'.{near_misses(name, names)} `print(fmodel)` lists all names.")
    return names[name]


def _check_width(known: Facts, layer: Equation, batch_norm: Equation) -> None:
    if not takes_scale(known, layer):
        raise CanonizeError(f"'{layer.name}' is no linear layer but {layer.operator}: nothing can be merged into it.")
    width, source = batch_norm.outputs[0].shape[1], layer.arguments[positions(layer).input]
    widths = [variable.shape[channel_axis(layer)] for variable in (source, layer.outputs[0])]
    if not any(isinstance(n, int) and isinstance(width, int) and n % width == 0 for n in widths):
        raise CanonizeError(
            f"batch norm '{batch_norm.name}' has {width} channels, but layer '{layer.name}' has "
            f"{widths[0]} inputs and {widths[1]} outputs."
        )


def _merge_left(draft: Draft, batch_norm: Equation, absorbers: list[Absorber]) -> None:
    scales, shifts = draft.scale_and_shift(batch_norm)
    for layer, channels, share in absorbers:
        scale, shift = _gathered(scales, channels, rest=1.0), share * _gathered(shifts, channels, rest=0.0)
        weight_at, bias_at = (1, 2) if is_batch_norm(layer) else (positions(layer).weight, positions(layer).bias)
        weight, bias = layer.arguments[weight_at], layer.arguments[bias_at]
        like = weight or layer.arguments[4]  # a batch norm without a weight has its variance
        arguments = list(layer.arguments)
        scaled = _scaled(layer, draft.value(weight), scale)
        arguments[weight_at] = draft.own_leaf(layer, weight, "weight", scaled, like)
        if bias is not None or share:
            moved = shift if bias is None else scale * draft.value(bias) + shift
            arguments[bias_at] = draft.own_leaf(layer, bias, "bias", moved, like)
        draft.put(dataclasses.replace(layer, arguments=tuple(arguments)))
    draft.bypass(batch_norm, MERGED, ", ".join(absorber.layer.name for absorber in absorbers))


def _scaled(layer: Equation, weight: Tensor | None, scale: Tensor) -> Tensor:
    """The weight with each output channel scaled."""
    if weight is None:
        return scale
    if is_batch_norm(layer):
        return weight * scale
    axis = positions(layer).output_axis
    if axis is not None:
        return weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    grouped = weight.unflatten(0, (_groups(layer), -1))  # of a transposed convolution, (in, out / groups, ...)
    return (grouped * scale.reshape(_groups(layer), 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


def _groups(convolution: Equation) -> int:
    return convolution.arguments[6]


def _merge_right(draft: Draft, batch_norm: Equation, route: Route) -> None:
    moved: dict[str | None, tuple[Tensor, Tensor]] = {None: draft.scale_and_shift(batch_norm)}
    for activation in route.activations:
        moved[activation.equation.outputs[0].name] = _bend_elsewhere(
            draft, activation, *moved[activation.origin], like=batch_norm.arguments[4]
        )
    for layer in route.layers:
        scales, shifts = moved[layer.origin]
        scale, shift = _gathered(scales, layer.channels, rest=1.0), _gathered(shifts, layer.channels, rest=0.0)
        take_up = _into_convolution if _is_convolution(layer.equation) else _into_dense
        take_up(draft, layer, scale, shift)
    where = ", ".join(arrival.equation.name for arrival in (*route.activations, *route.layers))
    draft.bypass(batch_norm, THRESHOLD if route.activations else MERGED_RIGHT, where)


def _is_convolution(layer: Equation) -> bool:
    return is_convolution(layer)


def _bend_elsewhere(draft: Draft, arrival: Arrival, scales: Tensor, shifts: Tensor, like: Variable):
    """Make f(a x + b) = a t(x) + b of an activation, and return a and b behind it.

    Where a is 0, or too small to divide by, t is the identity, and a and b become f'(b) a and f(b).
    """
    activation = arrival.equation
    found = bounds(activation)
    assert found is not None
    a, b = _gathered(scales, arrival.channels, rest=1.0), _gathered(shifts, arrival.channels, rest=0.0)
    low, high = (torch.as_tensor(draft.value(bound), dtype=a.dtype, device=a.device) for bound in found[:2])
    dtype = draft.value(like).dtype
    is_flat = (a == 0) | _overflows(low, a, b, dtype) | _overflows(high, a, b, dtype)
    divisor = torch.where(is_flat, 1.0, a)
    first, second = _pulled_back(low, divisor, b), _pulled_back(high, divisor, b)
    new_low = torch.where(is_flat, -torch.inf, torch.where(a < 0, second, first))
    new_high = torch.where(is_flat, torch.inf, torch.where(a < 0, first, second))
    low_leaf = draft.own_leaf(activation, found.low, "low", new_low, like)
    high_leaf = draft.own_leaf(activation, found.high, "high", new_high, like)
    arguments = (activation.arguments[0], low_leaf, high_leaf, found.slope)
    draft.put(dataclasses.replace(activation, function=functions.threshold_relu, arguments=arguments))
    value = functions.threshold_relu(b, low, high, found.slope)
    derivative = torch.where((low < b) & (b < high), 1.0, found.slope)
    return torch.where(is_flat, a * derivative, a).flatten(), torch.where(is_flat, value, b).flatten()


def _overflows(bound: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether a is so small that the bend is nowhere in a dtype."""
    return bound.isfinite() & ~((bound - b) / a).to(dtype).isfinite()


def _pulled_back(bound: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The x for which a x + b is a bound, with a derivative also where that is infinite."""
    is_finite = bound.isfinite()
    return torch.where(is_finite, (torch.where(is_finite, bound, 0.0) - b) / a, bound * a.detach().sign())


def _into_dense(draft: Draft, arrival: Arrival, scale: Tensor, shift: Tensor) -> None:
    layer, at = arrival.equation, positions(arrival.equation)
    weight, bias = layer.arguments[at.weight], layer.arguments[at.bias]
    matrix = draft.value(weight).to(scale.dtype)
    is_output_first = at.output_axis == 0
    added = matrix @ shift if is_output_first else shift @ matrix
    added = added if bias is None else draft.value(bias) + added
    scaled = matrix * (scale if is_output_first else scale[:, None])
    arguments = list(layer.arguments)
    arguments[at.weight] = draft.own_leaf(layer, weight, "weight", scaled, weight)
    arguments[at.bias] = draft.own_leaf(layer, bias, "bias", added, weight)
    draft.put(dataclasses.replace(layer, arguments=tuple(arguments)))


def _into_convolution(draft: Draft, arrival: Arrival, scale: Tensor, shift: Tensor) -> None:
    layer, at = arrival.equation, positions(arrival.equation)
    weight, bias = layer.arguments[at.weight], layer.arguments[at.bias]
    scaled, kernel = _by_input_channel(layer, draft.value(weight), scale, shift)
    arguments = list(layer.arguments)
    arguments[at.weight] = draft.own_leaf(layer, weight, "weight", scaled, weight)
    has_map = layer.operator.endswith("_bias_map")
    if not has_map and not arrival.path and _is_even(layer):
        added = kernel.flatten(1).sum(1)
        added = added if bias is None else added + draft.value(bias)
        arguments[at.bias] = draft.own_leaf(layer, bias, "bias", added, weight)
        draft.put(dataclasses.replace(layer, arguments=tuple(arguments)))
        return
    shift_leaf = draft.new_leaf(f"{layer.name}.shift", kernel, weight)
    made = _bias_map(draft, arrival, shift_leaf, None if has_map else bias)
    if has_map:
        made.append(draft.equation(f"{layer.name}.bias", aten.add.Tensor, (bias, made[-1].outputs[0]), bias.shape))
    arguments[at.bias] = made[-1].outputs[0]
    function = BIAS_MAPS[layer.operator.removesuffix("_bias_map")]
    draft.put(dataclasses.replace(layer, function=function, arguments=tuple(arguments)), before=made)


def _by_input_channel(layer: Equation, weight: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The weight with each input channel scaled, and the sum over input channels of the weight with each scaled by the
    shift: a kernel of one input channel per group.
    """
    groups, rest = _groups(layer), [1] * (weight.dim() - 2)
    if positions(layer).output_axis is None:  # a transposed convolution, (in, out / groups, ...)
        kernel = (weight * shift.reshape(-1, 1, *rest)).unflatten(0, (groups, -1)).sum(1)
        return weight * scale.reshape(-1, 1, *rest), kernel
    grouped = weight.unflatten(0, (groups, -1))  # (groups, out / groups, in / groups, ...)
    scaled, shifted = (grouped * values.reshape(groups, 1, -1, *rest) for values in (scale, shift))
    return scaled.reshape(weight.shape), shifted.reshape(weight.shape).sum(1, keepdim=True)


def _is_even(convolution: Equation) -> bool:
    """Whether a convolution makes a constant of a constant: it must not pad with zeros, nor be a transposed one."""
    if positions(convolution).output_axis is None:
        return False
    weight, padding = convolution.arguments[1], convolution.arguments[4]
    if isinstance(padding, str):
        return padding == "valid" or all(n == 1 for n in weight.shape[2:])
    return not any(padding)


def _bias_map(draft: Draft, arrival: Arrival, kernel: Variable, bias: Variable | None) -> list[Equation]:
    """Equations that send ones the way of the shift: what a shift of each channel becomes behind padding and layer."""
    layer = arrival.equation
    source = (arrival.path or [layer])[0].arguments[0]
    groups = _groups(layer)
    made = [draft.equation(f"{layer.name}.ones", functions.ones_of, (source, groups), (1, groups, *source.shape[2:]))]
    for step in arrival.path:
        arguments = (made[-1].outputs[0], *step.arguments[1:])
        shape = (1, groups, *step.outputs[0].shape[2:])
        made.append(draft.equation(f"{layer.name}.{step.operator}", step.function, arguments, shape, step.keywords))
    convolve = getattr(torch, layer.operator.removesuffix("_bias_map"))
    arguments = (made[-1].outputs[0], kernel, bias, *layer.arguments[3:])
    made.append(draft.equation(f"{layer.name}.bias", convolve, arguments, (1, *layer.outputs[0].shape[1:])))
    return made


def _gathered(values: Tensor, channels: Index, rest: float) -> Tensor:
    """values[channels] in the shape of `channels`, `rest` where those are -1."""
    padded = torch.cat([values, values.new_full((1,), rest)])
    return padded[torch.from_numpy(channels.copy()).to(values.device)]
