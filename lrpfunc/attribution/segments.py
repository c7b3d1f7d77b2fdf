"""A plan's steps in segments, of which one at a time has its residuals in memory, and the parameters it fetches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lrpfunc.attribution.plans import Plan, Step
from lrpfunc.errors import RuleError
from lrpfunc.operations import Operation, facts
from lrpfunc.program import Variable


class Record(NamedTuple):
    """What the rule of a step left behind."""

    step: Step
    operation: Operation
    residuals: Any


class Segment:
    """Some steps in a row, and what a pass through them under the rules leaves behind; None: yet to come."""

    def __init__(self, steps: Sequence[Step], values: dict[str, Any]):
        self.steps, self.values = steps, values
        self.records: list[Record] | None = None


def split(plan: Plan, checkpoint: int | None) -> list[Sequence[Step]]:
    """Steps in segments whose results take about the same memory. Errors: `RuleError`.

    What is made of parameters only where it is read, such as one that comes from a disk, counts as well, and is in the
    segment of what reads it, so that nothing of it has to be kept between two.
    """
    if checkpoint is None:
        return [plan.steps]
    if isinstance(checkpoint, bool) or not isinstance(checkpoint, int) or checkpoint < 1:
        raise RuleError(f"checkpoint must be a number of segments >= 1, but is {checkpoint!r}.")
    groups = _groups(plan)
    sizes = [sum(_size(variable) for step in group for variable in step.equation.outputs) for group in groups]
    parts: list[list[Step]] = [[] for _ in range(checkpoint)]
    passed, total = 0, max(sum(sizes), 1)
    for group, size in zip(groups, sizes, strict=True):
        middle = passed + size / 2
        parts[min(checkpoint - 1, int(middle * checkpoint / total))].extend(group)
        passed += size
    return [part for part in parts if part] or [plan.steps]


def _groups(plan: Plan) -> list[list[Step]]:
    """Each step together with those before it that depend on parameters alone."""
    fixed, groups, open_ = facts(plan.program).fixed, [], []
    for step in plan.steps:
        open_.append(step)
        if not all(variable.name in fixed for variable in step.equation.outputs):
            groups.append(open_)
            open_ = []
    return [*groups, open_] if open_ else groups


def _size(variable: Variable) -> int:
    size = 1
    for n in variable.shape:
        size *= n if isinstance(n, int) else 1
    return size if variable.is_tensor else 0
