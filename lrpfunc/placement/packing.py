"""Weights of few bits, from which a layer's weight is made when the layer is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lrpfunc.errors import ParameterError, near_misses
from lrpfunc.operations import row_of
from lrpfunc.placement.rewriting import Rewriting
from lrpfunc.program import PARAMETER, Equation, Program, Variable, check, unpacked

BITS = (8, 4)


def quantize(
    fmodel: Program, params, layers: str = "*", bits: int = 8, group: int | None = None
) -> tuple[Program, dict[str, Tensor]]:
    """A program whose layers have weights of 8 or 4 bits: `fmodel, params`; nothing else is rounded.

    A weight W (rows, ...) becomes whole numbers q and a scale s for each row or group of a row, W' = s q with
    s = max |w| / 127 (of 4 bits / 7): leaves `name.int8` or `name.int4`, with two numbers to a byte, and `name.scale`.
    W' is made when the layer is computed and is gone once it was, so that rules share by W', and the explanation is
    that of a model that has W' for its weights, to the last bit. With `checkpoint` memory has the packed weights, and
    W' of one segment.

    Args:
        fmodel, params: a program and its parameters, a flat dict.
        layers: whose weights; a layer's name, a module's path or a pattern with wildcards.
        bits: 8 or 4.
        group: how many numbers have a scale of their own; None: a row. It must divide the length of each row.

    Errors: `ParameterError` for other bits or groups, for parameters that are no flat dict, and where no layer of such
    a name has a weight.
    Source: Dettmers et al. 2022, arXiv:2208.07339, section 2.1 (absmax).

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(64, 8), torch.ones(1, 64))
    >>> program, packed = lrpfunc.quantize(fmodel, params, bits=4, group=32)
    >>> {name: tuple(leaf.shape) for name, leaf in packed.items()}
    {'bias': (8,), 'weight.int4': (8, 32), 'weight.scale': (8, 2)}
    >>> print(program)
    name    operation  input                output
    weight  unpacked                        (8, 64)
    linear  linear     (batch, 64) (8, 64)  (batch, 8)
    >>> lrpfunc.attribute(program, packed, torch.ones(1, 64), lrpfunc.rules.epsilon()).shape
    torch.Size([1, 64])
    """
    fmodel.flatten_params(params)
    if not isinstance(params, dict) or set(params) != set(fmodel.parameters):
        raise ParameterError("weights are packed by their names: parameters must be a flat dict {name: tensor}.")
    if bits not in BITS:
        raise ParameterError(f"weights are packed to 8 or 4 bits, but bits is {bits!r}.")
    leaves: dict[str, Tensor] = dict(params)
    variables, made = dict(fmodel.parameters), {}
    for name in _weights(fmodel, layers):
        weight = leaves.pop(name)
        leaves |= (both := _packed(name, weight, bits, group))
        for leaf_name, leaf in both.items():
            dtype = variables[name].dtype if leaf.is_floating_point() else leaf.dtype
            variables[leaf_name] = Variable(PARAMETER + leaf_name, tuple(leaf.shape), dtype)
        made[variables[name].name] = (*(variables[leaf_name] for leaf_name in both), bits, tuple(weight.shape))
    program = replace(fmodel, equations=_unpacking(fmodel, made)).with_parameters(variables, leaves)
    check(program, before=fmodel, who="quantize")
    return program, leaves


def _weights(program: Program, layers: str) -> list[str]:
    """The parameters that are weights of layers, in the order of these."""
    names, found = set(program.names(layers)), {}
    for equation in program.equations:
        positions = row_of(equation).positions if equation.name in names else None
        operands = () if positions is None else equation.arguments[positions.weight : positions.weight + 1]
        if positions is not None and positions.input is None:  # a matrix product, of which either may be the weight
            operands = equation.arguments[: positions.weight + 1]
        for variable in operands:
            if isinstance(variable, Variable) and variable.name.startswith(PARAMETER) and len(variable.shape) > 1:
                found[variable.name.removeprefix(PARAMETER)] = None
    if not found:
        raise ParameterError(
            f"no layer of the name '{layers}' has a weight.{near_misses(layers, program.names())} `print(fmodel)` "
            "lists all names."
        )
    return list(found)


def _packed(name: str, weight: Tensor, bits: int, group: int | None) -> dict[str, Tensor]:
    """The two leaves of a weight. Errors: `ParameterError`."""
    rows = weight.detach().flatten(1)
    columns = rows.shape[1]
    if group is not None and (type(group) is not int or group < 1 or columns % group):
        raise ParameterError(f"group must divide the {columns} numbers in a row of '{name}', but is {group!r}.")
    if bits == 4 and columns % 2:
        raise ParameterError(f"two numbers of 4 bits are a byte, but a row of '{name}' has {columns}: take 8 bits.")
    groups = rows.unflatten(1, (-1, group or columns))
    most = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(-1) / most
    numbers = (groups / torch.where(scale == 0, 1, scale)[..., None]).round().clamp(-most, most).flatten(1)
    if bits == 4:
        raised = (numbers + 8).to(torch.uint8)
        return {f"{name}.int4": raised[:, ::2] | raised[:, 1::2] << 4, f"{name}.scale": scale}
    return {f"{name}.int8": numbers.to(torch.int8), f"{name}.scale": scale}


def _unpacking(program: Program, made: Mapping[str, tuple]) -> tuple[Equation, ...]:
    """The equations, with one in front of each that reads a packed weight."""
    new = Rewriting(program)
    for equation in program.equations:
        read = {v.name: v for v in equation.reads if v.name in made}
        given = {n: new.add(n.removeprefix(PARAMETER), v, unpacked, *made[n]) for n, v in read.items()}
        new.equations.append(equation.renamed(given))
    return tuple(new.equations)
