"""Layer-wise relevance propagation for PyTorch as pure functions.

A model is a pure function, an explanation is that function's custom vector-Jacobian product:

    fmodel, params = lrpfunc.functionalize(model, x)        # a program and a flat dict of its parameters
    fmodel, params, restore, report = lrpfunc.canonize(fmodel, params)
    relevance = lrpfunc.attribute(fmodel, params, x, lrpfunc.composites.epsilon_plus_flat())

Nothing is hooked, patched or mutated, so `vmap`, `grad`, `jvp` and `torch.compile` work on an explanation as they do on
any other function of tensors. The folders are the architecture: program, operations, tracing, canonizers, rules,
composites, attribution, heatmaps, text, pictures; each has a README.
"""

from lrpfunc import canonizers, composites, errors, rules
from lrpfunc.attribution import (
    Ledger,
    Prepared,
    attribute,
    attribute_each,
    custom_vjp,
    ledger,
    prepare,
    vjp,
    with_rules,
)
from lrpfunc.canonizers import Canonical, canonize
from lrpfunc.composites import explain
from lrpfunc.errors import LrpError
from lrpfunc.program import Program
from lrpfunc.rules import Flow, Rule, stabilizer
from lrpfunc.tracing import functionalize, trace

__version__ = "0.6.0"

__all__ = [
    "Canonical",
    "Flow",
    "Ledger",
    "LrpError",
    "Prepared",
    "Program",
    "Rule",
    "attribute",
    "attribute_each",
    "canonize",
    "canonizers",
    "composites",
    "custom_vjp",
    "errors",
    "explain",
    "functionalize",
    "ledger",
    "prepare",
    "rules",
    "stabilizer",
    "trace",
    "vjp",
    "with_rules",
]
