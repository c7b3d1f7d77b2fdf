"""A model as data: equations, programs, and what evaluates them."""

from lrpfunc.program.arithmetic import add, divide, is_plain, may_overwrite, multiply
from lrpfunc.program.functions import (
    BIAS_MAPS,
    batch_norm,
    einsum,
    embedding,
    frozen_batch_norm,
    overwrite,
    size,
    smooth_attention,
)
from lrpfunc.program.program import (
    DEVICE,
    DTYPE,
    NAMESPACE,
    PARAMETER,
    Equation,
    Leaf,
    Program,
    Variable,
    equation_row,
    format_table,
    label_inputs,
    leaf_names,
    operator_name,
    rename,
    variables_in,
)
