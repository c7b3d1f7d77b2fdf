"""What each ATen operation is: its kind, its parameters, its adjoint.

The table `OPERATORS` is the one place that knows ATen. Whatever is not in it is of kind "other" and is moved by its
vector-Jacobian product. The functions here get an `Operation`, which binds one of them to its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpfunc.program import is_plain, smooth_attention

if TYPE_CHECKING:
    from lrpfunc.operations.operation import Operation

aten = torch.ops.aten


class Slot(NamedTuple):
    """The place of an operation's input among its arguments."""

    position: int


# -- kinds ------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Where a layer has its input, weight and bias among its arguments, and the weight its output channels.

    `input` is None for a matrix product, either of whose operands may be the input; the other one is the weight, and
    `weight` the position of the second.
    `output_axis` is None for a transposed convolution, whose weight is (in, out / groups, ...).
    """

    input: int | None
    weight: int
    bias: int | None = None
    output_axis: int | None = None


class Operator(NamedTuple):
    """A row of the table: what is known of an operation, whatever its arguments.

    `kind` holds with one active input, `joint` with several; `layout` is for operations with parameters, `outputs`
    counts the outputs of a layer that have a bias each. `ratio` is f(x) / x of an activation, with f'(0) at 0;
    `is_gate` marks activations that scale a signal, `is_normalizer` what normalizations multiply by, `rectifies` the
    ReLU; `divides` tells a mean from a sum. `is_linear`: in all its inputs together; `is_multilinear`: in each of them
    while the others are constant. `adjoint` is the transposed map of an operation with one active input (or linear in
    all), `pullback` the vector-Jacobian product at several, without a forward pass. `remember` and `recall` are for
    what is linear around its input and can say at which entries, as maximum pooling can. `smooth` is the same function
    in operations that have derivatives of any order, where a kernel has not.
    """

    kind: str
    joint: str | None = None
    layout: Layout | None = None
    is_linear: bool = False
    adjoint: Callable[[Operation, Tensor], Any] | None = None
    ratio: Callable[..., Tensor] | None = None
    is_gate: bool = False
    is_normalizer: bool = False
    rectifies: bool = False
    divides: bool = False
    is_multilinear: bool = False
    pullback: Callable[[Operation, Sequence[Tensor], Tensor], tuple[Tensor, ...] | None] | None = None
    smooth: Callable[..., Any] | None = None
    outputs: Callable[[Operation], int] | None = None
    remember: Callable[..., tuple[Tensor, Any] | None] | None = None
    recall: Callable[[Operation, Any, Tensor], Tensor] | None = None


CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, ELEMENTWISE, AFFINE, SUM = (
    "convolution", "dense", "batch_norm", "activation", "elementwise", "affine", "sum",
)  # fmt: skip
AVERAGE_POOL, MAX_POOL, PRODUCT, BILINEAR = "average_pool", "max_pool", "product", "bilinear"
SOFTMAX, ATTENTION, NORMALIZATION, EMBEDDING = "softmax", "attention", "normalization", "embedding"
MOVEMENT, OTHER = "movement", "other"
LINEAR = "linear"  # a convolution or a dense layer

KINDS = (
    CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, ELEMENTWISE, AFFINE, SUM, AVERAGE_POOL, MAX_POOL, PRODUCT, BILINEAR,
    SOFTMAX, ATTENTION, NORMALIZATION, EMBEDDING, MOVEMENT, OTHER,
)  # fmt: skip


# -- adjoints of the linear operations --------------------------------------------------------------------------------


def _broadcast(value, dimensions: int) -> list[int]:
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * dimensions if len(value) == 1 else value


def _convolution_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    """The transposed convolution; `output_padding` restores the rows that the stride left over."""
    weight = operation.weight
    _, _, _, stride, padding, dilation, groups = operation.arguments
    if isinstance(padding, str):
        return None
    dimensions = weight.dim() - 2
    stride, padding, dilation = (_broadcast(value, dimensions) for value in (stride, padding, dilation))
    sizes = operation.shapes[0][-dimensions:]
    left_over = [
        n - ((m - 1) * t - 2 * p + d * (k - 1) + 1)
        for n, m, t, p, d, k in zip(
            sizes, s.shape[-dimensions:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]
    return transpose(s, weight, None, stride, padding, left_over, groups, dilation)


def _transposed_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    weight = operation.weight
    _, _, _, stride, padding, _, groups, dilation = operation.arguments
    convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
    moved = convolve(s, weight, None, stride, padding, dilation, groups)
    # A transposed convolution with output_padding has rows that reach no input; the convolution may then see one more.
    for axis, size in enumerate(operation.shapes[0][2 - weight.dim() :], start=2 - weight.dim()):
        moved = moved.narrow(axis, 0, size)
    return moved


def _linear_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s @ operation.weight


def _mm_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    left, right = operation.arguments[:2]
    dimensions = [len(operation.shapes[0]) if isinstance(side, Slot) else side.dim() for side in (left, right)]
    if min(dimensions) < 2:
        return None  # vectors
    moved = s @ right.mT if isinstance(left, Slot) else left.mT @ s
    return moved.sum_to_size(operation.shapes[0])


def _mm_pullback(operation: Operation, inputs: Sequence[Tensor], s: Tensor) -> tuple[Tensor, ...] | None:
    left, right = inputs
    if min(left.dim(), right.dim()) < 2:
        return None
    return (s @ right.mT).sum_to_size(left.shape), (left.mT @ s).sum_to_size(right.shape)


def _mul_adjoint(operation: Operation, s: Tensor) -> Tensor:
    left, right = operation.arguments[:2]
    return (s * (right if isinstance(left, Slot) else left)).sum_to_size(operation.shapes[0])


def _mul_pullback(operation: Operation, inputs: Sequence[Tensor], s: Tensor) -> tuple[Tensor, ...]:
    left, right = inputs
    return (s * right).sum_to_size(left.shape), (s * left).sum_to_size(right.shape)


def _div_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    if operation.keywords:
        return None  # a rounding mode
    return (s / operation.arguments[1]).sum_to_size(operation.shapes[0])


def _sub_adjoint(operation: Operation, s: Tensor):
    if operation.keywords.get("alpha", 1) != 1:
        return None
    left, right = operation.arguments[:2]
    signed = [t for side, t in ((left, s), (right, -s)) if isinstance(side, Slot)]
    moved = tuple(t.sum_to_size(shape) for t, shape in zip(signed, operation.shapes, strict=True))
    return moved if len(moved) > 1 else moved[0]


def _neg_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return -s


def _mean_adjoint(operation: Operation, s: Tensor) -> Tensor:
    """Of a sum or mean over some dimensions, or all."""
    shape = operation.shapes[0]
    given = operation.arguments[1] if len(operation.arguments) > 1 else None
    keeps = operation.arguments[2] if len(operation.arguments) > 2 else False
    given = [given] if isinstance(given, int) else given or range(len(shape))
    axes = sorted(axis % len(shape) for axis in given)
    for axis in [] if keeps else axes:
        s = s.unsqueeze(axis)
    count = math.prod([shape[axis] for axis in axes]) if operation.operator.divides else 1
    return (s / count if count != 1 else s).expand(shape)


def _slice_adjoint(operation: Operation, s: Tensor) -> Tensor:
    shape = operation.shapes[0]
    axis, start, end, step = _filled_up(operation.arguments[1:], 0, None, None, 1)
    if s.shape == shape:
        return s  # all of it
    size = shape[axis]
    first, last, step = slice(start, end, step).indices(size)
    if step == 1:
        return _padded(s, axis, first, size - max(last, first))
    return aten.slice_backward(s, shape, axis, first, last, step)


def _filled_up(given: Sequence, *defaults) -> list:
    return [*given, *defaults[len(given) :]]


def _padded(s: Tensor, axis: int, before: int, after: int) -> Tensor:
    return F.pad(s, [0, 0] * (s.dim() - 1 - axis % s.dim()) + [before, after])


def _select_adjoint(operation: Operation, s: Tensor) -> Tensor:
    shape = operation.shapes[0]
    _, axis, index = operation.arguments
    position = index % shape[axis]
    return _padded(s.unsqueeze(axis), axis if axis >= 0 else len(shape) + axis, position, shape[axis] - 1 - position)


def _split_adjoint(operation: Operation, parts) -> Tensor:
    """Of `split`, `chunk` and their like, of which the parts together are all."""
    axis = operation.arguments[2] if len(operation.arguments) > 2 else 0
    return torch.cat(parts, axis) if isinstance(parts, (tuple, list)) else parts


def _unbind_adjoint(operation: Operation, parts) -> Tensor:
    axis = operation.arguments[1] if len(operation.arguments) > 1 else 0
    return torch.stack(parts if isinstance(parts, (tuple, list)) else [parts], axis)


def _roll_adjoint(operation: Operation, s: Tensor) -> Tensor:
    shifts, axes = _filled_up(operation.arguments[1:], [], [])
    return torch.roll(s, [-n for n in shifts], axes)


def _masked_fill_adjoint(operation: Operation, s: Tensor) -> Tensor | None:
    x, mask, value = operation.arguments[:3]
    if not isinstance(x, Slot) or isinstance(value, Slot):
        return None
    return s.masked_fill(mask, 0).sum_to_size(operation.shapes[0])


def _addmm_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return (s @ operation.weight.mT) * operation.keywords.get("alpha", 1)


def _reshape_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s.reshape(operation.shapes[0])


def _transpose_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s.transpose(*operation.arguments[1:3])


def _permute_adjoint(operation: Operation, s: Tensor) -> Tensor:
    order = [axis % s.dim() for axis in operation.arguments[1]]
    return s.permute([order.index(axis) for axis in range(len(order))])


def _identity_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s


def _expand_adjoint(operation: Operation, s: Tensor) -> Tensor:
    return s.sum_to_size(operation.shapes[0])


def _cat_adjoint(operation: Operation, s: Tensor):
    tensors, axis = operation.arguments[:2]
    if not all(isinstance(tensor, Slot) for tensor in tensors):
        return None
    parts = s.split([shape[axis] for shape in operation.shapes], axis)
    return parts if len(parts) > 1 else parts[0]


def _add_adjoint(operation: Operation, s: Tensor):
    if operation.keywords.get("alpha", 1) != 1:
        return None
    moved = tuple(s.sum_to_size(shape) for shape in operation.shapes)
    return moved if len(moved) > 1 else moved[0]


# -- maximum pooling, by its indices -----------------------------------------------------------------------------------


def _max_pool2d(operation: Operation, x: Tensor) -> tuple[Tensor, Any] | None:
    if operation.keywords:
        return None
    output, indices = aten.max_pool2d_with_indices(x, *operation.arguments[1:])
    return output, (x, indices)


def _max_pool2d_recall(operation: Operation, memory, s: Tensor) -> Tensor:
    x, indices = memory
    settings = (*operation.arguments[1:], *((), 0, 1, False)[len(operation.arguments) - 2 :])
    return aten.max_pool2d_with_indices_backward(s, x, *settings, indices)


# -- f(x) / x of the activations --------------------------------------------------------------------------------------


def _tanh_ratio(x: Tensor) -> Tensor:
    is_zero = x == 0
    divisor = torch.where(is_zero, 1.0, x)
    return torch.where(is_zero, 1.0, torch.tanh(divisor) / divisor)


def _gelu_ratio(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":  # the normal distribution function, whose own kernel is slow
        scaled = x * math.sqrt(0.5)
        return scaled.erf_().mul_(0.5).add_(0.5) if is_plain(x) else torch.special.ndtr(x)
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _pow_ratio(x: Tensor, exponent=2) -> Tensor:
    if exponent >= 1:
        return x.pow(exponent - 1)
    is_zero = x == 0  # where the root of zero is zero but has no slope
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, x).pow(exponent - 1))


# -- the table --------------------------------------------------------------------------------------------------------


def _rows(names: str, operator: Operator) -> dict[str, Operator]:
    return dict.fromkeys(names.split(), operator)


def _rows_of_weight(operation: Operation) -> int:
    return operation.weight.shape[0]


def _transposed_channels(operation: Operation) -> int:
    return operation.weight.shape[1] * operation.arguments[GROUPS]


UNKNOWN = Operator(OTHER)
GROUPS = 6  # the position of the number of groups among the arguments of a convolution, transposed or not
CONVOLVE = Operator(
    CONVOLUTION, BILINEAR, Layout(0, 1, 2, 0), adjoint=_convolution_adjoint, outputs=_rows_of_weight
)  # fmt: skip
TRANSPOSED = Operator(
    CONVOLUTION, BILINEAR, Layout(0, 1, 2), adjoint=_transposed_adjoint, outputs=_transposed_channels
)  # fmt: skip

OPERATORS: dict[str, Operator] = {
    **_rows("conv1d conv2d conv3d", CONVOLVE),
    **_rows("conv1d_bias_map conv2d_bias_map conv3d_bias_map", CONVOLVE._replace(outputs=None)),
    **_rows("conv_transpose1d conv_transpose2d conv_transpose3d", TRANSPOSED),
    **_rows("conv_transpose1d_bias_map conv_transpose2d_bias_map conv_transpose3d_bias_map",
            TRANSPOSED._replace(outputs=None)),
    "linear": Operator(DENSE, BILINEAR, Layout(0, 1, 2, 0), adjoint=_linear_adjoint, outputs=_rows_of_weight),
    "addmm": Operator(DENSE, BILINEAR, Layout(1, 2, 0, 1), adjoint=_addmm_adjoint),
    **_rows("mm bmm matmul linalg_matmul", Operator(DENSE, BILINEAR, Layout(None, 1), adjoint=_mm_adjoint,
            pullback=_mm_pullback)),
    **_rows("mv dot inner", Operator(DENSE, BILINEAR, Layout(None, 1))),
    "tensordot": Operator(DENSE, BILINEAR, Layout(None, 1)),
    "einsum": Operator(DENSE, BILINEAR, Layout(None, 2)),
    **_rows("baddbmm addbmm", Operator(DENSE, BILINEAR, Layout(1, 2, 0))),
    **_rows("batch_norm frozen_batch_norm", Operator(BATCH_NORM)),
    "relu": Operator(ACTIVATION, rectifies=True),
    "silu": Operator(ACTIVATION, ratio=torch.sigmoid),
    "gelu": Operator(ACTIVATION, ratio=_gelu_ratio),
    "mish": Operator(ACTIVATION, ratio=lambda x: torch.tanh(F.softplus(x))),
    "softsign": Operator(ACTIVATION, ratio=lambda x: 1 / (1 + x.abs())),
    "square": Operator(ELEMENTWISE, ratio=_pow_ratio),
    "pow": Operator(ELEMENTWISE, OTHER, ratio=_pow_ratio),
    "abs": Operator(ELEMENTWISE, ratio=torch.sign),
    **_rows("sqrt rsqrt reciprocal", Operator(ELEMENTWISE, is_normalizer=True)),
    "tanh": Operator(ACTIVATION, ratio=_tanh_ratio, is_gate=True),
    "hardswish": Operator(ACTIVATION, ratio=F.hardsigmoid),
    "leaky_relu": Operator(ACTIVATION, ratio=lambda x, slope=0.01: torch.where(x > 0, 1.0, slope).to(x.dtype)),
    **_rows("sigmoid hardsigmoid", Operator(ACTIVATION, is_gate=True)),
    **_rows("threshold_relu relu6 hardtanh elu celu selu softplus prelu rrelu log_sigmoid threshold clamp "
            "clamp_min clamp_max hardshrink softshrink tanhshrink", Operator(ACTIVATION)),
    "add": Operator(AFFINE, SUM, is_linear=True, adjoint=_add_adjoint),
    "sub": Operator(AFFINE, SUM, is_linear=True, adjoint=_sub_adjoint),
    "rsub": Operator(AFFINE, SUM, is_linear=True),
    "mul": Operator(AFFINE, PRODUCT, is_multilinear=True, adjoint=_mul_adjoint, pullback=_mul_pullback),
    "div": Operator(AFFINE, PRODUCT, is_multilinear=True, adjoint=_div_adjoint),
    **_rows("addcmul addcdiv", Operator(AFFINE, OTHER)),
    "neg": Operator(AFFINE, is_linear=True, adjoint=_neg_adjoint),
    "sum": Operator(SUM, is_linear=True, adjoint=_mean_adjoint),
    "mean": Operator(SUM, is_linear=True, adjoint=_mean_adjoint, divides=True),
    **_rows("cumsum index_add scatter_add col2im", Operator(SUM, is_linear=True)),
    **_rows("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
            "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
            "_upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_trilinear3d",
            Operator(AVERAGE_POOL, is_linear=True)),
    "max_pool2d": Operator(MAX_POOL, remember=_max_pool2d, recall=_max_pool2d_recall),
    **_rows("max_pool1d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
            "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max amax min amin "
            "maximum minimum topk sort kthvalue median", Operator(MAX_POOL, MAX_POOL)),
    "erf": Operator(OTHER, is_gate=True),
    "softmax": Operator(SOFTMAX, is_gate=True),
    "log_softmax": Operator(SOFTMAX),
    "scaled_dot_product_attention": Operator(ATTENTION, ATTENTION, smooth=smooth_attention),
    **_rows("layer_norm group_norm instance_norm rms_norm", Operator(NORMALIZATION, OTHER)),
    **_rows("linalg_vector_norm norm std", Operator(OTHER, is_normalizer=True)),
    "embedding": Operator(EMBEDDING, is_linear=True),
    **_rows("view reshape flatten unflatten unsqueeze squeeze view_as reshape_as _unsafe_view",
            Operator(MOVEMENT, is_linear=True, adjoint=_reshape_adjoint)),
    **_rows("transpose swapaxes swapdims", Operator(MOVEMENT, is_linear=True, adjoint=_transpose_adjoint)),
    "permute": Operator(MOVEMENT, is_linear=True, adjoint=_permute_adjoint),
    **_rows("contiguous clone alias lift_fresh lift_fresh_copy to _to_copy",
            Operator(MOVEMENT, is_linear=True, adjoint=_identity_adjoint)),
    "slice": Operator(MOVEMENT, is_linear=True, adjoint=_slice_adjoint),
    "select": Operator(MOVEMENT, is_linear=True, adjoint=_select_adjoint),
    **_rows("chunk split split_with_sizes tensor_split", Operator(MOVEMENT, is_linear=True, adjoint=_split_adjoint)),
    "unbind": Operator(MOVEMENT, is_linear=True, adjoint=_unbind_adjoint),
    "roll": Operator(MOVEMENT, is_linear=True, adjoint=_roll_adjoint),
    "masked_fill": Operator(MOVEMENT, MOVEMENT, is_linear=True, adjoint=_masked_fill_adjoint),
    **_rows("expand expand_as broadcast_to", Operator(MOVEMENT, is_linear=True, adjoint=_expand_adjoint)),
    "cat": Operator(MOVEMENT, MOVEMENT, is_linear=True, adjoint=_cat_adjoint),
    **_rows("t mT numpy_T movedim narrow index index_select gather take_along_dim repeat "
            "repeat_interleave tile pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
            "replication_pad1d replication_pad2d replication_pad3d flip rot90 "
            "stack unfold im2col pixel_shuffle pixel_unshuffle channel_shuffle where "
            "masked_scatter diagonal tril triu type_as overwrite copy slice_scatter "
            "select_scatter diagonal_scatter scatter index_put index_copy index_fill fill hsplit vsplit "
            "dsplit unsafe_chunk unsafe_split take as_strided max_unpool2d",
            Operator(MOVEMENT, MOVEMENT, is_linear=True)),
}  # fmt: skip
