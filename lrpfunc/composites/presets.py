"""The presets: ready composites by name, the one list of them."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lrpfunc import rules
from lrpfunc.composites.combinators import Composite, Entries, by_kind, first_layer, first_match
from lrpfunc.operations import (
    ACTIVATION,
    ATTENTION,
    AVERAGE_POOL,
    BATCH_NORM,
    BILINEAR,
    CONVOLUTION,
    DENSE,
    LINEAR,
    NORMALIZATION,
    PRODUCT,
    SLOPE,
    SOFTMAX,
    SUM,
    facts,
)
from lrpfunc.rules import Rule, StabilizerLike


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

    def has_role(constant) -> bool:
        return constant is not None and (roles is None or constant.role in roles)

    def composite(program):
        known = facts(program)
        products = (e for e in program.equations if known.kind_of(e) in (PRODUCT, BILINEAR))
        return {equation.name: gate for equation in products if has_role(known.factor_of(equation))}

    return composite


def _layers(convolution: Rule, epsilon, stabilizer, zero_bias: bool, entries: Entries) -> Composite:
    dense = rules.epsilon(epsilon, zero_bias)
    kinds = {CONVOLUTION: convolution, DENSE: dense, **_without_parameters(stabilizer)}
    return first_match(entries, by_kind(kinds))


def _without_parameters(stabilizer: StabilizerLike) -> dict[str, Rule]:
    return {SUM: rules.norm(stabilizer), AVERAGE_POOL: rules.norm(stabilizer)}


def _gradient_like(activation: Rule, entries: Entries) -> Composite:
    return first_match(entries, by_kind({ACTIVATION: activation, "*": rules.gradient()}))
