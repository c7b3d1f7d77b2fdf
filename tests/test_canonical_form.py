"""Law 7 over generated networks: the same function, nothing mutated, idempotent, undone bit for bit.

A `Network` is a description that hypothesis draws and prints; `Model` is the module that does what it says. To look at
one network, paste it from a failure's output into `check(...)` or `@hypothesis.example(...)`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, vmap
from torchvision.ops import FrozenBatchNorm2d

import lrpfunc
from lrpfunc import canonizers, composites, rules
from lrpfunc.canonizers import (
    LEFT,
    MERGED,
    MERGED_RIGHT,
    PARALLEL,
    THRESHOLD,
    merge_batch_norm,
    merge_batch_norm_right,
    merge_parallel,
    threshold_relu,
)
from lrpfunc.program.program import Equation, Program, variables_in
from tests.helpers import relative_error

pytestmark = [  # torch warns of what is slow
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

# -- descriptions -----------------------------------------------------------------------------------------------------


class Conv(NamedTuple):
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int = 1
    bias: bool = True
    mode: str = "zeros"
    is_normed: bool = False  # by weight_norm, so that its weight is computed

    def module(self) -> nn.Module:
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(self.kernel) - 1]
        conv = make(*self[:-1])
        return nn.utils.parametrizations.weight_norm(conv) if self.is_normed else conv


class Transposed(NamedTuple):
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    bias: bool
    dilation: tuple[int, ...]

    def module(self) -> nn.Module:
        return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(self.kernel) - 1](*self)


class Linear(NamedTuple):
    """Of the last axis."""

    inputs: int
    outputs: int
    bias: bool = True

    def module(self) -> nn.Module:
        return nn.Linear(*self)


class Norm(NamedTuple):
    """A batch norm of values with so many axes behind the channels; a frozen one is torchvision's, operation by
    operation."""

    channels: int
    dimensions: int
    eps: float = 1e-5
    affine: bool = True
    is_frozen: bool = False

    def module(self) -> nn.Module:
        if self.is_frozen:
            return FrozenBatchNorm2d(self.channels, self.eps)
        make = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[self.dimensions]
        return make(self.channels, self.eps, affine=self.affine)


class Do(NamedTuple):
    """One of `OPERATIONS`."""

    operation: str
    arguments: tuple = ()


class Join(NamedTuple):
    """Branches from one value: "cat" along an axis, "add" and "sub" with a factor of the second one."""

    how: str
    value: float
    branches: tuple[tuple, ...]


class Again(NamedTuple):
    """The layer with this number, a second time."""

    layer: int


class Keep(NamedTuple):
    """The value is an output too."""


class Network(NamedTuple):
    shape: tuple[int, ...]
    steps: tuple
    seed: int = 0
    zeros: bool = True  # whether some scales are exactly zero


def _of_dimensions(name: str):
    """A functional that exists as `name1d` to `name3d`."""
    return lambda x, *arguments: getattr(F, f"{name}{x.dim() - 2}d")(x, *arguments)


OPERATIONS = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "clamp": torch.clamp,
    "tanh": torch.tanh,
    "avg_pool": _of_dimensions("avg_pool"),
    "adaptive_avg_pool": _of_dimensions("adaptive_avg_pool"),
    "max_pool": _of_dimensions("max_pool"),
    "mean": lambda x, axes, keepdim: x.mean(axes, keepdim),
    "upsample": lambda x, mode: F.interpolate(x, scale_factor=2, mode=mode),
    "pad": F.pad,
    "flatten": torch.flatten,
    "unsqueeze": torch.unsqueeze,
    "squeeze": torch.squeeze,
    "transpose": torch.transpose,
    "permute": torch.permute,
    "shuffle": lambda x, groups: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2),
    "first": lambda x, chunks: x.chunk(chunks, 1)[0],
    "crop": lambda x: x[..., 1:],
    "plus": lambda x, number: x + number,
    "times": lambda x, number: x * number,
}


def _joined(join: Join, parts: list):
    match join.how:
        case "cat":
            return torch.cat(parts, int(join.value))
        case "add":
            return torch.add(parts[0], parts[1], alpha=join.value)
        case "sub":
            return torch.sub(parts[0], parts[1], alpha=join.value)


class Chain(nn.Module):
    """Steps one after another; `layers` has all layers in the order of their making, for those called again."""

    def __init__(self, steps: tuple, layers: list[nn.Module]):
        super().__init__()
        self.steps, self.layers = steps, layers
        for i, step in enumerate(steps):
            if isinstance(step, Join):
                self.add_module(str(i), nn.ModuleList(Chain(branch, layers) for branch in step.branches))
            elif hasattr(step, "module"):
                layers.append(step.module())
                self.add_module(str(i), layers[-1])

    def forward(self, x, kept: list):
        for i, step in enumerate(self.steps):
            match step:
                case Do(operation, arguments):
                    x = OPERATIONS[operation](x, *arguments)
                case Join():
                    x = _joined(step, [branch(x, kept) for branch in getattr(self, str(i))])
                case Again(layer):
                    x = self.layers[layer](x)
                case Keep():
                    kept.append(x)
                case _:
                    x = getattr(self, str(i))(x)
        return x


class Model(nn.Module):
    """What a description says, with random parameters in float64: the last value, with those that are kept."""

    def __init__(self, network: Network):
        super().__init__()
        torch.manual_seed(network.seed)
        self.chain = Chain(network.steps, [])
        self.double().eval()
        for module in self.modules():
            _fill(module, network.zeros)

    def forward(self, x):
        kept: list = []
        y = self.chain(x, kept)
        return (y, *kept) if kept else y


@torch.no_grad()
def _fill(module: nn.Module, zeros: bool) -> None:
    """Biases and statistics that do something, a quarter of the scales negative, some of them zero."""
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    if "running_mean" in tensors:
        tensors["running_mean"].uniform_(-1.0, 1.0)
        tensors["running_var"].uniform_(0.3, 2.0)
        if "weight" in tensors:
            scale = tensors["weight"].uniform_(0.3, 1.5)
            chance = torch.rand_like(scale)
            scale[chance < 0.25] *= -1
            scale[chance > 0.75] *= 0 if zeros else 1
    if isinstance(tensors.get("bias"), torch.Tensor):
        tensors["bias"].uniform_(-0.7, 0.7)


def flat(steps: tuple) -> list:
    """All steps, also those of branches."""
    found = []
    for step in steps:
        found += [inner for branch in step.branches for inner in flat(branch)] if isinstance(step, Join) else [step]
    return found


# -- drawing ----------------------------------------------------------------------------------------------------------

ACTIVATIONS = (
    Do("relu"),
    Do("relu6"),
    Do("leaky_relu", (0.2,)),
    Do("leaky_relu"),
    Do("hardtanh"),
    Do("hardtanh", (-0.3, 0.8)),
    Do("clamp", (0.1,)),
    Do("clamp", (None, 0.5)),
    Do("clamp", (-1, 1)),
    Do("tanh"),
)
VALUES = 500  # the largest number of values that a sample may have anywhere
BATCH = 97  # while drawing; nothing else is of this size


class Drawing:
    """Draws steps that are legal one after another, from the simple to the intricate. Shapes have no batch."""

    def __init__(self, draw):
        self.draw = draw
        self.layers: list[nn.Module] = []  # without data, only to see what shapes they make

    def one_of(self, *values):
        return self.draw(st.sampled_from(values))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def yes(self) -> bool:
        return self.draw(st.booleans())

    def rarely(self) -> bool:
        return self.one_of(*[False] * 6, True)

    def chain(self, shape: tuple, least: int, most: int, depth: int, keeps_space: bool = False) -> tuple[tuple, tuple]:
        """Steps, and the shape behind them. Joins are as deep as `depth`."""
        steps: tuple = ()
        for _ in range(self.number(least, most)):
            layers = len(self.layers)
            drawn, after = self.steps(shape, depth, keeps_space)
            if math.prod(after) > VALUES:
                del self.layers[layers:]
            else:
                steps, shape = (*steps, *drawn), after
        return steps, shape

    def steps(self, shape: tuple, depth: int, keeps_space: bool) -> tuple[tuple, tuple]:
        """A step or several that belong together, and the shape behind them."""
        kind = self.one_of("one", "one", "one", "block", "block", "join") if depth else self.one_of("one", "block")
        if kind == "join":
            return self.join(shape, depth - 1, keeps_space)
        if kind == "one":
            kinds = [self.kind(shape, keeps_space)]
        else:
            is_free = len(shape) > 1 and not keeps_space
            between = "pool pool pad pad view flatten" if is_free else "shuffle"
            kinds = ["norm", *["activation"] * self.yes(), *[self.one_of(*between.split())] * self.yes(), "layer"]
        steps: tuple = ()
        for kind in kinds:
            step = self.step(kind, shape, keeps_space)
            if step is not None:
                steps, shape = (*steps, step), self.after(step, shape)
        return steps, shape

    def after(self, step, shape: tuple) -> tuple:
        """The shape behind a step other than a join."""
        with torch.device("meta"):
            chain = Chain((step,), self.layers).eval()
            return tuple(chain(torch.empty(BATCH, *shape), []).shape[1:])

    def kind(self, shape: tuple, keeps_space: bool) -> str:
        kinds = "layer norm activation layer norm again again keep keep arithmetic shuffle"
        kinds += " pool pool pad view view flatten" if len(shape) > 1 and not keeps_space else ""
        return self.one_of(*kinds.split())

    def step(self, kind: str, shape: tuple, keeps_space: bool):
        """A step of a kind that is legal for a shape, None if there is none."""
        if kind == "layer" or (kind == "again" and not self.layers):
            return self.layer(shape, keeps_space)
        if kind == "again":
            return self.again(shape, keeps_space)
        return getattr(self, kind)(shape) if len(shape) > 1 or kind not in ("pool", "pad", "view") else None

    def activation(self, shape: tuple) -> Do:
        return self.one_of(*ACTIVATIONS)

    def keep(self, shape: tuple) -> Keep:
        return Keep()

    def arithmetic(self, shape: tuple) -> Do:
        return self.one_of(Do("plus", (0.5,)), Do("times", (-1.5,)))

    def shuffle(self, shape: tuple) -> Do:
        return Do("shuffle", (self.one_of(*reversed(_divisors(shape[0]))),))

    def flatten(self, shape: tuple) -> Do:
        return Do("flatten", (1,))

    def norm(self, shape: tuple) -> Norm | None:
        if len(shape) > 4:
            return None
        norm = Norm(shape[0], len(shape) - 1, self.one_of(1e-5, 1e-5, 0.5))
        kind = self.one_of("affine", "affine", "affine", "plain", "frozen")
        if kind == "frozen" and len(shape) == 3:
            return norm._replace(is_frozen=True)
        return norm._replace(affine=kind != "plain")

    # -- layers

    def layer(self, shape: tuple, keeps_space: bool, outputs: int | None = None):
        """A layer with so many outputs, if they are given."""
        kind = self.one_of("conv", "conv", "conv", "conv", "same", "transposed", "transposed", "linear")
        if len(shape) == 1 or (kind == "linear" and not keeps_space):
            return Linear(shape[-1], outputs or self.number(1, 5), self.yes())
        if len(shape) > 4:
            return None
        if kind == "transposed" and not keeps_space and math.prod(shape[1:]) < 30:
            return self.transposed(shape)
        geometry = self.same_geometry(shape) if keeps_space or kind == "same" else self.geometry(shape)
        return self.conv(shape, outputs, geometry)

    def same_geometry(self, shape: tuple) -> tuple:
        kernel, dilation = (tuple(self.number(1, most) for _ in shape[1:]) for most in (4, 2))
        return kernel, (1,) * len(kernel), "same", dilation

    def geometry(self, shape: tuple) -> tuple:
        """Kernel, stride, padding and dilation; a padding may be larger than the kernel."""
        axes = []
        for size in shape[1:]:
            kernel, stride, dilation = self.number(1, 3), self.one_of(1, 1, 2, 3), self.one_of(1, 1, 2)
            missing = max(0, (kernel - 1) * dilation + 1 - size)
            axes.append((kernel, stride, -(-missing // 2) + self.one_of(0, 0, 1, 2, kernel), dilation))
        return tuple(zip(*axes, strict=True))

    def conv(self, shape: tuple, outputs: int | None, geometry: tuple) -> Conv:
        inputs = shape[0]
        groups = self.one_of(*_divisors(inputs if outputs is None else math.gcd(inputs, outputs)))
        outputs = outputs or groups * self.number(1, 3 if groups < 3 else 1)
        conv = Conv(inputs, outputs, *geometry, groups, self.yes(), is_normed=self.rarely() and self.yes())
        mode = self.one_of("zeros", "zeros", "reflect", "circular", "replicate")
        extents = [(kernel - 1) * dilation for kernel, dilation in zip(conv.kernel, conv.dilation, strict=True)]
        padding = [-(-extent // 2) for extent in extents] if isinstance(conv.padding, str) else conv.padding
        limit = {"reflect": -1, "circular": 0}.get(mode, 100)
        is_legal = all(width <= size + limit for width, size in zip(padding, shape[1:], strict=True))
        return conv._replace(mode=mode) if is_legal else conv

    def transposed(self, shape: tuple) -> Transposed:
        groups = self.one_of(*_divisors(shape[0]))
        axes = []
        for size in shape[1:]:
            kernel, stride, dilation = self.number(1, 3), self.number(1, 2), self.one_of(1, 1, 2)
            output_padding = self.number(0, max(stride, dilation) - 1)
            without = (size - 1) * stride + dilation * (kernel - 1) + output_padding + 1
            axes.append((kernel, stride, min((without - 1) // 2, self.number(0, 2)), output_padding, dilation))
        kernel, stride, padding, output_padding, dilation = zip(*axes, strict=True)
        outputs, bias = groups * self.number(1, 2), self.yes()
        return Transposed(shape[0], outputs, kernel, stride, padding, output_padding, groups, bias, dilation)

    def again(self, shape: tuple, keeps_space: bool) -> Again | None:
        step = Again(self.number(0, len(self.layers) - 1))
        layer = self.layers[step.layer]
        inputs = getattr(layer, "in_channels", None) or getattr(layer, "num_features", None) or layer.weight.shape[-1]
        if inputs != shape[-1 if isinstance(layer, nn.Linear) else 0]:
            return None
        try:
            result = self.after(step, shape)
        except (RuntimeError, ValueError):
            return None  # it was made for another shape
        is_legal = result[1:] == shape[1:] if keeps_space else all(result)
        return step if is_legal and BATCH not in result else None

    # -- pooling, padding, views

    def pool(self, shape: tuple) -> Do:
        axes = tuple(range(2, len(shape) + 1))
        kind = self.one_of("avg_pool", "avg_pool", "mean", "adaptive_avg_pool", "max_pool", "upsample")
        if kind == "mean":
            return Do("mean", (axes, self.yes()))
        if kind == "adaptive_avg_pool":
            return Do("adaptive_avg_pool", (tuple(self.number(1, 3) for _ in axes),))
        if kind == "upsample":
            return Do("upsample", (self.one_of("nearest", ("linear", "bilinear", "trilinear")[len(axes) - 1]),))
        kernel = tuple(self.number(1, min(3, size)) for size in shape[1:])
        stride = tuple(self.number(1, 2) for _ in kernel)
        padding = tuple(self.number(0, n // 2) for n in kernel)
        if kind == "max_pool":
            return Do("max_pool", (kernel, stride, padding, 1, self.yes()))
        return Do("avg_pool", (kernel, stride, padding, self.yes(), self.yes()))

    def pad(self, shape: tuple) -> Do:
        """Padding of the last axes, sometimes of the channels too or by other values than zero."""
        mode = self.one_of("constant", "constant", "reflect", "replicate", "circular")
        if mode == "constant":
            kind = self.one_of("zeros", "zeros", "zeros", "number", "channels")
            widths = self.widths(shape if kind == "channels" else shape[1:], 2, low=-1)
            return Do("pad", (widths, mode, 0.7) if kind == "number" else (widths,))
        return Do("pad", (self.widths(shape[1:], {"reflect": -1, "circular": 0}.get(mode, 2)), mode))

    def widths(self, sizes: tuple, limit: int, low: int = 0) -> tuple[int, ...]:
        """Two widths for each axis, last axis first, no larger than 2 nor than the size and a limit."""
        both = [(low if size > 2 else 0, min(2, size + limit)) for size in reversed(sizes) for _ in "ab"]
        return tuple(self.number(*between) for between in both)

    def view(self, shape: tuple) -> Do:
        """Channels and the other axes change places and shapes."""
        rank = len(shape) + 1
        views = [Do("transpose", (1, 2)), Do("flatten", (1, 2)), Do("flatten", (rank - 2, rank - 1))]
        views += [Do("permute", ((0, *range(2, rank), 1),)), Do("permute", ((0, rank - 1, *range(1, rank - 1)),))]
        views += [Do("unsqueeze", (axis,)) for axis in (rank, 2, 1) if rank < 5]
        views += [Do("squeeze", (axis,)) for axis in range(1, rank) if shape[axis - 1] == 1]
        views += [Do("first", (2,))] if shape[0] > 1 else []
        views += [Do("crop")] if shape[-1] > 1 else []
        return self.one_of(*views)

    # -- joins

    def join(self, shape: tuple, depth: int, keeps_space: bool) -> tuple:
        """Branches of one geometry, and of the same channels unless it is those that are concatenated."""
        how = self.one_of("add", "cat", "sub")
        value = self.one_of(1, len(shape)) if how == "cat" else self.one_of(1, 1, 2.0, -0.5, 0.0)
        geometry = self.geometry(shape) if len(shape) > 1 and not keeps_space and self.yes() else None
        channels = None if (how, value) == ("cat", 1) else self.one_of(shape[0], 1, 2, 4)
        if keeps_space and how == "cat" and value > 1:
            return (), shape
        branches, parts = [], []
        for i in range(self.number(2, 3) if how == "cat" else 2):
            is_narrow = how != "cat" and i == 1 and self.rarely()  # to be broadcast
            steps, inner = self.branch(shape, depth, 1 if is_narrow else channels, geometry)
            branches.append(steps)
            parts.append(torch.empty(BATCH, *inner, device="meta"))
        if how == "add" and len(shape) > 1 and self.rarely():
            axes = tuple(range(2, parts[1].dim()))
            branches[1] = (*branches[1], Do("mean", (axes, True)))
        join = Join(how, value, tuple(branches))
        return (join,), tuple(_joined(join, parts).shape[1:])

    def branch(self, shape: tuple, depth: int, channels: int | None, geometry: tuple | None) -> tuple[tuple, tuple]:
        steps, shape = self.chain(shape, 0, 2, depth, keeps_space=True)
        if geometry is not None or shape[0] != (channels or shape[0]) or self.yes():
            is_dense = geometry is None
            layer = self.layer(shape, True, channels) if is_dense else self.conv(shape, channels, geometry)
            steps, shape = (*steps, layer), self.after(layer, shape)
        for kind in ("norm", "activation"):
            step = self.step(kind, shape, True) if self.yes() else None
            if step is not None:
                steps, shape = (*steps, step), self.after(step, shape)
        return steps, shape


def _divisors(n: int) -> list[int]:
    return [m for m in range(1, n + 1) if n % m == 0]


@st.composite
def networks(draw) -> Network:
    drawing = Drawing(draw)
    dimensions = drawing.one_of(1, 2, 3)
    shape = tuple(drawing.number(1, most) for most in (4, *[(6, 5, 4)[dimensions - 1]] * dimensions))
    steps, after = drawing.chain(shape, 1, 6, depth=2)
    if drawing.yes():
        steps = (*steps, Do("flatten", (1,)), Linear(math.prod(after), 3))
    return Network(shape, steps, seed=drawing.number(0, 1000), zeros=drawing.yes())


# -- one network, traced ----------------------------------------------------------------------------------------------


class Case:
    """A network's module, program and parameters, and what all of them were before anything was done with them."""

    def __init__(self, network: Network):
        self.network = network
        self.model = Model(network)
        self.x = self.samples(2)
        self.fmodel, self.params = lrpfunc.functionalize(self.model, self.x)
        self.before = _snapshot(self)

    def samples(self, n: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.network.seed + n)
        return torch.randn(n, *self.network.shape, dtype=torch.float64, generator=generator)

    def is_untouched(self) -> bool:
        """Whether all tensors have the same bits and all else is the same object."""
        (tensors, rest), (old_tensors, old_rest) = _snapshot(self), self.before
        same = all(torch.equal(a, b) for a, b in zip(tensors, old_tensors, strict=True))
        return same and len(rest) == len(old_rest) and all(a is b for a, b in zip(rest, old_rest, strict=True))

    def has(self, what) -> bool:
        return any(what(step) for step in flat(self.network.steps))


# Tracing takes longer than all that is checked of a network, and nothing that is traced changes.
case_of = functools.lru_cache(maxsize=200)(Case)


def _snapshot(case: Case) -> tuple[list, list]:
    program = case.fmodel
    tensors = [*case.params.values(), *case.model.state_dict().values()]
    rest: list = [*case.params, *case.params.values(), program.equations, *program.parameters.values(), program.output]
    for equation in program.equations:
        rest += [equation, *equation.arguments, *equation.keywords.values(), *equation.outputs]
    return [tensor.clone() for tensor in tensors], rest


def listed(outputs) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def assert_same(got, expected, tolerance: float = 1e-10) -> None:
    """The same values up to rounding; of exact zeros a rounding error is left."""
    for one, other in zip(listed(got), listed(expected), strict=True):
        assert one.shape == other.shape
        assert other.isfinite().all()
        assert relative_error(one, other) <= tolerance or (one - other).abs().max() <= 1e-13


def norms_of(program: Program) -> list[Equation]:
    return [equation for equation in program.equations if equation.operator in ("batch_norm", "frozen_batch_norm")]


def is_identical(one: dict, other: dict) -> bool:
    same = one.keys() == other.keys() and all(one[name].dtype == other[name].dtype for name in one)
    return same and all(torch.equal(one[name], other[name]) for name in one)


# -- law 7 ------------------------------------------------------------------------------------------------------------

PASSES = {
    "all": None,
    "left": merge_batch_norm,
    "parallel": merge_parallel,
    "right": merge_batch_norm_right,
    "threshold": threshold_relu,
    "backwards": canonizers.chain(threshold_relu, merge_batch_norm_right, merge_batch_norm),
}


def check(network: Network) -> Case:
    """All of law 7 for one network."""
    case = case_of(network)
    for name, passes in PASSES.items():
        canonical = lrpfunc.canonize(case.fmodel, case.params, passes)
        check_function(case, canonical)
        check_shapes(case, canonical)
        check_leaves(case, canonical, only_left=name == "left")
        check_restored(case, canonical)
        check_report(case, canonical)
        assert name != "all" or all(" it: " in why or "its terms: " in why for why in canonical.report.left.values())
        if name != "backwards":
            check_idempotent(canonical, passes)
    canonical = lrpfunc.canonize(case.fmodel, case.params)
    check_parameters_alone(case, canonical)
    check_nothing_foldable_is_left(case, canonical)
    assert case.is_untouched()
    return case


def check_function(case: Case, canonical) -> None:
    for x in (case.x, case.samples(3), case.samples(1)):
        assert_same(canonical.fmodel(canonical.params, x), case.model(x))


def check_shapes(case: Case, canonical) -> None:
    """The program says of all its values what they are."""
    program = canonical.fmodel
    values = program.bind(canonical.params, (case.x,))
    open_ = {n: m for n, m in zip(program.input_leaves[0].value.shape, case.x.shape, strict=True) if isinstance(n, str)}
    for equation in program.equations:
        program.store(equation, equation.evaluate(values), values)
        for variable in filter(lambda v: v.is_tensor, equation.outputs):
            value = values[variable.name]
            sizes = [eval(n, {"Max": max, "Min": min}, open_) if isinstance(n, str) else n for n in variable.shape]
            assert (value.dtype, list(value.shape)) == (variable.dtype, sizes), variable.name


def check_leaves(case: Case, canonical, only_left: bool) -> None:
    """Leaves are only added, by `merge_batch_norm` only where an equation has none that is its own."""
    for name, leaf in case.params.items():
        assert (canonical.params[name].shape, canonical.params[name].dtype) == (leaf.shape, leaf.dtype)
    assert canonical.params.keys() == canonical.fmodel.parameters.keys()
    if only_left and not case.has(needs_own_leaf):
        assert canonical.params.keys() == case.params.keys()


def needs_own_leaf(step) -> bool:
    """Whether a step's weight is shared, computed or not there."""
    return isinstance(step, Again) or getattr(step, "is_normed", False) or not getattr(step, "affine", True)


def check_restored(case: Case, canonical) -> None:
    restored = canonical.restore(canonical.params)
    assert list(restored) == list(case.params)
    assert is_identical(restored, case.params)


def check_idempotent(canonical, passes) -> None:
    again = lrpfunc.canonize(canonical.fmodel, canonical.params, passes)
    assert again.fmodel is canonical.fmodel
    assert is_identical(again.params, canonical.params)
    assert set(again.report.fates) == set(canonical.report.left)


def check_parameters_alone(case: Case, canonical) -> None:
    """Canonical parameters make the original program compute the same, if layers before all batch norms took them."""
    if {fate.became for fate in canonical.report.fates.values()} <= {MERGED, LEFT} and not case.has(needs_own_leaf):
        assert_same(case.fmodel(canonical.params, case.x), case.model(case.x))


def check_report(case: Case, canonical) -> None:
    names = [equation.name for equation in case.fmodel.equations]
    norms, fates = canonical.report.subjects["batch norm"], canonical.report.fates
    assert list(norms) == [equation.name for equation in norms_of(case.fmodel)]
    assert [name for name in norms if fates[name].became == LEFT] == [e.name for e in norms_of(canonical.fmodel)]
    for name, (became, where) in fates.items():
        assert became in ((MERGED, MERGED_RIGHT, THRESHOLD, PARALLEL, LEFT) if name in norms else (PARALLEL, LEFT))
        assert where
        assert became == LEFT or set(where.split(", ")) <= set(names) - {name}


def check_nothing_foldable_is_left(case: Case, canonical) -> None:
    foldable = {norm.name for norm in norms_of(case.fmodel) if is_foldable(case.fmodel, norm)}
    assert not foldable & set(canonical.report.left)


def is_foldable(program: Program, norm: Equation) -> bool:
    """Whether nothing but a layer comes before it, or nothing but layers behind it or behind activations there."""
    readers, results = program.readers(), {variable.name for variable in variables_in(program.output_leaves)}
    source, output = norm.arguments[0], norm.outputs[0].name
    maker = program.producers.get(source.name)
    if maker is not None and is_channelwise(maker) and readers[source.name] == [norm] and source.name not in results:
        return True
    reached = [output]
    for name in reached:
        for reader in readers.get(name, []):
            if reader.operator in ("relu", "relu6", "leaky_relu", "hardtanh"):
                reached.append(reader.outputs[0].name)
            elif not is_channelwise(reader):
                return False
    return not results & set(reached)


def is_channelwise(layer: Equation) -> bool:
    """A layer whose channels are where a batch norm has them."""
    return layer.operator.startswith("conv") or (layer.operator == "linear" and len(layer.outputs[0].shape) == 2)


# -- derivatives and vmap ---------------------------------------------------------------------------------------------


def check_derivatives(network: Network) -> None:
    """Canonization is invisible to derivatives too, of outputs in parameters and in inputs."""
    case = case_of(network)
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(y.shape, dtype=y.dtype, generator=generator) for y in listed(case.model(case.x))]

    def loss(program: Program, params: dict, x):
        return sum((seed * y).sum() for seed, y in zip(seeds, listed(program(params, x)), strict=True))

    def canonical_loss(params: dict, x):
        canonical = lrpfunc.canonize(case.fmodel, params)
        return loss(canonical.fmodel, canonical.params, x)

    expected = grad(loss, (1, 2))(case.fmodel, case.params, case.x)
    got = grad(canonical_loss, (0, 1))(case.params, case.x)
    size = max(tensor.abs().max() for tensor in (*expected[0].values(), expected[1]))
    for name in case.params:
        assert (got[0][name] - expected[0][name]).abs().max() <= 1e-9 * size, name
    assert (got[1] - expected[1]).abs().max() <= 1e-9 * size
    check_pullback(case, tuple(seeds) if len(seeds) > 1 else seeds[0])


def check_pullback(case: Case, seed) -> None:
    """With the gradient as the rule of all equations, relevance is the gradient of the original program."""
    canonical = lrpfunc.canonize(case.fmodel, case.params)
    every = composites.by_kind({"*": rules.gradient()})
    _, pullback = lrpfunc.vjp(canonical.fmodel, canonical.params, case.x, every)
    expected = torch.func.vjp(lambda x: case.fmodel(case.params, x), case.x)[1](seed)[0]
    assert_same(pullback(seed), expected, 1e-9)


def check_vmap(network: Network) -> None:
    """Canonization of stacked parameters is that of each of them, wherever their zeros are."""
    case = case_of(network)
    hypothesis.assume(case.params)
    several = [{name: rolled(leaf, i) for name, leaf in case.params.items()} for i in range(3)]
    stacked = {name: torch.stack([params[name] for params in several]) for name in case.params}
    mapped = vmap(lambda params: lrpfunc.canonize(case.fmodel, params).params)(stacked)
    for i, params in enumerate(several):
        one = lrpfunc.canonize(case.fmodel, params).params
        assert mapped.keys() == one.keys()
        torch.testing.assert_close({name: leaf[i] for name, leaf in mapped.items()}, one, rtol=1e-12, atol=1e-12)


def rolled(leaf: torch.Tensor, i: int) -> torch.Tensor:
    return (1 + 0.3 * i) * (leaf.roll(i, 0) if leaf.dim() else leaf)


# -- properties -------------------------------------------------------------------------------------------------------


def law(examples: int):
    """Settings of a property; the same examples every time, and of all properties the same, which are traced once."""
    checks = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=checks,
    )
    return lambda test: hypothesis.seed(0)(settings(test))


def very_many(examples: int):
    """Settings of a slow property: other examples each time."""
    return hypothesis.settings(
        max_examples=examples, deadline=None, print_blob=True, suppress_health_check=list(hypothesis.HealthCheck)
    )


@law(30)
@hypothesis.given(network=networks())
def test_every_network_keeps_its_function_and_its_parameters(network):
    check(network)


@law(30)
@hypothesis.given(network=networks())
def test_derivatives_go_through_canonization(network):
    check_derivatives(network)


@law(30)
@hypothesis.given(network=networks())
def test_vmap_over_stacked_parameters_equals_the_loop(network):
    check_vmap(network)


@pytest.mark.slow
@very_many(3000)
@hypothesis.given(network=networks())
def test_very_many_networks_keep_their_function_and_their_parameters(network):
    check(network)


@pytest.mark.slow
@very_many(300)
@hypothesis.given(network=networks())
def test_derivatives_go_through_canonization_of_many_networks(network):
    check_derivatives(network)


@pytest.mark.slow
@very_many(300)
@hypothesis.given(network=networks())
def test_vmap_equals_the_loop_for_many_networks(network):
    check_vmap(network)


# -- what must be folded ----------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: int = 3, padding: int | str = 0, bias: bool = True, **more) -> Conv:
    two = padding if isinstance(padding, str) else (padding,) * 2
    return Conv(inputs, outputs, (kernel,) * 2, (1, 1), two, (1, 1), bias=bias, **more)


RELU, MEAN = Do("relu"), Do("mean", ((2, 3), False))
HALVE = Do("avg_pool", ((2, 2), (2, 2), (0, 0), False, True))
PEAKS = Do("max_pool", ((2, 2), (2, 2), (1, 1), 1, True))
PADDED_POOL = Do("avg_pool", ((2, 2), (2, 2), (1, 1), False, True))
NORM, NORM1 = Norm(4, 2), Norm(4, 0)
TRANSPOSED = Transposed(4, 6, (3, 3), (2, 2), (1, 1), (1, 1), 2, True, (1, 1))


def both(how: str, one: tuple, other: tuple, value: float = 1) -> Join:
    return Join(how, value, (one, other))


# Steps, for inputs of four channels and 6 x 6 pixels, and what must become of the batch norms, in their order.
FATES = {
    "conv norm": ((conv(4, 4), NORM), [MERGED]),
    "conv frozen": ((conv(4, 4, bias=False), NORM._replace(is_frozen=True)), [MERGED]),
    "transposed norm": ((TRANSPOSED, Norm(6, 2)), [MERGED]),
    "conv norm norm": ((conv(4, 4), NORM, NORM), [MERGED, MERGED]),
    "conv pool norm": ((conv(4, 4), HALVE, NORM), [MERGED]),
    "conv mean norm": ((conv(4, 4), MEAN, NORM1), [MERGED]),
    "conv flatten norm": ((conv(4, 2, 6), Do("flatten", (1,)), Norm(2, 0)), [MERGED]),
    "conv shuffle norm": ((conv(4, 4), Do("shuffle", (2,)), NORM), [MERGED]),
    "conv reflect norm": ((conv(4, 4), Do("pad", ((1, 1, 1, 1), "reflect")), NORM), [MERGED]),
    "conv + conv norm": ((both("add", (conv(4, 4),), (conv(4, 4, bias=False),)), NORM), [MERGED, PARALLEL]),
    "conv - 2 conv norm": ((both("sub", (conv(4, 4, bias=False),), (conv(4, 4),), 2.0), NORM), [MERGED, PARALLEL]),
    "conv pad - 2 conv norm": (
        (both("sub", (conv(4, 4), Do("pad", ((1,) * 4,))), (conv(4, 4, padding=1),), 2.0), NORM),
        [MERGED],
    ),
    "conv norm + conv norm norm": (
        (both("add", (conv(4, 4), NORM), (conv(4, 4), NORM)), NORM),
        [*[MERGED] * 3, PARALLEL],
    ),
    "cat(conv, conv) norm": ((both("cat", (conv(4, 3),), (conv(4, 1),)), NORM), [MERGED]),
    "cat in space norm": ((both("cat", (conv(4, 4),), (conv(4, 4),), 3), NORM), [MERGED]),
    "cat(conv + conv, conv) norm": (
        (both("cat", (both("add", (conv(4, 3),), (conv(4, 3),)),), (conv(4, 1),)), NORM),
        [MERGED, PARALLEL],
    ),
    "conv + norm": ((both("add", (conv(4, 4, padding=1),), (NORM,)),), [PARALLEL] * 2),
    "conv norm - 2 norm": ((both("sub", (conv(4, 4, padding=1), NORM), (NORM,), 2.0),), [MERGED, PARALLEL, PARALLEL]),
    "conv + _, norm": ((both("add", (conv(4, 4, padding=1, groups=2),), ()), NORM), [MERGED, PARALLEL]),
    "conv + (conv + norm)": (
        (both("add", (conv(4, 4, padding=1), NORM), (both("add", (conv(4, 4, 1, groups=4),), (NORM,)),)),),
        [MERGED, PARALLEL, PARALLEL],
    ),
    "norm conv + conv": ((NORM, both("add", (conv(4, 4),), (conv(4, 4),))), [MERGED_RIGHT, PARALLEL]),
    "conv apart + conv": ((both("add", (conv(4, 4, padding=1, groups=4),), (conv(4, 4, 1, padding="same"),)),), [LEFT]),
    "norm conv": ((NORM, conv(4, 4)), [MERGED_RIGHT]),
    "norm padded conv": ((NORM, conv(4, 4, padding=1)), [MERGED_RIGHT]),
    "norm same conv": ((NORM, conv(4, 4, padding="same", bias=False)), [MERGED_RIGHT]),
    "norm reflected conv": ((NORM, conv(4, 4, padding=1, mode="reflect")), [MERGED_RIGHT]),
    "norm grouped conv": ((NORM, conv(4, 4, padding=4, groups=2)), [MERGED_RIGHT]),
    "norm transposed": ((NORM, TRANSPOSED), [MERGED_RIGHT]),
    "norm norm conv": ((NORM, NORM, conv(4, 4, padding=1)), [MERGED_RIGHT, MERGED]),
    "norm pad conv": ((NORM, Do("pad", ((1, 0, 2, 1),)), conv(4, 4, padding=1)), [MERGED_RIGHT]),
    "norm pad norm conv": ((NORM, Do("pad", ((1, 0, 2, 1),)), NORM, conv(4, 4, padding=1)), [MERGED_RIGHT] * 2),
    "norm padded pool conv": ((NORM, PADDED_POOL, conv(4, 4, padding=1)), [MERGED_RIGHT]),
    "norm shuffle conv": ((NORM, Do("shuffle", (2,)), conv(4, 4, padding=1)), [MERGED_RIGHT]),
    "norm flatten linear": ((NORM, Do("flatten", (1,)), Linear(144, 3)), [MERGED_RIGHT]),
    "norm mean relu linear": ((NORM, MEAN, RELU, Linear(4, 3)), [THRESHOLD]),
    "norm pad by a number conv": ((NORM, Do("pad", ((1, 1, 1, 1), "constant", 0.7)), conv(4, 4)), [LEFT]),
    "conv + narrow conv norm": ((both("add", (conv(4, 4),), (conv(4, 1),)), NORM), [LEFT]),
    "norm valid conv": ((NORM, conv(4, 4, padding="valid")), [MERGED_RIGHT]),
    "norm upsample conv": ((NORM, Do("upsample", ("bilinear",)), conv(4, 4, padding=1)), [MERGED_RIGHT]),
    "norm channels last linear": ((NORM, Do("permute", ((0, 2, 3, 1),)), Linear(4, 3)), [MERGED_RIGHT]),
    "linear channels first norm": (
        (Do("permute", ((0, 2, 3, 1),)), Linear(4, 3), Do("permute", ((0, 3, 1, 2),)), Norm(3, 2)),
        [MERGED],
    ),
    "one channel, norm pad linear": (
        (Do("first", (4,)), Norm(1, 2), Do("pad", ((1, 1),)), Linear(8, 3)),
        [LEFT],
    ),
    "norm relu conv": ((NORM, RELU, conv(4, 4, padding=1)), [THRESHOLD]),
    "norm relu pool conv": ((NORM, RELU, HALVE, conv(4, 4, padding=1)), [THRESHOLD]),
    "norm peaks conv": ((NORM, PEAKS, conv(4, 4)), [MERGED_RIGHT]),
    "norm peaks peaks pad conv": ((NORM, PEAKS, PEAKS, Do("pad", ((1, 1, 1, 1),)), conv(4, 4)), [MERGED_RIGHT]),
    "norm peaks halve flatten linear": ((NORM, PEAKS, HALVE, Do("flatten", (1,)), Linear(16, 3)), [MERGED_RIGHT]),
    "norm peaks relu peaks conv": ((NORM, PEAKS, RELU, PEAKS, conv(4, 4, padding=1)), [THRESHOLD]),
    "norm relu peaks relu6 conv": ((NORM, RELU, PEAKS, Do("relu6"), conv(4, 4, padding=1)), [THRESHOLD]),
    "cat(norm, _) peaks conv": ((both("cat", (NORM,), ()), PEAKS, conv(8, 4)), [MERGED_RIGHT]),
    "norm pad peaks conv": ((NORM, Do("pad", ((1, 1, 1, 1),)), PEAKS, conv(4, 4)), [LEFT]),
    "norm relu pad conv": ((NORM, RELU, Do("pad", ((1, 1, 1, 1),)), conv(4, 4)), [THRESHOLD]),
    "norm relu mean flatten linear": (
        (NORM, RELU, Do("adaptive_avg_pool", ((1, 1),)), Do("flatten", (1,)), Linear(4, 3)),
        [THRESHOLD],
    ),
    "norm leaky_relu conv": ((NORM, Do("leaky_relu", (0.1,)), conv(4, 4, padding=1)), [THRESHOLD]),
    "norm relu6 hardtanh conv": ((NORM, Do("relu6"), Do("hardtanh"), conv(4, 4, padding=1)), [THRESHOLD]),
    "norm norm relu conv": ((NORM, NORM, RELU, conv(4, 4, padding=1)), [THRESHOLD, MERGED]),
    "norm (relu conv + conv)": (
        (NORM, both("add", (RELU, conv(4, 4, padding=1)), (conv(4, 4, padding=1),))),
        [THRESHOLD],
    ),
    "cat(norm, _) relu conv": ((both("cat", (NORM,), ()), RELU, conv(8, 4, padding=1)), [THRESHOLD]),
    "conv kept, norm conv": ((conv(4, 4), Keep(), NORM, conv(4, 4, padding=1)), [MERGED_RIGHT]),
    "one conv, norms of their own": ((conv(4, 4, padding=1), NORM, Again(0), Norm(4, 2, 0.3)), [MERGED] * 2),
    "one norm, layers of its own": ((conv(4, 4, padding=1), NORM, conv(4, 4), Again(1)), [MERGED] * 2),
    "one norm, before and behind": ((conv(4, 4, padding=1), NORM, RELU, Again(1), conv(4, 4)), [MERGED, MERGED_RIGHT]),
}


@pytest.mark.parametrize("case", FATES)
@pytest.mark.parametrize("zeros", [False, True])
def test_batch_norms_have_the_fate_that_their_neighbours_allow(case, zeros):
    steps, became = FATES[case]
    network = Network((4, 6, 6), steps, 3, zeros)
    traced = check(network)
    report = lrpfunc.canonize(traced.fmodel, traced.params).report
    assert [fate.became for fate in report.fates.values()] == became
    if not (zeros and PEAKS in steps):  # the largest of many zeros has no derivative
        check_derivatives(network)


# -- attributions of canonical networks -------------------------------------------------------------------------------

HEAD = (RELU, MEAN, Linear(5, 3))
# One for each way of folding.
EXPLAINED = {
    MERGED: Network((4, 6, 6), (conv(4, 5), Norm(5, 2), *HEAD), 0, zeros=False),
    MERGED_RIGHT: Network((4, 6, 6), (conv(4, 4), RELU, NORM, conv(4, 5, padding=1), *HEAD), 0, zeros=False),
    THRESHOLD: Network((4, 6, 6), (conv(4, 4), RELU, NORM, RELU, HALVE, conv(4, 5, padding=1), *HEAD), 1, zeros=False),
}
# Others whose equations the canonical program has to itself.
TRACED_AGAIN = {
    **EXPLAINED,
    "a maximum": Network((4, 6, 6), (conv(4, 4), RELU, NORM, PEAKS, conv(4, 5, padding=1), *HEAD), 0, zeros=False),
    "a slope": Network((4, 6, 6), (NORM, Do("leaky_relu", (0.1,)), conv(4, 5, padding=1), *HEAD), 0, zeros=False),
    "transposed": Network((4, 6, 6), (NORM, TRANSPOSED, RELU, MEAN, Linear(6, 3)), 0, zeros=False),
}


def explained(way: str) -> Case:
    case = case_of(EXPLAINED[way])
    fates = lrpfunc.canonize(case.fmodel, case.params).report.fates
    assert [fate.became for fate in fates.values()] == [way]
    return case


@pytest.mark.parametrize("name", TRACED_AGAIN)
@pytest.mark.parametrize("rule", [rules.epsilon(1e-9), rules.zplus(), rules.gamma()], ids=lambda rule: rule.label)
def test_a_canonical_program_that_is_traced_again_has_the_same_explanation(name, rule):
    """As it is where something is put in front of it, or where two are compared in one."""
    case = case_of(TRACED_AGAIN[name])
    canonical = lrpfunc.canonize(case.fmodel, case.params)
    again, params = lrpfunc.trace(lambda params, x: canonical.fmodel(params, x), canonical.params, case.x)
    expected = lrpfunc.attribute(canonical.fmodel, canonical.params, case.x, rule, 1)
    torch.testing.assert_close(lrpfunc.attribute(again, params, case.x, rule, 1), expected, rtol=1e-12, atol=0)


def attributed(case: Case, params: dict, rule, target: int = 0) -> torch.Tensor:
    canonical = lrpfunc.canonize(case.fmodel, params)
    return lrpfunc.attribute(canonical.fmodel, canonical.params, case.x, rule, target)


PARTS = ["chain.0.weight", "weight", "bias", "running_mean", "running_var", "eps"]


@pytest.mark.parametrize("way", EXPLAINED)
@pytest.mark.parametrize("part", PARTS)
def test_relevance_has_derivatives_in_the_original_parameters(way, part):
    case = explained(way)
    (norm,) = norms_of(case.fmodel)
    name = part if part in case.params else f"{norm.name}.{part}"
    weights = torch.rand(case.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5

    def loss(leaf):
        return (attributed(case, {**case.params, name: leaf}, composites.epsilon(1e-2)) * weights).sum()

    leaf = case.params[name]
    gradient = grad(loss)(leaf).flatten()
    assert gradient.abs().max() > 1e-4
    for i in torch.randperm(leaf.numel(), generator=torch.Generator().manual_seed(3))[:6].tolist():
        step = torch.zeros_like(leaf).flatten()
        step[i] = 1e-6
        step = step.reshape(leaf.shape)
        expected = (loss(leaf + step) - loss(leaf - step)) / 2e-6
        torch.testing.assert_close(gradient[i], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", EXPLAINED)
def test_vmap_over_stacked_parameters_equals_the_loop_to_the_end(way):
    case = explained(way)
    several = [{name: rolled(leaf, i) for name, leaf in case.params.items()} for i in range(3)]
    stacked = {name: torch.stack([params[name] for params in several]) for name in case.params}

    def output(params):
        canonical = lrpfunc.canonize(case.fmodel, params)
        return canonical.fmodel(canonical.params, case.x)

    def relevance(params):
        return attributed(case, params, composites.epsilon_plus())

    for f in (output, relevance):
        mapped = vmap(f)(stacked)
        for i, params in enumerate(several):
            assert_same(mapped[i], f(params))


CONSERVING = {
    "epsilon": composites.epsilon(1e-13, zero_bias=True),
    "epsilon_plus": composites.epsilon_plus(1e-13, 1e-13, zero_bias=True),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-5.0, 5.0, 1e-13, stabilizer=1e-13, zero_bias=True),
}


@pytest.mark.parametrize("way", EXPLAINED)
@pytest.mark.parametrize("composite", CONSERVING)
def test_without_biases_relevance_is_conserved(way, composite):
    case = explained(way)
    logits = case.model(case.x)
    for target in range(3):
        relevance = attributed(case, case.params, CONSERVING[composite], target)
        torch.testing.assert_close(relevance.flatten(1).sum(1), logits[:, target], rtol=1e-8, atol=1e-8)


def test_a_bias_map_counts_as_a_bias():
    case = case_of(Network((4, 6, 6), (NORM, conv(4, 5, padding=1, bias=False)), 0, zeros=False))
    canonical = lrpfunc.canonize(case.fmodel, case.params)
    (name,) = [e.name for e in canonical.fmodel.equations if e.operator == "conv2d_bias_map"]
    seed = torch.rand(2, 5, 6, 6, dtype=torch.float64)
    shares = {}
    for zero_bias in (False, True):
        rule = {name: rules.epsilon(0.0, zero_bias)}
        y, pullback = lrpfunc.vjp(canonical.fmodel, canonical.params, case.x, rule)
        linear = F.conv2d(case.x, canonical.params["chain.1.weight"], padding=1)
        z = linear if zero_bias else y
        expected = case.x * torch.nn.grad.conv2d_input(case.x.shape, canonical.params["chain.1.weight"], seed / z, 1, 1)
        assert_same(pullback(seed), expected)
        shares[zero_bias] = pullback(seed)
    assert relative_error(shares[True], shares[False]) > 1e-2
    torch.testing.assert_close(shares[True].sum(), seed.sum())
