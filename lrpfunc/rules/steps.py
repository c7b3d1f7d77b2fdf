"""Through the steps of a recurrent layer, from the last to the first.

What follows from values alone is computed for all steps at once. From step to step go only the coefficient of the core
and what the linear part sends to the hidden state before it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.operations import Cell, in_rows, times
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.parts import Part, Pull
from lrpfunc.rules.stabilizers import Stabilizer


class Found(NamedTuple):
    """At each step the coefficients of the core and of the output gate (None: it has none), and what `came` to the
    hidden state, if that is a projection; `first`: what goes to the hidden state before the first step.
    """

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
        """What comes of flows at the states. `with_first`: also what goes to the hidden state before the first step."""
        at_states = arrived.moved(arrived.tensor[..., : self.width])
        cores, outputs = self._outside(arrived, at_states)
        came: list[Flow] = []
        sent: Tensor | Flow | None = None
        last = len(cores) - 1
        for step in range(last, -1, -1):
            if self.of_later is not None and step < last:
                cores[step] = torch.addcmul(cores[step], self.of_later[step], cores[step + 1])
            if self.narrow is not None:
                here = at_states.moved(at_states.tensor[step])
                came.append(met(here, as_flow(sent), self.states[step, ..., : self.width]))
                sent = self.narrow.back(step, came[-1])
            self._join(step, sent, cores, outputs)
            sent = self.pull(step, cores[step], outputs[step] if outputs else None) if step or with_first else None
        return Found(torch.stack(cores), torch.stack(outputs) if outputs else None, came[::-1], as_flow(sent))

    def _outside(self, arrived: Flow, at_states: Flow) -> tuple[list[Tensor], list[Tensor]]:
        """What came from outside, at the cores and at the output gates, if there are any."""
        cores = torch.zeros_like(self.cell.core)
        outputs = None if self.of_output is None else cores
        if arrived.tensor.shape[-1] > self.width:
            rest = arrived.tensor[..., self.width :]
            cores = self._over(rest, self.cell.core) if arrived.is_relevance else times(rest, self.cell.of_carried)
        if self.narrow is None:
            core, outputs = self._entered(slice(None), at_states)
            cores = cores + core
        return list(cores.unbind()), [] if outputs is None else list(outputs.unbind())

    def _join(self, step: int, sent: Tensor | Flow | None, cores: list[Tensor], outputs: list[Tensor]) -> None:
        """Add what comes to the hidden state of a step."""
        if isinstance(sent, Flow) and sent.is_relevance:
            core, output = self._entered(step, sent)
            cores[step] = cores[step] + core
            if output is not None:
                outputs[step] = outputs[step] + output
        elif sent is not None:
            c = sent.tensor if isinstance(sent, Flow) else sent
            cores[step] = torch.addcmul(cores[step], self.of_state[step], c)
            if self.of_output is not None:
                outputs[step] = torch.addcmul(outputs[step], self.of_output[step], c)

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


def as_flow(sent):
    """A coefficient as a flow."""
    return Flow(coefficient=sent) if isinstance(sent, Tensor) else sent


def met(flow: Flow, other: Flow | None, value: Tensor) -> Flow:
    """Both flows at a value: coefficients stay coefficients, mixed forms meet as relevance."""
    if other is None:
        return flow
    if flow.is_relevance == other.is_relevance:
        return flow.moved(flow.tensor + other.tensor)
    return Flow(relevance=flow.relevance(value) + other.relevance(value))


def _of(share: Tensor | float, at: int | slice) -> Tensor | float:
    return share[at] if isinstance(share, Tensor) else share
