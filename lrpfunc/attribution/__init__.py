"""Explanations: from a program, its parameters and rules to relevance."""

from lrpfunc.attribution.autograd import custom_vjp, with_rules
from lrpfunc.attribution.explanations import Prepared, as_prepared, attribute, attribute_each, prepare, vjp
from lrpfunc.attribution.footprints import Footprint, footprint
from lrpfunc.attribution.front import explainer, relevance
from lrpfunc.attribution.ledgers import Entry, Ledger, ledger
from lrpfunc.attribution.parameters import parameter_relevance
from lrpfunc.attribution.plans import planned
from lrpfunc.attribution.records import Trail, record
from lrpfunc.attribution.targets import (
    Target,
    cotangent,
    has_batch,
    is_function,
    is_int,
    known_any,
    mark,
    per_sample,
    seed,
)
