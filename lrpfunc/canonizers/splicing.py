"""A part of a program exchanged for a traced function."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.canonizers.chains import Pass
from lrpfunc.canonizers.draft import Parameters, check_flat
from lrpfunc.compat import outside_transforms
from lrpfunc.errors import CanonizeError, InputError, TraceError, near_misses
from lrpfunc.operations import facts, is_active
from lrpfunc.program import (
    DEVICE,
    DTYPE,
    NAMESPACE,
    PARAMETER,
    Equation,
    Program,
    Variable,
    rename,
    some_sizes,
    spelled,
    with_names,
)
from lrpfunc.tracing import trace_along

REPLACED = "replaced"


def replace(name: str, function: Callable) -> Pass:
    """Replace an equation, or all equations below a module's path, by a function `f(params, *inputs)`.

    The function is traced: the rules see its operations. An equation that has a name of its own is replaced at each
    call ("relu", "relu:1"); all equations below a module's path make one block.

    Args:
        name: an equation's name or a module's path, as `print(fmodel)` lists them.
        function: `f(params, *inputs)`. `params` are all parameters, as canonize has them; `inputs` are the values that
            the equations read from outside, in the order in which they read them (one for an activation). f returns
            what others read from them: one tensor, or a tuple of several.

    Errors: `CanonizeError` for an unknown name, a block with others in between, a function that cannot be traced, and
    results of another shape or dtype.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> smooth = lrpfunc.canonizers.replace("1", lambda params, x: torch.nn.functional.softplus(x))
    >>> program, params = smooth(fmodel, params)
    >>> print(program)
    name  operation  input       output
    0     linear     (batch, 2)  (batch, 2)
    1     softplus   (batch, 2)  (batch, 2)
    """
    if not isinstance(name, str) or not callable(function):
        given = f"{type(name).__name__} and {type(function).__name__}"
        raise CanonizeError(f"replace needs a name and a function f(params, *inputs), but got {given}.")

    def replaced(program: Program, params: Parameters) -> tuple[Program, Parameters]:
        check_flat(program, params)
        for block in _blocks(program, name):
            program, params = _exchange(program, params, block, name, function)
        return program, params

    return replaced


def _exchange(program: Program, params: Parameters, block: Sequence[Equation], name: str, function: Callable):
    made = {variable.name for equation in block for variable in equation.outputs}
    inputs, outputs = _inputs(program, block, made), _outputs(program, block, made)
    inner, captured = _traced(program, params, inputs, name, function)
    others = [e for e in program.equations if not any(variable.name in made for variable in e.outputs)]
    equations, results = _embedded(inner, block[0].name if len(block) == 1 else name, inputs, others)
    _check_results(name, outputs, results)
    renamed = {old.name: new for old, new in zip(outputs, results, strict=True)}
    ordered = _ordered([*(equation.renamed(renamed) for equation in others), *equations], name)
    output = optree.tree_map(lambda leaf: rename(leaf, renamed), program.output, namespace=NAMESPACE)
    notes = {**program.notes, **{e.name: (REPLACED, f"by {_label(function)}") for e in block}}
    ranges, conditions = _joint_sizes(program, inner, inputs)
    leaves = {**params, **captured}
    sizes = {"size_ranges": ranges, "size_conditions": conditions}
    changed = program.replace(equations=ordered, output=output, notes=notes, **sizes)
    return changed.with_parameters({**inner.parameters, **program.parameters}, leaves), leaves


def _traced(program: Program, params: Parameters, inputs: Sequence[Variable], name: str, function: Callable):
    """The program of a function of all parameters and some values, and the leaves that it adds."""
    values = _on_meta(program)
    device = next((leaf.device for leaf in params.values()), None)
    with outside_transforms():  # what is traced here are stand-ins, whatever transform we are in
        leaves = {key: torch.zeros_like(values[v.name], device=device) for key, v in program.parameters.items()}
        examples = [torch.zeros_like(values[variable.name], device=device) for variable in inputs]
        axes = [tuple(i for i, n in enumerate(v.shape) if isinstance(n, str)) for v in inputs]
        try:
            inner, captured = trace_along(function, leaves, examples, axes)
        except (TraceError, InputError) as error:
            listed = ", ".join(map(str, inputs))
            raise CanonizeError(
                f"what replaces '{name}' must be a function f(params, *inputs) of the {len(inputs)} inputs {listed}, "
                f"but tracing it failed: {error}"
            ) from error
    return inner, {key: _like_others(leaf, program, params) for key, leaf in captured.items() if key not in params}


def _like_others(leaf: Tensor, program: Program, params: Parameters) -> Tensor:
    """A new leaf in the dtype that the parameters have now, if it has the one that they were traced in."""
    reference = program.reference
    if reference is None or not reference.name.startswith(PARAMETER) or leaf.dtype != reference.dtype:
        return leaf
    return leaf.to(params[reference.name.removeprefix(PARAMETER)].dtype)


def _joint_sizes(program: Program, inner: Program, inputs: Sequence[Variable]) -> tuple[dict, tuple[str, ...]]:
    """The ranges of sizes that both programs take, and the conditions."""
    ranges, conditions = dict(program.size_ranges), list(program.size_conditions)
    for symbol, (low, high) in inner.size_ranges.items():
        outside = _symbols(inner, inputs)[symbol]
        if outside.isidentifier():
            lowest, highest = ranges.get(outside, (0, None))
            bounds = [n for n in (high, highest) if n is not None]
            ranges[outside] = max(low, lowest), min(bounds) if bounds else None
        else:
            conditions += [f"{outside} >= {low}"] + ([] if high is None else [f"{outside} <= {high}"])
    return ranges, tuple(dict.fromkeys(conditions))


def _label(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _blocks(program: Program, name: str) -> list[list[Equation]]:
    """The equations that a name means: those of a name of their own one by one, those below a path together."""
    named = [e for e in program.equations if e.name == name or re.fullmatch(re.escape(name) + r":\d+", e.name)]
    below = [e for e in program.equations if e.name.startswith(f"{name}.")]
    if not any(is_active(program, equation) for equation in (*named, *below)):
        names = [equation.name for equation in program.equations if is_active(program, equation)]
        paths = {known.rpartition(".")[0] for known in names} - {""}
        raise CanonizeError(
            f"no layer is called '{name}'.{near_misses(name, [*names, *paths])} `print(fmodel)` lists all names."
        )
    return [[*named, *below]] if below else [[equation] for equation in named]


def _inputs(program: Program, block: Sequence[Equation], made: set[str]) -> list[Variable]:
    """What a block reads from outside that is not fixed, in the order of reading."""
    known = facts(program)
    read = {v.name: v for equation in block for v in equation.reads if v.is_tensor and v.name not in made}
    return [variable for variable in read.values() if not known.is_fixed(variable)]


def _outputs(program: Program, block: Sequence[Equation], made: set[str]) -> list[Variable]:
    """What others read of what a block makes."""
    inside = {equation.outputs[0].name for equation in block}
    read = {v.name for e in program.equations if e.outputs[0].name not in inside for v in e.reads}
    read |= {leaf.name for leaf in program.output_leaves if isinstance(leaf, Variable)}
    return [variable for equation in block for variable in equation.outputs if variable.name in read]


def _on_meta(program: Program) -> dict:
    """All values of an evaluation without data, which have the shapes of a small batch. Errors: `CanonizeError`."""
    sizes = some_sizes(program)
    if sizes is None:
        raise CanonizeError("no sizes are found that the program takes besides those that it was traced with.")

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


def _symbols(inner: Program, inputs: Sequence[Variable]) -> dict[str, str]:
    """What the sizes that a program leaves open are called outside."""
    return {
        mine: str(theirs)
        for leaf, outside in zip(inner.input_leaves, inputs, strict=True)
        for mine, theirs in zip(leaf.value.shape, outside.shape, strict=True)
        if isinstance(mine, str)
    }


def _embedded(
    inner: Program, name: str, inputs: Sequence[Variable], others: Sequence[Equation]
) -> tuple[list[Equation], list[Variable]]:
    """The equations and results of a program whose inputs are variables of another one, under names that are free."""
    variables = {leaf.value.name: outside for leaf, outside in zip(inner.input_leaves, inputs, strict=True)}
    symbols = _symbols(inner, inputs)
    taken = {variable.name for equation in others for variable in equation.outputs}
    for equation in inner.equations:
        for variable in equation.outputs:
            shape = tuple(_translated(n, symbols) for n in variable.shape)
            variables[variable.name] = Variable(_fresh(f"{name}.{variable.name}", taken), shape, variable.dtype)
    names = {equation.name for equation in others}
    is_single = sum(is_active(inner, equation) for equation in inner.equations) == 1
    equations = []
    for equation in inner.equations:
        wanted = name if is_single and is_active(inner, equation) else f"{name}.{equation.name}"
        outputs = tuple(variables[variable.name] for variable in equation.outputs)
        equations.append(dataclasses.replace(equation.renamed(variables), name=_fresh(wanted, names), outputs=outputs))
    return equations, [variables.get(leaf.name, leaf) for leaf in inner.output_leaves if isinstance(leaf, Variable)]


def _fresh(name: str, taken: set[str]) -> str:
    """A name that is not taken yet; from now on it is."""
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def _translated(size: int | str, symbols: Mapping[str, str]) -> int | str:
    """A size of one program in the symbols of another."""
    if isinstance(size, int):
        return size
    if size in symbols:
        return symbols[size]
    return spelled(with_names(size, {mine: f"({theirs})" for mine, theirs in symbols.items()}))


def _check_results(name: str, outputs: Sequence[Variable], results: Sequence[Variable]) -> None:
    needed, given = ([f"{v} {v.dtype}" for v in variables] for variables in (outputs, results))
    if needed != given:
        raise CanonizeError(
            f"the function in the place of '{name}' must return {', '.join(needed)}, but returns "
            f"{', '.join(given) or 'no tensor'}."
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
