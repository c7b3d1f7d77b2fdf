"""What an equation is to relevance: the table of ATen, kinds, facts of a program, and an equation as a function."""

from lrpfunc.operations import kernels
from lrpfunc.operations.cells import Cell, Recurrence, Shares, Steps, in_rows, let_out, times
from lrpfunc.operations.channels import (
    Absorber,
    Arrival,
    Route,
    batch_norms,
    bounds,
    channel_axis,
    is_batch_norm,
    is_convolution,
    leftwards,
    positions,
    rightwards,
    takes_scale,
)
from lrpfunc.operations.factors import DECAY, GATE, SLOPE, WEIGHTS, Constant
from lrpfunc.operations.facts import Facts, active_equations, facts, is_active, is_constant, kind
from lrpfunc.operations.kinds import (
    ACTIVATION,
    AFFINE,
    ATTENTION,
    AVERAGE_POOL,
    BATCH_NORM,
    BILINEAR,
    CONVOLUTION,
    COVERED_BY,
    DENSE,
    ELEMENTWISE,
    EMBEDDING,
    KINDS,
    LINEAR,
    MAX_POOL,
    MOVEMENT,
    NORMALIZATION,
    PRODUCT,
    RECURRENT,
    SOFTMAX,
    SUM,
    THRESHOLD_RELU,
    TRANSFORM,
)
from lrpfunc.operations.lookups import of_all
from lrpfunc.operations.moves import Bounds, Immovable
from lrpfunc.operations.operation import Context, Operation, bind, bind_function, bind_linear, bind_nothing
from lrpfunc.operations.ranges import InputRange, input_ranges, nonnegative
from lrpfunc.operations.row import Form, Index, Positions, Row, Slot
from lrpfunc.operations.spellings import SPELLINGS
from lrpfunc.operations.table import GROUPS, TABLE, USUAL_NAMES, row_named, row_of
from lrpfunc.operations.written_out import WRITTEN_OUT
