"""What an equation is to relevance: the table of ATen, kinds, signs, channels, and an equation as a function."""

from lrpfunc.operations.channels import (
    Absorber,
    Arrival,
    Immovable,
    Index,
    Route,
    Structure,
    batch_norms,
    bounds,
    channel_axis,
    is_batch_norm,
    leftwards,
    places,
    rightwards,
)
from lrpfunc.operations.kinds import GATE, SLOPE, active_equations, active_inputs, constant_factor, is_active, kind
from lrpfunc.operations.operation import Operation, bind, structure
from lrpfunc.operations.signs import InputRange, input_ranges, nonnegative
from lrpfunc.operations.table import (
    ACTIVATION,
    AFFINE,
    ATTENTION,
    AVERAGE_POOL,
    BATCH_NORM,
    BILINEAR,
    CONVOLUTION,
    DENSE,
    ELEMENTWISE,
    EMBEDDING,
    GROUPS,
    KINDS,
    LINEAR,
    MAX_POOL,
    MOVEMENT,
    NORMALIZATION,
    OPERATORS,
    PRODUCT,
    SOFTMAX,
    SUM,
    UNKNOWN,
    Slot,
)
