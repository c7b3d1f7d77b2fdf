"""What names of layers mean where relevance enters, is edited or is read: the output of an equation.

"layer3"                  a module's path: the output of its last equation
"layer3.0.conv1"          an equation
"layer?.*.relu"           a pattern: all equations that match it, as `by_name` has it
"layers.3.self_attn:heads"  a part of what is below a path, see PARTS; the path may be a pattern, too

Of what is called more than once each of these means all calls, "act:0", "act:1", ..., "block:0:heads"; with its number
it is one call. What stands behind a colon and has wildcards is no part: "act:*" is a pattern of names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

from lrpfunc.composites.names import WILDCARDS, Names
from lrpfunc.errors import RuleError, near_misses
from lrpfunc.operations import (
    ATTENTION,
    BILINEAR,
    DENSE,
    MOVEMENT,
    PRODUCT,
    SOFTMAX,
    SUM,
    Facts,
    active_equations,
    facts,
)
from lrpfunc.program import Equation, Program, Variable, called, numbered


def outputs_named(program: Program, at: str | Sequence[str] | None) -> dict[str, str]:
    """The variables that names of layers mean, by names of which each means one: as it was given, or one of several.

    A list that has "act:1" in it has "act" as the name of the first call alone. Errors: `RuleError`.
    """
    return {layer: place for found in each_named(program, at).values() for layer, place in found.items()}


def each_named(program: Program, at: str | Sequence[str] | None) -> dict[str, dict[str, str]]:
    """As `outputs_named`, for each of the names by itself. Errors: `RuleError`."""
    names = [at] if isinstance(at, str) else [] if at is None else at
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise RuleError(f"`at` takes names of layers, but got {at!r}.")
    beside = {path for path, call in map(numbered, names) if call}
    return {name: _first(program, name) if name in beside else _named(program, name) for name in names}


def output_named(program: Program, name: str) -> tuple[str, str]:
    """The one layer that a name means, and its variable. Errors: `RuleError`, also where it means several."""
    found = outputs_named(program, name)
    if len(found) > 1:
        raise RuleError(f"'{name}' means {len(found)} layers where one is needed: name one of {', '.join(found)}.")
    return next(iter(found.items()))


def _first(program: Program, name: str) -> dict[str, str]:
    """An equation by the name that it has in a listing, where its later calls are named as well."""
    exact = [e for e in active_equations(program) if e.name == name]
    return {name: _output(name, exact[0]).name} if exact else _named(program, name)


def _named(program: Program, name: str) -> dict[str, str]:
    equations = list(active_equations(program))
    if found := called(equations, name):
        return {each: _output(each, equation).name for each, equation in found.items()}
    path, colon, part = name.rpartition(":")
    if colon and not part.isdigit() and not _has_wildcards(part):
        return _parts_named(program, name, path, part)
    if _has_wildcards(name):
        matching = set(Names(program).matching(name))
        matched = [(f"{e.name}:0" if e.name in e.calls else e.name, e) for e in equations if e.name in matching]
        return {each: _output(each, equation).name for each, equation in matched}
    if called(program.equations, name):
        raise RuleError(
            f"'{name}' is a constant: it does not depend on an input through what has a derivative, so no relevance "
            "passes there."
        )
    hint = near_misses(name, [*(e.name for e in equations), *_paths(equations)])
    raise RuleError(f"no layer is called '{name}'.{hint} `print(fmodel)` lists all names.")


def _has_wildcards(name: str) -> bool:
    return any(character in name for character in WILDCARDS)


def _output(name: str, equation: Equation) -> Variable:
    if len(equation.outputs) > 1:
        raise RuleError(f"'{name}' has {len(equation.outputs)} outputs: name a layer that reads the one you want.")
    return equation.outputs[0]


def _paths(equations: Sequence[Equation]) -> list[str]:
    """The paths of all modules that equations are of, the outer ones first."""
    paths: dict[str, None] = {}
    for equation in equations:
        parts = equation.name.split(".")
        paths.update(dict.fromkeys(".".join(parts[:i]) for i in range(1, len(parts))))
    return list(paths)


# -- parts ------------------------------------------------------------------------------------------------------------


def _heads(known: Facts, equations: Sequence[Equation]) -> Variable | None:
    """What attention heads give, before they are laid side by side."""
    patterns = {v.name for e in equations if known.kind_of(e) == SOFTMAX for v in e.outputs}
    for equation in reversed(equations):
        kind = known.kind_of(equation)
        if kind == ATTENTION or (kind in (PRODUCT, BILINEAR) and _follows(known, equation, patterns)):
            return equation.outputs[0]
    return None


def _follows(known: Facts, equation: Equation, patterns: set[str]) -> bool:
    """Whether a product is of an attention pattern, which may have been cast or moved before."""
    reached = {v.name for v in equation.reads}
    for _ in range(4):  # a dropout, a cast, a reshape
        if reached & patterns:
            return True
        makers = [known.program.producers[name] for name in reached if name in known.program.producers]
        reached = {v.name for e in makers if known.kind_of(e) == MOVEMENT for v in e.reads}
    return False


def _pattern(known: Facts, equations: Sequence[Equation]) -> Variable | None:
    """The probabilities that tokens attend with."""
    return next((e.outputs[0] for e in reversed(equations) if known.kind_of(e) == SOFTMAX), None)


def _neurons(known: Facts, equations: Sequence[Equation]) -> Variable | None:
    """What the last layer reads: the neurons of an MLP."""
    last = next((e for e in reversed(equations) if known.kind_of(e) == DENSE), None)
    return None if last is None else known.inputs_of(last)[0]


def _residual(known: Facts, equations: Sequence[Equation]) -> Variable | None:
    """The last sum x + f(x): the residual stream behind a block. Other sums, as in rotary embeddings, are none."""
    sums = (e for e in reversed(equations) if known.kind_of(e) == SUM and len(known.inputs_of(e)) == 2)
    return next((e.outputs[0] for e in sums if _is_skip(known, e)), None)


def _is_skip(known: Facts, equation: Equation) -> bool:
    """Whether one of two summands is made of the other."""
    one, other = known.inputs_of(equation)
    return _is_made_of(known, one, other) or _is_made_of(known, other, one)


def _is_made_of(known: Facts, variable: Variable, part: Variable) -> bool:
    producers, seen, left = known.program.producers, set(), [variable.name]
    while left:
        name = left.pop()
        if name == part.name:
            return True
        if name not in seen and name in producers:
            left.extend(v.name for v in producers[name].reads)
        seen.add(name)
    return False


PARTS: Mapping[str, Callable[[Facts, Sequence[Equation]], Variable | None]] = {
    "heads": _heads,
    "pattern": _pattern,
    "neurons": _neurons,
    "residual": _residual,
}


def _parts_named(program: Program, name: str, path: str, part: str) -> dict[str, str]:
    """The parts of a path, or of all paths that match a pattern; the innermost path of a part counts."""
    if part not in PARTS:
        raise RuleError(f"'{name}' asks for '{part}', but parts are {', '.join(PARTS)}.{near_misses(part, PARTS)}")
    equations = list(active_equations(program))
    paths = _paths(equations)
    wanted, number = numbered(path)
    matching = [p for p in paths if p == wanted or fnmatch.fnmatchcase(p, wanted)]
    if not matching:
        raise RuleError(f"no module is at '{path}'.{near_misses(path, paths)} `print(fmodel)` lists all names.")
    found: dict[str, str] = {}  # the innermost path comes last
    for each in matching:
        for call, below in _calls_below(equations, each).items():
            variable = PARTS[part](facts(program), below) if number in (None, numbered(call)[1] or 0) else None
            if variable is not None and variable.name in program.producers:
                found[variable.name] = f"{call}:{part}"
    if not found:
        fused = part == "pattern" and " Attention as one operation has none: load the model with eager attention."
        raise RuleError(f"'{path}' has no {part}.{fused or ''} `lrpfunc.explain(fmodel)` lists what is there.")
    made = [v.name for e in equations for v in e.outputs]
    return {found[variable]: variable for variable in made if variable in found}


def _calls_below(equations: Sequence[Equation], path: str) -> dict[str, list[Equation]]:
    """What is below a path, call by call; where there is one only, by the path itself."""
    calls: dict[int, list[Equation]] = {}
    for equation in equations:
        if equation.name.startswith(f"{path}."):
            calls.setdefault(equation.calls.get(path, 0), []).append(equation)
    return {f"{path}:{n}" if len(calls) > 1 else path: below for n, below in calls.items()}
