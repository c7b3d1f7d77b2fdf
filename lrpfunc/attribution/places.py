"""What names of layers mean where relevance enters, is edited or is read: the output of an equation.

"layer3"                  a module's path: the output of its last equation
"layer3.0.conv1"          an equation
"layer?.*.relu"           a pattern: all equations that match it, as `by_name` has it
"layers.3.self_attn:heads"  a part of what is below a path, see PARTS; the path may be a pattern, too
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
from lrpfunc.program import Equation, Program, Variable


def outputs_named(program: Program, at: str | Sequence[str] | None) -> dict[str, str]:
    """The variables that names of layers mean. What names one thing is kept as it was given; a pattern becomes the
    names that match it. Errors: `RuleError`."""
    names = [at] if isinstance(at, str) else [] if at is None else at
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise RuleError(f"`at` takes names of layers, but got {at!r}.")
    found: dict[str, str] = {}
    for name in names:
        found |= _named(program, name)
    return found


def _named(program: Program, name: str) -> dict[str, str]:
    equations = list(active_equations(program))
    exact = [e for e in equations if e.name == name]
    below = [e for e in equations if e.name.startswith(f"{name}.")]
    if exact or below:
        return {name: _output(name, (exact or below)[-1]).name}
    path, colon, part = name.rpartition(":")
    if colon and not part.isdigit():
        return _parts_named(program, name, path, part)
    if any(character in name for character in WILDCARDS):
        matching = set(Names(program).matching(name))
        return {e.name: _output(e.name, e).name for e in equations if e.name in matching}
    if any(e.name == name or e.name.startswith(f"{name}.") for e in program.equations):
        raise RuleError(
            f"'{name}' is a constant: it does not depend on an input through what has a derivative, so no relevance "
            "passes there."
        )
    hint = near_misses(name, [*(e.name for e in equations), *_paths(equations)])
    raise RuleError(f"no layer is called '{name}'.{hint} `print(fmodel)` lists all names.")


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
    """The last sum of two: the residual stream behind a block."""
    sums = (e for e in reversed(equations) if known.kind_of(e) == SUM and len(known.inputs_of(e)) == 2)
    return next((e.outputs[0] for e in sums), None)


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
    matching = [p for p in paths if p == path or fnmatch.fnmatchcase(p, path)]
    if not matching:
        raise RuleError(f"no module is at '{path}'.{near_misses(path, paths)} `print(fmodel)` lists all names.")
    found: dict[str, str] = {}  # the innermost path comes last
    for each in matching:
        below = [e for e in equations if e.name.startswith(f"{each}.")]
        variable = PARTS[part](facts(program), below)
        if variable is not None and variable.name in program.producers:
            found[variable.name] = f"{each}:{part}"
    if not found:
        fused = part == "pattern" and " Attention as one operation has none: load the model with eager attention."
        raise RuleError(f"'{path}' has no {part}.{fused or ''} `lrpfunc.explain(fmodel)` lists what is there.")
    made = [v.name for e in equations for v in e.outputs]
    return {found[variable]: variable for variable in made if variable in found}
