"""Lifting: what canonization must be able to change becomes a leaf of the parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lrpfunc.operations import Immovable, batch_norms, facts, leftwards, positions, takes_scale
from lrpfunc.program import PARAMETER, Equation, Program, Variable, batch_norm, frozen_batch_norm

Parameters = dict[str, Tensor]


def lift(program: Program, params: Parameters) -> tuple[Program, Parameters]:
    """Make leaves of what folding changes: batch norms' eps, and the bias of layers without one in front of them."""
    params, variables = dict(params), dict(program.parameters)
    lifted: dict[tuple, Variable] = {}
    equations = {equation.outputs[0].name: equation for equation in program.equations}

    def leaf(name: str, tensor: Tensor, *value) -> Variable:
        """The variable of a new leaf. What reads the same value under the same name shares it."""
        if (name, value) not in lifted:
            free = name
            while free in params:
                free += "'"
            params[free] = tensor
            lifted[name, value] = variables[free] = Variable(PARAMETER + free, tuple(tensor.shape), tensor.dtype)
        return lifted[name, value]

    def change(equation: Equation, position: int, argument: Variable) -> None:
        arguments = list(equation.arguments)
        arguments[position] = argument
        equations[equation.outputs[0].name] = replace(equation, arguments=tuple(arguments))

    for equation in program.equations:
        if equation.function not in (batch_norm, frozen_batch_norm):
            continue
        *_, var, eps = equation.arguments
        owner = _leaf_name(var)
        # float64 keeps 1e-5 what it is; a 0-d tensor does not change the dtype of what it is added to.
        device = params[owner].device if owner is not None else None
        name = (owner or "").rpartition(".")[0] or equation.name
        change(equation, 5, leaf(f"{name}.eps", torch.tensor(eps, dtype=torch.float64, device=device), eps))
    for layer, position, channels in _missing_biases(program):
        weight = layer.arguments[positions(layer).weight]
        name = (_leaf_name(weight) or layer.name).removesuffix(".weight")
        zeros = torch.zeros(channels, dtype=weight.dtype, device=next(iter(params.values())).device)
        change(layer, position, leaf(f"{name}.bias", zeros, channels))
    return program.replace(equations=tuple(equations.values())).with_parameters(variables, params), params


def _missing_biases(program: Program) -> Iterator[tuple[Equation, int, int]]:
    """The layers that a batch norm could be merged into, had they a bias; where it belongs, and its size."""
    known = facts(program)
    for norm in batch_norms(program):
        with contextlib.suppress(Immovable):
            for layer, channels, share in leftwards(known, norm):
                position = positions(layer).bias if takes_scale(known, layer) else None
                if share and position is not None and layer.arguments[position] is None:
                    yield layer, position, channels.size


def _leaf_name(variable: Variable) -> str | None:
    return variable.name.removeprefix(PARAMETER) if variable.name.startswith(PARAMETER) else None
