"""Composites: which rule each equation of a program gets.

A composite is a function `Program -> {equation name: Rule}`. It need not cover every equation: combinators lay one over
another, and what remains gets the default of its kind (`DEFAULTS`), in the end the gradient.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from lrpfunc import rules
from lrpfunc.errors import RuleError, near_misses
from lrpfunc.operations import (
    ACTIVATION,
    AFFINE,
    ATTENTION,
    AVERAGE_POOL,
    BATCH_NORM,
    BILINEAR,
    CONVOLUTION,
    DENSE,
    ELEMENTWISE,
    EMBEDDING,
    GATE,
    KINDS,
    LINEAR,
    MAX_POOL,
    MOVEMENT,
    NORMALIZATION,
    PRODUCT,
    SLOPE,
    SOFTMAX,
    SUM,
    active_equations,
    active_inputs,
    constant_factor,
    structure,
)
from lrpfunc.operations import kind as kind_of
from lrpfunc.program import Equation, Program, Variable, equation_row, format_table
from lrpfunc.rules import Rule, StabilizerLike

Assignment = dict[str, Rule]
Composite = Callable[[Program], Assignment]
Entries = Composite | Mapping[str, Rule] | Rule | None

FALLBACK = rules.input_times_gradient()  # told by identity from one that somebody chose
GATED = rules.gate()
DEFAULT_LINEAR = rules.epsilon()
DEFAULTS = {
    BATCH_NORM: rules.pass_through(),
    ACTIVATION: rules.pass_through(),
    ELEMENTWISE: rules.pass_through(),
    AFFINE: rules.affine(),
    PRODUCT: rules.halve(),
    SUM: rules.norm(),
    AVERAGE_POOL: rules.norm(),
    MAX_POOL: rules.gradient(),
    BILINEAR: rules.halve(),
    SOFTMAX: rules.softmax(),
    ATTENTION: rules.attention(),
    NORMALIZATION: rules.normalization(),
    EMBEDDING: rules.embedding(),
    MOVEMENT: rules.gradient(),
    CONVOLUTION: DEFAULT_LINEAR,
    DENSE: DEFAULT_LINEAR,
}


# -- combinators ------------------------------------------------------------------------------------------------------


def by_kind(kinds: Mapping[str, Rule]) -> Composite:
    """A rule for every equation of a kind: `by_kind({"convolution": zplus(), "dense": epsilon()})`.

    "linear" covers convolutions and dense layers, "*" whatever is not named but embeddings of tokens, which no other
    rule fits. Errors: `RuleError` for an unknown kind.
    """
    for name in kinds:
        if name not in (*KINDS, LINEAR, "*"):
            raise RuleError(
                f"no kind is called '{name}': there are {', '.join((*KINDS, LINEAR))}.{near_misses(name, KINDS)}"
            )
    _check_rules(kinds)

    def composite(program):
        assigned = {}
        for equation in active_equations(program):
            kind = kind_of(program, equation)
            group = LINEAR if kind in (CONVOLUTION, DENSE) else kind
            rule = kinds.get(kind, kinds.get(group, None if kind == EMBEDDING else kinds.get("*")))
            if rule is not None:
                assigned[equation.name] = rule
        return assigned

    return composite


def by_name(patterns: Mapping[str, Rule]) -> Composite:
    """A rule for every equation whose name matches: an fnmatch pattern, or a prefix such as "layer1" for all below it.

    Below a prefix, and where a pattern has wildcards, only weighted equations are meant, unless nothing there has
    weights. The first pattern that matches counts. Errors: `RuleError` for a pattern that matches no equation.
    """
    _check_rules(patterns)

    def composite(program):
        assigned: Assignment = {}
        for pattern, rule in patterns.items():
            for name in matching(program, pattern):
                assigned.setdefault(name, rule)
        return assigned

    return composite


def matching(program: Program, pattern: str) -> list[str]:
    """The names of the active equations that a pattern means. Errors: `RuleError` with near misses if there is none."""
    names = [equation.name for equation in active_equations(program)]
    if pattern in names:
        matches = [name for name in names if name == pattern or name.startswith(f"{pattern}:")]
    else:
        matches = [name for name in names if _matches(name, pattern)]
    if not matches:
        prefixes = {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)}
        candidates = [*names, *(f"{prefix}.*" for prefix in prefixes), *prefixes]
        hint = near_misses(pattern, candidates)
        raise RuleError(f"no layer matches the pattern '{pattern}'.{hint} `print(fmodel)` lists all names.")
    weighted = [name for name in matches if name in _weighted(program)]
    return weighted or matches


def _matches(name: str, pattern: str) -> bool:
    return name.startswith((f"{pattern}.", f"{pattern}:")) or fnmatch.fnmatchcase(name, pattern)


# torch.compile cannot look into fnmatch. This is all that torch.compiler.assume_constant_result does, but for importing
# torch._dynamo, which takes a second.
_matches._dynamo_marked_constant = True  # type: ignore[attr-defined]


def first_layer(rule: Rule) -> Composite:
    """A rule for the first weighted equations on the way from each input, by data flow."""
    _check_rules({"first_layer": rule})

    def composite(program):
        return dict.fromkeys(_first(program), rule)

    return composite


def first_match(*composites: Entries) -> Composite:
    """Composites one over another: each equation gets the rule of the first composite that has one for it."""
    parts = [as_composite(part) for part in composites if part is not None]

    def composite(program):
        assigned: Assignment = {}
        for part in parts:
            assigned = {**part(program), **assigned}
        return assigned

    return composite


def as_composite(entries: Entries) -> Composite:
    """A composite of whatever may be given as rules: a composite, a mapping from patterns, or one rule for all weights.

    Errors: `RuleError` for anything else.
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


def assign(program: Program, entries: Entries, strict: bool = False) -> Assignment:
    """The rule of every equation that relevance comes to: the composite's, else its kind's default, else the gradient.

    Behind a factor that counts as a constant no relevance comes to what the factor alone was made of.
    Errors: with `strict`, `RuleError` if an equation is left to the gradient.
    """
    given = as_composite(entries)(program)
    if not isinstance(given, Mapping):
        raise RuleError(
            f"a composite must return a mapping {{equation name: rule}}, but returned {type(given).__name__}. "
            "A constructor must be called: composites.epsilon_plus()."
        )
    _check_rules(given)
    _check_names(program, given)
    everywhere = {e.name: given.get(e.name) or _default(program, e) for e in active_equations(program)}
    assigned = _reached(program, everywhere)
    fallbacks = [e for e in active_equations(program) if assigned.get(e.name) is FALLBACK]
    if strict and fallbacks:
        listed = ", ".join(f"'{equation.name}' ({equation.operator})" for equation in fallbacks[:5])
        more = f" and {len(fallbacks) - 5} more" if len(fallbacks) > 5 else ""
        raise RuleError(
            f"no rule for {listed}{more}: strict=True allows no fallback to the gradient. Name them in rules."
        )
    return assigned


def _default(program: Program, equation: Equation) -> Rule:
    kind = kind_of(program, equation)
    if kind == PRODUCT and _has_role(program, equation, (SLOPE, GATE)):
        return GATED
    return DEFAULTS.get(kind, FALLBACK)


def _has_role(program: Program, equation: Equation, roles: Collection[str] | None) -> bool:
    """Whether a factor of a product counts as a constant for one of these reasons (None: for any)."""
    constant = constant_factor(program, equation)
    return constant is not None and (roles is None or constant.role in roles)


def _reached(program: Program, assigned: Assignment) -> Assignment:
    """The rules of the equations that relevance comes to from an output."""
    reached = {variable.name for variable in program.output_leaves if isinstance(variable, Variable)}
    names = set()
    for equation in reversed(program.equations):
        rule = assigned.get(equation.name)
        if rule is None or not any(variable.name in reached for variable in equation.outputs):
            continue
        names.add(equation.name)
        stopped = rule.stops(structure(program, equation))
        inputs = active_inputs(program, equation)
        reached.update(v.name for place, v in enumerate(inputs) if place not in stopped)
    return {name: rule for name, rule in assigned.items() if name in names}


def _check_names(program: Program, given: Mapping[str, Rule]) -> None:
    names = {equation.name for equation in active_equations(program)}
    if unknown := [name for name in given if name not in names]:
        hint = near_misses(unknown[0], names)
        raise RuleError(f"a composite names '{unknown[0]}', which is no layer.{hint} `print(fmodel)` lists all names.")


def _check_rules(entries: Mapping[str, Rule]) -> None:
    for name, rule in entries.items():
        if not isinstance(name, str):
            raise RuleError(f"rules are given by name, but one key is {name!r}.")
        if not isinstance(rule, Rule):
            raise RuleError(f"'{name}' must be given a rule such as rules.epsilon(), but got {type(rule).__name__}.")


def _weighted(program: Program) -> set[str]:
    linear = (CONVOLUTION, DENSE)
    return {e.name for e in active_equations(program) if kind_of(program, e) in linear}


def _first(program: Program) -> list[str]:
    """Weighted equations that no other weighted equation comes before."""
    weighted = _weighted(program)
    below: set[str] = set()
    first = []
    for equation in active_equations(program):
        comes_after = any(variable.name in below for variable in active_inputs(program, equation))
        if equation.name in weighted and not comes_after:
            first.append(equation.name)
        if equation.name in weighted or comes_after:
            below.update(variable.name for variable in equation.outputs)
    return first


# -- presets ----------------------------------------------------------------------------------------------------------


def epsilon(epsilon: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None) -> Composite:
    """The epsilon rule for all layers, sums and average pooling.

    With 0 it is input times gradient on ReLU networks; not on threshold ReLUs, which pass on what their constants get.
    """
    return first_match(entries, by_kind({LINEAR: rules.epsilon(epsilon, zero_bias), **_without_parameters(epsilon)}))


def epsilon_plus(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """z+ for convolutions, epsilon for dense layers. Source: Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10."""
    return _layers(rules.zplus(stabilizer, zero_bias), epsilon, stabilizer, zero_bias, entries)


def epsilon_plus_flat(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """As `epsilon_plus`, with the flat rule for the first layer."""
    over = first_match(entries, first_layer(rules.flat(stabilizer)))
    return epsilon_plus(epsilon, stabilizer, zero_bias, over)


def epsilon_alpha2_beta1(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """alpha_beta(2, 1) for convolutions, epsilon for dense layers."""
    return _layers(rules.alpha_beta(2, 1, stabilizer, zero_bias), epsilon, stabilizer, zero_bias, entries)


def epsilon_alpha2_beta1_flat(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """As `epsilon_alpha2_beta1`, with the flat rule for the first layer."""
    over = first_match(entries, first_layer(rules.flat(stabilizer)))
    return epsilon_alpha2_beta1(epsilon, stabilizer, zero_bias, over)


def epsilon_gamma_box(
    low: float | torch.Tensor,
    high: float | torch.Tensor,
    epsilon: StabilizerLike = 1e-6,
    gamma: float = 0.25,
    stabilizer: StabilizerLike = 1e-6,
    zero_bias: bool = False,
    entries: Entries = None,
) -> Composite:
    """z-box for the first layer (inputs in `low` to `high`), gamma for other convolutions, epsilon for dense layers."""
    over = first_match(entries, first_layer(rules.zbox(low, high, stabilizer, zero_bias)))
    return _layers(rules.gamma(gamma, stabilizer, zero_bias), epsilon, stabilizer, zero_bias, over)


def excitation_backprop(
    stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """z+ for all layers. Source: Zhang et al. 2016, doi:10.1007/978-3-319-46493-0_33."""
    plus = rules.zplus(stabilizer, zero_bias)
    return first_match(entries, by_kind({LINEAR: plus, **_without_parameters(stabilizer)}))


def deconvnet(entries: Entries = None) -> Composite:
    """The gradient, of which each activation passes what is positive. Source: Zeiler and Fergus 2014."""
    return _gradient_like(rules.relu_deconvnet(), entries)


def guided_backprop(entries: Entries = None) -> Composite:
    """The gradient, of which each activation passes what is positive where it is active. Source: Springenberg 2015."""
    return _gradient_like(rules.relu_guided_backprop(), entries)


def beta_smooth(beta: float = 10.0, entries: Entries = None) -> Composite:
    """The gradient, with activations as smooth as a softplus of sharpness beta. Source: Dombrowski et al. 2019."""
    return _gradient_like(rules.relu_beta_smooth(beta), entries)


def attn_lrp(
    gamma: float = 0.0,
    epsilon: StabilizerLike = 0.0,
    stabilizer: StabilizerLike = 1e-6,
    zero_bias: bool = False,
    entries: Entries = None,
) -> Composite:
    """AttnLRP for transformers: products and matrix products halve, the softmax has its Jacobian, normalizations have
    constant denominators, activations pass relevance through.

    Layers, the attention's projections included, get the gamma rule, for gamma = 0 the epsilon rule. The sum of all
    relevance is not the logit, as the softmax does not conserve; `cp_lrp` does. `zero_bias` needs a larger epsilon
    (1e-2, say), as it divides by outputs without their biases.
    Source: Achtibat et al. 2024, arXiv:2402.05602.
    """
    kinds = _transformer_parts(gamma, epsilon, stabilizer, zero_bias)
    return first_match(entries, _gated((SLOPE,), epsilon), by_kind(kinds))


def cp_lrp(
    gamma: float = 0.0,
    epsilon: StabilizerLike = 0.0,
    stabilizer: StabilizerLike = 1e-6,
    zero_bias: bool = False,
    entries: Entries = None,
) -> Composite:
    """CP-LRP for transformers, which conserves: as `attn_lrp`, but queries, keys and gates count as constants.

    In a product without a gate both factors take half.
    Source: Ali et al. 2022, arXiv:2202.07304.
    """
    kinds = _transformer_parts(gamma, epsilon, stabilizer, zero_bias)
    kinds[ATTENTION] = rules.attention("value", epsilon)
    return first_match(entries, _gated(None, epsilon), by_kind(kinds))


def _transformer_parts(gamma: float, epsilon, stabilizer, zero_bias: bool) -> dict[str, Rule]:
    normalization = rules.normalization(epsilon)
    return {
        LINEAR: rules.gamma(gamma, stabilizer, zero_bias) if gamma else rules.epsilon(epsilon, zero_bias),
        ATTENTION: rules.attention("all", epsilon),
        SOFTMAX: rules.softmax(epsilon),
        BILINEAR: rules.halve(epsilon),
        PRODUCT: rules.halve(epsilon),
        NORMALIZATION: normalization,
        BATCH_NORM: normalization,
        **_without_parameters(epsilon),
    }


def _gated(roles: Collection[str] | None, epsilon: StabilizerLike) -> Composite:
    """In products, of matrices too, with a factor that has such a role (None: any) the other one takes all."""
    gate = rules.gate("signal", epsilon)

    def composite(program):
        products = (e for e in active_equations(program) if kind_of(program, e) in (PRODUCT, BILINEAR))
        return {equation.name: gate for equation in products if _has_role(program, equation, roles)}

    return composite


def _layers(convolution: Rule, epsilon, stabilizer, zero_bias: bool, entries: Entries) -> Composite:
    dense = rules.epsilon(epsilon, zero_bias)
    kinds = {CONVOLUTION: convolution, DENSE: dense, **_without_parameters(stabilizer)}
    return first_match(entries, by_kind(kinds))


def _without_parameters(stabilizer: StabilizerLike) -> dict[str, Rule]:
    return {SUM: rules.norm(stabilizer), AVERAGE_POOL: rules.norm(stabilizer)}


def _gradient_like(activation: Rule, entries: Entries) -> Composite:
    return first_match(entries, by_kind({ACTIVATION: activation, "*": rules.gradient()}))


# -- explain ----------------------------------------------------------------------------------------------------------


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

    "constant": no relevance comes here, as all that was made of it counts as a constant.
    Errors: `RuleError` for a pattern that matches nothing and, with `strict`, for fallbacks.
    """
    assigned = assign(fmodel, rules, strict)
    rows, fallbacks = [], []
    for equation in active_equations(fmodel):
        rule = assigned.get(equation.name)
        if rule is FALLBACK:
            fallbacks.append(equation.name)
        name, *shapes = equation_row(equation)
        mark = "!" if rule is FALLBACK else ""
        rows.append((mark, name, kind_of(fmodel, equation), *shapes, "constant" if rule is None else rule.label))
    return Explanation(tuple(rows), tuple(fallbacks))
