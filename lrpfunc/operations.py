"""What each operation is: its kind, its linear map and its adjoint.

The table `OPERATORS` is the one place that knows ATen. Whatever is not in it is of kind "other" and is moved by its
vector-Jacobian product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.program import Equation, Program, Variable, operator_name

aten = torch.ops.aten

# -- operations -------------------------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """The place of an operation's input among its arguments."""

    position: int


class Operation:
    """One equation as a function of its active inputs; everything else, parameters included, is bound.

    `operation(*inputs)` is its value. `adjoint(s)` is the transposed linear map, which needs no forward pass; it gives
    one tensor for one input and a tuple for several. `linear(weight, bias)` is the same map with other parameters.

    What is known of its place in the program: `is_nonnegative`, no input is ever below zero; `is_rectified`, what comes
    back is a rectified flow; `gets_coefficients`, it is a coefficient of the output itself; `is_final`, it comes back
    but once, so that residuals may be written over; `sample_shape`, the shape of the first input without its first
    dimension.
    """

    def __init__(
        self, name: str, function: Callable, arguments: Sequence, keywords: dict, likes: Sequence[Tensor] = ()
    ):
        self.name = name
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.operator = OPERATORS.get(operator_name(function), UNKNOWN)
        self.is_nonnegative = self.is_rectified = self.gets_coefficients = self.is_final = False
        self.constants: dict[Callable, Any] = {}
        self._take(likes)

    def at(self, inputs: Sequence[Tensor]) -> Operation:
        """The operation at inputs of these shapes."""
        other = self.copy()
        other._take(inputs)
        return other

    def _take(self, likes: Sequence[Tensor]) -> None:
        self.shapes = [like.shape for like in likes]
        self.dtypes = [like.dtype for like in likes]
        self.device = likes[0].device if likes else None
        self.sample_shape: Sequence = self.shapes[0][1:] if likes else ()

    def copy(self, **changes) -> Operation:
        other = object.__new__(Operation)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def __call__(self, *inputs: Tensor):
        return self.function(*_fill(self.arguments, inputs), **self.keywords)

    @property
    def description(self) -> str:
        return f"'{self.name}' ({operator_name(self.function)})"

    def hoisted(self, make: Callable[[Operation], Any]):
        """`make(self)`, which depends on parameters only: made beforehand if the explanation was prepared."""
        return self.constants[make] if make in self.constants else make(self)

    # -- parameters

    @property
    def is_weighted(self) -> bool:
        return self.operator.layout is not None and isinstance(self.weight, Tensor)

    @property
    def layout(self) -> Layout:
        if self.operator.layout is None:
            raise RuleError(f"{self.description} has no weight, but the rule needs a weighted equation.")
        return self.operator.layout

    @property
    def weight(self) -> Tensor:
        return self.arguments[_weight_position(self.layout, self.arguments)]

    @property
    def bias(self) -> Tensor | None:
        position = self.operator.layout.bias if self.operator.layout is not None else None
        return self.arguments[position] if position is not None and position < len(self.arguments) else None

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Operation:
        """The operation with another weight and bias (None: no bias). Errors: `RuleError` if it has no weight."""
        arguments, layout = list(self.arguments), self.layout
        arguments[_weight_position(layout, arguments)] = weight
        if layout.bias is not None and layout.bias < len(arguments):
            is_needed = layout.bias == 0  # addmm and its like cannot do without
            arguments[layout.bias] = weight.new_zeros(()) if bias is None and is_needed else bias
        return self.copy(arguments=arguments)

    def without_bias(self) -> Operation:
        return self.linear(self.weight) if self.bias is not None else self

    def offset(self, bias: Tensor | None, epsilon: float) -> Tensor | None:
        """A bias that adds epsilon to every output as well; None where the operation has no bias per output."""
        position = self.layout.bias
        if self.operator.outputs is None or position is None or position >= len(self.arguments):
            return None
        return self.weight.new_full((self.operator.outputs(self),), epsilon) if bias is None else bias + epsilon

    @property
    def has_samples(self) -> bool:
        """Whether its first dimension counts samples, all of which it treats alike."""
        if self.operator.kind == CONVOLUTION:
            return len(self.sample_shape) == self.weight.dim() - 1
        return operator_name(self.function) == "linear" and len(self.sample_shape) > 0

    # -- adjoints

    @property
    def is_linear(self) -> bool:
        return self.is_weighted or self.operator.is_linear

    def adjoint(self, s):
        """The transposed linear map applied to s. Errors: `RuleError` if the operation is not linear in its inputs."""
        if not self.is_linear:
            raise RuleError(f"{self.description} is not linear in its inputs, but the rule needs a linear equation.")
        if self.operator.adjoint is not None:
            result = self.operator.adjoint(self, s)
            if result is not None:
                return self._typed(result)
        likes = zip(self.shapes, self.dtypes, strict=True)
        return self.vjp([torch.zeros(shape, dtype=dtype, device=self.device) for shape, dtype in likes], s)

    def _typed(self, moved):
        """Each input's share in its own dtype: a sum of float32 and float64 is float64."""
        if isinstance(moved, tuple):
            return tuple(tensor.to(dtype) for tensor, dtype in zip(moved, self.dtypes, strict=True))
        return moved.to(self.dtypes[0])

    def remembering(self, *inputs: Tensor) -> tuple[Any, Any]:
        """The value, and what `recall` needs to move a flow back without another forward pass."""
        remember = self.operator.remember
        remembered = remember(self, *inputs) if remember is not None else None
        return remembered if remembered is not None else (self(*inputs), None)

    def recall(self, memory, inputs: Sequence[Tensor], s):
        """The vector-Jacobian product at `inputs`, with what `remembering` returned there."""
        if memory is None:
            return self.vjp(inputs, s)
        assert self.operator.recall is not None
        return self.operator.recall(self, memory, s)

    def vjp(self, inputs: Sequence[Tensor], s):
        """The vector-Jacobian product at `inputs`: one tensor for one input, a tuple for several."""
        moved = _pull_back(lambda *inputs: _floating(self(*inputs)), tuple(inputs), s)
        return moved[0] if len(moved) == 1 else moved


def _pull_back(function: Callable, inputs: tuple, s) -> tuple:
    """The vector-Jacobian product of a function at `inputs`."""

    def pull(inputs, s):
        return torch.func.vjp(function, *inputs)[1](s)

    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx  # slow to import

        # torch.export (non-strict) would take the values inside a transform for constants: give it plain operations.
        with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
            pull = make_fx(pull)(inputs, s)
    return pull(inputs, s)


def _weight_position(layout: Layout, arguments: Sequence) -> int:
    return layout.weight - 1 if isinstance(arguments[layout.weight], Slot) else layout.weight


def bind(equation: Equation, values: Mapping[str, Any], active: Collection[str]) -> Operation:
    """The operation of an equation, with everything bound but its active inputs, which need no values yet."""
    positions = itertools.count()

    def fill(template):
        if isinstance(template, Variable):
            return Slot(next(positions)) if template.name in active else values[template.name]
        if isinstance(template, (list, tuple)):
            return type(template)([fill(item) for item in template])
        return template

    arguments = [fill(argument) for argument in equation.arguments]
    keywords = {name: fill(argument) for name, argument in equation.keywords.items()}
    return Operation(equation.name, equation.function, arguments, keywords)


def _fill(template, inputs: Sequence[Tensor]):
    if isinstance(template, Slot):
        return inputs[template.position]
    if isinstance(template, (list, tuple)):
        return type(template)([_fill(item, inputs) for item in template])
    return template


def _floating(result):
    """The floating-point part of a result: what flows can arrive at. A list of one output is that output."""
    if isinstance(result, (tuple, list)):
        floating = tuple(tensor for tensor in result if tensor.is_floating_point())
        return floating[0] if len(result) == 1 else floating
    return result


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
    `is_gate` marks activations that scale a signal, `rectifies` the ReLU. `remember` and `recall` are for what is
    linear around its input and can say at which entries, as maximum pooling can.
    """

    kind: str
    joint: str | None = None
    layout: Layout | None = None
    is_linear: bool = False
    adjoint: Callable[[Operation, Tensor], Any] | None = None
    ratio: Callable[..., Tensor] | None = None
    is_gate: bool = False
    rectifies: bool = False
    outputs: Callable[[Operation], int] | None = None
    remember: Callable[..., tuple[Tensor, Any] | None] | None = None
    recall: Callable[[Operation, Any, Tensor], Tensor] | None = None


CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, AFFINE, SUM = (
    "convolution", "dense", "batch_norm", "activation", "affine", "sum",
)  # fmt: skip
AVERAGE_POOL, MAX_POOL, PRODUCT, BILINEAR = "average_pool", "max_pool", "product", "bilinear"
SOFTMAX, ATTENTION, NORMALIZATION, MOVEMENT, OTHER = "softmax", "attention", "normalization", "movement", "other"
LINEAR = "linear"  # a convolution or a dense layer

KINDS = (
    CONVOLUTION, DENSE, BATCH_NORM, ACTIVATION, AFFINE, SUM, AVERAGE_POOL, MAX_POOL, PRODUCT, BILINEAR, SOFTMAX,
    ATTENTION, NORMALIZATION, MOVEMENT, OTHER,
)  # fmt: skip


def kind(program: Program, equation: Equation) -> str:
    """The kind of an active equation, one of `KINDS`."""
    operator = OPERATORS.get(equation.operator, UNKNOWN)
    if operator.joint is not None and len(active_inputs(program, equation)) > 1:
        return operator.joint
    layout = operator.layout
    if layout is not None and layout.input is not None and not _is_active(program, equation.arguments[layout.input]):
        return OTHER  # a layer whose weight depends on the input while its input does not is no layer to a rule
    return operator.kind


def active_inputs(program: Program, equation: Equation) -> list[Variable]:
    """The variables that an equation reads and relevance goes to, in the order of its arguments."""
    return [variable for variable in equation.reads if variable.name in program.active]


def is_active(program: Program, equation: Equation) -> bool:
    """Whether relevance can come to an equation."""
    return any(variable.name in program.active for variable in equation.outputs)


def active_equations(program: Program) -> Iterator[Equation]:
    """The equations that relevance can come to."""
    return (equation for equation in program.equations if is_active(program, equation))


def gate_of(program: Program, equation: Equation) -> int | None:
    """Which of a product's two active factors is a gate (0 or 1), None if neither is.

    A denominator always is; a factor is one if it comes, but for movements and constants, from a sigmoid, tanh, erf or
    softmax. Between two such factors a tanh is the signal.
    """
    if equation.operator == "div":
        return 1
    origins = [_origin(program, variable) for variable in active_inputs(program, equation)]
    gates = [OPERATORS.get(origin or "", UNKNOWN).is_gate for origin in origins]
    if all(gates):
        gates = [origin != "tanh" for origin in origins]
    return gates.index(True) if gates.count(True) == 1 else None


def _origin(program: Program, variable: Variable) -> str | None:
    """The operator that made a value, seen through movements and constants: 1 - sigmoid(x) is a gate too."""
    equation = program.producers.get(variable.name)
    while equation is not None and kind(program, equation) in (MOVEMENT, AFFINE):
        sources = active_inputs(program, equation)
        equation = program.producers.get(sources[0].name) if sources else None
    return equation.operator if equation is not None else None


def _is_active(program: Program, argument) -> bool:
    return isinstance(argument, Variable) and argument.name in program.active


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


def _mm_adjoint(operation: Operation, s: Tensor) -> Tensor:
    left, right = operation.arguments[:2]
    return s @ right.mT if isinstance(left, Slot) else left.mT @ s


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
    **_rows("mm bmm", Operator(DENSE, BILINEAR, Layout(None, 1), adjoint=_mm_adjoint)),
    **_rows("matmul linalg_matmul mv dot inner", Operator(DENSE, BILINEAR, Layout(None, 1))),
    "tensordot": Operator(DENSE, BILINEAR, Layout(None, 1)),
    "einsum": Operator(DENSE, BILINEAR, Layout(None, 2)),
    **_rows("baddbmm addbmm", Operator(DENSE, BILINEAR, Layout(1, 2, 0))),
    **_rows("batch_norm frozen_batch_norm", Operator(BATCH_NORM)),
    "relu": Operator(ACTIVATION, rectifies=True),
    "silu": Operator(ACTIVATION, ratio=torch.sigmoid),
    "tanh": Operator(ACTIVATION, ratio=_tanh_ratio, is_gate=True),
    "hardswish": Operator(ACTIVATION, ratio=F.hardsigmoid),
    "leaky_relu": Operator(ACTIVATION, ratio=lambda x, slope=0.01: torch.where(x > 0, 1.0, slope).to(x.dtype)),
    **_rows("sigmoid hardsigmoid", Operator(ACTIVATION, is_gate=True)),
    **_rows("threshold_relu relu6 hardtanh gelu elu celu selu softplus mish prelu rrelu log_sigmoid threshold clamp "
            "clamp_min clamp_max hardshrink softshrink tanhshrink softsign", Operator(ACTIVATION)),
    "add": Operator(AFFINE, SUM, is_linear=True, adjoint=_add_adjoint),
    **_rows("sub rsub", Operator(AFFINE, SUM, is_linear=True)),
    **_rows("mul div", Operator(AFFINE, PRODUCT)),
    "neg": Operator(AFFINE, is_linear=True),
    **_rows("sum mean cumsum index_add scatter_add col2im", Operator(SUM, is_linear=True)),
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
    **_rows("scaled_dot_product_attention", Operator(ATTENTION, ATTENTION)),
    **_rows("layer_norm group_norm instance_norm rms_norm linalg_vector_norm", Operator(NORMALIZATION)),
    **_rows("view reshape flatten unflatten unsqueeze squeeze view_as reshape_as _unsafe_view",
            Operator(MOVEMENT, is_linear=True, adjoint=_reshape_adjoint)),
    **_rows("transpose swapaxes swapdims", Operator(MOVEMENT, is_linear=True, adjoint=_transpose_adjoint)),
    "permute": Operator(MOVEMENT, is_linear=True, adjoint=_permute_adjoint),
    **_rows("contiguous clone alias lift_fresh lift_fresh_copy",
            Operator(MOVEMENT, is_linear=True, adjoint=_identity_adjoint)),
    **_rows("expand expand_as broadcast_to", Operator(MOVEMENT, is_linear=True, adjoint=_expand_adjoint)),
    "cat": Operator(MOVEMENT, MOVEMENT, is_linear=True, adjoint=_cat_adjoint),
    **_rows("t mT numpy_T movedim select slice narrow index index_select gather take_along_dim repeat "
            "repeat_interleave tile pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
            "replication_pad1d replication_pad2d replication_pad3d roll flip rot90 chunk split split_with_sizes "
            "tensor_split unbind stack unfold im2col pixel_shuffle pixel_unshuffle channel_shuffle where "
            "masked_fill masked_scatter diagonal tril triu to _to_copy type_as overwrite copy slice_scatter "
            "select_scatter diagonal_scatter scatter index_put index_copy index_fill fill hsplit vsplit "
            "dsplit unsafe_chunk unsafe_split take as_strided max_unpool2d",
            Operator(MOVEMENT, MOVEMENT, is_linear=True)),
}  # fmt: skip
