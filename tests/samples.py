"""A sample of every row of the table of operations: a function of active tensors whose program has that operator.

A key is a row's name, or a name and what is particular about the sample: "mm: both".
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from lrpfunc.program import Equation, Leaf, Program, Variable, functions
from lrpfunc.tracing import trace_along

aten = torch.ops.aten


def random(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of both signs."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


class Sample(NamedTuple):
    """`function` of `inputs`, all of them active if they are floating-point tensors. `open`: axes of any size."""

    function: Callable
    inputs: tuple[Tensor, ...]
    open: tuple[int, ...] = ()

    def trace(self) -> tuple[Program, dict]:
        return trace_along(lambda _, *x: self.function(*x), {}, self.inputs, [self.open] * len(self.inputs))


class Built(NamedTuple):
    """One equation, of a function that tracing never emits."""

    function: Callable
    inputs: tuple[Tensor, ...]

    def trace(self) -> tuple[Program, dict]:
        function, rest = self.function.func, self.function.rest
        (x,) = self.inputs
        source = Variable("inputs.0", tuple(x.shape), x.dtype)
        value = function(x, *rest)
        result = Variable("result", tuple(value.shape), value.dtype)
        equation = Equation("sample", function, (source, *rest), {}, (result,))
        return Program({}, (), ("x",), (Leaf((0,), "x", source),), (equation,), result), {}


class Partly:
    """A function of its first argument."""

    def __init__(self, func: Callable, *rest):
        self.func, self.rest = func, rest

    def __call__(self, x: Tensor) -> Tensor:
        return self.func(x, *self.rest)


X, Y = random(2, 4, 6), random(2, 4, 6, seed=1)
POSITIVE = X.abs() + 0.5
MATRIX, OTHER_MATRIX = random(3, 4), random(4, 5)
MASK = X > 0.2
ROWS = torch.tensor([2, 0, 1, 2])
ALIKE = torch.randint(0, 2, (2, 4, 6), generator=torch.Generator().manual_seed(0))
KEYS, TABLE_OF_3, FACTORS, COLUMNS = random(2, 6, 3), random(3, 4), random(6, 3), random(4, 3)
PICKED = F.max_pool2d(Y[None], 2, return_indices=True)[1]
SIX, OTHER_SIX = random(6), random(6, seed=1)
CHANNELS = [random(4, seed=n) for n in range(3)]
VARIANCE = random(4, seed=3).abs() + 0.5

SAMPLES: dict[str, Sample | Built] = {}


def sample(name: str, function: Callable, *inputs: Tensor, open: tuple[int, ...] = ()) -> None:
    SAMPLES[name] = Sample(function, inputs or (X,), open)


def built(name: str, function: Callable, x: Tensor, *rest) -> None:
    SAMPLES[name] = Built(Partly(function, *rest), (x,))


def image(dimensions: int, channels: int = 4, size: int = 6) -> Tensor:
    return random(2, channels, *[size + n for n in range(dimensions)])


def over_sum(x: Tensor) -> Tensor:
    return x / x.sum(1, keepdim=True)


# -- layers -----------------------------------------------------------------------------------------------------------


def _layers() -> None:
    for n in (1, 2, 3):
        x, weight = image(n), random(6, 2, *[3] * n)
        even, odd = random(6, 4, *[2] * n), random(6, 4, *[3] * n)
        transposed, bias = random(4, 3, *[3] * n), random(6)
        geometry = ([2] * n, [1] * n, [1] * n, 2)  # stride, padding, dilation, groups
        conv, back = getattr(F, f"conv{n}d"), getattr(F, f"conv_transpose{n}d")
        other_way = ([2] * n, [1] * n, [1] * n, 2, [1] * n)  # stride, padding, output padding, groups, dilation
        sample(f"conv{n}d", lambda x, f=conv, w=weight, b=bias, g=geometry: f(x, w, b, *g), x)
        sample(f"conv{n}d: left over", lambda x, f=conv, w=even: f(x, w, None, 3), x)
        sample(f"conv{n}d: same", lambda x, f=conv, w=odd: f(x, w, None, padding="same"), x)
        sample(f"conv_transpose{n}d", lambda x, f=back, w=transposed, b=bias, g=other_way: f(x, w, b, *g), x)
        biases = random(1, 6, *conv(x, weight, None, *geometry).shape[2:])
        built(f"conv{n}d_bias_map", functions.BIAS_MAPS[f"conv{n}d"], x, weight, biases, *geometry)
        biases = random(1, 6, *back(x, transposed, None, *other_way).shape[2:])
        name = f"conv_transpose{n}d"
        built(f"{name}_bias_map", functions.BIAS_MAPS[name], x, transposed, biases, *other_way)


_layers()
WEIGHT, BIAS = random(5, 6), random(5)
sample("linear", lambda x: F.linear(x, WEIGHT, BIAS))
sample("addmm", lambda x: torch.addmm(BIAS, x, OTHER_MATRIX), MATRIX)
sample("addmm: alpha", lambda x: torch.addmm(BIAS, x, OTHER_MATRIX, alpha=2.5), MATRIX)
sample("mm", lambda x: torch.mm(x, OTHER_MATRIX), MATRIX)
sample("mm: right", lambda x: torch.mm(MATRIX, x), OTHER_MATRIX)
sample("mm: both", torch.mm, MATRIX, OTHER_MATRIX)
sample("bmm", lambda x: torch.bmm(x, KEYS))
sample("bmm: both", torch.bmm, X, random(2, 6, 3))
sample("matmul", lambda x: aten.matmul(x, FACTORS))
sample("matmul: right", lambda x: aten.matmul(X, x), random(6, 3))
sample("matmul: vector", lambda x: aten.matmul(X, x), random(6))
sample("matmul: both", aten.matmul, X, random(6, 3))
sample("matmul: both vectors", aten.matmul, random(6), random(6, seed=1))
sample("linalg_matmul", lambda x: aten.linalg_matmul(x, FACTORS))
sample("linalg_matmul: both", aten.linalg_matmul, X, random(6, 3))
sample("mv", lambda x: torch.mv(MATRIX, x), random(4))
sample("dot", lambda x: torch.dot(x, SIX), OTHER_SIX)
sample("inner", lambda x: aten.inner(x, WEIGHT))
sample("tensordot", lambda x: aten.tensordot(x, WEIGHT, [2], [1]))
sample("einsum", lambda x: torch.einsum("bci,oi->bco", x, WEIGHT))
sample("einsum: both", lambda x, y: torch.einsum("bci,bdi->bcd", x, y), X, Y)
sample("baddbmm", lambda x: torch.baddbmm(COLUMNS, x, KEYS))
sample("addbmm", lambda x: torch.addbmm(COLUMNS, x, KEYS))


# -- activations and what works element by element --------------------------------------------------------------------

for _name in [
    "relu",
    "relu6",
    "leaky_relu",
    "hardtanh",
    "silu",
    "gelu",
    "mish",
    "hardswish",
    "tanh",
    "sigmoid",
    "hardsigmoid",
    "softplus",
    "elu",
    "celu",
    "selu",
    "log_sigmoid",
    "hardshrink",
    "softshrink",
    "square",
    "abs",
    "exp",
    "exp2",
    "erf",
    "nan_to_num",
    "neg",
    "detach",
    "clone",
]:
    sample(_name, getattr(aten, _name))
for _name in ("sqrt", "rsqrt", "reciprocal", "log", "log2", "log10"):
    sample(_name, getattr(aten, _name), POSITIVE)
sample("leaky_relu: slope", lambda x: F.leaky_relu(x, 0.3))
sample("gelu: tanh", lambda x: F.gelu(x, approximate="tanh"))
sample("clamp", lambda x: aten.clamp(x, 0.0, 1.0))
sample("clamp: signs", lambda x: aten.clamp(x, -0.5, 1.0))
sample("clamp_min", lambda x: aten.clamp_min(x, 0.1))
sample("clamp_max", lambda x: aten.clamp_max(x, 0.4))
sample("threshold", lambda x: aten.threshold(x, 0.1, -0.2))
sample("prelu", lambda x: aten.prelu(x, CHANNELS[0]))
sample("rrelu", lambda x: F.rrelu(x, training=False))
sample("softplus: sharp", lambda x: F.softplus(x, beta=3.0, threshold=5.0))
sample("elu: alpha", lambda x: F.elu(x, alpha=0.3))
sample("pow", lambda x: x**3)
sample("pow: even", lambda x: x**2)
sample("pow: root", lambda x: x**0.5, POSITIVE)
built("threshold_relu", functions.threshold_relu, X, *(t[:, None] for t in (-VARIANCE, VARIANCE)), 0.1)


# -- arithmetic, sums and averages ------------------------------------------------------------------------------------

for _name in ("add", "sub", "rsub", "mul", "div"):
    _function = getattr(aten, _name)
    sample(_name, lambda x, f=_function: f(x, 2.0))
    sample(f"{_name}: both", _function, X, Y)
    sample(f"{_name}: broadcast", _function, X, random(4, 1).abs() + 0.5)
    sample(f"{_name}: right", lambda y, f=_function: f(X, y), random(4, 1).abs() + 0.5)
    sample(f"{_name}: wide", lambda x, f=_function: f(x, POSITIVE), random(4, 1))
sample("add: alpha", lambda x, y: torch.add(x, y, alpha=-2.0), X, Y)
sample("sub: alpha", lambda x, y: torch.sub(x, y, alpha=3.0), X, Y)
sample("rsub: alpha", lambda x, y: torch.rsub(x, y, alpha=3.0), X, Y)
for _name in ("sum", "mean"):
    _function = getattr(aten, _name)
    sample(_name, lambda x, f=_function: f(x, [1]))
    sample(f"{_name}: all", _function)
    sample(f"{_name}: several", lambda x, f=_function: f(x, [0, -1], True))
    sample(f"{_name}: apart", lambda x, f=_function: f(x, [-1, 0]))
sample("cumsum", lambda x: x.cumsum(1))
sample("index_add", lambda x: torch.index_add(x, 1, ROWS, Y))
sample("index_add: both", lambda x, y: torch.index_add(x, 1, ROWS, y), X, Y)
sample("scatter_add", lambda x: torch.scatter_add(x, 0, ALIKE, Y))
sample("scatter_add: both", lambda x, y: torch.scatter_add(x, 0, ALIKE, y), X, Y)
sample("col2im", lambda x: F.fold(x, (4, 5), 2), random(2, 8, 12))


def _averages() -> None:
    for n in (1, 2, 3):
        x = image(n)
        for name in (
            f"avg_pool{n}d",
            f"adaptive_avg_pool{n}d",
            f"upsample_nearest{n}d",
            f"_upsample_nearest_exact{n}d",
        ):
            function = getattr(aten, name)
            if name.startswith("avg"):
                sample(name, lambda x, f=function, n=n: f(x, [3] * n, [2] * n, [0] * n), x)
                sample(f"{name}: zeros", lambda x, f=function, n=n: f(x, [3] * n, [2] * n, [1] * n), x)
                sample(f"{name}: bare", lambda x, f=function, n=n: f(x, [3] * n, [2] * n, [1] * n, False, False), x)
            elif name.startswith("adaptive"):
                sample(name, lambda x, f=function, n=n: f(x, [4] * n), x)
            else:
                sample(name, lambda x, f=function, n=n: f(x, [9] * n), x)
        linear = ("linear1d", "bilinear2d", "trilinear3d")[n - 1]
        function = getattr(aten, f"upsample_{linear}")
        sample(f"upsample_{linear}", lambda x, f=function, n=n: f(x, [9] * n, False), x)
        sample(f"upsample_{linear}: corners", lambda x, f=function, n=n: f(x, [9] * n, True), x)
    for name in ("_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa"):
        function = getattr(aten, name)
        sample(name, lambda x, f=function: f(x, [4, 9], False), image(2))


_averages()
sample("var", lambda x: x.var(1))
sample("var_mean", lambda x: torch.var_mean(x, 1))
sample("std", lambda x: x.std(1))
sample("std_mean", lambda x: torch.std_mean(x, 1))
sample("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=1))
sample("norm", lambda x: aten.norm(x, 2, [1]))


# -- maxima, normalizations, attention, tables ------------------------------------------------------------------------


def _maxima() -> None:
    for n in (1, 2, 3):
        x = image(n)
        pool = getattr(aten, f"max_pool{n}d")
        sample(f"max_pool{n}d", lambda x, f=pool, n=n: f(x, [3] * n, [2] * n, [1] * n), x)
        sample(f"max_pool{n}d: dilated", lambda x, f=pool, n=n: f(x, [2] * n, [1] * n, [0] * n, [2] * n), x)
        indexed = getattr(aten, f"max_pool{n}d_with_indices", None)
        sample(f"max_pool{n}d_with_indices", lambda x, f=indexed, n=n: f(x, [3] * n)[0], x)
        adaptive = getattr(aten, f"adaptive_max_pool{n}d")
        sample(f"adaptive_max_pool{n}d", lambda x, f=adaptive, n=n: f(x, [4] * n)[0], x)


_maxima()
for _name in ("max", "min", "sort", "median"):
    _function = getattr(aten, _name)
    sample(_name, lambda x, f=_function: f(x, 1)[0])
sample("amax", lambda x: x.amax(1))
sample("amin", lambda x: x.amin(1))
sample("topk", lambda x: x.topk(2, 1)[0])
sample("kthvalue", lambda x: x.kthvalue(2, 1)[0])
sample("maximum", torch.maximum, X, Y)
sample("minimum", torch.minimum, X, Y)
sample("softmax", lambda x: x.softmax(1))
sample("exp_over_sum", lambda x: over_sum(x.exp()))
sample("exp_over_sum: shifted", lambda x: over_sum((x - x.amax(1, keepdim=True)).exp()))
sample("exp_over_sum: masked", lambda x: over_sum(x.exp() * Y))
sample("exp_of_log_softmax", lambda x: x.log_softmax(1).exp())
sample("log_of_softmax", lambda x: x.softmax(1).log())
sample("sigmoid_by_exp", lambda x: 1 / (1 + torch.exp(-x)))
sample("log_softmax", lambda x: x.log_softmax(1))
sample("scaled_dot_product_attention", F.scaled_dot_product_attention, X, Y, random(2, 4, 6, seed=2))
sample("scaled_dot_product_attention: mask", lambda q: F.scaled_dot_product_attention(q, Y, Y, MASK[:, :, :4]))
sample("layer_norm", lambda x: F.layer_norm(x, (6,), SIX, OTHER_SIX))
sample("layer_norm: two", lambda x: F.layer_norm(x, (4, 6)))
sample("rms_norm", lambda x: F.rms_norm(x, (6,), SIX))
sample("group_norm", lambda x: F.group_norm(x, 2, *CHANNELS[:2]))
sample("instance_norm", lambda x: F.instance_norm(x, weight=CHANNELS[0], bias=CHANNELS[1]))
sample("instance_norm: given", lambda x: F.instance_norm(x, CHANNELS[0], VARIANCE, use_input_stats=False))
sample("batch_norm", lambda x: F.batch_norm(x, CHANNELS[2], VARIANCE, *CHANNELS[:2]))
built("frozen_batch_norm", functions.frozen_batch_norm, X, *CHANNELS, VARIANCE, 1e-5)
sample("embedding", lambda ids: F.embedding(ids, TABLE_OF_3), ROWS)
sample("embedding: table", lambda table: F.embedding(ROWS, table), random(3, 4))


def _recurrent() -> None:
    def weights(gates: int) -> list[Tensor]:
        return [random(3 * gates, 6), random(3 * gates, 3), random(3 * gates), random(3 * gates, seed=1)]

    state, settings = random(1, 2, 3), (True, 1, 0.0, False, False, True)
    of_lstm, narrow = weights(4), [random(12, 6), random(12, 2), random(2, 3)]
    sample("lstm_steps", lambda x: aten.lstm.input(x, [state, state], of_lstm, *settings)[0])
    sample("lstm_steps: open", lambda x: aten.lstm.input(x, [state, state], of_lstm, *settings)[1], open=(1,))
    sample(
        "lstm_steps: projection",
        lambda x, h, c: aten.lstm.input(x, [h, c], narrow, False, *settings[1:])[2],
        *(X, random(1, 2, 2), random(1, 2, 3)),
    )
    for name, gates in (("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
        function, given, cell = getattr(aten, name).input, weights(gates), getattr(aten, f"{name}_cell").default
        sample(f"{name}_steps", lambda x, f=function, w=given: f(x, state, w, *settings)[0])
        sample(f"{name}_steps: cell", lambda x, h, f=cell, w=given: f(x, h, *w), random(2, 6), random(2, 3))


_recurrent()


# -- movements --------------------------------------------------------------------------------------------------------

sample("reshape", lambda x: aten.reshape(x, [2, 24]))
sample("flatten", lambda x: x.flatten(1))
sample("unflatten", lambda x: aten.unflatten(x, 2, [2, 3]))
sample("unsqueeze", lambda x: x.unsqueeze(1))
sample("squeeze", lambda x: aten.squeeze(x, 1), random(2, 1, 3))
sample("view_as", lambda x: aten.view_as(x, x.new_zeros(2, 24)))
sample("reshape_as", lambda x: aten.reshape_as(x, x.new_zeros(2, 24)))
sample("transpose", lambda x: x.transpose(1, -1))
sample("swapaxes", lambda x: aten.swapaxes(x, 0, 2))
sample("swapdims", lambda x: aten.swapdims(x, 0, 2))
sample("permute", lambda x: x.permute(2, 0, -2))
sample("contiguous", lambda x: aten.contiguous(x.transpose(0, 1)))
sample("to", lambda x: x.to(torch.float32))
sample("_to_copy", lambda x: aten._to_copy(x, dtype=torch.float32))
sample("slice", lambda x: x[:, 1:3])
sample("slice: step", lambda x: x[:, 1::2])
sample("slice: from the end", lambda x: x[:, :, -4:-1])
sample("select", lambda x: x.select(1, 2))
sample("select: last", lambda x: x.select(-2, -1))
sample("chunk", lambda x: x.chunk(2, 1))
sample("chunk: part", lambda x: x.chunk(2, 1)[1])
sample("split", lambda x: x.split(3, 1))
sample("split_with_sizes", lambda x: aten.split_with_sizes(x, [1, 3], 1))
sample("tensor_split", lambda x: aten.tensor_split(x, 3, 1))
sample("unbind", lambda x: x.unbind(1))
sample("roll", lambda x: x.roll([1, 2], [0, 2]))
sample("roll: flat", lambda x: x.roll(5))
sample("masked_fill", lambda x: x.masked_fill(MASK, 0.3))
sample("masked_fill: broadcast", lambda x: x.masked_fill(MASK, 0.3), random(4, 1))
sample("masked_fill: value", lambda y: X.masked_fill(MASK, y.sum()), random(3))
sample("expand", lambda x: x.expand(3, 2, 4, 5), random(2, 1, 5))
sample("expand_as", lambda x: aten.expand_as(x, x.new_zeros(2, 4, 5)), random(2, 1, 5))
sample("broadcast_to", lambda x: aten.broadcast_to(x, [3, 2, 4, 5]), random(2, 1, 5))
sample("cat", lambda x, y: torch.cat([x, y, x], 1), X, Y)
sample("cat: one", lambda x: torch.cat([x, Y], 1))
sample("stack", lambda x, y: torch.stack([x, y], 1), X, Y)
sample("where", lambda x, y: torch.where(MASK, x, y), X, Y)
sample("narrow", lambda x: aten.narrow(x, 1, 1, 2))
sample("flip", lambda x: x.flip(0, 2))
sample("index", lambda x: x[:, ROWS])
sample("index_select", lambda x: x.index_select(1, ROWS))
sample("gather", lambda x: x.gather(0, ALIKE))
sample("movedim", lambda x: aten.movedim(x, [0], [2]))
sample("t", lambda x: x.t(), MATRIX)
sample("mT", lambda x: aten.mT(x))
sample("numpy_T", lambda x: aten.numpy_T(x), MATRIX)
sample("repeat", lambda x: x.repeat(2, 1, 2))
sample("repeat_interleave", lambda x: aten.repeat_interleave(x, 2, 1))
sample("tile", lambda x: aten.tile(x, [2, 1, 2]))
sample("rot90", lambda x: x.rot90(1, [1, 2]))
sample("unfold", lambda x: x.unfold(2, 3, 2))
sample("im2col", lambda x: F.unfold(x, 2), image(2))
sample("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), image(2))
sample("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), random(2, 1, 4, 6))
sample("channel_shuffle", lambda x: F.channel_shuffle(x, 2), image(2))
sample("diagonal", lambda x: x.diagonal(0, 1, 2))
sample("tril", lambda x: x.tril())
sample("triu", lambda x: x.triu())
sample("pad", lambda x: F.pad(x, (1, 2)))
sample("pad: value", lambda x: F.pad(x, (1, 2), value=0.7))
sample("pad: reflect", lambda x: F.pad(x, (1, 2), mode="reflect"))
sample("constant_pad_nd", lambda x: aten.constant_pad_nd(x, [1, 2]))
for _n in (1, 2, 3):
    for _name in (f"reflection_pad{_n}d", f"replication_pad{_n}d"):
        _function = getattr(aten, _name)
        sample(_name, lambda x, f=_function, n=_n: f(x, [1, 2] * n), image(_n))


def _written(write: Callable) -> Callable:
    """What becomes of a copy after something was written into it."""

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        copy = x.clone()
        write(copy, *rest)
        return copy

    return function


sample("overwrite", _written(lambda x, y: x[:, 1].mul_(y)), X, random(2, 6))
sample("fill", _written(lambda x: x.fill_(0.5)))
sample("fill: value", _written(lambda x, y: x.fill_(y.sum())), X, Y)
sample("zero", lambda x: x + x.clone().zero_())
sample("index_put", _written(lambda x, y: x.index_put_([torch.tensor([1])], y)), X, random(1, 4, 6))
sample("index_put: one", lambda x: x.index_put([torch.tensor([1])], Y[:1]))
sample("as_strided", lambda x: x.as_strided((3, 4), (4, 1), 2), random(3, 8))
sample("type_as", lambda x: aten.type_as(x, x.new_zeros(1, dtype=torch.float32)))
sample("take_along_dim", lambda x: aten.take_along_dim(x, ALIKE, 0))
sample("masked_scatter", lambda x, y: x.masked_scatter(MASK, y), X, Y)
sample("slice_scatter", lambda x, y: aten.slice_scatter(x, y, 1, 1, 3), X, random(2, 2, 6))
sample("select_scatter", lambda x, y: x.select_scatter(y, 1, 2), X, random(2, 6))
sample("diagonal_scatter", lambda x, y: x.diagonal_scatter(y, 0, 1, 2), X, random(2, 4))
sample("scatter", lambda x, y: x.scatter(1, ROWS[:1].expand(2, 1, 6), y), X, random(2, 1, 6))
sample("index_copy", lambda x, y: x.index_copy(1, ROWS[:3], y), X, random(2, 3, 6))
sample("index_fill", lambda x: x.index_fill(1, ROWS[:2], 0.5))
sample("hsplit", lambda x: aten.hsplit(x, 2))
sample("vsplit", lambda x: aten.vsplit(x, 2))
sample("dsplit", lambda x: aten.dsplit(x, 2))
sample("unsafe_chunk", lambda x: aten.unsafe_chunk(x, 2, 1))
sample("unsafe_split", lambda x: aten.unsafe_split(x, 2, 1))
sample("take", lambda x: x.take(ROWS))
sample("max_unpool2d", lambda x: F.max_unpool2d(x, PICKED, 2), random(1, 2, 2, 3))


# -- what relevance never passes --------------------------------------------------------------------------------------

built("moved", functions.moved, X, torch.device("cpu"))
built("unpacked", functions.unpacked, random(2, 4), random(2, 2), 8, (4, 2))
built(
    "looked_up",
    functions.looked_up,
    random(4).sign().abs().to(torch.uint8),
    random(2),
    random(16),
    4,
    (2, 4),
    torch.float64,
)
built("dequantized", functions.dequantized, random(2, 2).float())
built("ones_of", functions.ones_of, X, 3)
sample("size", lambda x: x.reshape(x.shape[0] * 4, 6), open=(0,))
sample("zeros_like", lambda x: x + torch.zeros_like(x))
sample("ones_like", lambda x: x + torch.ones_like(x))
sample("full_like", lambda x: x + torch.full_like(x, 2.0))
sample("empty_like", lambda x: x + torch.empty_like(x).fill_(2.0))
sample("new_zeros", lambda x: x + x.new_zeros(6))
sample("new_ones", lambda x: x + x.new_ones(6))
sample("new_full", lambda x: x + x.new_full((6,), 2.0))
sample("zeros", lambda x: x + torch.zeros(6))
sample("full", lambda x: x + torch.full((6,), 2.0))
sample("new_empty", lambda x: x + x.new_empty(6).fill_(2.0))
sample("view_as_complex", lambda x: torch.view_as_real(torch.view_as_complex(x) * 2), random(3, 2))
sample("view_as_real", lambda x: torch.view_as_real(torch.view_as_complex(x) * 2), random(3, 2))
sample("sym_stride", lambda x: x * x.stride(0), random(4, 5, 3), open=(1,))


# -- what keeps zero, steps, interpolations ---------------------------------------------------------------------------

for _name in ("expm1", "log1p", "asinh", "atan", "sinh", "sin", "tan", "asin", "atanh", "erfinv"):
    sample(_name, lambda x, f=getattr(torch, _name): f(x), random(2, 4).tanh() * 0.9)
sample("fake_quantize_per_tensor_affine", lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127))
sample(
    "fake_quantize_per_channel_affine",
    lambda x: torch.fake_quantize_per_channel_affine(
        x, torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int32), 1, -128, 127
    ),
    X.float(),
)
for _name in ("sign", "sgn", "floor", "ceil", "round", "trunc"):
    sample(_name, lambda x, f=getattr(torch, _name): f(x))
sample("heaviside", lambda x: torch.heaviside(x, Y))
sample("floor_divide", lambda x: x // 0.3)
sample("div: rounded", lambda x: torch.div(x, 0.3, rounding_mode="trunc"))
sample("pow: zero", lambda x: x**0)
sample("float_power", lambda x: torch.float_power(x, 2))
sample("remainder", lambda x: x.remainder(0.3))
sample("fmod", lambda x: x.fmod(0.3))
sample("lerp", lambda x: torch.lerp(x, Y, 0.3))
sample("lerp: both", lambda x, y: torch.lerp(x, y, 0.3), X, Y)
sample("deg2rad", torch.deg2rad)
sample("rad2deg", torch.rad2deg)
sample("ldexp", lambda x: aten.ldexp(x, torch.tensor(2)))
sample("prod", lambda x: x.prod(1))
sample("fmax", lambda x, y: torch.fmax(x, y), X, Y)
sample("fmin", lambda x, y: torch.fmin(x, y), X, Y)
sample("clamp: by another", lambda x, y: torch.clamp(x, max=y), X, Y)

# -- sums and moves ---------------------------------------------------------------------------------------------------

OFFSETS = torch.tensor([0, 2, 2])
sample("diff", lambda x: aten.diff(x, 1, 1))
sample("trace", lambda x: aten.trace(x), MATRIX)
sample("contract", lambda x: torch.einsum("abc->ca", x))
sample("pooled_rows", lambda x: F.embedding_bag(torch.tensor([0, 2, 1]), x, OFFSETS, mode="mean"), random(4, 3))
for _how in ("sum", "mean", "amax"):
    sample(
        f"scatter_reduce: {_how}",
        lambda x, y, how=_how: x.scatter_reduce(1, ALIKE, y, how, include_self=False),
        X,
        Y,
    )
SAMPLES["scatter_reduce"] = SAMPLES.pop("scatter_reduce: sum")
sample("segment_reduce", lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([2, 2])), random(4, 3))
CUBE = torch.tensor([1, 6]).reshape(1, 1, 1, 1, 2)
PLACES = random(2, 3, 3, 2, seed=5).tanh() * 0.7
WINDOWS = torch.tensor([[0.0, 0, 1, 4, 5], [1.0, 2, 0, 5, 3]], dtype=torch.float64)
sample("roi_align", lambda x: torchvision.ops.roi_align(x, WINDOWS, 2), random(2, 4, 5, 6))
sample("grid_sampler", lambda x: F.grid_sample(x, PLACES, align_corners=False), random(2, 4, 5, 6))
sample("max_unpool3d", lambda x: F.max_unpool3d(x, CUBE, 2), random(1, 1, 1, 1, 2))
sample("put", lambda x, y: x.put(ROWS[:3], y), X, random(3))
sample("put: added", lambda x, y: x.put(ROWS, y, accumulate=True), X, random(4))
sample("index_put: added", lambda x, y: x.index_put([torch.tensor([1, 1])], y, accumulate=True), X, random(2, 4, 6))
sample("diag", lambda x: aten.diag(x), MATRIX)
sample("diag_embed", torch.diag_embed, MATRIX)
sample("linalg_diagonal", torch.linalg.diagonal, MATRIX)
sample("fft_fftshift", torch.fft.fftshift)
sample("fft_ifftshift", torch.fft.ifftshift)

for _name in ("atleast_1d", "atleast_2d", "atleast_3d", "fliplr", "flipud", "diagflat", "positive"):
    sample(_name, lambda x, f=getattr(aten, _name): f(x), MATRIX)
for _name in ("column_stack", "hstack", "vstack", "dstack"):
    sample(_name, lambda x, y, f=getattr(aten, _name): f([x, y]), X, Y)
sample("block_diag", lambda x, y: torch.block_diag(x, y), MATRIX, OTHER_MATRIX)
sample("meshgrid", lambda x, y: aten.meshgrid([x, y], indexing="ij")[0], SIX, OTHER_SIX)
sample("broadcast_tensors", lambda x, y: aten.broadcast_tensors([x, y])[0], X, Y[:1])
sample("cartesian_prod", lambda x, y: aten.cartesian_prod([x, y]), SIX, OTHER_SIX)
sample("combinations", lambda x: aten.combinations(x), SIX)

# -- ids: an integer has its row's relevance --------------------------------------------------------------------------

sample("one_hot", lambda ids: F.one_hot(ids, 3).double() @ COLUMNS[:3], ROWS)

# -- complex numbers --------------------------------------------------------------------------------------------------

for _name in ("fft", "ifft", "rfft", "ihfft", "fft2", "ifft2", "rfft2", "ihfft2", "fftn", "ifftn", "rfftn", "ihfftn"):
    sample(f"fft_{_name}", lambda x, f=getattr(torch.fft, _name): f(x))
COMPLEX = torch.complex(random(2, 4, 3), random(2, 4, 3, seed=7))
for _name in ("irfft", "hfft", "irfft2", "hfft2", "irfftn", "hfftn"):
    sample(f"fft_{_name}", lambda x, f=getattr(torch.fft, _name): f(x), COMPLEX)
WINDOW = torch.hann_window(8, dtype=torch.float64)
sample("stft", lambda x: torch.stft(x, 8, window=WINDOW, return_complex=True), random(2, 32))
SPECTRUM = torch.stft(random(2, 32), 8, window=WINDOW, return_complex=True)
sample("istft", lambda x: torch.istft(x, 8, window=WINDOW), SPECTRUM)
sample("real", lambda x: x.real, COMPLEX)
sample("imag", lambda x: x.imag, COMPLEX)
sample("complex", torch.complex, X, Y)
sample("view_as_real", torch.view_as_real, COMPLEX)
sample("view_as_complex", torch.view_as_complex, random(2, 4, 2))
for _name in ("conj", "_conj", "conj_physical", "resolve_conj", "resolve_neg"):
    sample(_name, lambda x, f=getattr(aten, _name): f(x), COMPLEX)
sample("_fft_r2c", lambda x: aten._fft_r2c(x, [2], 0, True))
sample("_fft_c2r", lambda x: aten._fft_c2r(x, [2], 0, 4), COMPLEX)
sample("_fft_c2c", lambda x: aten._fft_c2c(x, [2], 0, True), COMPLEX)
sample("abs: complex", torch.abs, COMPLEX)
sample("mul: complex", lambda x: x * SPECTRUM[0, 0, 0], COMPLEX)

# -- a bias that is added afterwards ----------------------------------------------------------------------------------

_WEIGHT, _BIAS = random(5, 6), random(5)
sample("linear_with_bias", lambda x: F.linear(x, _WEIGHT) + _BIAS)
sample("matmul_with_bias", lambda x: _BIAS + x @ _WEIGHT.T)
sample("einsum_with_bias", lambda x: torch.einsum("bci,oi->bco", x, _WEIGHT) + _BIAS)
