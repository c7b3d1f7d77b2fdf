"""Combinators: composites made of rules, names and other composites.

A composite is a function `Program -> {equation name: Rule}`. It need not cover every equation: combinators lay one over
another. Those made here are partial calls of functions of this module, so that they pickle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from lrpfunc import rules
from lrpfunc.composites.names import Names
from lrpfunc.errors import RuleError, near_misses
from lrpfunc.operations import (
    CONVOLUTION,
    COVERED_BY,
    DENSE,
    EMBEDDING,
    KINDS,
    LINEAR,
    PRODUCT,
    RECURRENT,
    SUM,
    active_equations,
    facts,
)
from lrpfunc.program import Program
from lrpfunc.rules import Rule, Stabilizer, called

Assignment = dict[str, Rule]
Composite = Callable[[Program], Assignment]
Entries = Composite | Mapping[str, Rule] | Rule | None


def by_kind(kinds: Mapping[str, Rule]) -> Composite:
    """A rule for every equation of a kind: `by_kind({"convolution": zplus(), "dense": epsilon()})`.

    "linear" covers convolutions and dense layers, "activation" threshold ReLUs as well, "*" whatever is not named but
    embeddings of tokens, which no other rule fits. A recurrent layer that is not named is explained as what it is
    written out: by the rules of "dense", "sum" and "product".

    Args:
        kinds: rules by the names of kinds, as `print(explain(fmodel, rules))` lists them.

    Errors: `RuleError` for an unknown kind, and for what is no rule.

    >>> import lrpfunc, torch
    >>> from lrpfunc import composites, rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 3))
    >>> {name: rule.label for name, rule in composites.by_kind({"dense": rules.zplus()})(fmodel).items()}
    {'0': 'zplus()', '2': 'zplus()'}
    """
    for name in kinds:
        if name not in (*KINDS, LINEAR, "*"):
            raise RuleError(
                f"no kind is called '{name}': there are {', '.join((*KINDS, LINEAR))}.{near_misses(name, KINDS)}"
            )
    check_rules(kinds)

    return functools.partial(_by_kind, dict(kinds))


def _by_kind(kinds: Mapping[str, Rule], program: Program) -> Assignment:
    assigned, known = {}, facts(program)
    for equation in active_equations(program):
        kind = known.kind_of(equation)
        otherwise = None if kind == EMBEDDING else kinds.get("*")
        rule = kinds.get(kind) or kinds.get(COVERED_BY.get(kind, kind)) or _recurrent(kind, kinds) or otherwise
        if rule is not None:
            assigned[equation.name] = rule
    return assigned


def _recurrent(kind: str, kinds: Mapping[str, Rule]) -> Rule | None:
    """The rule of a recurrent layer, made of those that it has where it is written out."""
    linear, total, product = kinds.get(DENSE) or kinds.get(LINEAR), kinds.get(SUM), kinds.get(PRODUCT)
    if kind != RECURRENT or linear is total is product is None:
        return None
    name, _ = called(product)
    given = [argument for argument in called(total)[1] if isinstance(argument, Stabilizer)]
    return rules.recurrent(linear or rules.epsilon(), "both" if name == "halve" else "signal", *given)


def by_name(patterns: Mapping[str, Rule]) -> Composite:
    """A rule for every equation whose name matches: an fnmatch pattern, or a prefix such as "layer1" for all below it.

    Below a prefix, and where a pattern has wildcards, only weighted equations are meant, unless nothing there has
    weights. The first pattern that matches counts. Of what is called more than once all calls are meant; "act:0" and
    "block:1" are one.

    Args:
        patterns: rules by patterns.

    Errors: `RuleError` for a pattern that matches no equation, and for what is no rule.

    >>> import lrpfunc, torch
    >>> from lrpfunc import composites, rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 3))
    >>> chosen = composites.by_name({"0": rules.flat(), "*": rules.epsilon()})(fmodel)
    >>> {name: rule.label for name, rule in chosen.items()}
    {'0': 'flat()', '2': 'epsilon(1e-06)'}
    """
    check_rules(patterns)
    return functools.partial(_by_name, dict(patterns))


def _by_name(patterns: Mapping[str, Rule], program: Program) -> Assignment:
    assigned: Assignment = {}
    names = Names(program)
    for pattern, rule in patterns.items():
        for name in names.matching(pattern):
            assigned.setdefault(name, rule)
    return assigned


def first_layer(rule: Rule) -> Composite:
    """A rule for the first weighted equations on the way from each input, by data flow.

    Args:
        rule: the rule, such as `rules.zbox(0, 1)`.

    Errors: `RuleError` for what is no rule.

    >>> import lrpfunc, torch
    >>> from lrpfunc import composites, rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 3))
    >>> list(composites.first_layer(rules.flat())(fmodel))
    ['0']
    """
    check_rules({"first_layer": rule})
    return functools.partial(_first_layer, rule)


def _first_layer(rule: Rule, program: Program) -> Assignment:
    """Of a program that was cut off another one the layers that are first in the whole."""
    own = {equation.name for equation in program.equations}
    return {name: rule for name in _first(program.whole) if name in own}


def first_match(*composites: Entries) -> Composite:
    """Composites one over another: each equation gets the rule of the first composite that has one for it.

    Args:
        composites: composites, mappings from patterns, or rules; None stands for nothing.

    Errors: `RuleError` for anything else.

    >>> import lrpfunc, torch
    >>> from lrpfunc import composites, rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 3))
    >>> both = composites.first_match({"2": rules.norm()}, rules.epsilon())
    >>> {name: rule.label for name, rule in both(fmodel).items()}
    {'0': 'epsilon(1e-06)', '2': 'norm()'}
    """
    return functools.partial(_first_match, tuple(as_composite(part) for part in composites if part is not None))


def _first_match(parts: Sequence[Composite], program: Program) -> Assignment:
    assigned: Assignment = {}
    for part in parts:
        assigned = {**part(program), **assigned}
    return assigned


def as_composite(entries: Entries) -> Composite:
    """A composite of whatever may be given as rules: a composite, a mapping from patterns, or one rule for all weights.

    Args:
        entries: one of these.

    Errors: `RuleError` for anything else.

    >>> import lrpfunc, torch
    >>> from lrpfunc import composites, rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 3))
    >>> list(composites.as_composite(rules.epsilon())(fmodel))
    ['0', '2']
    """
    if isinstance(entries, Rule):
        return by_kind({LINEAR: entries})
    if isinstance(entries, Mapping):
        return by_name(entries)
    if callable(entries):
        return entries
    raise RuleError(
        f"rules must be a composite, a mapping {{name pattern: rule}} or one rule, but is {type(entries).__name__}. "
        "Call the constructor: rules.epsilon(), composites.epsilon_plus()."
    )


def _first(program: Program) -> list[str]:
    """Weighted equations that no other weighted equation comes before."""
    known = facts(program)
    below: set[str] = set()
    first = []
    for equation in active_equations(program):
        is_weighted = known.kind_of(equation) in (CONVOLUTION, DENSE)
        comes_after = any(variable.name in below for variable in known.inputs_of(equation))
        if is_weighted and not comes_after:
            first.append(equation.name)
        if is_weighted or comes_after or known.kind_of(equation) == RECURRENT:
            below.update(variable.name for variable in equation.outputs)
    return first


def check_rules(entries: Mapping[str, Rule]) -> None:
    """Errors: `RuleError` unless these are rules by name."""
    for name, rule in entries.items():
        if not isinstance(name, str):
            raise RuleError(f"rules are given by name, but one key is {name!r}.")
        if not isinstance(rule, Rule):
            raise RuleError(f"'{name}' must be given a rule such as rules.epsilon(), but got {type(rule).__name__}.")
