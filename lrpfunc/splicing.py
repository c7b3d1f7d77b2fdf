"""A part of a program exchanged for a traced function."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.channels import Structure
from lrpfunc.errors import CanonizeError, near_misses
from lrpfunc.operations import is_active
from lrpfunc.program import DEVICE, DTYPE, NAMESPACE, Equation, Program, Variable, rename
from lrpfunc.tracing import trace


def splice(program: Program, params: Mapping[str, Tensor], name: str, function: Callable):
    """The program with `f(params, *inputs)` in the place of the equations that a name means, and its parameters.

    Errors: `CanonizeError` for an unknown name, several calls of one module, and results of another shape or dtype.
    """
    block = _block(program, name)
    made = {variable.name for equation in block for variable in equation.outputs}
    inputs = _inputs(program, block, made)
    outputs = _outputs(program, block, made)
    values = _on_meta(program)
    device = next(iter(params.values())).device if params else None
    templates = {key: torch.zeros(leaf.shape, dtype=leaf.dtype, device=device) for key, leaf in params.items()}
    examples = [torch.zeros(values[v.name].shape, dtype=v.dtype, device=device) for v in inputs]
    inner, captured = trace(function, templates, *examples)
    equations, results = _embedded(inner, name, inputs, program)
    _check_results(name, outputs, results)
    renamed = {old.name: new for old, new in zip(outputs, results, strict=True)}
    kept = [e for e in program.equations if not any(v.name in made for v in e.outputs)]
    redirected = [e.renamed(renamed) for e in kept]
    ordered = _ordered([*redirected, *equations], name)
    output = optree.tree_map(lambda leaf: rename(leaf, renamed), program.output, namespace=NAMESPACE)
    leaves = {**params, **{key: leaf for key, leaf in captured.items() if key not in params}}
    notes = {**program.notes, **{e.name: ("replaced", f"by {_label(function)}") for e in block}}
    program = program.replace(equations=ordered, output=output, notes=notes)
    return program.with_parameters({**inner.parameters, **program.parameters}, leaves), leaves


def _label(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _block(program: Program, name: str) -> list[Equation]:
    exact = [equation for equation in program.equations if equation.name == name]
    below = [equation for equation in program.equations if equation.name.startswith(f"{name}.")]
    if not exact and not any(is_active(program, equation) for equation in below):
        names = [equation.name for equation in program.equations if is_active(program, equation)]
        paths = {known.rpartition(".")[0] for known in names} - {""}
        raise CanonizeError(
            f"no layer is called '{name}'.{near_misses(name, [*names, *paths])} `print(fmodel)` lists all names."
        )
    return exact or below


def _inputs(program: Program, block: Sequence[Equation], made: set[str]) -> list[Variable]:
    """What a block reads from outside that is no constant, in the order of reading."""
    structure = Structure(program)
    read = {v.name: v for equation in block for v in equation.reads if v.is_tensor and v.name not in made}
    return [variable for variable in read.values() if not structure.is_constant(variable)]


def _outputs(program: Program, block: Sequence[Equation], made: set[str]) -> list[Variable]:
    """What others read of what a block makes."""
    inside = {equation.outputs[0].name for equation in block}
    read = {v.name for e in program.equations if e.outputs[0].name not in inside for v in e.reads}
    read |= {leaf.name for leaf in program.output_leaves if isinstance(leaf, Variable)}
    return [variable for equation in block for variable in equation.outputs if variable.name in read]


def _on_meta(program: Program) -> dict:
    """All values of an evaluation without data, which have the shapes of a small batch."""
    sizes: dict[str, int] = {}
    for leaf in program.input_leaves:
        for n in leaf.value.shape if isinstance(leaf.value, Variable) else ():
            if isinstance(n, str):
                low, high = program.size_ranges.get(n, (0, None))
                sizes[n] = min(max(low, 2), high or 2)

    def empty(variable: Variable) -> Tensor:
        shape = [n if isinstance(n, int) else sizes[n] for n in variable.shape]
        return torch.empty(shape, dtype=variable.dtype, device="meta")

    reference = program.reference
    values: dict[str, Any] = {variable.name: empty(variable) for variable in program.parameters.values()}
    values |= {leaf.value.name: empty(leaf.value) for leaf in program.input_leaves if isinstance(leaf.value, Variable)}
    values[DEVICE] = torch.device("meta")
    values[DTYPE] = reference.dtype if reference is not None else torch.get_default_dtype()
    for equation in program.equations:
        program.store(equation, equation.evaluate(values), values)
    return values


def _embedded(
    inner: Program, name: str, inputs: Sequence[Variable], outer: Program
) -> tuple[list[Equation], list[Variable]]:
    """The equations and results of a program whose inputs are variables of another one, under names of their own."""
    variables = {leaf.value.name: outside for leaf, outside in zip(inner.input_leaves, inputs, strict=True)}
    symbols = {
        mine: str(theirs)
        for leaf, outside in zip(inner.input_leaves, inputs, strict=True)
        for mine, theirs in zip(leaf.value.shape, outside.shape, strict=True)
        if isinstance(mine, str)
    }
    taken = {variable.name for equation in outer.equations for variable in equation.outputs}
    for equation in inner.equations:
        for variable in equation.outputs:
            fresh = f"{name}.{variable.name}"
            while fresh in taken:
                fresh += "'"
            shape = tuple(_translated(n, symbols) for n in variable.shape)
            variables[variable.name] = Variable(fresh, shape, variable.dtype)
    is_single = sum(is_active(inner, equation) for equation in inner.equations) == 1
    equations = [
        dataclasses.replace(
            equation.renamed(variables),
            name=name if is_single and is_active(inner, equation) else f"{name}.{equation.name}",
            outputs=tuple(variables[variable.name] for variable in equation.outputs),
        )
        for equation in inner.equations
    ]
    return equations, [variables.get(leaf.name, leaf) for leaf in inner.output_leaves if isinstance(leaf, Variable)]


def _translated(size: int | str, symbols: Mapping[str, str]) -> int | str:
    """A size of one program in the symbols of another."""
    if isinstance(size, int):
        return size
    return re.sub(r"[a-z]\w*", lambda match: symbols.get(match[0], match[0]), size)


def _check_results(name: str, outputs: Sequence[Variable], results: Sequence[Variable]) -> None:
    needed, given = ([f"{v} {v.dtype}" for v in variables] for variables in (outputs, results))
    if needed != given:
        raise CanonizeError(
            f"the function in the place of '{name}' must return {', '.join(needed)}, but returns {', '.join(given)}."
        )


def _ordered(equations: Sequence[Equation], name: str) -> tuple[Equation, ...]:
    """Equations in an order in which they can be evaluated, as near to the given one as possible."""
    known = {DEVICE, DTYPE}
    made = {variable.name for equation in equations for variable in equation.outputs}
    ordered: list[Equation] = []
    waiting = list(equations)
    while waiting:
        blocked = []
        for equation in waiting:
            if all(v.name in known or v.name not in made for v in equation.reads):
                ordered.append(equation)
                known |= {variable.name for variable in equation.outputs}
            else:
                blocked.append(equation)
        if len(blocked) == len(waiting):
            raise CanonizeError(
                f"what is called '{name}' is no block of its own: others between its equations depend on it, as when a "
                "module is called several times. Replace its equations one by one."
            )
        waiting = blocked
    return tuple(ordered)
