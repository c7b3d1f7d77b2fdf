"""Canonization: the same function in a form that LRP can explain, as a new program and new parameters."""

from lrpfunc.canonizers.passes import (
    DEFAULT,
    LEFT,
    MERGED,
    MERGED_RIGHT,
    THRESHOLD,
    Canonical,
    Fate,
    Pass,
    Report,
    canonize,
    chain,
    merge_batch_norm,
    merge_batch_norm_right,
    merge_named,
    replace,
    threshold_relu,
)
