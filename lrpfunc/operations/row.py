"""A row of the table of operations: everything that lrpfunc knows of one ATen operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from lrpfunc.operations.cells import Recurrence
from lrpfunc.operations.kinds import OTHER, KindOf
from lrpfunc.operations.zeros import Vanishes

if TYPE_CHECKING:
    from lrpfunc.operations.operation import Operation
    from lrpfunc.program import Equation

Index = np.ndarray  # where channels are in a value, see channels.py


class Slot(NamedTuple):
    """An operation's input among its arguments."""

    position: int


class Positions(NamedTuple):
    """Where a layer has its input, weight and bias among its arguments, and its weight the output channels.

    `input` is None for a matrix product, either of whose operands may be the input; the other one is the weight, and
    `weight` the position of the second. `output_axis` is None for a transposed convolution, whose weight is
    (in, out / groups, ...).
    """

    input: int | None
    weight: int
    bias: int | None = None
    output_axis: int | None = None


class Form(NamedTuple):
    """How an operation normalizes. `statistics`: its output and 1 / d; `adjoint`: from c and 1 / d to c_x."""

    statistics: Callable[[Operation, Tensor], tuple[Tensor, Tensor]]
    adjoint: Callable[[Operation, Tensor, Tensor], Tensor]


# Whether an equation's result is never below zero, given a function that tells it of one of its arguments.
Sign = Callable[["Equation", Callable[[Any], bool]], bool]

ALL, FIRST, SHIFT = "all", "first", "shift"  # whose ids an operation moves, see `moves_ids`

# Where channels are behind an equation, or (True) before it.
Moves = Callable[["Equation", Index, bool], Index]


class Row(NamedTuple):
    """What is known of an operation, whatever its arguments.

    What it is:
        `kind`: a kind, or a function that tells it by which arguments are active. `positions`: of its parameters, if it
        is a layer. `names`: its second names, which tracing replaces by the row's own.
    How it moves relevance:
        `is_linear`: in all its inputs together; `is_multilinear`: in each of them while the others are fixed.
        `adjoint`: the transposed map with one active input (or linear in all). `pullback`: the vector-Jacobian product
        at two, without a forward pass. `kernel`: a faster way to its value at one input, where no transform or
        derivative sees it; None where it does not apply. `remember` and `recall`: for what is linear around its input
        and can say at which entries, as maximum pooling can; `remember` alone: what autograd
        records of it by other means. `smooth`: the same function in operations with derivatives of any order.
        `ratio`: f(x) / x of an activation, with f'(0) at 0. `rectifies`: the ReLU. `form`: how it normalizes.
        `takes_complex`: its kind holds for complex values as well, though its `ratio` is of signs or sizes.
        `outputs`: counts the outputs of a layer that have a bias each; `biased`: the layer with
        a bias of any shape. `divides`: tells a mean from a sum. `recurrence`: the cell of a recurrent layer's steps.
        `is_fold`: it multiplies all elements along its axes.
    What its result is made of:
        `is_gate`: it scales a signal. `is_exponential`: it is a number to the power of its last argument, which scales
        a signal as well. `is_probability`: it ends models whose logits had better be explained.
        `is_normalizer`: normalizations multiply by it. `is_statistic`, `is_clamp`, `rescales`, `reduces`,
        `is_elementwise`: what `factors` sees through. `shifts`: it adds its other operand.
        `sign`: whether its result is never below zero. `vanishes`: whether it is zero everywhere. `is_constant`: its
        result is a constant, whatever it reads, or if a function says so.
    How things move through it:
        `moves`: a scale and shift per channel; `keeps_uniform`: a uniform value stays that value (None: always);
        `is_spatial`: it acts on the last axes, on each channel alike; `takes_scale`: a layer that can take one up;
        `bounds`: an activation as a clamp.
        `moves_ids`: it moves ids, and so their relevance, of all that it reads (ALL) or of its first argument (FIRST),
        or makes an id of each element of all that it reads (SHIFT). `ids`: the position of the ids that it looks rows
        up by in its first argument, and `axes_of_ids` the first and the number of its output's axes that are theirs.
        `is_one_hot`: it makes rows of ones and zeros of ids, which are looked up once they are cast to numbers.
    When it is evaluated:
        `is_deferred`: where its result is read, though it is made of parameters alone, as that takes memory.
    What tracing asks:
        `is_identity`: of its first argument, in a deterministic evaluation; `is_assertion`: it only checks.
        `may_return_input`: it returns the tensor it was given where nothing is to be done. `shape_giver`: the position
        of an argument of which the values do not matter. `deterministic`: argument values by which it is not random.
        `keeps_values`: its result has all values of its input, in their order. `reads_shape`: it reads shapes and no
        values. `reads_strides`: it depends on how its input lies in memory.
    """

    kind: str | KindOf = OTHER
    positions: Positions | None = None
    names: tuple[str, ...] = ()
    is_linear: bool = False
    is_multilinear: bool = False
    adjoint: Callable[[Operation, Any], Any] | None = None
    pullback: Callable[[Operation, Sequence[Tensor], Tensor], tuple[Tensor, ...] | None] | None = None
    kernel: Callable[[Operation, Tensor], Tensor | None] | None = None
    remember: Callable[..., tuple[Tensor, Any] | None] | None = None
    recall: Callable[[Operation, Any, Tensor], Tensor] | None = None
    smooth: Callable[..., Any] | None = None
    ratio: Callable[..., Tensor] | None = None
    rectifies: bool = False
    form: Form | None = None
    outputs: Callable[[Operation], int] | None = None
    biased: Callable[..., Tensor] | None = None
    divides: bool = False
    recurrence: Recurrence | None = None
    is_fold: bool = False
    is_gate: bool = False
    is_exponential: bool = False
    is_probability: bool = False
    is_normalizer: bool = False
    is_statistic: bool = False
    is_clamp: bool = False
    rescales: bool = False
    shifts: bool = False
    reduces: bool = False
    is_elementwise: bool = False
    sign: Sign | None = None
    vanishes: Vanishes | None = None
    is_constant: bool | Callable[[Equation], bool] = False
    moves: Moves | None = None
    keeps_uniform: Callable[[Equation], bool] | None = None
    is_spatial: bool = False
    takes_scale: bool = False
    bounds: Callable[[Equation], Any] | None = None
    moves_ids: str = ""
    ids: int | None = None
    axes_of_ids: Callable[[Operation, int], tuple[int, int]] | None = None
    is_one_hot: bool = False
    takes_complex: bool = False
    is_deferred: bool = False
    is_identity: bool = False
    is_assertion: bool = False
    may_return_input: bool = False
    shape_giver: int | None = None
    deterministic: Mapping[str, Any] | None = None
    keeps_values: bool = False
    reads_shape: bool = False
    reads_strides: bool = False
