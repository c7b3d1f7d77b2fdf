"""A model as data: equations, programs, and what evaluates and checks them."""

from lrpfunc.program.arithmetic import add, divide, is_plain, may_overwrite, minimum, multiply
from lrpfunc.program.check import check, some_sizes
from lrpfunc.program.equations import (
    DEVICE,
    DTYPE,
    PARAMETER,
    Equation,
    Variable,
    operator_name,
    rename,
    substitute,
    variables_in,
)
from lrpfunc.program.foreign import Foreign
from lrpfunc.program.functions import (
    BIAS_MAPS,
    batch_norm,
    contract,
    dequantized,
    einsum,
    einsum_with_bias,
    embedding,
    frozen_batch_norm,
    gru_steps,
    linear_with_bias,
    looked_up,
    lstm_steps,
    matmul_with_bias,
    moved,
    overwrite,
    part,
    pooled_rows,
    rnn_relu_steps,
    rnn_tanh_steps,
    size,
    smooth_attention,
    standardize,
    unpacked,
    without_projection,
)
from lrpfunc.program.names import below_call, called, matches, numbered
from lrpfunc.program.program import Program
from lrpfunc.program.pytrees import NAMESPACE, Leaf, dataclasses_in, flatten, label_inputs, leaf_names, refilled
from lrpfunc.program.sizes import function_of, sizes_in, spelled, with_names
from lrpfunc.program.tables import equation_row, format_table
