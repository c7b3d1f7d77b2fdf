"""Composites: which rule each equation of a program gets."""

from lrpfunc.composites.assignment import FALLBACK, assign, assign_everywhere, reached, refuse_fallbacks, variables_seen
from lrpfunc.composites.combinators import (
    Assignment,
    Composite,
    Entries,
    as_composite,
    by_kind,
    by_name,
    first_layer,
    first_match,
)
from lrpfunc.composites.explanation import Explanation, explain
from lrpfunc.composites.presets import (
    attn_lrp,
    beta_smooth,
    cp_lrp,
    deconvnet,
    epsilon,
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    excitation_backprop,
    guided_backprop,
)
from lrpfunc.composites.suggestion import Suggestion, suggest

__all__ = [
    "Explanation",
    "Suggestion",
    "assign",
    "attn_lrp",
    "beta_smooth",
    "by_kind",
    "by_name",
    "cp_lrp",
    "deconvnet",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "explain",
    "first_layer",
    "first_match",
    "guided_backprop",
    "suggest",
]
