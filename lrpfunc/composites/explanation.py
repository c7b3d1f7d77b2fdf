"""The listing of an explanation: which rule each equation gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrpfunc.composites.assignment import FALLBACK, assign
from lrpfunc.composites.combinators import Entries
from lrpfunc.operations import facts
from lrpfunc.program import Program, equation_row, format_table


@dataclass(frozen=True, repr=False)
class Explanation:
    """The listing equation => rule; `print` shows it. `fallbacks` names the equations that are left to the gradient."""

    rows: Sequence[tuple[str, ...]]
    fallbacks: tuple[str, ...]

    def __str__(self) -> str:
        table = format_table(("", "name", "kind", "operation", "input", "output", "rule"), self.rows)
        if not self.fallbacks:
            return table
        count = len(self.fallbacks)
        return f"{table}\n! {count} equation{'s' * (count > 1)} without a rule: the gradient moves what arrives there."

    def __repr__(self) -> str:
        return str(self)


def explain(fmodel: Program, rules: Entries, strict: bool = False) -> Explanation:
    """Which rule each equation gets, one line per equation; those that fall back to the gradient begin with "!".

    "constant": no relevance comes here, as its result, or all that was made of it, counts as a constant.

    Args:
        fmodel: the program.
        rules: a composite, a mapping {name pattern: rule}, or one rule for all layers.
        strict: whether a fallback is an error.

    Errors: `RuleError` for a pattern that matches nothing and, with `strict`, for fallbacks.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(2, 3))
    >>> print(lrpfunc.explain(fmodel, lrpfunc.rules.zplus()))
      name  kind        operation  input       output      rule
      0     dense       linear     (batch, 3)  (batch, 4)  zplus()
      1     activation  relu       (batch, 4)  (batch, 4)  pass_through()
    """
    assigned, known = assign(fmodel, rules, strict), facts(fmodel)
    rows, fallbacks = [], []
    for equation in fmodel.equations:
        if not (known.is_active(equation) or known.makes_constant(equation)):
            continue
        rule = assigned.get(equation.name)
        if rule is FALLBACK:
            fallbacks.append(equation.name)
        name, *shapes = equation_row(equation)
        mark = "!" if rule is FALLBACK else ""
        rows.append((mark, name, known.kind_of(equation), *shapes, "constant" if rule is None else rule.label))
    return Explanation(tuple(rows), tuple(fallbacks))
