"""What a rule declares of the flows that it sends, checked where it is broken: layers below rely on it."""

from __future__ import annotations

from collections.abc import Sequence

from lrpfunc.errors import RuleError
from lrpfunc.operations import Operation, Row
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.rule import COEFFICIENTS, SAME, SHIFTED, Rule, nothing

RELEVANCE, COEFFICIENT, RECTIFIED_COEFFICIENT = "a relevance", "a coefficient", "a rectified coefficient"


def check_declared(rule: Rule, who: str, operation: Operation, arrived: Flow, sent: Sequence[Flow | None]) -> None:
    """Whether a rule sent what it declares by `gives` and `stops`. Errors: `RuleError`, which names `who`."""
    needed = declared(rule, operation.row, arrived.is_relevance)
    for flow in sent if needed else ():
        if flow is not None and not _is(flow, needed):
            raise RuleError(
                f"{who} declares gives='{rule.gives}': where {_form(arrived)} arrives it must return {needed}, but "
                f"returned {_form(flow)}. Return that, or leave `gives` out."
            )
    for position in rule.stops(operation) if rule.stops is not nothing else ():
        if sent[position] is not None:
            raise RuleError(
                f"{who} declares by `stops` that its input {position} gets no flow, but returned one for it. Return "
                "None there, or do not name it."
            )


def _is(flow: Flow, form: str) -> bool:
    return _form(flow) == form or (form == COEFFICIENT and not flow.is_relevance)


def _form(flow: Flow) -> str:
    if flow.is_relevance:
        return RELEVANCE
    return COEFFICIENT if flow.rectified is None else RECTIFIED_COEFFICIENT


def declared(rule: Rule, row: Row, gets_relevance: bool) -> str:
    """The form of what a rule declares to send where a relevance, or else a coefficient, arrives; "" if any will do."""
    if not rule.gives:
        return ""
    if rule.gives == COEFFICIENTS:
        return COEFFICIENT
    if gets_relevance:
        return "" if rule.gives == SHIFTED and row.shifts else RELEVANCE
    if rule.gives in (SAME, SHIFTED):
        return COEFFICIENT
    if row.rectifies:
        return RECTIFIED_COEFFICIENT
    return COEFFICIENT if row.ratio is not None else ""
