"""Where residual streams are: what each block of a program hands to the next one, and what the first one is given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lrpfunc.attribution.places import outputs_named
from lrpfunc.errors import InputError, RuleError
from lrpfunc.operations import Facts, facts
from lrpfunc.program import Equation, Program, Variable

NAMING = (
    'Name them, from the embedding upwards: layers=["embeddings", "blocks.0", "blocks.1"], names as `at` of `record` '
    "takes them or of inputs, of values (batch, tokens, width). `print(fmodel)` lists all names."
)


class Blocks(NamedTuple):
    """Modules that are numbered in a row: what their paths begin with, the equations of each by what it is called, and
    in how many numbered modules they stand.

    What is called more than once is a block for each call.
    """

    stem: str
    equations: Mapping[str, Sequence[Equation]]
    depth: int


def streams(program: Program, layers: str | Sequence[str] | None = None) -> dict[str, str]:
    """The variables of residual streams by their names, in the order in which they are made.

    Without `layers`: what numbered modules ("layers.0", "layers.1", "h_0") in a row hand on, and what the first of them
    is given, all of them (batch, tokens, width); if these are no blocks, those within. Several rows, as of encoder and
    decoder, come one after another.

    Errors: `RuleError` for names that there are not; `InputError` where nothing is found, or it is no stream.
    """
    found = _found(program) if layers is None else _named(program, layers)
    names = {variable.name: variable for variable in _variables(program)}
    for name, variable in found.items():
        shape = names[variable].shape
        if len(shape) != 3 or not names[variable].is_floating or shape[1] == "batch":
            raise InputError(f"'{name}' is no residual stream: it must be (batch, tokens, width), but is {shape}.")
    return found


def _variables(program: Program) -> list[Variable]:
    """Those of inputs and equations, in their order."""
    inputs = [leaf.value for leaf in program.input_leaves if isinstance(leaf.value, Variable)]
    return [*inputs, *(variable for equation in program.equations for variable in equation.outputs)]


def _named(program: Program, layers: str | Sequence[str]) -> dict[str, str]:
    given = [layers] if isinstance(layers, str) else layers
    if not isinstance(given, Sequence) or not given:
        raise RuleError(f"layers are names of residual streams, but got {layers!r}.")
    inputs = {leaf.label: leaf.value.name for leaf in program.input_leaves if isinstance(leaf.value, Variable)}
    found: dict[str, str] = {}
    for name in given:
        found |= {name: inputs[name]} if name in inputs else outputs_named(program, [name])
    order = [variable.name for variable in _variables(program)]
    by_variable = {variable: name for name, variable in found.items()}
    return {by_variable[variable]: variable for variable in order if variable in by_variable}


# -- by the names of blocks -------------------------------------------------------------------------------------------


def _found(program: Program) -> dict[str, str]:
    known = facts(program)
    rows = _numbered(known.equations)
    found = {name: variable.name for name, variable in _of_rows(known, rows).items()}
    if not found:
        stems = ", ".join(f"those at '{blocks.stem}' hand on {_shapes(blocks)}" for blocks in rows)
        hint = f"of modules numbered in a row {stems}, and no (batch, tokens, width)" if rows else ""
        raise InputError(f"no residual streams were found: {hint or 'no modules are numbered in a row'}. {NAMING}")
    order = [variable.name for variable in _variables(program)]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def _of_rows(known: Facts, rows: Sequence[Blocks]) -> dict[str, Variable]:
    """The streams of all rows; of one whose modules are no blocks, as the stages of Swin, those of rows within."""
    found: dict[str, Variable] = {}
    for blocks in rows:
        inside = [equation for equations in blocks.equations.values() for equation in equations]
        found |= _of_blocks(known, blocks) or _of_rows(known, _numbered(inside, blocks.depth + 1))
    return found


def _shapes(blocks: Blocks) -> str:
    """Those that modules end with."""
    ends = (equations[-1].outputs[0].shape for equations in blocks.equations.values())
    return " and ".join(dict.fromkeys(f"({', '.join(map(str, shape))})" for shape in ends))


def _numbered(equations: Iterable[Equation], depth: int = 0) -> list[Blocks]:
    """Numbered modules that stand in so many others, row by row."""
    rows: dict[str, dict[tuple[str, int], list[Equation]]] = {}
    for equation in equations:
        parts = equation.name.split(".")[:-1]
        places = [(place, number) for place, part in enumerate(parts) if (number := re.fullmatch(r"(.*_)?\d+", part))]
        if len(places) > depth:
            place, number = places[depth]
            path = ".".join(parts[: place + 1])
            block = path, equation.calls.get(path, 0)
            stem = ".".join([*parts[:place], number[1] or ""])
            rows.setdefault(stem, {}).setdefault(block, []).append(equation)
    return [Blocks(stem.rstrip("._"), _called(row), depth) for stem, row in rows.items()]


def _called(row: Mapping[tuple[str, int], list[Equation]]) -> dict[str, list[Equation]]:
    several = {path for path, call in row if call}
    return {f"{path}:{call}" if path in several else path: equations for (path, call), equations in row.items()}


def _of_blocks(known: Facts, blocks: Blocks) -> dict[str, Variable]:
    """What the first block is given and each one hands on; nothing if one of them hands on something else."""
    found: dict[str, Variable] = {}
    for name, equations in blocks.equations.items():
        given, handed = _given(known, equations), _handed(known, equations)
        pairs = [(one, other) for other in reversed(handed) for one in given if _are_alike(one, other)]
        if not pairs or (found and not _are_alike(pairs[0][1], next(iter(found.values())))):
            return {}
        if not found:
            found[_label(known.program, pairs[0][0])] = pairs[0][0]
        end = pairs[0][1]
        found[name if end is equations[-1].outputs[0] else _label(known.program, end)] = end
    return found


def _are_alike(one: Variable, other: Variable) -> bool:
    """Whether two shapes are the same as far as they are fixed: an open size may go by several names."""
    return all(n == m or isinstance(n, str) or isinstance(m, str) for n, m in zip(one.shape, other.shape, strict=True))


def _label(program: Program, variable: Variable) -> str:
    """What a variable is called: after its equation, or the input that it is."""
    maker = program.producers.get(variable.name)
    return maker.name if maker else next(leaf.label for leaf in program.input_leaves if leaf.value is variable)


def _given(known: Facts, equations: Sequence[Equation]) -> list[Variable]:
    """What a block reads of what others made and relevance comes to."""
    made = {v.name for e in equations for v in e.outputs}
    read: Mapping[str, Variable] = {v.name: v for e in equations for v in known.inputs_of(e) if v.name not in made}
    return [variable for variable in read.values() if _is_stream(variable)]


def _handed(known: Facts, equations: Sequence[Equation]) -> list[Variable]:
    """What others read of what a block made, or what leaves the program."""
    own = {e.outputs[0].name for e in equations}
    made = [v for e in equations for v in e.outputs if v.name in known.active and _is_stream(v)]
    return [
        v
        for v in made
        if v.name in known.results or any(r.outputs[0].name not in own for r in known.readers.get(v.name, ()))
    ]


def _is_stream(variable: Variable) -> bool:
    shape = variable.shape
    return len(shape) == 3 and variable.is_floating and isinstance(shape[-1], int) and shape[1] != "batch"
