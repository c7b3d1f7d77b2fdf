"""Integers on their way to a table: which of them have relevance, that of the rows that are looked up by them.

An id is no number to relevance but a name: its relevance is that of its row, R_t = sum_d R_td, and goes back unchanged
through whatever makes one id of another (a shift, a remainder, a cast). What is made of comparisons is no id.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lrpfunc.operations.row import FIRST
from lrpfunc.operations.table import row_of
from lrpfunc.program import Equation, Program, Variable, variables_in


class Ids:
    """Filled equation by equation: the integers that were made of an input as ids are, and may lead to a table.

    `given`: all that depends on an input, in whatever way; a table must not.
    """

    def __init__(self, inputs: list[Variable]):
        self.names = {variable.name for variable in inputs if is_id(variable)}
        self.hot: set[str] = set()
        self.given = {variable.name for variable in inputs}

    def pass_through(self, equation: Equation, active: set[str]) -> None:
        """Note what an equation makes of ids, or of active numbers that are cast to ids."""
        if any(variable.name in self.given for variable in equation.reads):
            self.given.update(variable.name for variable in equation.outputs)
        if not any(variable.name in self.names or variable.name in active for variable in sources(equation)):
            return
        made = [variable.name for variable in equation.outputs if is_id(variable)]
        self.names.update(made)
        if row_of(equation).is_one_hot or any(variable.name in self.hot for variable in sources(equation)):
            self.hot.update(made)

    def looked_up(self, equation: Equation) -> list[Variable]:
        """The ids whose rows an equation looks up."""
        row = row_of(equation)
        if row.ids is not None and not self._is_given(equation.arguments[0]):
            ids = variables_in(equation.arguments[row.ids])
            return [variable for variable in ids if variable.name in self.names]
        if equation.outputs[0].is_differentiable and row.moves_ids:
            return [variable for variable in sources(equation) if variable.name in self.hot]
        return []

    def on_their_way(self, program: Program) -> set[str]:
        """Of what may lead to a table, what does."""
        needed: set[str] = set()
        for equation in reversed(program.equations):
            needed.update(variable.name for variable in self.looked_up(equation))
            if any(variable.name in needed for variable in equation.outputs):
                needed.update(variable.name for variable in sources(equation) if is_id(variable))
        return needed & self.names

    def _is_given(self, template) -> bool:
        return any(variable.name in self.given for variable in variables_in(template))


def is_id(variable: Variable) -> bool:
    """Whether a variable holds integers, which may be ids; truth values are none."""
    return variable.is_tensor and not variable.is_differentiable and variable.dtype != torch.bool


def sources(equation: Equation) -> Iterator[Variable]:
    """What an equation moves ids of, or makes ids of."""
    moves = row_of(equation).moves_ids
    if moves:
        reads = equation.reads[:1] if moves == FIRST else equation.reads
        yield from (variable for variable in reads if is_id(variable) or variable.is_differentiable)
