"""The one table of operations: a row for each operation of ATen (one of torchvision) that lrpfunc knows.

No other module lists operations. What has no row is of kind "other" and is moved by its vector-Jacobian product. The
columns are explained in `row.py`; those that are functions stand in modules of their own (`adjoints`, `signs`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from lrpfunc.operations import adjoints, cells, constants, forms, kinds, lookups, masks, moves, ratios, signs, zeros
from lrpfunc.operations.kinds import (
    ACTIVATION,
    AFFINE,
    ATTENTION,
    AVERAGE_POOL,
    BATCH_NORM,
    CONVOLUTION,
    DENSE,
    ELEMENTWISE,
    MAX_POOL,
    MOVEMENT,
    NORMALIZATION,
    OTHER,
    PRODUCT,
    SOFTMAX,
    SUM,
    THRESHOLD_RELU,
    TRANSFORM,
)
from lrpfunc.operations.row import ALL, FIRST, SHIFT, Positions, Row
from lrpfunc.program import (
    BIAS_MAPS,
    Equation,
    einsum_with_bias,
    linear_with_bias,
    matmul_with_bias,
    smooth_attention,
)

if TYPE_CHECKING:
    from lrpfunc.operations.operation import Operation

UNKNOWN = Row()
GROUPS = 6  # the position of the number of groups among the arguments of a convolution, transposed or not


def row_of(equation: Equation) -> Row:
    """The row of an equation's operator."""
    return row_named(equation.operator)


def row_named(operator: str) -> Row:
    """The row of an ATen name; one that knows nothing where there is none."""
    return TABLE.get(operator, UNKNOWN)


def _rows(names: str, row: Row) -> dict[str, Row]:
    return dict.fromkeys(names.split(), row)


def _dimensions(name: str) -> str:
    """A name for each number of dimensions: `conv{}d` is conv1d, conv2d and conv3d."""
    return " ".join(name.format(n) for n in (1, 2, 3))


def _rows_of_weight(operation: Operation) -> int:
    return operation.weight.shape[0]


def _transposed_channels(operation: Operation) -> int:
    return operation.weight.shape[1] * operation.arguments[GROUPS]


# -- layers -----------------------------------------------------------------------------------------------------------

CONVOLVE = Row(
    kinds.layer(CONVOLUTION, 0, 1, 2),
    Positions(0, 1, 2, 0),
    adjoint=adjoints.convolution_adjoint,
    outputs=_rows_of_weight,
    takes_scale=True,
)
PLAIN = CONVOLVE._replace(kernel=adjoints.convolution)
TRANSPOSED = CONVOLVE._replace(
    positions=Positions(0, 1, 2),
    adjoint=adjoints.transposed_adjoint,
    outputs=_transposed_channels,
    kernel=adjoints.transposed,
)
MATRIX_PRODUCT = Row(kinds.layer(DENSE, None, 1, None), Positions(None, 1), vanishes=zeros.of_any)
PAIR = MATRIX_PRODUCT._replace(adjoint=adjoints.mm_adjoint, pullback=adjoints.mm_pullback)

LAYERS = {
    **{name: PLAIN._replace(biased=BIAS_MAPS[name]) for name in _dimensions("conv{}d").split()},
    **_rows(_dimensions("conv{}d_bias_map"), CONVOLVE._replace(outputs=None)),
    **{name: TRANSPOSED._replace(biased=BIAS_MAPS[name]) for name in _dimensions("conv_transpose{}d").split()},
    **_rows(_dimensions("conv_transpose{}d_bias_map"), TRANSPOSED._replace(outputs=None, kernel=None)),
    "linear": CONVOLVE._replace(
        kind=kinds.layer(DENSE, 0, 1, 2), adjoint=adjoints.linear_adjoint, biased=linear_with_bias
    ),
    "addmm": Row(kinds.layer(DENSE, 1, 2, 0), Positions(1, 2, 0, 1), adjoint=adjoints.addmm_adjoint, takes_scale=True),
    **_rows("mm matmul", PAIR._replace(biased=matmul_with_bias)),
    **_rows("bmm linalg_matmul", PAIR),
    **_rows("mv dot inner tensordot", MATRIX_PRODUCT),
    "linear_with_bias": CONVOLVE._replace(
        kind=kinds.layer(DENSE, 0, 1, 2), adjoint=adjoints.linear_adjoint, outputs=None, takes_scale=False
    ),
    "matmul_with_bias": Row(kinds.layer(DENSE, None, 1, 2), Positions(None, 1, 2), adjoint=adjoints.mm_adjoint),
    "einsum": Row(
        kinds.layer(DENSE, None, 2, None), Positions(None, 2), biased=einsum_with_bias, vanishes=zeros.of_any
    ),
    "einsum_with_bias": Row(kinds.layer(DENSE, None, 2, 3), Positions(None, 2, 3)),
    **_rows("baddbmm addbmm", Row(kinds.layer(DENSE, 1, 2, 0), Positions(1, 2, 0))),
}


# -- activations and what works element by element --------------------------------------------------------------------

ACTIVE = Row(ACTIVATION)
ZERO_PRESERVING = Row(ELEMENTWISE, is_elementwise=True)  # f(0) = 0
POSITIVE = Row(ACTIVATION, sign=signs.always)
KEEPS_SIGN = Row(ACTIVATION, sign=signs.keeps)
POWER = Row(
    kinds.power,
    ratio=ratios.pow_ratio,
    sign=signs.power,
    is_constant=constants.to_the_zeroth,
    moves_ids=SHIFT,
    is_exponential=True,
)
CLAMP = Row(kinds.of_first(ACTIVATION, MAX_POOL), sign=signs.clamps, is_clamp=True, moves_ids=SHIFT)

ACTIVATIONS = {
    "relu": POSITIVE._replace(rectifies=True, bounds=moves.of_relu),
    "relu6": POSITIVE._replace(bounds=moves.of_relu6),
    "threshold_relu": Row(THRESHOLD_RELU, bounds=moves.of_threshold_relu),
    "leaky_relu": KEEPS_SIGN._replace(ratio=ratios.leaky_relu_ratio, bounds=moves.of_leaky_relu),
    "hardtanh": Row(ACTIVATION, sign=signs.clamps_by_position, bounds=moves.of_clamp),
    "clamp": CLAMP._replace(names=("clip",), bounds=moves.of_clamp),
    "clamp_min": CLAMP._replace(bounds=moves.of_clamp_min),
    "clamp_max": CLAMP._replace(sign=None, bounds=moves.of_clamp_max),
    "silu": KEEPS_SIGN._replace(ratio=torch.sigmoid),
    "gelu": KEEPS_SIGN._replace(ratio=ratios.gelu_ratio),
    "mish": KEEPS_SIGN._replace(ratio=ratios.mish_ratio),
    "hardswish": KEEPS_SIGN._replace(ratio=F.hardsigmoid),
    "tanh": Row(ACTIVATION, ratio=ratios.tanh_ratio, is_gate=True),
    **_rows("sigmoid sigmoid_by_exp", POSITIVE._replace(is_gate=True, is_probability=True)),
    "hardsigmoid": POSITIVE._replace(is_gate=True),
    "softplus": Row(ACTIVATION, sign=signs.softplus),
    "elu": Row(ACTIVATION, sign=signs.all_arguments),
    **_rows("celu selu", KEEPS_SIGN),
    "rrelu": KEEPS_SIGN._replace(deterministic={"training": False}),
    "prelu": Row(kinds.of_first(ACTIVATION)),
    "log_sigmoid": ACTIVE._replace(is_probability=True),
    **_rows("threshold hardshrink softshrink", ACTIVE),
    "square": Row(ELEMENTWISE, ratio=ratios.pow_ratio, sign=signs.always),
    "pow": POWER,
    "float_power": POWER,
    "abs": Row(
        ELEMENTWISE,
        names=("absolute",),
        ratio=torch.sgn,
        sign=signs.always,
        takes_complex=True,
        moves_ids=SHIFT,
    ),
    "sqrt": Row(ELEMENTWISE, is_normalizer=True, sign=signs.always),
    **_rows("rsqrt reciprocal", Row(ELEMENTWISE, is_normalizer=True)),
    "erf": ZERO_PRESERVING._replace(is_gate=True, sign=signs.keeps),
    **_rows("expm1 log1p asinh atan sinh", ZERO_PRESERVING._replace(sign=signs.keeps)),
    **_rows("sin tan asin atanh erfinv", ZERO_PRESERVING),
    **_rows("log log2 log10", Row(ELEMENTWISE, is_elementwise=True)),
    **_rows("fake_quantize_per_tensor_affine fake_quantize_per_channel_affine", Row(ELEMENTWISE)),
    **_rows("exp exp2", Row(OTHER, sign=signs.always, is_gate=True, is_exponential=True, is_elementwise=True)),
    "nan_to_num": Row(ELEMENTWISE, is_clamp=True),
}


# -- arithmetic, sums and averages ------------------------------------------------------------------------------------

MULTIPLY = Row(
    kinds.by_count(AFFINE, PRODUCT), is_multilinear=True, rescales=True, moves_ids=SHIFT, vanishes=zeros.of_any
)
ADDITION = Row(kinds.by_count(AFFINE, SUM), is_linear=True, shifts=True, moves_ids=SHIFT)
SUMMATION = Row(SUM, is_linear=True, reduces=True)
AVERAGE = Row(AVERAGE_POOL, is_linear=True, sign=signs.keeps, moves=moves.resized, is_spatial=True)
STATISTIC = Row(OTHER, is_statistic=True)

ARITHMETIC = {
    "add": ADDITION._replace(
        adjoint=adjoints.add_adjoint, sign=signs.operands(0, 3)
    ),  # alpha may be the third argument
    "sub": ADDITION._replace(names=("subtract",), adjoint=adjoints.sub_adjoint),
    "rsub": ADDITION,
    "lerp": Row(kinds.interpolation, is_linear=True, shifts=True),
    "neg": Row(
        AFFINE, names=("negative",), is_linear=True, adjoint=adjoints.neg_adjoint, rescales=True, moves_ids=SHIFT
    ),
    **_rows("deg2rad rad2deg ldexp", Row(kinds.of_first(AFFINE), is_linear=True, rescales=True)),
    "mul": MULTIPLY._replace(
        names=("multiply",), adjoint=adjoints.mul_adjoint, pullback=adjoints.mul_pullback, sign=signs.product
    ),
    "div": MULTIPLY._replace(
        kind=kinds.quotient,
        names=("divide", "true_divide"),
        adjoint=adjoints.div_adjoint,
        sign=signs.operands(0, 2),
        vanishes=zeros.of_first,
        is_constant=constants.if_rounded,
    ),
    "prod": Row(PRODUCT, is_fold=True),
    **_rows("remainder fmod", Row(OTHER, moves_ids=SHIFT)),
    "sum": SUMMATION._replace(adjoint=adjoints.mean_adjoint, sign=signs.keeps),
    "mean": SUMMATION._replace(adjoint=adjoints.mean_adjoint, divides=True, sign=signs.keeps, moves=moves.averaged),
    "cumsum": SUMMATION._replace(sign=signs.keeps),
    **_rows("index_add scatter_add col2im", SUMMATION),
    **_rows("diff trace contract", SUMMATION._replace(reduces=False)),
    **_rows("scatter_reduce pooled_rows segment_reduce", Row(kinds.reduction, is_linear=True)),
    **_rows("grid_sampler roi_align", Row(kinds.of_first(AVERAGE_POOL), is_linear=True)),
    **_rows(_dimensions("avg_pool{}d"), AVERAGE._replace(sign=signs.averages, keeps_uniform=moves.unless_zeros_count)),
    **_rows(
        f"{_dimensions('adaptive_avg_pool{}d')} {_dimensions('upsample_nearest{}d')} "
        f"{_dimensions('_upsample_nearest_exact{}d')} upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
        "_upsample_bilinear2d_aa",
        AVERAGE,
    ),
    **_rows("upsample_bicubic2d _upsample_bicubic2d_aa", AVERAGE._replace(sign=None)),
    **_rows("var var_mean std_mean", STATISTIC),
    **_rows("linalg_vector_norm norm std", STATISTIC._replace(is_normalizer=True)),
}


# -- maxima, normalizations, attention, tables ------------------------------------------------------------------------

MAXIMUM = Row(MAX_POOL, sign=signs.keeps)
POOL = Row(MAX_POOL, sign=signs.pools, is_spatial=True)
POOL_AND_PLACES = POOL._replace(is_spatial=False)
PROBABILITY = Row(kinds.of_first(SOFTMAX), is_gate=True, is_probability=True, sign=signs.always)
NORM = Row(kinds.of_first(NORMALIZATION))
ATTEND = Row(ATTENTION, smooth=smooth_attention, remember=masks.remember_attention, deterministic={"dropout_p": 0.0})
STEPS = Row(kinds.steps, Positions(0, 2, 3))

OTHERS = {
    "max_pool2d": POOL._replace(remember=adjoints.remember_max_pool2d, recall=adjoints.recall_max_pool2d),
    **_rows("max_pool1d max_pool3d", POOL),
    **_rows(_dimensions("max_pool{}d_with_indices"), POOL_AND_PLACES),
    **_rows(f"{_dimensions('adaptive_max_pool{}d')} max amax min amin topk sort kthvalue median", MAXIMUM),
    "maximum": Row(MAX_POOL, sign=signs.operands(0, 2), is_clamp=True, moves_ids=SHIFT),
    "minimum": Row(MAX_POOL, sign=signs.operands(0, 2), moves_ids=SHIFT),
    **_rows("fmax fmin", Row(MAX_POOL)),
    "softmax": PROBABILITY,
    "exp_over_sum": PROBABILITY._replace(kind=kinds.at_first(SOFTMAX), sign=signs.exp_over_sum),
    "exp_of_log_softmax": PROBABILITY._replace(kind=kinds.at_first(SOFTMAX)),
    **_rows("log_softmax log_of_softmax", Row(kinds.of_first(SOFTMAX), is_probability=True)),
    "scaled_dot_product_attention": ATTEND,
    "layer_norm": NORM._replace(form=forms.LAYER_NORM),
    "rms_norm": NORM._replace(form=forms.RMS_NORM),
    "group_norm": NORM._replace(form=forms.GROUP_NORM),
    "instance_norm": NORM._replace(form=forms.INSTANCE_NORM),
    **_rows("batch_norm frozen_batch_norm", Row(kinds.of_first(BATCH_NORM), form=forms.BATCH_NORM)),
    "embedding": Row(kinds.lookup, is_linear=True, ids=1, axes_of_ids=lookups.of_embedding),
    "one_hot": Row(MOVEMENT, moves_ids=FIRST, is_one_hot=True, adjoint=adjoints.one_hot_adjoint, is_linear=True),
    "lstm_steps": STEPS._replace(recurrence=cells.LSTM),
    "gru_steps": STEPS._replace(recurrence=cells.GRU),
    "rnn_tanh_steps": STEPS._replace(recurrence=cells.RNN_TANH),
    "rnn_relu_steps": STEPS._replace(recurrence=cells.RNN_RELU, sign=signs.always),
}


# -- movements --------------------------------------------------------------------------------------------------------

MOVE = Row(MOVEMENT, is_linear=True)
MOVE_SIGNED = MOVE._replace(sign=signs.keeps)
MOVE_TOKENS = MOVE_SIGNED._replace(moves_ids=ALL)
TAKE = MOVE_TOKENS._replace(vanishes=zeros.of_first)
IDENTICAL = TAKE._replace(adjoint=adjoints.identity_adjoint, keeps_values=True)
RESHAPE = TAKE._replace(adjoint=adjoints.reshape_adjoint, moves=moves.reshaped, keeps_values=True)
SPLIT = MOVE_SIGNED._replace(adjoint=adjoints.split_adjoint, vanishes=zeros.of_first)
EXPAND = MOVE_SIGNED._replace(adjoint=adjoints.expand_adjoint, vanishes=zeros.of_first)
SHAPED = MOVE._replace(sign=signs.works_on, shape_giver=1)
PICK = MOVE_SIGNED._replace(kind=kinds.lookup, moves_ids=FIRST)
PAD = MOVE._replace(moves=moves.padded, is_spatial=True, keeps_uniform=moves.unless_padded_with_numbers)
MIRROR = MOVE_SIGNED._replace(moves=moves.resized, is_spatial=True)
TRANSPOSE = MOVE_SIGNED._replace(adjoint=adjoints.transpose_adjoint, moves=moves.transposed, vanishes=zeros.of_first)
RECAST = IDENTICAL._replace(rescales=True, is_elementwise=True)

MOVEMENTS = {
    "reshape": RESHAPE._replace(names=("view", "_unsafe_view")),
    **_rows("flatten unflatten unsqueeze squeeze", RESHAPE),
    "view_as": MOVE._replace(adjoint=adjoints.reshape_adjoint, shape_giver=1, reads_strides=True),
    "reshape_as": SHAPED._replace(adjoint=adjoints.reshape_adjoint),
    "transpose": TRANSPOSE._replace(moves_ids=ALL),
    **_rows("swapaxes swapdims", TRANSPOSE),
    "permute": TAKE._replace(adjoint=adjoints.permute_adjoint, moves=moves.permuted),
    "contiguous": IDENTICAL._replace(moves=moves.same, may_return_input=True),
    "clone": IDENTICAL._replace(moves=moves.same),
    "to": RECAST._replace(may_return_input=True),
    "moved": RECAST._replace(adjoint=adjoints.moved_adjoint, may_return_input=True, is_deferred=True),
    "_to_copy": RECAST,
    "slice": TAKE._replace(adjoint=adjoints.slice_adjoint),
    "select": TAKE._replace(adjoint=adjoints.select_adjoint),
    **_rows("chunk split", SPLIT._replace(moves_ids=ALL)),
    **_rows("split_with_sizes tensor_split", SPLIT),
    "unbind": TAKE._replace(adjoint=adjoints.unbind_adjoint),
    "roll": MOVE_TOKENS._replace(adjoint=adjoints.roll_adjoint),
    "masked_fill": MOVE_TOKENS._replace(adjoint=adjoints.masked_fill_adjoint, sign=signs.fills(2)),
    "expand": EXPAND._replace(moves_ids=ALL, keeps_values=True),
    "expand_as": SHAPED._replace(adjoint=adjoints.expand_adjoint),
    "broadcast_to": EXPAND,
    "cat": MOVE_TOKENS._replace(
        names=("concat", "concatenate"), adjoint=adjoints.cat_adjoint, sign=signs.operands(0, 1)
    ),
    "stack": MOVE_TOKENS._replace(sign=signs.operands(0, 1)),
    "where": MOVE_TOKENS._replace(sign=signs.operands(1, 3)),
    **_rows("narrow flip", MOVE_TOKENS),
    "index": PICK._replace(ids=1, axes_of_ids=lookups.of_index),
    "index_select": PICK._replace(ids=2, axes_of_ids=lookups.of_index_select),
    **_rows("gather take_along_dim", PICK._replace(ids=2, axes_of_ids=lookups.of_all)),
    "take": PICK._replace(ids=1, axes_of_ids=lookups.of_all),
    "movedim": MOVE_SIGNED._replace(names=("moveaxis",)),
    **_rows(
        "t mT numpy_T repeat repeat_interleave tile rot90 unfold im2col pixel_shuffle pixel_unshuffle "
        "channel_shuffle diagonal tril triu diag diag_embed linalg_diagonal fft_fftshift fft_ifftshift",
        MOVE_SIGNED,
    ),
    "pad": PAD._replace(sign=signs.fills(3)),
    "constant_pad_nd": PAD._replace(sign=signs.fills(2)),
    **_rows(f"{_dimensions('reflection_pad{}d')} {_dimensions('replication_pad{}d')}", MIRROR),
    "overwrite": MOVE._replace(moves_ids=ALL),
    "index_put": MOVE._replace(kind=kinds.write, moves_ids=ALL),
    **_rows("scatter put", MOVE._replace(kind=kinds.write)),
    "as_strided": MOVE._replace(reads_strides=True),
    "type_as": MOVE._replace(shape_giver=1, may_return_input=True),
    "fill": MOVE._replace(shape_giver=0),
    **_rows(
        "masked_scatter slice_scatter select_scatter diagonal_scatter index_copy index_fill "
        "hsplit vsplit dsplit unsafe_chunk unsafe_split max_unpool2d max_unpool3d atleast_1d atleast_2d atleast_3d "
        "fliplr flipud meshgrid broadcast_tensors block_diag column_stack hstack vstack dstack cartesian_prod "
        "combinations diagflat positive",
        MOVE,
    ),
}


# -- complex numbers --------------------------------------------------------------------------------------------------

CHANGE = Row(TRANSFORM, is_linear=True)

TRANSFORMS = {
    **_rows(
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 "
        "fft_ihfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn _fft_r2c _fft_c2r _fft_c2c "
        "real imag complex conj _conj conj_physical resolve_conj resolve_neg",
        CHANGE,
    ),
    **_rows("stft istft", CHANGE._replace(kind=kinds.of_first(TRANSFORM))),  # of a fixed window
    **_rows("view_as_complex view_as_real", CHANGE._replace(reads_strides=True)),
}


# -- what relevance never passes, and what tracing takes away ---------------------------------------------------------

SHAPE = Row(shape_giver=0)
STEP = Row(is_constant=True)  # whose derivative is zero wherever there is one

FIXED = {
    "detach": Row(is_constant=True, may_return_input=True),
    **_rows("sign floor ceil round trunc heaviside", STEP),
    "sgn": Row(is_constant=constants.of_real_numbers),
    "floor_divide": STEP._replace(moves_ids=SHIFT),
    "ones_of": Row(is_constant=True, reads_shape=True),
    "size": Row(reads_shape=True),
    **_rows("ones_like empty_like new_ones new_empty", SHAPE),
    **_rows("zeros_like new_zeros zero", SHAPE._replace(vanishes=zeros.always)),
    "full_like": SHAPE._replace(vanishes=zeros.filled(1)),
    "new_full": SHAPE._replace(vanishes=zeros.filled(2)),
    "zeros": Row(vanishes=zeros.always),
    "full": Row(vanishes=zeros.filled(1)),
    "sym_stride": Row(reads_strides=True),
    **_rows("unpacked looked_up dequantized", Row(is_deferred=True)),
    **_rows(
        "dropout dropout_ feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ feature_alpha_dropout "
        "feature_alpha_dropout_ alias lift_fresh lift_fresh_copy",
        Row(is_identity=True, may_return_input=True),
    ),
    **_rows(
        "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range sym_constrain_range_for_size",
        Row(is_assertion=True),
    ),
}

TABLE: Mapping[str, Row] = {**LAYERS, **ACTIVATIONS, **ARITHMETIC, **OTHERS, **MOVEMENTS, **TRANSFORMS, **FIXED}

# By a second name, the row's own.
USUAL_NAMES: Mapping[str, str] = {second: name for name, row in TABLE.items() for second in row.names}
