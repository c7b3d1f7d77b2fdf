"""Weights of few bits, from which a layer's weight is made when the layer is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lrpfunc.errors import ParameterError, near_misses
from lrpfunc.operations import row_of
from lrpfunc.placement.layouts import Layout, layout
from lrpfunc.placement.rewriting import Rewriting
from lrpfunc.program import PARAMETER, Equation, Program, Variable, check, unpacked


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
    if bits not in (8, 4):
        raise ParameterError(f"weights are packed to 8 or 4 bits, but bits is {bits!r}.")
    weights = _weights(fmodel, layers)
    layouts = {name: Layout({name: leaf}) for name, leaf in params.items()}
    for name in weights:
        layouts[name] = Layout(_packed(name, params[name], bits, group), unpacked, (bits, tuple(params[name].shape)))
    return _reading(fmodel, layouts, "quantize")


def _weights(program: Program, layers: str) -> list[str]:
    """The parameters that are weights of layers, in the order of these."""
    names, found = set(program.names(layers)), dict[str, None]()
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


def unpack(fmodel: Program, params) -> tuple[Program, dict[str, Tensor]]:
    """A program for weights that others have packed: `fmodel, params`. Each is unpacked when its layer is computed.

    Three layouts are known: tensors of torchao, which know how they are packed; int8 weights of bitsandbytes, with
    their `SCB`; its 4 bits (nf4, fp4), with their `absmax`, `quant_map` and `quant_state`, as `state_dict()` has them.

    Args:
        fmodel: a program of the model as it was before it was packed; traced on the device "meta" it takes no memory.
        params: the parameters of the packed model by their names, a flat dict, with whatever belongs to the layout.

    Errors: `ParameterError` for what is no flat dict, for leaves that are missing, and for numbers that do not fill
    blocks.
    Source: Dettmers et al. 2022, arXiv:2208.07339 (int8), and 2023, arXiv:2305.14314 (nf4, double quantization).

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(3, 2, bias=False), torch.ones(1, 3))
    >>> packed = {"weight": torch.tensor([[127, 0, -127], [1, 2, 3]]).to(torch.int8), "SCB": torch.tensor([2.0, 127.0])}
    >>> program, packed = lrpfunc.unpack(fmodel, packed)
    >>> program(packed, torch.eye(3)).T
    tensor([[ 2.,  0., -2.],
            [ 1.,  2.,  3.]])
    """
    if not isinstance(params, dict) or not all(isinstance(leaf, Tensor) for leaf in params.values()):
        raise ParameterError("weights are unpacked by their names: parameters must be a flat dict {name: tensor}.")
    layouts = {name: layout(name, params, variable.shape) for name, variable in fmodel.parameters.items()}
    return _reading(fmodel, layouts, "unpack")


def _reading(program: Program, layouts: Mapping[str, Layout], who: str) -> tuple[Program, dict[str, Tensor]]:
    """A program that takes the leaves of layouts, and these. `who`: makes it. Errors: `ProgramError`."""
    leaves: dict[str, Tensor] = {}
    variables, made = dict(program.parameters), {}
    for name, variable in program.parameters.items():
        for leaf_name, leaf in layouts[name].leaves.items():
            dtype = variable.dtype if leaf.is_floating_point() else leaf.dtype
            leaves[leaf_name] = leaf
            variables[leaf_name] = Variable(PARAMETER + leaf_name, tuple(leaf.shape), dtype)
        taken = (variables[leaf_name] for leaf_name in layouts[name].leaves)
        if layouts[name].function is not None:
            made[variable.name] = (layouts[name].function, *taken, *layouts[name].rest)
    changed = replace(program, equations=_unpacking(program, made)).with_parameters(variables, leaves)
    check(changed, before=program, who=who)
    return changed, leaves


def _unpacking(program: Program, made: Mapping[str, tuple]) -> tuple[Equation, ...]:
    """The equations, with one in front of each that reads a packed weight: a function and its arguments."""
    new = Rewriting(program)
    for equation in program.equations:
        read = {v.name: v for v in equation.reads if v.name in made}
        given = {n: new.add(n.removeprefix(PARAMETER), v, *made[n]) for n, v in read.items()}
        new.equations.append(equation.renamed(given))
    return tuple(new.equations)
