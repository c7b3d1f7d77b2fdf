"""What `lrpfunc` is to those who import it: all public names, in one list. They come to the package when first used."""

from lrpfunc import attributors, canonizers, circuits, composites, errors, heatmaps, rules, targets, text
from lrpfunc.attribution import (
    Footprint,
    Ledger,
    Prepared,
    Trail,
    attribute,
    attribute_each,
    custom_vjp,
    explainer,
    footprint,
    ledger,
    parameter_relevance,
    prepare,
    record,
    relevance,
    vjp,
    with_rules,
)
from lrpfunc.canonizers import Canonical, canonize
from lrpfunc.composites import explain
from lrpfunc.errors import LrpError
from lrpfunc.placement import offload, place, quantize, unpack
from lrpfunc.program import Program
from lrpfunc.rules import Flow, Rule, stabilizer
from lrpfunc.storage import load, save
from lrpfunc.tracing import functionalize, trace, varying

__all__ = [
    "Canonical",
    "Flow",
    "Footprint",
    "Ledger",
    "LrpError",
    "Prepared",
    "Program",
    "Rule",
    "Trail",
    "attribute",
    "attribute_each",
    "attributors",
    "canonize",
    "canonizers",
    "circuits",
    "composites",
    "custom_vjp",
    "errors",
    "explain",
    "explainer",
    "footprint",
    "functionalize",
    "heatmaps",
    "ledger",
    "load",
    "offload",
    "parameter_relevance",
    "place",
    "prepare",
    "quantize",
    "record",
    "relevance",
    "rules",
    "save",
    "stabilizer",
    "targets",
    "text",
    "trace",
    "unpack",
    "varying",
    "vjp",
    "with_rules",
]
