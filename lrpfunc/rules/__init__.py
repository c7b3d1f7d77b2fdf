"""The rules, one constructor each. A rule is a custom vector-Jacobian product of one equation."""

from lrpfunc.rules.attention import attention, embedding, softmax
from lrpfunc.rules.declarations import COEFFICIENT, RECTIFIED_COEFFICIENT, check_declared, declared
from lrpfunc.rules.elementwise import affine, clamp, relu_beta_smooth, relu_deconvnet, relu_guided_backprop
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.linear import alpha_beta, epsilon, flat, gamma, norm, transform, wsquare, zbox, zplus
from lrpfunc.rules.normalization import normalization
from lrpfunc.rules.products import gate, halve
from lrpfunc.rules.recurrences import recurrent
from lrpfunc.rules.rule import Rule, call_of, called, gradient, input_times_gradient, is_same, nothing, pass_through
from lrpfunc.rules.stabilizers import Stabilizer, StabilizerLike, settings_of, stabilizer

__all__ = [
    "Rule",
    "Stabilizer",
    "affine",
    "alpha_beta",
    "attention",
    "clamp",
    "embedding",
    "epsilon",
    "flat",
    "gamma",
    "gate",
    "gradient",
    "halve",
    "input_times_gradient",
    "norm",
    "normalization",
    "pass_through",
    "recurrent",
    "relu_beta_smooth",
    "relu_deconvnet",
    "relu_guided_backprop",
    "softmax",
    "stabilizer",
    "transform",
    "wsquare",
    "zbox",
    "zplus",
]
