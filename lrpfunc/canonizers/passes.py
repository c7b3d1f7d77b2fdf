"""The one list of passes: `canonize` calls them in this order, reports and `merge_named` go through them."""

from lrpfunc.canonizers.chains import settle
from lrpfunc.canonizers.folds import Fold
from lrpfunc.canonizers.left import merge_batch_norm
from lrpfunc.canonizers.parallel import merge_parallel
from lrpfunc.canonizers.right import merge_batch_norm_right
from lrpfunc.canonizers.threshold import threshold_relu

# Of passes that look on the same side of the same subject the last one must go farthest: its reason is reported.
PASSES: tuple[Fold, ...] = (
    merge_batch_norm,
    merge_parallel,
    merge_batch_norm_right,
    threshold_relu,
)

DEFAULT = settle(*PASSES)

__test__ = {one.name: one.doc for one in PASSES}  # their examples, for doctest, which looks at functions only
