"""Canonization: the same function in a form that LRP can explain, as a new program and new parameters.

A pass is a pure function `(program, params) -> (program, params)` on a flat dict of parameters, differentiable in them.
Layers and batch norms are matched by data flow: no pass knows modules or the order in which they were registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.errors import CanonizeError
from lrpfunc.operations import BATCH_NORM, DENSE, OPERATORS, OTHER, UNKNOWN, Layout, kind
from lrpfunc.program import NAMESPACE, PARAMETER, Equation, Program, Variable, format_table, rename, variables_in

Parameters = dict[str, Tensor]
Pass = Callable[[Program, Parameters], tuple[Program, Parameters]]


@dataclass(frozen=True, repr=False)
class Report:
    """What became of each batch norm; `print` shows it as a table."""

    fates: Mapping[str, str]

    def __str__(self) -> str:
        return format_table(("batch norm", "became"), list(self.fates.items())) if self.fates else "no batch norms"

    def __repr__(self) -> str:
        return str(self)


class Canonical(NamedTuple):
    """The result of `canonize`. `restore(params)` turns canonical parameters back into the original ones."""

    fmodel: Program
    params: Parameters
    restore: Callable[[Parameters], Parameters]
    report: Report


def canonize(fmodel: Program, params: Parameters) -> Canonical:
    """The canonical form: batch norms folded into the layers before them, the same function, nothing mutated.

    `restore` gives the original parameters bit for bit: what a pass changed comes from the original, everything else
    from the parameters that are given to it. The canonical parameters alone, given to the original `fmodel`, give the
    same function wherever no weight is shared.
    Errors: `ParameterError` for parameters that do not fit; `CanonizeError` if they are no flat dict.
    """
    fmodel.flatten_params(params)
    if not isinstance(params, dict) or set(params) != set(fmodel.parameters):
        raise CanonizeError(
            "canonize needs the parameters as a flat dict {name: tensor}, as functionalize returns them."
        )
    fates: dict[str, str] = {}
    program, canonical, changed = None, fmodel, params
    while canonical is not program:  # a batch norm after a batch norm is next to a layer once that one is folded
        program = canonical
        fates.update({equation.name: _fate(program, equation) for equation in _batch_norms(program)})
        canonical, changed = merge_batch_norm(program, changed)
    originals = {name: params[name] for name in params if changed[name] is not params[name]}

    def restore(canonical_params: Parameters) -> Parameters:
        canonical.flatten_params(canonical_params)
        return {name: originals.get(name, canonical_params[name]) for name in params}

    return Canonical(canonical, changed, restore, Report(fates))


def merge_batch_norm(program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """Fold each batch norm into the linear layer before it, if nothing else reads that layer.

    W' = s W, b' = s (b - mean) + beta, s = gamma / sqrt(var + eps). The batch norm's equation goes; its leaves, unless
    another equation still reads them, become the identity: mean 0, var 1, weight 1, bias 0, eps 0. A weight that other
    equations read too is left as it is, and the layer gets its own leaf.
    """
    folds = [fold for equation in _batch_norms(program) if isinstance(fold := _fold(program, equation), _Fold)]
    if not folds:
        return program, params
    new = dict(params)
    variables = dict(program.parameters)
    replaced: dict[str, Equation] = {}
    bypassed: dict[str, Variable] = {}
    for fold in folds:
        weight, bias = _folded(fold, params)
        layer = fold.layer
        arguments = list(layer.arguments)
        for position, part, tensor in ((fold.layout.weight, "weight", weight), (fold.bias, "bias", bias)):
            name = _own_leaf(program, layer, position, part, variables)
            new[name] = tensor
            variables[name] = Variable(PARAMETER + name, tuple(tensor.shape), tensor.dtype)
            arguments[position] = variables[name]
        replaced[layer.outputs[0].name] = replace(layer, arguments=tuple(arguments))
        bypassed[fold.batch_norm.outputs[0].name] = layer.outputs[0]
    program = _without(program, bypassed, replaced)
    still_read = {v.name for e in program.equations for v in e.reads}
    for fold in folds:
        for variable, identity in zip(fold.batch_norm.arguments[1:], (1.0, 0.0, 0.0, 1.0, 0.0), strict=True):
            if isinstance(variable, Variable) and variable.name not in still_read:
                name = variable.name.removeprefix(PARAMETER)
                new[name] = torch.full_like(params[name], identity)
    ordered = {name: variables[name] for name in map(".".join, optree.tree_paths(new, namespace=NAMESPACE))}
    paths = tuple(optree.tree_paths(new, namespace=NAMESPACE))
    return replace(program, parameters=ordered, parameter_paths=paths), new


# -- matching ---------------------------------------------------------------------------------------------------------


class _Fold(NamedTuple):
    batch_norm: Equation
    layer: Equation
    layout: Layout
    bias: int


def _batch_norms(program: Program) -> list[Equation]:
    return [e for e in program.equations if OPERATORS.get(e.operator, UNKNOWN).kind == BATCH_NORM]


def _fold(program: Program, equation: Equation) -> _Fold | str:
    """The fold of a batch norm, or why there is none."""
    x = equation.arguments[0]
    layer = program.producers.get(x.name)
    if layer is None:
        return "left: it reads an input, not a linear layer"
    operator = OPERATORS.get(layer.operator, UNKNOWN)
    layout = operator.layout
    if layout is None or layout.input is None or layout.bias is None or kind(program, layer) == OTHER:
        return f"left: it reads {layer.name}, not a linear layer"
    readers = program.readers()[x.name]
    if len(readers) > 1 or any(v.name == x.name for v in variables_in(program.output_leaves)):
        return f"left: others read {layer.name} too"
    if operator.kind == DENSE and len(x.shape) != 2:
        return f"left: its channels are not the features of {layer.name}"
    parameters = [*equation.arguments[1:5], layer.arguments[layout.weight], layer.arguments[layout.bias]]
    if any(isinstance(v, Variable) and not v.name.startswith(PARAMETER) for v in parameters):
        return f"left: parameters of {equation.name} or {layer.name} are computed"
    if layer.arguments[layout.bias] is None or not isinstance(equation.arguments[5], Variable):
        return f"left: {layer.name} has no bias leaf, or {equation.name} no eps leaf"
    return _Fold(equation, layer, layout, layout.bias)


def _fate(program: Program, equation: Equation) -> str:
    fold = _fold(program, equation)
    return f"merged into {fold.layer.name}" if isinstance(fold, _Fold) else fold


# -- folding ----------------------------------------------------------------------------------------------------------


def _folded(fold: _Fold, params: Parameters) -> tuple[Tensor, Tensor]:
    def value(variable: Variable) -> Tensor:
        return params[variable.name.removeprefix(PARAMETER)]

    weight, bias = (value(fold.layer.arguments[position]) for position in (fold.layout.weight, fold.bias))
    gamma, beta, mean, var, eps = fold.batch_norm.arguments[1:]
    scale = (value(var) + value(eps)).rsqrt()
    scale = scale if gamma is None else scale * value(gamma)
    shifted = scale * (bias - value(mean))
    shifted = shifted if beta is None else shifted + value(beta)
    return _scaled(weight, scale, fold.layout.output_axis, fold.layer), shifted


def _scaled(weight: Tensor, scale: Tensor, axis: int | None, layer: Equation) -> Tensor:
    """The weight with each output channel scaled; a transposed convolution has them by groups, (in, out / groups)."""
    if axis is not None:
        return weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    groups = layer.arguments[6]
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


def _own_leaf(program: Program, layer: Equation, position: int, part: str, variables: Mapping[str, Variable]) -> str:
    """The leaf to write to: the layer's own if nothing else reads it, else a new one."""
    name = layer.arguments[position].name
    readers = program.readers()[name]
    if len(readers) == 1 and readers[0] is layer:
        return name.removeprefix(PARAMETER)
    fresh = f"{layer.name}.{part}"
    while fresh in variables:
        fresh += "'"
    return fresh


def _without(program: Program, bypassed: Mapping[str, Variable], replaced: Mapping[str, Equation]) -> Program:
    """The program without some equations, whose readers read what these equations read."""
    equations = []
    for equation in program.equations:
        if equation.outputs[0].name in bypassed:
            continue
        equation = replaced.get(equation.outputs[0].name, equation)
        keywords = {key: rename(value, bypassed) for key, value in equation.keywords.items()}
        equations.append(replace(equation, arguments=rename(equation.arguments, bypassed), keywords=keywords))
    output = optree.tree_map(lambda leaf: rename(leaf, bypassed), program.output, namespace=NAMESPACE)
    return program.replace(equations=tuple(equations), output=output)
