"""The presets: ready composites by name, the one list of them."""

from __future__ import annotations

import functools
from collections.abc import Collection

import torch

from lrpfunc import rules
from lrpfunc.composites.combinators import Composite, Entries, by_kind, first_layer, first_match
from lrpfunc.errors import RuleError
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
    GATE,
    LINEAR,
    NORMALIZATION,
    PRODUCT,
    RECURRENT,
    SLOPE,
    SOFTMAX,
    SUM,
    THRESHOLD_RELU,
    TRANSFORM,
    facts,
)
from lrpfunc.program import Program
from lrpfunc.rules import Rule, StabilizerLike


def epsilon(epsilon: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None) -> Composite:
    """The epsilon rule for all layers, sums and average pooling.

    With 0 it is input times gradient on ReLU networks.

    Args:
        epsilon: S of the epsilon rule: an epsilon in units of its outputs, a `stabilizer` or a function.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative epsilon, and for entries that match nothing.
    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 58.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.epsilon(0.1)).rows]
    ['epsilon(0.1)', 'pass_through()', 'epsilon(0.1)']
    """
    dense = rules.epsilon(epsilon, zero_bias)
    return first_match(entries, by_kind({LINEAR: dense, **_others(dense, epsilon, zero_bias)}))


def epsilon_plus(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """z+ for convolutions, epsilon for dense layers.

    Args:
        epsilon: S of the epsilon rule: an epsilon in units of its outputs, a `stabilizer` or a function.
        stabilizer: S of the other rules, in units of their denominators, likewise.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative epsilon, and for entries that match nothing.
    Source: Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), torch.nn.Conv2d(1, 1, 2), torch.nn.Linear(1, 2))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 1, 3, 3))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.epsilon_plus()).rows]
    ['zplus()', 'zplus()', 'epsilon(1e-06)']
    """
    return _layers(rules.zplus(stabilizer, zero_bias), epsilon, stabilizer, zero_bias, entries)


def epsilon_plus_flat(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """As `epsilon_plus`, with the flat rule for the first layer.

    Args:
        epsilon: S of the epsilon rule: an epsilon in units of its outputs, a `stabilizer` or a function.
        stabilizer: S of the other rules, in units of their denominators, likewise.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative epsilon, and for entries that match nothing.
    Source: Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4, for the flat rule.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), torch.nn.Conv2d(1, 1, 2), torch.nn.Linear(1, 2))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 1, 3, 3))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.epsilon_plus_flat()).rows]
    ['flat()', 'zplus()', 'epsilon(1e-06)']
    """
    over = first_match(entries, first_layer(rules.flat(stabilizer)))
    return epsilon_plus(epsilon, stabilizer, zero_bias, over)


def epsilon_alpha2_beta1(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """alpha_beta(2, 1) for convolutions, epsilon for dense layers.

    Args:
        epsilon: S of the epsilon rule: an epsilon in units of its outputs, a `stabilizer` or a function.
        stabilizer: S of the other rules, in units of their denominators, likewise.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative epsilon, and for entries that match nothing.
    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 60, for alpha and beta.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), torch.nn.Conv2d(1, 1, 2), torch.nn.Linear(1, 2))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 1, 3, 3))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.epsilon_alpha2_beta1()).rows]
    ['alpha_beta(2, 1)', 'alpha_beta(2, 1)', 'epsilon(1e-06)']
    """
    return _layers(rules.alpha_beta(2, 1, stabilizer, zero_bias), epsilon, stabilizer, zero_bias, entries)


def epsilon_alpha2_beta1_flat(
    epsilon: StabilizerLike = 1e-6, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """As `epsilon_alpha2_beta1`, with the flat rule for the first layer.

    Args:
        epsilon: S of the epsilon rule: an epsilon in units of its outputs, a `stabilizer` or a function.
        stabilizer: S of the other rules, in units of their denominators, likewise.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative epsilon, and for entries that match nothing.
    Source: Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4, for the flat rule.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), torch.nn.Conv2d(1, 1, 2), torch.nn.Linear(1, 2))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 1, 3, 3))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.epsilon_alpha2_beta1_flat()).rows]
    ['flat()', 'alpha_beta(2, 1)', 'epsilon(1e-06)']
    """
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
    """z-box for the first layer (inputs in `low` to `high`), gamma for other convolutions, epsilon for dense layers.

    Args:
        low: the least that the inputs can be, in their units: a number, or a tensor that broadcasts to a sample.
        high: the most, likewise.
        epsilon: S of the epsilon rule: an epsilon in units of its outputs, a `stabilizer` or a function.
        gamma: by how much the gamma rule favours contributions of the output's own sign.
        stabilizer: S of the other rules, in units of their denominators, likewise.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative epsilon or gamma, for bounds that are no numbers or tensors, and for entries that
        match nothing; in use, for bounds that do not fit the input.
    Source: Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), torch.nn.Conv2d(1, 1, 2), torch.nn.Linear(1, 2))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 1, 3, 3))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.epsilon_gamma_box(-1, 1)).rows]
    ['zbox(-1, 1)', 'gamma(0.25)', 'epsilon(1e-06)']
    """
    over = first_match(entries, first_layer(rules.zbox(low, high, stabilizer, zero_bias)))
    return _layers(rules.gamma(gamma, stabilizer, zero_bias), epsilon, stabilizer, zero_bias, over)


def excitation_backprop(
    stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False, entries: Entries = None
) -> Composite:
    """z+ for all layers.

    Args:
        stabilizer: S, an epsilon in units of the denominators, a `stabilizer` or a function.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative epsilon, and for entries that match nothing.
    Source: Zhang et al. 2016, doi:10.1007/978-3-319-46493-0_33.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.excitation_backprop()).rows]
    ['zplus()', 'pass_through()', 'zplus()']
    """
    plus = rules.zplus(stabilizer, zero_bias)
    return first_match(entries, by_kind({LINEAR: plus, **_others(plus, stabilizer, zero_bias)}))


def deconvnet(entries: Entries = None) -> Composite:
    """The gradient, of which each activation passes what is positive.

    Args:
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for entries that match nothing.
    Source: Zeiler and Fergus 2014, doi:10.1007/978-3-319-10590-1_53.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.deconvnet()).rows]
    ['gradient()', 'relu_deconvnet()', 'gradient()']
    """
    return _gradient_like(rules.relu_deconvnet(), entries)


def guided_backprop(entries: Entries = None) -> Composite:
    """The gradient, of which each activation passes what is positive where it is active.

    Args:
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for entries that match nothing.
    Source: Springenberg et al. 2015, arXiv:1412.6806.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.guided_backprop()).rows]
    ['gradient()', 'relu_guided_backprop()', 'gradient()']
    """
    return _gradient_like(rules.relu_guided_backprop(), entries)


def beta_smooth(beta: float = 10.0, entries: Entries = None) -> Composite:
    """The gradient, with activations as smooth as a softplus of sharpness beta.

    Args:
        beta: how sharply the softplus bends, in units of 1 / x; the larger, the more it is a ReLU.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative beta, and for entries that match nothing.
    Source: Dombrowski et al. 2019, arXiv:1906.07983.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.beta_smooth()).rows]
    ['gradient()', 'relu_beta_smooth(10)', 'gradient()']
    """
    return _gradient_like(rules.relu_beta_smooth(beta), entries)


def attn_lrp(
    gamma: float = 0.0,
    epsilon: StabilizerLike = 0.0,
    stabilizer: StabilizerLike = 1e-6,
    zero_bias: bool = False,
    entries: Entries = None,
    gates: str = "constant",
) -> Composite:
    """AttnLRP for transformers: products halve, the softmax has its Jacobian, normalizations constant denominators.

    Activations pass relevance through. Layers, the attention's projections included, get the gamma rule, for gamma = 0
    the epsilon rule. The decay of a state space, exp(dt A), and its step dt are constants, and so are gates, what comes
    from a sigmoid or tanh: with a half each, relevance grows from step to step of a recurrent network. The sum of all
    relevance is not the logit, as the softmax does not conserve; `cp_lrp` does.

    Args:
        gamma: of the gamma rule for layers; 0 for the epsilon rule.
        epsilon: S of all rules but gamma: an epsilon in units of its outputs, a `stabilizer` or a function.
        stabilizer: S of the gamma rule, in units of its denominators, likewise.
        zero_bias: leave biases, and constants of threshold ReLUs, out; it needs a larger epsilon (1e-2, say), or with
            gamma a larger stabilizer, which then rules the layers.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
        gates: "constant", where what a gate multiplies takes all; or "halve", as all other products do.
    Errors: `RuleError` for a negative gamma or epsilon, for entries that match nothing, and for other gates.
    Source: Achtibat et al. 2024, arXiv:2402.05602; Arras et al. 2017, doi:10.18653/v1/W17-5221, for gates.

    >>> import lrpfunc, torch
    >>> x, attend = torch.ones(1, 1, 2, 2), torch.nn.functional.scaled_dot_product_attention
    >>> fmodel, _ = lrpfunc.trace(lambda p, x: attend(x, x, x), {}, x)
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.attn_lrp()).rows]
    ['attention(stabilizer=0)']
    """
    if gates not in ("constant", "halve"):
        raise RuleError(f'gates are "constant" or "halve", but not {gates!r}.')
    halve = gates == "halve"
    kinds = _transformer_parts(gamma, epsilon, stabilizer, zero_bias, "both" if halve else "signal")
    return first_match(entries, _gated((SLOPE, DECAY) if halve else (SLOPE, DECAY, GATE), epsilon), by_kind(kinds))


def cp_lrp(
    gamma: float = 0.0,
    epsilon: StabilizerLike = 0.0,
    stabilizer: StabilizerLike = 1e-6,
    zero_bias: bool = False,
    entries: Entries = None,
) -> Composite:
    """CP-LRP for transformers, which conserves: as `attn_lrp`, but queries, keys and gates count as constants.

    In a product without a gate both factors take half.

    Args:
        gamma: of the gamma rule for layers; 0 for the epsilon rule.
        epsilon: S of all rules but gamma: an epsilon in units of its outputs, a `stabilizer` or a function.
        stabilizer: S of the gamma rule, in units of its denominators, likewise.
        zero_bias: leave biases, and constants of threshold ReLUs, out.
        entries: what goes first: a composite, `{name pattern: rule}` or one rule.
    Errors: `RuleError` for a negative gamma or epsilon, and for entries that match nothing.
    Source: Ali et al. 2022, arXiv:2202.07304.

    >>> import lrpfunc, torch
    >>> x, attend = torch.ones(1, 1, 2, 2), torch.nn.functional.scaled_dot_product_attention
    >>> fmodel, _ = lrpfunc.trace(lambda p, x: attend(x, x, x), {}, x)
    >>> [row[-1] for row in lrpfunc.explain(fmodel, lrpfunc.composites.cp_lrp()).rows]
    ["attention('value', stabilizer=0)"]
    """
    kinds = _transformer_parts(gamma, epsilon, stabilizer, zero_bias)
    kinds[ATTENTION] = rules.attention("value", epsilon)
    return first_match(entries, _gated(None, epsilon), by_kind(kinds))


def _transformer_parts(gamma: float, epsilon, stabilizer, zero_bias: bool, to: str = "signal") -> dict[str, Rule]:
    normalization = rules.normalization(epsilon)
    linear = rules.gamma(gamma, stabilizer, zero_bias) if gamma else rules.epsilon(epsilon, zero_bias)
    return {
        **_others(linear, epsilon, zero_bias),
        LINEAR: linear,
        ATTENTION: rules.attention("all", epsilon),
        SOFTMAX: rules.softmax(epsilon),
        BILINEAR: rules.halve(epsilon),
        PRODUCT: rules.halve(epsilon),
        NORMALIZATION: normalization,
        BATCH_NORM: normalization,
        RECURRENT: rules.recurrent(linear, to, epsilon),
    }


def _gated(roles: Collection[str] | None, epsilon: StabilizerLike) -> Composite:
    """In products, of matrices too, with a factor that has such a role (None: any) the other one takes all."""
    return functools.partial(_gates, roles, rules.gate("signal", epsilon))


def _gates(roles: Collection[str] | None, gate: Rule, program: Program) -> dict[str, Rule]:
    assigned, known = {}, facts(program)
    for equation in program.equations:
        constant = known.factor_of(equation) if known.kind_of(equation) in (PRODUCT, BILINEAR) else None
        if constant is not None and (roles is None or constant.role in roles):
            assigned[equation.name] = gate
    return assigned


def _layers(convolution: Rule, epsilon, stabilizer, zero_bias: bool, entries: Entries) -> Composite:
    dense = rules.epsilon(epsilon, zero_bias)
    kinds = {CONVOLUTION: convolution, DENSE: dense, **_others(dense, stabilizer, zero_bias)}
    return first_match(entries, by_kind(kinds))


def _others(dense: Rule, stabilizer: StabilizerLike, zero_bias: bool) -> dict[str, Rule]:
    """What is no linear layer, or has one with such a rule in it."""
    shared = rules.norm(stabilizer)
    return {
        RECURRENT: rules.recurrent(dense, "signal", stabilizer),
        SUM: shared,
        AVERAGE_POOL: shared,
        AFFINE: rules.affine(stabilizer),
        TRANSFORM: rules.transform(stabilizer),
        THRESHOLD_RELU: rules.pass_through() if zero_bias else rules.clamp(stabilizer),
    }


def _gradient_like(activation: Rule, entries: Entries) -> Composite:
    return first_match(entries, by_kind({ACTIVATION: activation, "*": rules.gradient()}))
