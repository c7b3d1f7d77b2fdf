"""Through the steps of a recurrent layer, from the last to the first.

What follows from values alone is computed for all steps at once. From step to step go only the coefficient of the core
and what the linear part sends to the hidden state before it: one small matrix product, where its rule has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.operations import Cell, Operation, in_rows, times
from lrpfunc.program import fast_paths
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.rule import Rule
from lrpfunc.rules.stabilizers import Stabilizer
from lrpfunc.rules.statements import Statement


class Part(NamedTuple):
    """A linear part of a step: its rule, its operation, and what the rule left of each step; None in closed form.

    `statement`: what the rule states, if it shares the output by contribution, which has a closed form: c_x = W^T (q c)
    with q = z / S(z).
    """

    rule: Rule
    operation: Operation
    kept: list | None = None
    statement: Statement | None = None

    def passed(self, x: Tensor) -> tuple[Tensor, list | None]:
        """Its output at all steps, and what the rule leaves."""
        if self.statement is not None:
            return self.operation(x), None
        pairs = [self.rule.forward(self.operation, row) for row in x.unbind()]
        return torch.stack([z for z, _ in pairs]), [kept for _, kept in pairs]

    def back(self, step: int, flow: Flow) -> Flow | None:
        """What the rule sends from the output of a step; None where it stops relevance."""
        assert self.kept is not None
        sent: Any = self.rule.backward(self.operation, self.kept[step], flow)
        return sent[0] if isinstance(sent, (tuple, list)) else sent

    def proportion(self, z: Tensor) -> Tensor | None:
        """q of the closed form at all steps; None for one."""
        statement, bias = self.statement, self.operation.bias
        assert statement is not None
        if bias is not None and statement.branches[0].bias is None:
            return in_rows(statement.stabilize.quotient, z, z - bias)
        return None if statement.stabilize.is_identity else in_rows(statement.stabilize.proportion, z)


def statement_of(rule: Rule) -> Statement | None:
    """The statement of a rule that has the closed form."""
    statement = getattr(rule.parameters, "statement", None)
    return statement if fast_paths.taken and statement is not None and statement.is_whole else None


# -- from a step to the hidden state before it ------------------------------------------------------------------------

# What the linear part sends there, by the number of the step and the coefficients of its core and its output gate.
Pull = Callable[[int, Tensor, "Tensor | None"], "Flow | None"]


def puller(part: Part, cell: Cell, hidden: Tensor) -> Pull:
    """How flows get there. `hidden`: what the hidden states bring to the steps."""
    if part.statement is None:
        return _by_rule(part, cell)
    count, q = len(cell.hidden), part.proportion(hidden)
    qs = [None] * count if q is None else q.chunk(count, -1)
    live = [(n, factor) for n, factor in enumerate(cell.hidden) if factor is not None]
    factors = [times(factor, qs[n]).unbind() for n, factor in live]
    numbers = [n for n, _ in live]
    of_output: Sequence[Tensor] | None = None
    if cell.output is not None:
        numbers.append(cell.output.part)
        of_output = None if q is None else q.chunk(count, -1)[cell.output.part].unbind()
    weights = part.operation.weight.chunk(count)
    rows = torch.cat([weights[n] for n in numbers])

    def pull(step: int, core: Tensor, output: Tensor | None) -> Flow:
        parts = [factor[step] * core for factor in factors]
        if output is not None:
            parts.append(output if of_output is None else output * of_output[step])
        return Flow(coefficient=(parts[0] if len(parts) == 1 else torch.cat(parts, -1)) @ rows)

    return pull


def _by_rule(part: Part, cell: Cell) -> Pull:
    factors = [None if factor is None else factor.unbind() for factor in cell.hidden]

    def pull(step: int, core: Tensor, output: Tensor | None) -> Flow | None:
        parts = [torch.zeros_like(core) if factor is None else factor[step] * core for factor in factors]
        if output is not None and cell.output is not None:
            parts[cell.output.part] = output
        return part.back(step, Flow(coefficient=torch.cat(parts, -1)))

    return pull


# -- from the last step to the first ----------------------------------------------------------------------------------


class Found(NamedTuple):
    """Coefficients of the core, and of the output gate (None: it has none), at each step; `came`: what came to each hidden
    state that is a projection; `first`: what goes to the hidden state before the first step."""

    cores: Tensor
    outputs: Tensor | None
    came: list[Flow]
    first: Flow | None


class Walk:
    """From flows at the states after each step to coefficients within the steps.

    `states`: the values of the states, side by side, of which the hidden one is `width` wide; `narrow`: the projection
    that makes that.
    """

    def __init__(self, cell: Cell, stabilize: Stabilizer, pull: Pull, narrow: Part | None, states: Tensor, width: int):
        self.cell, self.stabilize, self.pull, self.narrow = cell, stabilize, pull, narrow
        self.states, self.width = states, width
        self.of_state = cell.of_state.unbind()
        self.of_later = None if cell.of_later is None else cell.of_later.unbind()
        self.of_output = None if cell.output is None else cell.output.factor.unbind()

    def found(self, arrived: Flow, with_first: bool) -> Found:
        """The coefficients, given what came to the states. `with_first`: also what goes to that before the first step."""
        at_states = arrived.moved(arrived.tensor[..., : self.width])
        cores, outputs = self._outside(arrived, at_states)
        came: list[Flow] = []
        flow: Flow | None = None
        for step in reversed(range(len(cores))):
            if self.of_later is not None and step + 1 < len(cores):
                cores[step] = torch.addcmul(cores[step], self.of_later[step], cores[step + 1])
            if self.narrow is not None:
                came.append(met(at_states.moved(at_states.tensor[step]), flow, self.states[step, ..., : self.width]))
                flow = self.narrow.back(step, came[-1])
            if flow is not None:
                cores[step], outputs[step] = self._joined(step, flow, cores[step], outputs[step])
            flow = self.pull(step, cores[step], outputs[step]) if step or with_first else None
        gates = None if self.of_output is None else torch.stack([_known(o, c) for o, c in zip(outputs, cores, strict=True)])
        return Found(torch.stack(cores), gates, came[::-1], flow)

    def _outside(self, arrived: Flow, at_states: Flow) -> tuple[list[Tensor], list[Tensor | None]]:
        """What came from outside, at the cores and the output gates."""
        cores: Tensor | None = None
        outputs: Tensor | None = None
        if arrived.tensor.shape[-1] > self.width:
            rest = arrived.tensor[..., self.width :]
            cores = self._over(rest, self.cell.core) if arrived.is_relevance else times(rest, self.cell.of_carried)
        if self.narrow is None:
            core, outputs = self._entered(slice(None), at_states)
            cores = core if cores is None else cores + core
        assert cores is not None
        return list(cores.unbind()), [None] * len(cores) if outputs is None else list(outputs.unbind())

    def _joined(self, step: int, flow: Flow, core: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The coefficients of a step, with what comes to its hidden state."""
        if flow.is_relevance:
            more, gate = self._entered(step, flow)
            return core + more, gate if output is None or gate is None else output + gate
        core = torch.addcmul(core, self.of_state[step], flow.tensor)
        if self.of_output is None:
            return core, None
        gate = self.of_output[step] * flow.tensor
        return core, gate if output is None else output + gate

    def _entered(self, at: int | slice, flow: Flow) -> tuple[Tensor, Tensor | None]:
        """A flow at the hidden state, before its projection, at the core and the output gate, of a step or all."""
        cell, output, x = self.cell, self.cell.output, flow.tensor
        if not flow.is_relevance:
            return cell.of_state[at] * x, None if output is None else output.factor[at] * x
        core = self._over(x * _of(cell.share, at), cell.core[at])
        return core, None if output is None else self._over(x * _of(output.share, at), output.sum[at])

    def _over(self, x: Tensor, total: Tensor) -> Tensor:
        quotient = self.stabilize.quotient
        return in_rows(quotient, x, total) if x.dim() == 3 else quotient(x, total)


def met(flow: Flow, other: Flow | None, value: Tensor) -> Flow:
    """Both flows at a value: coefficients stay coefficients, mixed forms meet as relevance."""
    if other is None:
        return flow
    if flow.is_relevance == other.is_relevance:
        return flow.moved(flow.tensor + other.tensor)
    return Flow(relevance=flow.relevance(value) + other.relevance(value))


def _of(share: Tensor | float, at: int | slice) -> Tensor | float:
    return share[at] if isinstance(share, Tensor) else share


def _known(output: Tensor | None, core: Tensor) -> Tensor:
    return torch.zeros_like(core) if output is None else output
