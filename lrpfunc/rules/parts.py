"""The linear part of a recurrent layer's step, and how its rule gets from there to the hidden state before the step.

Any rule of layers can be asked, step by step. Rules that state branches in x have a closed form: a branch makes
W^T (q c) of a coefficient c, where q, the output's proportion of S(d), is computed for all steps at once. So a step is
one small matrix product, or two where positive and negative parts of x have weights of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.operations import Cell, Operation, times
from lrpfunc.program import fast_paths
from lrpfunc.rules import engine
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.rule import Rule
from lrpfunc.rules.statements import ALL, NEGATIVE, POSITIVE, Statement

# What the linear part sends to the hidden state before a step (None: nothing; a tensor: its coefficient), by the step's
# number and the coefficients of its core and its output gate.
Pull = Callable[[int, Tensor, "Tensor | None"], "Tensor | Flow | None"]


class Part(NamedTuple):
    """A linear part: its rule, its operation, the statement that is run in closed form (None: the rule is asked), and
    what is left of the pass forward, step by step where the rule is asked."""

    rule: Rule
    operation: Operation
    statement: Statement | None = None
    left: Any = None

    def passed(self, x: Tensor) -> tuple[Tensor, Any]:
        """Its output at all steps, and what is left of it."""
        if self.statement is None:
            pairs = [self.rule.forward(self.operation, row) for row in x.unbind()]
            return torch.stack([z for z, _ in pairs]), [left for _, left in pairs]
        rows = x.flatten(0, 1)
        z, left = engine.run(self.statement, self.operation.at([rows]), (rows,))
        return z.unflatten(0, x.shape[:2]), left

    def back(self, step: int, flow: Flow) -> Flow | None:
        """What the rule sends from the output of a step."""
        sent: Any = self.rule.backward(self.operation, self.left[step], flow)
        return sent[0] if isinstance(sent, (tuple, list)) else sent


def statement_of(rule: Rule) -> Statement | None:
    """The statement of a rule that has the closed form."""
    statement = getattr(rule.parameters, "statement", None)
    return statement if fast_paths.taken and statement is not None and statement.gives_coefficients else None


def puller(part: Part, cell: Cell) -> Pull:
    """How flows get from a step to the hidden state before it."""
    return _by_rule(part, cell) if part.statement is None else _in_closed_form(part, part.statement, cell)


def _by_rule(part: Part, cell: Cell) -> Pull:
    factors = [None if factor is None else factor.unbind() for factor in cell.hidden]

    def pull(step: int, core: Tensor, output: Tensor | None) -> Flow | None:
        parts = [torch.zeros_like(core) if factor is None else factor[step] * core for factor in factors]
        if output is not None and cell.output is not None:
            parts[cell.output.part] = output
        return part.back(step, Flow(coefficient=torch.cat(parts, -1)))

    return pull


def _in_closed_form(part: Part, statement: Statement, cell: Cell) -> Pull:
    steps, count = cell.core.shape[:2], len(cell.hidden)
    live = [(n, factor) for n, factor in enumerate(cell.hidden) if factor is not None]
    numbers = [n for n, _ in live]
    gate = None if cell.output is None else cell.output.part
    factors: list[Sequence[Tensor]] = []  # of the core's coefficient, for each branch and each part
    of_gate: list[Sequence[Tensor] | None] = []  # of the output gate's, for each branch
    for q in engine.proportions(statement, part.operation, part.left):
        qs = [None] * count if q is None else q.unflatten(0, steps).chunk(count, -1)
        factors += [times(factor, qs[n]).unbind() for n, factor in live]
        if gate is not None:
            of_gate.append(None if (of_part := qs[gate]) is None else of_part.unbind())
    rows = _rows(part.operation, statement, POSITIVE, numbers, gate, count)
    other = _rows(part.operation, statement, NEGATIVE, numbers, gate, count) if statement.is_signed else None
    is_negative = [(x < 0).to(x.dtype).unflatten(0, steps).unbind() for x in part.left.inputs]

    def pull(step: int, core: Tensor, output: Tensor | None) -> Tensor:
        parts = [factor[step] * core for factor in factors]
        if output is not None:
            parts += [output if q is None else output * q[step] for q in of_gate]
        s = torch.cat(parts, -1)
        c = torch.mm(s, rows)
        return c if other is None else torch.lerp(c, torch.mm(s, other), is_negative[0][step])

    if len(factors) > 1 or gate is not None or other is not None:
        return pull
    (factor,) = factors
    return lambda step, core, output: torch.mm(factor[step] * core, rows)


def _rows(
    operation: Operation, statement: Statement, side: str, numbers: Sequence[int], gate: int | None, count: int
) -> Tensor:
    """The weights by which x has its coefficients, where it has a sign: those of the parts for each branch, and then
    those of the output gate for each branch."""
    made = []
    for branch, weights in zip(statement.branches, operation.hoisted(statement.weights), strict=True):
        terms = [w for term, w in zip(branch.terms, weights, strict=True) if term.x in (ALL, side)]
        made.append((sum(terms[1:], terms[0]) * branch.share).chunk(count))
    gates = [] if gate is None else [parts[gate] for parts in made]
    return torch.cat([*(parts[n] for parts in made for n in numbers), *gates])
