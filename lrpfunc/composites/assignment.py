"""Assignment: the rule of every equation that relevance comes to.

What a composite leaves open gets the default of its kind, in the end input times gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lrpfunc import rules
from lrpfunc.composites.combinators import Assignment, Entries, as_composite, check_rules
from lrpfunc.errors import RuleError, near_misses
from lrpfunc.operations import (
    ACTIVATION,
    AFFINE,
    ATTENTION,
    AVERAGE_POOL,
    BATCH_NORM,
    BILINEAR,
    CONVOLUTION,
    DECAY,
    DENSE,
    ELEMENTWISE,
    EMBEDDING,
    GATE,
    MAX_POOL,
    MOVEMENT,
    NORMALIZATION,
    PRODUCT,
    RECURRENT,
    SLOPE,
    SOFTMAX,
    SUM,
    THRESHOLD_RELU,
    TRANSFORM,
    WEIGHTS,
    Facts,
    active_equations,
    bind_nothing,
    facts,
)
from lrpfunc.program import Equation, Program
from lrpfunc.rules import Rule, nothing

FALLBACK = rules.input_times_gradient()  # told by identity from one that somebody chose
GATED = rules.gate()
DEFAULT_LINEAR = rules.epsilon()
DEFAULTS = {
    BATCH_NORM: rules.pass_through(),
    ACTIVATION: rules.pass_through(),
    THRESHOLD_RELU: rules.clamp(),
    ELEMENTWISE: rules.pass_through(),
    AFFINE: rules.affine(),
    PRODUCT: rules.halve(),
    SUM: rules.norm(),
    AVERAGE_POOL: rules.norm(),
    MAX_POOL: rules.gradient(),
    BILINEAR: rules.halve(),
    SOFTMAX: rules.softmax(),
    ATTENTION: rules.attention("value"),
    NORMALIZATION: rules.normalization(),
    EMBEDDING: rules.embedding(),
    RECURRENT: rules.recurrent(),
    MOVEMENT: rules.gradient(),
    TRANSFORM: rules.transform(),
    CONVOLUTION: DEFAULT_LINEAR,
    DENSE: DEFAULT_LINEAR,
}


def assign(program: Program, entries: Entries, strict: bool = False) -> Assignment:
    """The rule of every equation that relevance comes to: the composite's, else its kind's default, else the gradient.

    Behind a factor that counts as a constant no relevance comes to what the factor alone was made of.

    Args:
        program: the program.
        entries: a composite, a mapping from patterns to rules, or one rule for all layers.
        strict: whether to refuse what is left to the gradient.

    Errors: `RuleError` for ill-formed entries, and with `strict` if an equation is left to the gradient.

    >>> import lrpfunc, torch
    >>> from lrpfunc import composites, rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 3))
    >>> {name: rule.label for name, rule in composites.assign(fmodel, rules.zplus()).items()}
    {'0': 'zplus()', '1': 'pass_through()', '2': 'zplus()'}
    """
    assigned = reached(program, assign_everywhere(program, entries), facts(program).results)
    if strict:
        refuse_fallbacks(program, assigned)
    return assigned


def assign_everywhere(program: Program, entries: Entries) -> Assignment:
    """As `assign`, also of the equations that relevance comes to only if it enters inside. Errors: `RuleError`."""
    given = as_composite(entries)(program)
    if not isinstance(given, Mapping):
        raise RuleError(
            f"a composite must return a mapping {{equation name: rule}}, but returned {type(given).__name__}. "
            "A constructor must be called: composites.epsilon_plus()."
        )
    check_rules(given)
    _check_names(program, given)
    known = facts(program)
    return {e.name: _given(known, e, given) or _default(known, e) for e in active_equations(program)}


def refuse_fallbacks(program: Program, assigned: Mapping[str, Rule]) -> None:
    """Errors: `RuleError` if an equation is left to the gradient."""
    fallbacks = [e for e in active_equations(program) if assigned.get(e.name) is FALLBACK]
    if fallbacks:
        listed = ", ".join(f"'{equation.name}' ({equation.operator})" for equation in fallbacks)
        raise RuleError(
            f"no rule for {listed}: strict=True allows no fallback to the gradient. Give each a rule by its name."
        )


def _given(known: Facts, equation: Equation, given: Mapping[str, Rule]) -> Rule | None:
    """What a composite gives an equation; a rule of layers is that of a recurrent layer's linear part."""
    rule = given.get(equation.name)
    if rule is None or rule.takes_steps or known.kind_of(equation) != RECURRENT:
        return rule
    return rules.recurrent(rule)


def _default(known: Facts, equation: Equation) -> Rule:
    kind, constant = known.kind_of(equation), known.factor_of(equation)
    if kind in (PRODUCT, BILINEAR) and constant is not None and constant.role in (SLOPE, DECAY, GATE, WEIGHTS):
        return GATED
    return DEFAULTS.get(kind, FALLBACK)


def reached(program: Program, assigned: Mapping[str, Rule], entered: Collection[str]) -> Assignment:
    """The rules of the equations that relevance comes to which enters at some variables."""
    seen = variables_seen(program, assigned, entered)
    names = {e.name for e in program.equations if any(variable.name in seen for variable in e.outputs)}
    return {name: rule for name, rule in assigned.items() if name in names}


def variables_seen(program: Program, assigned: Mapping[str, Rule], entered: Collection[str]) -> frozenset[str]:
    """The variables that relevance comes to which enters at some: behind a factor that counts as a constant, none."""
    known, seen = facts(program), set(entered)
    for equation in reversed(program.equations):
        rule = assigned.get(equation.name)
        if rule is None or not any(variable.name in seen for variable in equation.outputs):
            continue
        inputs = known.inputs_of(equation)
        stopped = () if rule.stops is nothing else rule.stops(bind_nothing(program, equation))
        seen.update(variable.name for position, variable in enumerate(inputs) if position not in stopped)
    return frozenset(seen)


def _check_names(program: Program, given: Mapping[str, Rule]) -> None:
    names = {equation.name for equation in active_equations(program)}
    if unknown := [name for name in given if name not in names]:
        hint = near_misses(unknown[0], names)
        raise RuleError(f"a composite names '{unknown[0]}', which is no layer.{hint} `print(fmodel)` lists all names.")
