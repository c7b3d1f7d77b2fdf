"""Canonization: the same function in a form that LRP can explain, as a new program and new parameters.

A pass is a pure function `(program, params) -> (program, params)` on a flat dict of parameters, differentiable in them.
Layers and batch norms are matched by data flow (`operations.channels`): no pass knows modules or the order of their
registration.
"""

from lrpfunc.canonizers.canonical import Canonical, canonize, restored
from lrpfunc.canonizers.chains import Pass, chain
from lrpfunc.canonizers.folds import Fold, Subject
from lrpfunc.canonizers.left import MERGED, merge_batch_norm
from lrpfunc.canonizers.named import merge_named
from lrpfunc.canonizers.parallel import PARALLEL, merge_parallel
from lrpfunc.canonizers.passes import DEFAULT, PASSES
from lrpfunc.canonizers.report import LEFT, Fate, Report
from lrpfunc.canonizers.right import MERGED_RIGHT, merge_batch_norm_right
from lrpfunc.canonizers.splicing import replace
from lrpfunc.canonizers.threshold import THRESHOLD, threshold_relu

__all__ = [
    "Canonical",
    "Fate",
    "Report",
    "canonize",
    "chain",
    "merge_batch_norm",
    "merge_batch_norm_right",
    "merge_named",
    "merge_parallel",
    "replace",
    "threshold_relu",
]
