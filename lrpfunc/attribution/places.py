"""What names of layers mean where relevance enters, is edited or is read: the output of an equation."""

from __future__ import annotations

from collections.abc import Sequence

from lrpfunc.composites.names import WILDCARDS, Names
from lrpfunc.errors import RuleError, near_misses
from lrpfunc.operations import active_equations
from lrpfunc.program import Equation, Program


def outputs_named(program: Program, at: str | Sequence[str] | None) -> dict[str, str]:
    """The variables that names of layers mean. A name that is an equation's or a module's is kept as it was given;
    a pattern becomes the names that match it. Errors: `RuleError`."""
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
        return {name: _output(name, (exact or below)[-1])}
    if any(character in name for character in WILDCARDS):
        matching = set(Names(program).matching(name))
        return {e.name: _output(e.name, e) for e in equations if e.name in matching}
    paths = {e.name.rpartition(".")[0] for e in equations} - {""}
    if any(e.name == name or e.name.startswith(f"{name}.") for e in program.equations):
        raise RuleError(
            f"'{name}' is a constant: it does not depend on an input through what has a derivative, so no relevance "
            "passes there."
        )
    hint = near_misses(name, [*(e.name for e in equations), *paths])
    raise RuleError(f"no layer is called '{name}'.{hint} `print(fmodel)` lists all names.")


def _output(name: str, equation: Equation) -> str:
    if len(equation.outputs) > 1:
        raise RuleError(f"'{name}' has {len(equation.outputs)} outputs: name a layer that reads the one you want.")
    return equation.outputs[0].name
