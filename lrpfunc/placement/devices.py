"""Where layers are computed, and where their parameters are until then."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrpfunc.errors import ParameterError, near_misses
from lrpfunc.operations import facts
from lrpfunc.placement.files import Stored, stored_in
from lrpfunc.placement.rewriting import Rewriting
from lrpfunc.program import DEVICE, DTYPE, PARAMETER, Equation, Program, Variable, check, moved, refilled

META = torch.device("meta")

Device = str | torch.device
Files = str | os.PathLike | Sequence[str | os.PathLike]


def place(fmodel: Program, params, devices: Device | Mapping[str, Device]) -> tuple[Program, Any]:
    """The same function with its layers on several devices, where their parameters go now: `fmodel, params`.

    What passes from one device to another is moved there by an equation of its own (`moved`), and so is the relevance
    that comes back. The result takes its inputs on the device of the first parameter.

    Args:
        fmodel, params: a program and its parameters.
        devices: one device, or {name pattern: device}: a layer's name, a module's path or a pattern with wildcards, as
            rules go by; of several that match the last one counts. What none matches is computed where what it reads
            is.

    Errors: `ParameterError` for what is no device, for devices that there are not, and for a pattern that matches no
    layer.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> placed, params = lrpfunc.place(fmodel, params, {"*": "cpu", "2": "cpu:0"})
    >>> print(placed)
    name     operation  input       output
    moved    moved      (batch, 2)  (batch, 2)
    0        linear     (batch, 2)  (batch, 3)
    1        relu       (batch, 3)  (batch, 3)
    moved:1  moved      (batch, 3)  (batch, 3)
    2        linear     (batch, 3)  (batch, 4)
    """
    places = _places(fmodel, devices)
    leaves = fmodel.flatten_params(params)
    homes: dict[str, torch.device] = {}
    for equation in fmodel.equations:
        for variable in equation.reads:
            if variable.name.startswith(PARAMETER):
                homes.setdefault(variable.name, places[equation.name])
    both = list(zip(fmodel.parameters.values(), leaves, strict=True))
    there = [_sent(leaf, homes.get(variable.name, leaf.device)) for variable, leaf in both]
    placed = _routed(fmodel, places, {v.name: leaf.device for (v, _), leaf in zip(both, there, strict=True)} | homes)
    _check(placed, fmodel, "place")
    return placed, refilled(params, there)


def _sent(leaf: Tensor, device: torch.device) -> Tensor:
    """A parameter on a device; one without numbers goes nowhere. Errors: `ParameterError`."""
    try:
        return leaf if leaf.is_meta else leaf.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise ParameterError(f"parameters cannot go to {device}: {reason}.") from error


def offload(
    fmodel: Program, params, devices: Device | Mapping[str, Device] = "cpu", files: Files | None = None
) -> tuple[Program, Any]:
    """The same function, whose parameters stay where they are until a layer reads them: `fmodel, params`.

    Each comes to the layer's device when the layer is computed, and is gone once it was. With `checkpoint=n` an
    explanation has the parameters and the values of one of n segments in memory, at the price of fetching them twice.

    Args:
        fmodel, params: a program and its parameters, on any device. Those that are in `files` may be without numbers,
            on the device "meta". Canonize before, and quantize: afterwards numbers are elsewhere.
        devices: where layers are computed, as `place` takes it.
        files: safetensors files, or a folder of them, as Hugging Face's models have: parameters that are in there by
            their names are read when they are needed, and `params` no longer has them (a flat dict then): they have no
            `parameter_relevance` and no derivatives. Files must stay what they are.

    Errors: `ParameterError` for what is no device, for a pattern that matches no layer, for shapes that are others in
    the files, for files that have none of the parameters, and for parameters without numbers that are in none of them;
    `FileError` for files that cannot be read or, when an explanation reads them, have changed.

    >>> import lrpfunc, torch, tempfile
    >>> from safetensors.torch import save_file
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    >>> x, rules = torch.randn(5, 2), lrpfunc.rules.epsilon()
    >>> fmodel, params = lrpfunc.functionalize(model, x)
    >>> plain = lrpfunc.attribute(fmodel, params, x, rules)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(params, f"{folder}/model.safetensors")
    ...     small, left = lrpfunc.offload(fmodel, params, files=folder)
    ...     relevance = lrpfunc.attribute(small, left, x, rules, checkpoint=2)
    >>> left, torch.equal(relevance, plain)
    ({}, True)
    """
    places = _places(fmodel, devices)
    leaves = dict(zip(fmodel.parameters, fmodel.flatten_params(params), strict=True))
    found = {} if files is None else _found(params, leaves, files)
    homes = {PARAMETER + name: leaf.device for name, leaf in leaves.items() if name not in found}
    routed = _routed(fmodel, places, homes, {PARAMETER + name: one for name, one in found.items()})
    _check(routed, fmodel, "offload")
    return _without(routed, params, found) if found else (routed, params)


def _without(program: Program, params: Mapping[str, Tensor], found: Mapping[str, Stored]) -> tuple[Program, dict]:
    """A program that does not take the parameters that it reads from files. What follows the dtype of one follows that
    in the file."""
    params = {name: leaf for name, leaf in params.items() if name not in found}
    reference = program.reference
    name = reference.name.removeprefix(PARAMETER) if reference is not None else ""
    if name in found:
        dtype: Any = {DTYPE: found[name].dtype}
        program = replace(program, equations=tuple(equation.renamed(dtype) for equation in program.equations))
    return program.with_parameters(program.parameters, params), params


def _found(params, leaves: Mapping[str, Tensor], files: Files) -> dict[str, Stored]:
    """The parameters that are in files. Errors: `ParameterError`, `FileError`."""
    if not isinstance(params, dict) or set(params) != set(leaves):
        raise ParameterError("parameters come from files by their names: they must be a flat dict {name: tensor}.")
    content = stored_in(files)
    for name, leaf in leaves.items():
        if name in content and content[name].shape != tuple(leaf.shape):
            raise ParameterError(
                f"'{name}' must have shape {tuple(leaf.shape)}, but has {content[name].shape} in {content[name].path}."
            )
        if name not in content and leaf.is_meta:
            raise ParameterError(
                f"'{name}' has no numbers, and is in none of the files: give params[{name!r}] a tensor that has."
                + near_misses(name, content)
            )
    if leaves and not any(name in content for name in leaves):
        one = next(iter(leaves))
        raise ParameterError(
            f"the files have none of the parameters, such as '{one}'.{near_misses(one, content)} Names must be alike."
        )
    return {name: content[name] for name in leaves if name in content}


def without_numbers(program: Program) -> Program:
    """The program with "meta" in place of the devices that it names: there tensors have shapes and no numbers."""

    def there(template: Any) -> Any:
        if isinstance(template, torch.device):
            return META
        return type(template)(map(there, template)) if type(template) in (list, tuple) else template

    def exchanged(equation: Equation) -> Equation:
        arguments = there(equation.arguments)
        keywords = {name: there(value) for name, value in equation.keywords.items()}
        is_same = (arguments, keywords) == (equation.arguments, equation.keywords)
        return equation if is_same else replace(equation, arguments=arguments, keywords=keywords)

    return replace(program, equations=tuple(map(exchanged, program.equations)))


def _is_from_file(equation: Equation) -> bool:
    """Whether an equation reads a parameter from a file."""
    return equation.function is moved and isinstance(equation.arguments[0], Stored)


def _check(program: Program, before: Program, who: str) -> None:
    """Errors: `ProgramError`. No device need be there for it, and nothing is read from files."""
    checked = without_numbers(program)
    from_files = [equation for equation in checked.equations if _is_from_file(equation)]
    check(checked, before=replace(before, equations=(*before.equations, *from_files)), who=who)


# -- which device -----------------------------------------------------------------------------------------------------


def _places(program: Program, devices: Device | Mapping[str, Device]) -> dict[str, torch.device]:
    """The device of each equation. Errors: `ParameterError`."""
    if not isinstance(program, Program):
        raise ParameterError(
            f"a program is needed, as functionalize returns it first, but got {type(program).__name__}."
        )
    if not isinstance(devices, Mapping):
        return dict.fromkeys((equation.name for equation in program.equations), _device(devices))
    if not devices:
        raise ParameterError("devices are one device, or {name pattern: device} with one pattern at least.")
    places: dict[str, torch.device] = {}
    for pattern, device in devices.items():
        found = program.names(pattern)
        if not found:
            names = program.names()
            paths = {name.rpartition(".")[0] for name in names} - {""}
            raise ParameterError(
                f"no layer matches the pattern '{pattern}'.{near_misses(pattern, [*names, *paths])} `print(fmodel)` "
                "lists all names."
            )
        places.update(dict.fromkeys(found, _device(device)))
    return _followed(program, places)


def _device(given: Any) -> torch.device:
    try:
        return torch.device(given)
    except (RuntimeError, TypeError):
        raise ParameterError(f"{given!r} is no device of torch, such as 'cpu' or 'cuda:0'.") from None


def _followed(program: Program, places: Mapping[str, torch.device]) -> dict[str, torch.device]:
    """Places of all equations: without one of its own each is where what it reads is, and what depends on parameters
    alone is where the equation after it is."""
    fixed, followed, at, last = facts(program).fixed, {}, {}, next(iter(places.values()))
    waiting: list[Equation] = []

    def settle(equation: Equation, device: torch.device) -> None:
        followed[equation.name] = device
        at.update(dict.fromkeys((variable.name for variable in equation.outputs), device))

    for equation in program.equations:
        read = [at[v.name] for v in equation.reads if v.name in at and v.name not in fixed]
        device = places.get(equation.name) or next(iter(read), None)
        if device is None:
            waiting.append(equation)
            continue
        for one in (*waiting, equation):
            settle(one, device)
        waiting, last = [], device
    for one in waiting:
        settle(one, last)
    return followed


# -- what is moved ----------------------------------------------------------------------------------------------------


def _routed(
    program: Program,
    places: Mapping[str, torch.device],
    homes: Mapping[str, torch.device],
    files: Mapping[str, Stored] | None = None,
) -> Program:
    """The program with an equation wherever something is read on another device than it is on, or from a file.

    What depends on inputs is moved once to each device, parameters for each equation that reads them. `homes`: where
    parameters are; where inputs are nobody knows. `files`: those that parameters come from.
    """
    files, at, new = files or {}, dict(homes), Rewriting(program)
    copies: dict[tuple[str, torch.device], Variable] = {}

    def here(variable: Variable, device: torch.device) -> Variable:
        name = variable.name.removeprefix(PARAMETER)
        if variable.name in files:
            return new.add(name, variable, moved, files[variable.name], device)
        if not variable.is_tensor or at.get(variable.name) == device:
            return variable
        if variable.name.startswith(PARAMETER):
            return new.add(name, variable, moved, variable, device)
        if (variable.name, device) not in copies:
            copies[variable.name, device] = new.add("moved", variable, moved, variable, device)  # below no path
        return copies[variable.name, device]

    for equation in program.equations:
        device = places[equation.name]
        given: dict[str, Any] = {DEVICE: device}
        given |= {v.name: here(v, device) for v in equation.reads if v.name not in (DEVICE, DTYPE)}
        new.equations.append(equation.renamed(given))
        at.update(dict.fromkeys((variable.name for variable in equation.outputs), device))
    return replace(program, equations=tuple(new.equations))
