"""What a name means in a program: an equation, the calls of a module, one of these calls.

"act"     a layer: all its calls, the equations "act", "act:1", ...
"act:0"   the first of them alone
"block"   a module's path: the last equation below it, of each call
"block:1" that of the second call alone
"add"     an operation that no module is called after: this equation, and not "add:1"
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from lrpfunc.program.equations import Equation


def numbered(name: str) -> tuple[str, int | None]:
    """A name without the number of a call, and that number: "act:1" is the call 1 of "act"."""
    path, colon, number = name.rpartition(":")
    return (path, int(number)) if colon and number.isdigit() else (name, None)


def matches(name: str, pattern: str) -> bool:
    """Whether an equation's name, with or without the number of its call, matches a pattern with wildcards."""
    path, call = numbered(name)
    return any(fnmatch.fnmatchcase(each, pattern) for each in (name, path, f"{path}:{call or 0}"))


def called(equations: Iterable[Equation], name: str) -> dict[str, Equation]:
    """The equations that make what a name means, by names of which each means one call; empty if there is none."""
    path, number = numbered(name)
    found = _calls(equations, path)
    if number is None and 0 in found and found[0].name == path and path not in found[0].calls:
        number = 0
    if number is not None:
        return {name: found[number]} if number in found else {}
    return {name if len(found) == 1 else f"{path}:{call}": equation for call, equation in found.items()}


def below_call(equations: Iterable[Equation], name: str) -> list[str]:
    """The names of the equations of one call: of "act:0" or of all that is below the path of "block:1"."""
    path, call = numbered(name)
    if call is None:
        return []
    start = f"{path}."
    return [
        e.name
        for e in equations
        if (e.name == path and not call) or (e.name.startswith(start) and e.calls.get(path, 0) == call)
    ]


def _calls(equations: Iterable[Equation], path: str) -> dict[int, Equation]:
    """The equation of each call: what has the name itself, else the last below the path."""
    exact: dict[int, Equation] = {}
    below: dict[int, Equation] = {}
    for equation in equations:
        name, number = numbered(equation.name)
        if name == path:
            exact[number or 0] = equation
        elif equation.name.startswith(f"{path}."):
            below[equation.calls.get(path, 0)] = equation
    return exact or below
