"""The listing of an explanation: which rule each equation gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lrpfunc.composites.assignment import FALLBACK, assign
from lrpfunc.composites.combinators import Entries
from lrpfunc.composites.suggestion import suggest
from lrpfunc.operations import facts, row_of
from lrpfunc.program import Program, Variable, equation_row, format_table


@dataclass(frozen=True, repr=False)
class Explanation:
    """The listing equation => rule; `print` shows it.

    Args:
        rows: a mark, name, kind, operation, input, output and rule of each equation.
        fallbacks: the names of the equations that are left to the gradient.
        advice: what had better be explained instead.
        chosen: the preset that was taken as no rules were given, and why.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(3, 4), torch.ones(2, 3))
    >>> listing = lrpfunc.explain(fmodel, lrpfunc.rules.zplus())
    >>> listing.rows[0][-1], listing.fallbacks
    ('zplus()', ())
    """

    rows: Sequence[tuple[str, ...]]
    fallbacks: tuple[str, ...]
    advice: tuple[str, ...] = ()
    chosen: str = ""

    def __str__(self) -> str:
        table = format_table(("", "name", "kind", "operation", "input", "output", "rule"), self.rows)
        lines = [table, *self.advice]
        if count := len(self.fallbacks):
            what = f"{count} equation{'s' * (count > 1)} without a rule"
            lines.insert(1, f"! {what}: the gradient moves what arrives there.")
        return "\n".join([self.chosen, *lines] if self.chosen else lines)

    def __repr__(self) -> str:
        return str(self)


def explain(fmodel: Program, rules: Entries = None, strict: bool = False) -> Explanation:
    """Which rule each equation gets, one line per equation; those that fall back to the gradient begin with "!".

    "constant": no relevance comes here, as its result, or all that was made of it, counts as a constant.

    Args:
        fmodel: the program.
        rules: a composite, a mapping {name pattern: rule}, or one rule for all layers. None: the preset that suits the
            model, which the listing then begins with.
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
    suggestion = suggest(fmodel) if rules is None else None
    assigned, known = assign(fmodel, suggestion.composite if suggestion else rules, strict), facts(fmodel)
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
    return Explanation(tuple(rows), tuple(fallbacks), tuple(_advice(fmodel)), str(suggestion or ""))


def _advice(program: Program) -> Iterator[str]:
    """What to say of outputs that are probabilities."""
    for variable in program.output_leaves:
        maker = program.producers.get(variable.name) if isinstance(variable, Variable) else None
        if maker is not None and row_of(maker).is_probability:
            yield (
                f"The output is a {maker.operator} ('{maker.name}'): its relevance is that of a probability. "
                f"Explain the logit in front of it, in a model without '{maker.name}'."
            )
