"""Equations of a program, one after another, with new ones in front of those that need them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from lrpfunc.program import Equation, Program, Variable


class Rewriting:
    """The equations of a new program, as far as they are known; what is added has a name of its own."""

    def __init__(self, program: Program):
        self.names = {e.name for e in program.equations} | {v.name for e in program.equations for v in e.outputs}
        self.equations: list[Equation] = []

    def add(self, name: str, like: Variable, function: Callable, *arguments) -> Variable:
        """What a function makes that is like a variable, by a new equation, which is called by this name if it can."""
        names = itertools.chain([name], (f"{name}:{number}" for number in itertools.count(1)))
        free = next(one for one in names if one not in self.names)
        self.names.add(free)
        made = Variable(free, like.shape, like.dtype)
        self.equations.append(Equation(free, function, arguments, {}, (made,)))
        return made
