"""Programs cut in two at a layer: what is computed up to it, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lrpfunc.errors import ProgramError, near_misses
from lrpfunc.program.equations import DEVICE, DTYPE, PARAMETER, Equation, Variable
from lrpfunc.program.functions import size
from lrpfunc.program.names import called
from lrpfunc.program.pytrees import Leaf
from lrpfunc.program.sizes import sizes_in

if TYPE_CHECKING:
    from lrpfunc.program.program import Program


def cut(program: Program, name: str) -> tuple[Program, Program]:
    """The program that makes the output of a layer, and the one that takes it; see `Program.cut`.

    Errors: `ProgramError`.
    """
    varying = _varying(program)
    place = _place(program, name, varying)
    made_of = _needed(program.equations, [place])
    lower = [e for e in program.equations if e.name in made_of]
    upper = [e for e in program.equations if e.name not in made_of]
    if not upper:
        raise ProgramError(f"nothing follows '{name}': what the program gives is made there.")
    crossing, upper = _interface(program, place, lower, upper, varying)
    taken = tuple(f"crossing_{i}" if i else "x" for i in range(len(crossing)))
    named = {n for variable in crossing for n in variable.shape}
    above = replace(
        program,
        size_conditions=tuple(c for c in program.size_conditions if named.issuperset(sizes_in(c))),
        input_names=taken,
        input_leaves=tuple(Leaf((i,), name, v) for i, (name, v) in enumerate(zip(taken, crossing, strict=True))),
        equations=tuple(upper),
        takes_keywords=False,
        origin=None,
    )
    below = program.replace(output=crossing[0] if len(crossing) == 1 else tuple(crossing), sequel=None)
    return replace(below, sequel=above.whole), replace(above, origin=below.whole)


def _place(program: Program, name: str, varying: set[str]) -> Variable:
    """The output of an equation by its name, or of the last one below a module's path that inputs' values are in."""
    tensors = [e for e in program.equations if e.outputs[0].is_tensor]
    carrying = [e for e in tensors if e.outputs[0].is_differentiable and e.outputs[0].name in varying]
    found = called(carrying, name) or called(tensors, name)
    if not found:
        paths = {e.name.rpartition(".")[0] for e in program.equations} - {""}
        hint = near_misses(name, [*(e.name for e in program.equations), *paths])
        raise ProgramError(f"no layer is called '{name}'.{hint} print(fmodel) lists all names.")
    if len(found) > 1:
        raise ProgramError(f"'{name}' is called {len(found)} times: cut at one of {', '.join(found)}.")
    (equation,) = found.values()
    if len(equation.outputs) > 1 or not equation.outputs[0].is_tensor:
        raise ProgramError(f"'{name}' has no single tensor as its output: cut at a layer that reads the one you want.")
    return equation.outputs[0]


def _needed(equations: Sequence[Equation], variables: Iterable[Variable]) -> set[str]:
    """The names of the equations that some variables are made by, and of."""
    needed, names = {v.name for v in variables}, set()
    for equation in reversed(equations):
        if any(v.name in needed for v in equation.outputs):
            names.add(equation.name)
            needed.update(v.name for v in equation.reads)
    return names


def _interface(
    program: Program, place: Variable, lower: Sequence[Equation], upper: list[Equation], varying: set[str]
) -> tuple[list[Variable], list[Equation]]:
    """The tensors that cross a cut, the layer's own first, and the equations above it.

    What no input's values are in does not cross: what is made of parameters, constants and sizes is made above once
    more, of sizes that are asked of what crosses.
    """
    above = {v.name for e in upper for v in e.outputs}
    makers = {v.name: e for e in lower for v in e.outputs}
    crossing = {place.name: place}
    again: dict[str, Equation] = {}

    def need(variable: Variable) -> None:
        name = variable.name
        if name in above or name in again or name in (DEVICE, DTYPE) or name.startswith(PARAMETER):
            return
        if name in crossing or (variable.is_tensor and name in varying):
            crossing.setdefault(name, variable)
            return
        maker = _asked_of(makers[name], crossing.values())
        for read in maker.reads:
            need(read)
        again[name] = maker

    ends = [leaf for leaf in program.output_leaves if isinstance(leaf, Variable)]
    needed = [*(v for e in upper if e.function is not size for v in e.reads), *ends]
    for variable in sorted(needed, key=lambda v: v.name not in varying):  # sizes are asked of all that crosses
        need(variable)
    asked = {e.name: _asked_of(e, crossing.values()) for e in upper if _asks_below(e, above)}
    for equation in asked.values():
        need(equation.arguments[0])
    return list(crossing.values()), [*dict.fromkeys(again.values()), *(asked.get(e.name, e) for e in upper)]


def _varying(program: Program) -> set[str]:
    """The names of what inputs' values are in. Sizes are asked of tensors, but hold none of their values."""
    varying = {leaf.value.name for leaf in program.input_leaves if isinstance(leaf.value, Variable)}
    for equation in program.equations:
        if equation.function is not size and any(variable.name in varying for variable in equation.reads):
            varying.update(variable.name for variable in equation.outputs)
    return varying


def _asks_below(equation: Equation, above: set[str]) -> bool:
    return equation.function is size and equation.arguments[0].name not in above


def _asked_of(equation: Equation, tensors: Iterable[Variable]) -> Equation:
    """An equation that asks for a named size, as one that asks a tensor of these, if one has it."""
    if equation.function is not size:
        return equation
    asked, dim = equation.arguments
    wanted = asked.shape[dim]
    found = next((v for v in tensors if isinstance(wanted, str) and wanted in v.shape), None)
    return equation if found is None else replace(equation, arguments=(found, found.shape.index(wanted)))
