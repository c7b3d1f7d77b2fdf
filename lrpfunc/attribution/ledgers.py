"""The ledger of an explanation: what arrives at each equation, what it passes on and what it keeps.

`ledger` explains once more, with each rule wrapped in one that notes the sums. `heatmaps.flow` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.attribution.checks import checked_flows, checked_pair
from lrpfunc.attribution.interpreter import unpack
from lrpfunc.attribution.records import record
from lrpfunc.attribution.targets import Target, has_batch, seed
from lrpfunc.composites import Composite, Entries, assign
from lrpfunc.operations import active_equations, facts
from lrpfunc.operations import kind as kind_of
from lrpfunc.program import NAMESPACE, Equation, Program, Variable, format_table
from lrpfunc.rules import Flow, Rule

EXPLODED = 10  # times the seed: more than biases and stabilizers take


class Entry(NamedTuple):
    """One equation's line: the relevance that arrived at its outputs and that it passed on, summed over the batch."""

    name: str
    kind: str
    rule: str
    arrived: float
    passed_on: float

    @property
    def absorbed(self) -> float:
        """What stays here: with biases and stabilizers, or for a rule that does not conserve. Below zero,
        relevance was added."""
        return self.arrived - self.passed_on


@dataclass(frozen=True, repr=False)
class Ledger:
    """Where relevance went; `print` shows it. The seed is what arrives at the inputs and what all entries absorbed.

    Args:
        entries: in the order that relevance takes, the output first.
        seed: the relevance that entered at the output, in its units.
        inputs: what arrives, by the input's name.

    >>> import lrpfunc, torch
    >>> params, x = {"w": torch.tensor([[2.0]]), "b": torch.tensor([3.0])}, torch.tensor([[1.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, x: torch.nn.functional.linear(x, p["w"], p["b"]), params, x)
    >>> account = lrpfunc.ledger(fmodel, params, x, lrpfunc.rules.epsilon(0))
    >>> account.seed, account.arrived, account.absorbed  # the bias keeps 3 of 5
    (5.0, 2.0, 3.0)
    """

    entries: Sequence[Entry]
    seed: float
    inputs: Mapping[str, float]

    @property
    def arrived(self) -> float:
        """What arrives at all inputs together."""
        return sum(self.inputs.values())

    @property
    def absorbed(self) -> float:
        """What all entries absorbed together."""
        return sum(entry.absorbed for entry in self.entries)

    def __str__(self) -> str:
        header = ("name", "kind", "rule", "arrived", "passed on", "absorbed")
        decimals = _decimals([self.seed, *(entry.arrived for entry in self.entries)])
        numbers = [[_fixed(v, decimals) for v in (e.arrived, e.passed_on, e.absorbed)] for e in self.entries]
        rows = [(e.name, e.kind, e.rule, *cells) for e, cells in zip(self.entries, _flush_right(numbers), strict=True)]
        entered, arrived, absorbed = (_fixed(v, decimals) for v in (self.seed, self.arrived, self.absorbed))
        totals = f"seed {entered}, at the inputs {arrived}, absorbed {absorbed}"
        return "\n".join(filter(None, (format_table(header, rows), totals, self._warning())))

    def __repr__(self) -> str:
        return str(self)

    def _warning(self) -> str:
        """A sentence on relevance that exploded, "" if it did not."""
        if not self.entries or not abs(self.arrived) > EXPLODED * abs(self.seed):
            return ""
        most = max(self.entries, key=lambda entry: abs(entry.absorbed))
        times = f"{abs(self.arrived / self.seed):.3g} times the seed" if self.seed else "of a seed of zero"
        return (
            f"What arrives is {times}: most was added or taken at '{most.name}' by {most.rule}. Where outputs nearly "
            "cancel a larger stabilizer bounds it, of the rule that is named there."
        )


def ledger(fmodel: Program, params, x, rules: Entries, target: Target = None) -> Ledger:
    """What each equation got, passed on and absorbed, in units of the explained output and summed over the batch.

    absorbed = arrived - passed on: the share of biases and stabilizers, and what a rule does not conserve. Equations
    that no relevance comes to have no entry. It reads numbers, which no transform of torch has.

    Args:
        fmodel: the program, of `functionalize` or `trace`.
        params: its pytree of parameters.
        x: the input, or a tuple of them; the first dimension is the batch.
        rules: a composite, `{name pattern: rule}`, or one rule.
        target: what is explained, in any form that `attribute` takes; None for the arg-max.
    Errors: those of `attribute`.

    >>> import lrpfunc, torch
    >>> layer, x = torch.nn.Linear(2, 1), torch.tensor([[3.0, 1.0]])
    >>> fmodel, _ = lrpfunc.functionalize(layer, x)
    >>> params = {"weight": torch.tensor([[2.0, -1.0]]), "bias": torch.tensor([0.5])}
    >>> found = lrpfunc.ledger(fmodel, params, x, lrpfunc.rules.epsilon(0))
    >>> found.seed, found.arrived, found.absorbed
    (5.5, 5.0, 0.5)
    """
    entries: list[Entry] = []
    trail = record(fmodel, params, x, _recording(rules, entries))
    entering = seed(trail.output, target, has_batch(fmodel))
    arriving, _ = unpack(fmodel, trail.pull(lambda output: entering)[0])
    return Ledger(tuple(entries), _entered(fmodel, entering), _arrived(fmodel, arriving))


def _recording(rules: Entries, entries: list[Entry]) -> Composite:
    """The same rules, each with an entry for what it moves."""

    def composite(program):
        assigned = assign(program, rules)
        return {
            equation.name: _recorded(assigned[equation.name], program, equation, entries)
            for equation in active_equations(program)
            if equation.name in assigned
        }

    return composite


def _recorded(rule: Rule, program: Program, equation: Equation, entries: list[Entry]) -> Rule:
    """A rule that keeps inputs and output besides its residuals, and adds an entry when relevance passes.

    It computes and hands on what the rule does, so what that declares (`hoists`, `gives`, ...) is true of it as well.
    """
    kind = kind_of(program, equation)

    def forward(operation, *inputs):
        output, residuals = checked_pair(rule.forward(operation, *inputs))
        return output, (inputs, output, residuals)

    def backward(operation, residuals, flow):
        inputs, output, kept = residuals
        arrived = _of_outputs(flow, output)
        moved = rule.backward(operation, kept, flow)
        flows = checked_flows("backward", moved, operation.shapes)
        passed_on = sum(_sum(flow.relevance(x)) for flow, x in zip(flows, inputs, strict=True) if flow is not None)
        entries.append(Entry(equation.name, kind, rule.label, arrived, float(passed_on)))
        return flows

    return rule._replace(forward=forward, backward=backward)


def _of_outputs(flow: Flow, output) -> float:
    """The relevance that arrives at an equation's floating-point outputs."""
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    tensors = [value for value in outputs if isinstance(value, Tensor)]
    values = [value for value in tensors if value.is_floating_point() or value.is_complex()] or tensors
    if len(outputs) == 1:
        return _sum(flow.relevance(values[0]))
    return sum(_sum(flow.moved(part).relevance(value)) for part, value in zip(flow.tensor, values, strict=True))


def _sum(relevance: Tensor) -> float:
    """In float64: entries are differences of sums that are nearly equal."""
    return relevance.detach().sum(dtype=torch.float64).item()


def _entered(program: Program, entering) -> float:
    """The relevance of the outputs that depend on an input."""
    leaves = zip(program.output_leaves, optree.tree_leaves(entering, namespace=NAMESPACE), strict=True)
    return sum(
        _sum(value) for leaf, value in leaves if isinstance(leaf, Variable) and leaf.name in facts(program).active
    )


def _arrived(program: Program, arriving: tuple) -> dict[str, float]:
    """The relevance of each floating-point input, by its name."""
    leaves = zip(program.input_leaves, optree.tree_leaves(arriving, namespace=NAMESPACE), strict=True)
    return {
        leaf.label: _sum(value)
        for leaf, value in leaves
        if isinstance(leaf.value, Variable)
        and (leaf.value.is_differentiable or leaf.value.name in facts(program).active)
    }


def _decimals(values: Sequence[float]) -> int:
    """As many decimals as give the largest value four digits."""
    magnitudes = [abs(value) for value in values if math.isfinite(value) and value]
    return min(max(3 - math.floor(math.log10(max(magnitudes, default=1.0))), 0), 12)


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no "-0.000"


def _flush_right(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Numbers of the same number of decimals, one below the other."""
    width = max((len(cell) for row in rows for cell in row), default=0)
    return [[cell.rjust(width) for cell in row] for row in rows]
