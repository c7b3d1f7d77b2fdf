"""A program under rules in stretches between places, such as residual streams, one of which is in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lrpfunc.attribution.checks import checked_flows
from lrpfunc.attribution.interpreter import (
    Passed,
    add,
    at_inputs,
    backward,
    forward,
    no_relevance,
    passed_again,
)
from lrpfunc.attribution.plans import Plan, Step, make_plan, opened
from lrpfunc.attribution.seeds import flows_entering
from lrpfunc.composites import Entries
from lrpfunc.operations import Operation
from lrpfunc.program import Program, Variable
from lrpfunc.rules import Flow


class Stretch:
    """The steps that make some variables from the nearest places below them, and the record of a pass through them.

    `known`: the values kept when all was passed; `ruled`: the steps that relevance comes to.
    """

    def __init__(self, known: Passed, steps: Sequence[Step]):
        self.known, self.steps = known, steps
        self.ruled = [step for step in steps if step.rule is not None]
        self._passed: Passed | None = None

    def record(self, at: Iterable[str] = ()) -> None:
        """Pass through the steps under their rules; `at`: variables whose values and flows will be asked for."""
        self._passed = passed_again(self.known, self.steps, {name: name for name in at})

    def pull(self, entering: Mapping[str, Flow]) -> tuple[dict[str, Flow], dict[str, Flow | None]]:
        """What arrives at places and inputs below, of what enters at variables, and at those that `record` was given.

        Errors: `RuleError`.
        """
        assert self._passed is not None
        return backward(self._passed, entering, {})

    def value(self, name: str) -> Tensor:
        """The value of a variable that `record` was given."""
        assert self._passed is not None
        return self._passed.values[name]

    def operation(self, step: Step) -> Operation:
        """The operation of a step, as its rule had it."""
        return self._record(step).operation

    def moved(self, step: Step, flow: Flow) -> dict[str, Flow | None]:
        """What the rule of one step sends back to its inputs, by their variables."""
        assert step.rule is not None
        record = self._record(step)
        sent = step.rule.backward(record.operation, record.residuals, flow)
        flows = checked_flows(step.rule.label, sent, record.operation.shapes)
        return {variable.name: one for variable, one in zip(step.inputs, flows, strict=True)}

    def _record(self, step: Step):
        assert self._passed is not None
        return next(record for record in self._passed.segments[-1].records or () if record.step is step)


class Stretches:
    """A forward pass that keeps what stands at places, from which each stretch between them is recorded anew.

    Args:
        fmodel, params, x, rules: as `attribute` takes them.
        places: variables, in the order in which they are made, that relevance is to be stopped at.

    `passed`: what the pass left: the output, and values at places.
    """

    def __init__(self, fmodel: Program, params, x, rules: Entries, places: Sequence[str]):
        self.plan = opened(make_plan(fmodel, params, rules, False, None), frozenset(places))
        self.places = tuple(places)
        results = [leaf.name for leaf in fmodel.output_leaves if isinstance(leaf, Variable)]
        ends = {**{place: [place] for place in places}, "": results}

        def between(stops: set[str]) -> dict[str, tuple[Step, ...]]:
            return {end: _steps(self.plan, names, stops - {end}) for end, names in ends.items()}

        shared = _shared(between(set(places)).values())
        self._steps = between(shared | set(places))
        read = {v.name for steps in self._steps.values() for step in steps for v in step.equation.reads}
        kept = set(places) | shared & read
        plain = tuple(step._replace(rule=None) for step in self.plan.steps)
        glance = forward(self.plan._replace(steps=plain, kept=frozenset(kept)), x, {}, None, is_final=False)
        self.passed = Passed(
            self.plan, glance.inputs, glance.pack, glance.segments, glance.output, {p: p for p in places}, None
        )

    def value(self, place: str) -> Tensor:
        """The value at a place."""
        return self.passed.values[place]

    def below(self, place: str) -> list[str]:
        """The places that relevance may come to from one, with none between them."""
        read = {variable.name for step in self._steps[place] if step.rule is not None for variable in step.inputs}
        return [name for name in self.places if name in read]

    def steps(self, place: str) -> tuple[Step, ...]:
        """The steps that make a place from those below it."""
        return self._steps[place]

    def stretch(self, place: str = "") -> Stretch:
        """The stretch that ends at a place, or by default at the output. It is yet to be recorded."""
        return Stretch(self.passed, self._steps[place])

    def entering(self, target: Any) -> dict[str, Flow]:
        """What enters at the output, of any target that `attribute` takes. Errors: `TargetError`."""
        return flows_entering(self.passed, target)

    def add(self, flows: dict[str, Flow], arrived: Mapping[str, Flow]) -> None:
        """Add to what has arrived at places and inputs."""
        for name, flow in arrived.items():
            add(flows, name, flow, self.passed.segments[-1].values)

    def inputs(self, flows: Mapping[str, Flow]) -> Any:
        """What has arrived at the inputs as relevance, in their structure."""
        return at_inputs(self.passed, flows, _relevance)


def _relevance(name: str, flow: Flow | None, value: Tensor) -> Tensor:
    return no_relevance(value) if flow is None else flow.relevance(value)


def _steps(plan: Plan, ends: Collection[str], stops: Collection[str]) -> tuple[Step, ...]:
    """The steps that some variables need, down to others."""
    needed, found = set(ends), []
    for step in reversed(plan.steps):
        made = {variable.name for variable in step.equation.outputs}
        if made & needed and made.isdisjoint(stops):
            found.append(step)
            needed.update(variable.name for variable in step.equation.reads)
    return tuple(reversed(found))


def _shared(stretches: Iterable[Sequence[Step]]) -> set[str]:
    """What several stretches need and no relevance comes to, as masks and positions: it is computed once."""
    counts: dict[str, int] = {}
    for steps in stretches:
        for step in steps:
            if step.rule is None:
                for variable in step.equation.outputs:
                    counts[variable.name] = counts.get(variable.name, 0) + 1
    return {name for name, count in counts.items() if count > 1}
