"""What patterns of names mean in a program."""

from __future__ import annotations

from collections.abc import Collection

from lrpfunc.compat import constant_in_compiled_code
from lrpfunc.errors import RuleError, near_misses
from lrpfunc.operations import CONVOLUTION, DENSE, RECURRENT, active_equations, facts
from lrpfunc.program import Program, below_call, matches

WILDCARDS = "*?["


class Names:
    """The names of a program's active equations, to look up patterns in: by name, by prefix, by wildcards.

    Each means all calls of what is called more than once; with a number behind, "act:0", one call.
    `weighted`: those of layers.
    """

    def __init__(self, program: Program):
        known = facts(program)
        equations = active_equations(program)
        self.all = [equation.name for equation in equations]
        self.weighted = {e.name for e in equations if known.kind_of(e) in (CONVOLUTION, DENSE, RECURRENT)}
        self.below: dict[str, list[str]] = {}  # by a module's path; "layer1:2" is below "layer1"
        for name in self.all:
            for end, character in enumerate(name):
                if character in ".:":
                    self.below.setdefault(name[:end], []).append(name)
        self.exact = set(self.all)
        self.equations = equations

    def matching(self, pattern: str) -> list[str]:
        """The names that a pattern means. Errors: `RuleError` with near misses if there are none."""
        if pattern in self.exact:
            start = f"{pattern}:"
            found = [pattern, *(name for name in self.below.get(pattern, ()) if name.startswith(start))]
        else:
            found = list(self.below.get(pattern, ())) or below_call(self.equations, pattern)
            if any(character in pattern for character in WILDCARDS):
                also = set(found)
                found = [name for name in self.all if name in also or _matches(name, pattern)]
        if not found:
            raise RuleError(_no_match(pattern, self.all))
        return [name for name in found if name in self.weighted] or found


@constant_in_compiled_code
def _matches(name: str, pattern: str) -> bool:
    return matches(name, pattern)


def _no_match(pattern: str, names: Collection[str]) -> str:
    prefixes = {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)}
    hint = near_misses(pattern, [*names, *(f"{prefix}.*" for prefix in prefixes), *prefixes])
    return f"no layer matches the pattern '{pattern}'.{hint} `print(fmodel)` lists all names."
