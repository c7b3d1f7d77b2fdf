"""A batch norm folded into the layers behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from lrpfunc.canonizers.batch_norms import BATCH_NORMS, gather, has_no_negative, scale_and_shift, take_away
from lrpfunc.canonizers.draft import Draft
from lrpfunc.canonizers.folds import Fold
from lrpfunc.operations import Arrival, Facts, Route, is_convolution, positions, rightwards
from lrpfunc.program import BIAS_MAPS, Equation, Variable, functions

aten = torch.ops.aten

MERGED_RIGHT = "merged right"

Moved = Mapping[str | None, tuple[Tensor, Tensor]]  # a scale and a shift, by the variable that they come from


def _find(known: Facts, batch_norm: Equation) -> Route:
    return rightwards(known, batch_norm, through_activations=False)


def touched(route: Route) -> list[Equation]:
    """The equations that take up a batch norm on the way to the right."""
    return [arrival.equation for arrival in (*route.activations, *route.pools, *route.layers)]


def merge(draft: Draft, batch_norm: Equation, route: Route) -> None:
    """Fold a batch norm along a way without activations."""
    moved: Moved = {None: scale_and_shift(draft, batch_norm)}
    turn_pools(draft, route, moved, like=batch_norm.arguments[4])
    into_layers(draft, route, moved)
    take_away(draft, batch_norm, MERGED_RIGHT, ", ".join(equation.name for equation in touched(route)))


def turn_pools(draft: Draft, route: Route, moved: Moved, like: Variable) -> None:
    """Let maxima commute with a scale and shift: max(a x + b) = a s max(s x) + b, where s is the sign of a."""
    for arrival in route.pools:
        pool, scale = arrival.equation, gather(moved[arrival.origin][0], arrival.channels, rest=1.0)
        if has_no_negative(scale):
            continue
        sign = draft.add_leaf(f"{pool.name}.sign", torch.where(scale < 0, -1.0, 1.0), like)
        source, result = pool.arguments[0], pool.outputs[0]
        turned = draft.new_equation(f"{pool.name}.turned", aten.mul.Tensor, (source, sign), source.shape)
        arguments = (turned.outputs[0], *pool.arguments[1:])
        pooled = draft.new_equation(f"{pool.name}.of_turned", pool.function, arguments, result.shape, pool.keywords)
        back = draft.new_equation(f"{pool.name}.turned_back", aten.mul.Tensor, (pooled.outputs[0], sign), result.shape)
        before = [turned, dataclasses.replace(pooled, name=pool.name)]
        draft.exchange(dataclasses.replace(back, outputs=pool.outputs), before)


def into_layers(draft: Draft, route: Route, moved: Moved) -> None:
    """Let the layers at the end of a way take up a scale and shift."""
    for layer in route.layers:
        scales, shifts = moved[layer.origin]
        scale, shift = gather(scales, layer.channels, rest=1.0), gather(shifts, layer.channels, rest=0.0)
        (_into_convolution if is_convolution(layer.equation) else _into_dense)(draft, layer, scale, shift)


def _into_dense(draft: Draft, arrival: Arrival, scale: Tensor, shift: Tensor) -> None:
    layer, at = arrival.equation, positions(arrival.equation)
    weight, bias = layer.arguments[at.weight], layer.arguments[at.bias]
    matrix = draft.value(weight).to(scale.dtype)
    is_output_first = at.output_axis == 0
    added = matrix @ shift if is_output_first else shift @ matrix
    added = added if bias is None else draft.value(bias) + added
    scaled = matrix * (scale if is_output_first else scale[:, None])
    arguments = list(layer.arguments)
    arguments[at.weight] = draft.write_leaf(layer, "weight", weight, scaled, weight)
    arguments[at.bias] = draft.write_leaf(layer, "bias", bias, added, weight)
    draft.exchange(dataclasses.replace(layer, arguments=tuple(arguments)))


def _into_convolution(draft: Draft, arrival: Arrival, scale: Tensor, shift: Tensor) -> None:
    layer, at = arrival.equation, positions(arrival.equation)
    weight, bias = layer.arguments[at.weight], layer.arguments[at.bias]
    scaled, kernel = _by_input_channel(layer, draft.value(weight), scale, shift)
    arguments = list(layer.arguments)
    arguments[at.weight] = draft.write_leaf(layer, "weight", weight, scaled, weight)
    has_map = layer.operator.endswith("_bias_map")
    if not has_map and not arrival.path and _keeps_uniform_values(layer):
        added = kernel.flatten(1).sum(1)
        added = added if bias is None else added + draft.value(bias)
        arguments[at.bias] = draft.write_leaf(layer, "bias", bias, added, weight)
        draft.exchange(dataclasses.replace(layer, arguments=tuple(arguments)))
        return
    shift_leaf = draft.add_leaf(f"{layer.name}.shift", kernel, weight)
    made = _bias_map(draft, arrival, shift_leaf, None if has_map else bias)
    if has_map:
        made.append(draft.new_equation(f"{layer.name}.bias", aten.add.Tensor, (bias, made[-1].outputs[0]), bias.shape))
    arguments[at.bias] = made[-1].outputs[0]
    function = BIAS_MAPS[layer.operator.removesuffix("_bias_map")]
    draft.exchange(dataclasses.replace(layer, function=function, arguments=tuple(arguments)), before=made)


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


def _groups(convolution: Equation) -> int:
    return convolution.arguments[6]


def _keeps_uniform_values(convolution: Equation) -> bool:
    """Whether uniform channels stay uniform: it must not pad with zeros, nor be a transposed one."""
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
    shape: tuple = (1, groups, *source.shape[2:])
    made = [draft.new_equation(f"{layer.name}.ones", functions.ones_of, (source, groups), shape)]
    for step in arrival.path:
        arguments = (made[-1].outputs[0], *step.arguments[1:])
        shape = (1, groups, *step.outputs[0].shape[2:])
        made.append(draft.new_equation(f"{layer.name}.{step.operator}", step.function, arguments, shape, step.keywords))
    convolve = getattr(torch, layer.operator.removesuffix("_bias_map"))
    arguments = (made[-1].outputs[0], kernel, bias, *layer.arguments[3:])
    made.append(draft.new_equation(f"{layer.name}.bias", convolve, arguments, (1, *layer.outputs[0].shape[1:])))
    return made


merge_batch_norm_right = Fold(
    name="merge_batch_norm_right",
    about=BATCH_NORMS,
    side="behind it",
    find=_find,
    touched=touched,
    merge=merge,
    doc="""Fold each batch norm into the linear layers behind it, if all that reads it are such.

    With y = a x + d: W' = W a, b' = b + W d. Where a layer pads with zeros, and in a transposed convolution, W d
    differs from pixel to pixel: the bias becomes the map that the layer makes of the shift, computed for the size at
    hand. The layer's sum of W d over input channels is a new leaf, "conv.shift". Averages and maximum pooling may come
    between, max(a x + d) = a s max(s x) + d with s the sign of a: where a channel's a is negative, a new leaf,
    "pool.sign".

    Args:
        program: a program, as `functionalize` and `trace` return it.
        params: its parameters, a flat dict {name: tensor}. Neither is mutated.

    Errors: `CanonizeError` for batch norms whose values cannot be folded, as `canonize`.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Conv2d(1, 1, 3, padding=1)).eval()
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 1, 4, 4))
    >>> program, folded = lrpfunc.canonizers.merge_batch_norm_right(fmodel, params)
    >>> [equation.operator for equation in program.equations]
    ['ones_of', 'conv2d', 'conv2d_bias_map']
    >>> set(folded) - set(params)
    {'1.shift'}
    """,
)
