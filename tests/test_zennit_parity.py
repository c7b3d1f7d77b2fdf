"""lrpfunc's rules and composites against zennit 0.5.1, and its epsilon rule against captum: the same numbers.

zennit is the oracle: every test gives the same module, input and output relevance to both, in float64.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
import zennit.canonizers
import zennit.composites
import zennit.core
import zennit.layer
import zennit.rules
import zennit.torchvision
import zennit.types
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zennit.attribution import Gradient

import lrpfunc
from lrpfunc import composites, rules
from tests.helpers import randomize, relative_error

ROUNDING = 1e-10  # for one layer, or a network of a few; most agree to 1e-15
DEEP = 1e-6  # what is promised of deep networks; they agree to 1e-13


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers between -3 and 3."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)


def draw_input(*shape: int, seed: int = 0) -> Tensor:
    """A batch whose first sample has both signs; the others are such as a ReLU leaves them, half of them zero."""
    x = draw(*shape, seed=seed)
    return torch.cat([x[:1], x[1:].relu()])


def filled(module: nn.Module) -> nn.Module:
    """The module in float64 with normal parameters: biases are then as large as weights, of both signs."""
    module = module.double().requires_grad_(False)
    for seed, parameter in enumerate(module.parameters(), start=1):
        parameter.copy_(draw(*parameter.shape, seed=seed))
    return module


def assert_parity(got: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    assert expected.isfinite().all()
    assert relative_error(got, expected) <= tolerance


# -- one rule at one layer, under either library ----------------------------------------------------------------------


def by_zennit(rule: zennit.core.Hook, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    handles = rule.register(module)
    try:
        x = x.detach().requires_grad_()
        (moved,) = torch.autograd.grad(module(x), x, relevance)
    finally:
        handles.remove()
    return moved


def by_program(rule: rules.Rule, traced: tuple, x: Tensor, relevance: Tensor) -> Tensor:
    """The rule for the layer's weighted equation, and the defaults for what else it does, such as padding."""
    return lrpfunc.vjp(*traced, x, rule)[1](relevance)


def by_custom_vjp(rule: rules.Rule, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """The rule for the function that the module calls."""
    explained = lrpfunc.custom_vjp(rule, FUNCTIONS[type(module)])
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    keywords = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if not isinstance(module, nn.modules.conv._ConvTransposeNd):
        keywords.pop("output_padding", None)
    _, pullback = torch.func.vjp(lambda x: explained(x, module.weight, module.bias, **keywords), x)
    return pullback(relevance)[0]


FUNCTIONS = {
    nn.Linear: F.linear,
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}

# Both libraries' constructors and their leading arguments; the stabilizer and the bias's treatment come after these.
BOX = (-3.5, 4.0)
RULES = {
    "epsilon": (rules.epsilon, zennit.rules.Epsilon, ()),
    "zplus": (rules.zplus, zennit.rules.ZPlus, ()),
    "alpha_beta(1, 0)": (rules.alpha_beta, zennit.rules.AlphaBeta, (1.0, 0.0)),
    "alpha_beta(1.5, 0.5)": (rules.alpha_beta, zennit.rules.AlphaBeta, (1.5, 0.5)),
    "alpha_beta(2, 1)": (rules.alpha_beta, zennit.rules.AlphaBeta, (2.0, 1.0)),
    "gamma(0)": (rules.gamma, zennit.rules.Gamma, (0.0,)),
    "gamma(0.25)": (rules.gamma, zennit.rules.Gamma, (0.25,)),
    "gamma(10)": (rules.gamma, zennit.rules.Gamma, (10.0,)),
    "zbox": (rules.zbox, zennit.rules.ZBox, BOX),
    "wsquare": (rules.wsquare, zennit.rules.WSquare, ()),
    "flat": (rules.flat, zennit.rules.Flat, ()),
}

STABILIZERS = {
    "1e-6": (1e-6, 1e-6),
    "1e-2": (1e-2, 1e-2),
    "1": (1.0, 1.0),
    **{
        str(options): (lrpfunc.stabilizer(**options), zennit.core.Stabilizer(**options))
        for options in (
            {"epsilon": 0.5, "clip": True},
            {"epsilon": 0.1, "norm_scale": True},
            {"epsilon": 0.1, "norm_scale": True, "dim": (1,)},
            {"epsilon": 0.3, "norm_scale": True, "clip": True, "dim": (0, -1)},
        )
    },
    "a function": (lambda z: z + z.sign() + 0.1, lambda z: z + z.sign() + 0.1),
}


def pair(rule: str, stabilizer: str = "1e-6", zero_bias: bool = False) -> tuple[rules.Rule, zennit.core.Hook]:
    ours, theirs, arguments = RULES[rule]
    our_stabilizer, their_stabilizer = STABILIZERS[stabilizer]
    keywords = {"zero_bias": zero_bias} if rule != "flat" else {}  # flat never looks at a bias
    zero_params = "bias" if zero_bias else None
    return ours(*arguments, our_stabilizer, **keywords), theirs(*arguments, their_stabilizer, zero_params=zero_params)


# -- rules of weighted layers: a few by name, any that can be drawn ---------------------------------------------------

CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}
LAYERS = {
    "Linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "Conv2d": (lambda: nn.Conv2d(**CONV, stride=2, dilation=2, groups=2), (2, 4, 8, 9)),
    "Conv2d same": (lambda: nn.Conv2d(**CONV | {"padding": "same"}, dilation=2), (2, 4, 8, 9)),
    "Conv2d reflect": (lambda: nn.Conv2d(**CONV, padding_mode="reflect"), (2, 4, 8, 9)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(**CONV, stride=2, dilation=3, groups=2, output_padding=2),
        (2, 4, 8, 9),
    ),
}


@functools.cache
def layer(name: str) -> tuple[nn.Module, tuple, tuple[int, ...]]:
    """The module, what it was traced to, and the shape of its input."""
    make, shape = LAYERS[name]
    module = filled(make())
    return module, lrpfunc.functionalize(module, draw(*shape)), shape


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYERS)
def test_rule(name, rule):
    module, traced, shape = layer(name)
    ours, theirs = pair(rule)
    x = draw_input(*shape)
    relevance = draw(*module(x).shape, seed=9)
    assert_parity(by_program(ours, traced, x, relevance), by_zennit(theirs, module, x, relevance))


@pytest.mark.parametrize("rule", RULES)
def test_zero_bias(rule):
    """Also where the bias decides on the output's sign, by which gamma chooses its terms."""
    module, traced, shape = layer("Conv2d")
    ours, theirs = pair(rule, "1e-2", zero_bias=True)
    x = draw_input(*shape)
    relevance = draw(*module(x).shape, seed=9)
    assert_parity(by_program(ours, traced, x, relevance), by_zennit(theirs, module, x, relevance))


@pytest.mark.parametrize("stabilizer", STABILIZERS)
def test_stabilizers(stabilizer):
    """Of all rules, in one layer."""
    module, traced, shape = layer("Linear")
    x = draw_input(*shape)
    relevance = draw(*module(x).shape, seed=9)
    for rule in RULES:
        ours, theirs = pair(rule, stabilizer)
        assert_parity(by_program(ours, traced, x, relevance), by_zennit(theirs, module, x, relevance))


@pytest.mark.parametrize("shape", [(), (1, 1, 1), (1, 4, 1, 1), (1, 4, 8, 9), (2, 4, 8, 9), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_zbox_bounds(name, shape):
    """Bounds by channel, by pixel and by sample, wherever both libraries take their shape."""
    module, traced, input_shape = layer(name)
    low, high = -3 - draw(*shape, seed=1).abs(), 3 + draw(*shape, seed=2).abs()
    x = draw_input(*input_shape)
    relevance = draw(*module(x).shape, seed=9)
    expected = by_zennit(zennit.rules.ZBox(low, high), module, x, relevance)
    assert_parity(by_program(rules.zbox(low, high), traced, x, relevance), expected)


def test_zbox_bounds_of_one_sample():
    """zennit wants the batch dimension that lrpfunc lets one leave out."""
    module, traced, shape = layer("Conv2d")
    low, high = -3 - draw(4, 8, 9, seed=1).abs(), 3 + draw(4, 8, 9, seed=2).abs()
    x = draw_input(*shape)
    relevance = draw(*module(x).shape, seed=9)
    expected = by_zennit(zennit.rules.ZBox(low[None], high[None]), module, x, relevance)
    assert_parity(by_program(rules.zbox(low, high), traced, x, relevance), expected)


@pytest.mark.parametrize("stabilizer", STABILIZERS)
def test_stabilizer_itself(stabilizer):
    """Zeros of both signs count as positive."""
    z = torch.cat([draw(3, 4), draw(3, 4) * 1e-8, torch.zeros(1, 4).double(), -torch.zeros(1, 4).double()])
    ours, theirs = STABILIZERS[stabilizer]
    expected = zennit.core.Stabilizer.ensure(theirs)(z)
    # In units of a norm that is zero, zennit's epsilon is zero, and ours a little more.
    torch.testing.assert_close(lrpfunc.stabilizer(ours)(z), expected, rtol=1e-14, atol=1e-16)


DRAWN = ["linear", *(f"{kind}{dimensions}d" for kind in ("conv", "transposed") for dimensions in (1, 2, 3))]
PADDINGS = ("zeros", "reflect", "replicate", "circular")


@st.composite
def layers(draw_one, kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Any layer of a kind, with its own geometry along each axis, and the shape of an input."""
    bias, batch = draw_one(st.booleans()), draw_one(st.integers(1, 3))
    if kind == "linear":
        sizes = [draw_one(st.integers(1, 6)) for _ in range(2)]
        steps = draw_one(st.lists(st.integers(1, 3), max_size=2))
        return filled(nn.Linear(*sizes, bias=bias)), (batch, *steps, sizes[0])
    dimensions, is_transposed = int(kind[-2]), kind.startswith("transposed")
    groups = draw_one(st.integers(1, 4))  # with one channel each, a depthwise convolution
    channels = [groups * draw_one(st.integers(1, 2)) for _ in range(2)]

    def along_axes(low: int, high: int) -> tuple[int, ...]:
        return draw_one(st.tuples(*[st.integers(low, high)] * dimensions))

    kernel, stride, padding, dilation = along_axes(1, 3), along_axes(1, 3), along_axes(0, 3), along_axes(1, 3)
    size = along_axes(1, 9 if dimensions < 3 else 6)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    extra = {}
    if is_transposed:
        limits = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        extra["output_padding"] = draw_one(st.tuples(*(st.integers(0, limit) for limit in limits)))
        rows = zip(size, stride, padding, spans, extra["output_padding"], strict=True)
        assume(all((n - 1) * s - 2 * p + span + o > 0 for n, s, p, span, o in rows))
    else:
        extra["padding_mode"] = draw_one(st.sampled_from(PADDINGS))
        assume(all(n + 2 * p >= span for n, p, span in zip(size, padding, spans, strict=True)))
        assume(extra["padding_mode"] == "zeros" or all(n > p for n, p in zip(size, padding, strict=True)))
        if max(stride) == 1 and draw_one(st.booleans()):
            padding, extra["padding_mode"] = "same", "zeros"
    module = getattr(nn, f"Conv{'Transpose' * is_transposed}{dimensions}d")(
        *channels, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias, **extra
    )
    return filled(module), (batch, channels[0], *size)


def compare_any(kind: str, data: st.DataObject) -> None:
    """Any layer, stabilizer and treatment of its bias, under every rule, by a program and as one function."""
    module, shape = data.draw(layers(kind))
    stabilizer, zero_bias = data.draw(st.sampled_from(list(STABILIZERS))), data.draw(st.booleans())
    seed = data.draw(st.integers(0, 99))
    x = draw_input(*shape, seed=seed)
    relevance = draw(*module(x).shape, seed=seed + 1)
    traced = lrpfunc.functionalize(module, x)
    for rule in RULES:
        ours, theirs = pair(rule, stabilizer, zero_bias)
        expected = by_zennit(theirs, module, x, relevance)
        if expected.isfinite().all():  # a z of zeros has no norm to scale epsilon by, so zennit divides 0 by 0
            assert_parity(by_program(ours, traced, x, relevance), expected)
            if getattr(module, "padding_mode", "zeros") == "zeros":  # else the module calls more than one function
                assert_parity(by_custom_vjp(ours, module, x, relevance), expected)


@pytest.mark.parametrize("kind", DRAWN)
@given(data=st.data())
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
def test_any_layer(kind, data):
    compare_any(kind, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWN)
@given(data=st.data())
@settings(max_examples=300, deadline=None, database=None)
def test_any_of_many_layers(kind, data):
    compare_any(kind, data)


# -- rules of layers without parameters -------------------------------------------------------------------------------


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def by_program_everywhere(rule: rules.Rule, module: nn.Module, x, relevance: Tensor):
    inputs = x if isinstance(x, tuple) else (x,)
    fmodel, params = lrpfunc.functionalize(module, *inputs)
    return lrpfunc.vjp(fmodel, params, x, composites.by_kind({"*": rule}))[1](relevance)


PROPORTIONAL = {
    "norm": (rules.norm, zennit.rules.Norm),
    "epsilon": (rules.epsilon, zennit.rules.Epsilon),
    "flat": (rules.flat, zennit.rules.Flat),
}
POOLS = {
    "AvgPool1d": (lambda: nn.AvgPool1d(2), (2, 3, 8)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, padding=1), (2, 3, 8, 7)),
    "AvgPool2d without padding's share": (lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), (2, 3, 8, 7)),
    "AvgPool2d ceil": (lambda: nn.AvgPool2d(3, ceil_mode=True), (2, 3, 8, 7)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), (2, 3, 4, 5, 4)),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(3), (2, 3, 8)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((3, 9)), (2, 3, 8, 7)),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), (2, 3, 4, 5, 4)),
    "Sum": (lambda: zennit.layer.Sum(), (2, 3, 4)),
    "Sum of channels": (lambda: zennit.layer.Sum(dim=1), (2, 3, 4)),
    "Upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4, 5)),
}


@pytest.mark.parametrize("stabilizer", ["1e-6", "1e-2", "{'epsilon': 0.5, 'clip': True}"])
@pytest.mark.parametrize("rule", PROPORTIONAL)
@pytest.mark.parametrize("pool", POOLS)
def test_proportional_rule(pool, rule, stabilizer):
    make, shape = POOLS[pool]
    module = make()
    ours, theirs = (of(s) for of, s in zip(PROPORTIONAL[rule], STABILIZERS[stabilizer], strict=True))
    x = draw_input(*shape)
    relevance = draw(*module(x).shape, seed=9)
    expected = by_zennit(theirs, module, x, relevance)
    assert_parity(by_program_everywhere(ours, module, x, relevance), expected)


@pytest.mark.parametrize("rule", PROPORTIONAL)
def test_functional_sum_is_zennits_sum_layer(rule):
    """A plain `+` needs no canonizer: it is zennit's Sum of the stacked summands."""
    make, oracle = PROPORTIONAL[rule]
    a, b, relevance = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    expected = by_zennit(oracle(1e-2), zennit.layer.Sum(), torch.stack([a, b], -1), relevance)
    got = by_program_everywhere(make(1e-2), Call(torch.add), (a, b), relevance)
    assert_parity(torch.stack(got, -1), expected)


def test_functional_difference_is_zennits_sum_layer():
    a, b, relevance = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    expected = by_zennit(zennit.rules.Norm(1e-2), zennit.layer.Sum(), torch.stack([a, -b], -1), relevance)
    got = by_program_everywhere(rules.norm(1e-2), Call(torch.sub), (a, b), relevance)
    assert_parity(torch.stack(got, -1), expected)


def test_functional_mean_is_average_pooling():
    x, relevance = draw(2, 3, 4, 5), draw(2, 3, seed=2)
    expected = by_zennit(zennit.rules.Norm(1e-2), nn.AdaptiveAvgPool2d(1), x, relevance[..., None, None])
    got = by_program_everywhere(rules.norm(1e-2), Call(lambda x: x.mean((2, 3))), x, relevance)
    assert_parity(got, expected)


ELEMENTWISE = {
    "pass_through": (rules.pass_through(), zennit.rules.Pass()),
    "relu_deconvnet": (rules.relu_deconvnet(), zennit.rules.ReLUDeconvNet()),
    "relu_guided_backprop": (rules.relu_guided_backprop(), zennit.rules.ReLUGuidedBackprop()),
    "relu_beta_smooth(10)": (rules.relu_beta_smooth(), zennit.rules.ReLUBetaSmooth()),
    "relu_beta_smooth(0.5)": (rules.relu_beta_smooth(0.5), zennit.rules.ReLUBetaSmooth(0.5)),
}
ACTIVATIONS = {
    nn.ReLU: F.relu,
    nn.LeakyReLU: F.leaky_relu,
    nn.ELU: F.elu,
    nn.GELU: F.gelu,
    nn.SiLU: F.silu,
    nn.Tanh: torch.tanh,
    nn.Sigmoid: torch.sigmoid,
    nn.Hardswish: F.hardswish,
}


@pytest.mark.parametrize("rule", ELEMENTWISE)
@pytest.mark.parametrize("make", ACTIVATIONS)
def test_elementwise_rule(make, rule):
    ours, theirs = ELEMENTWISE[rule]
    module = make()
    x, relevance = draw(4, 3, 5), draw(4, 3, 5, seed=9)
    x[0, 0] = 0.0  # where a ReLU has no derivative
    relevance[0, :, 0] = 0.0
    expected = by_zennit(theirs, module, x, relevance)
    assert_parity(by_program_everywhere(ours, module, x, relevance), expected)
    explained = lrpfunc.custom_vjp(ours, ACTIVATIONS[make])
    assert_parity(torch.func.vjp(explained, x)[1](relevance)[0], expected)


@pytest.mark.parametrize("rule", ELEMENTWISE)
def test_elementwise_rule_of_an_inplace_relu(rule):
    """Against zennit at a ReLU that is not in place: its beta smooth rule sees an input that was overwritten."""
    ours, theirs = ELEMENTWISE[rule]
    x, relevance = draw(4, 3), draw(4, 3, seed=9)
    got = by_program_everywhere(ours, nn.ReLU(inplace=True), x.clone(), relevance)
    assert_parity(got, by_zennit(theirs, nn.ReLU(), x, relevance))


def test_pass_through_of_a_batch_norm():
    module = randomize(nn.BatchNorm2d(3).double())
    x, relevance = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=9)
    expected = by_zennit(zennit.rules.Pass(), module, x, relevance)
    assert_parity(by_program_everywhere(rules.pass_through(), module, x, relevance), expected)


# -- composites -------------------------------------------------------------------------------------------------------


MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
PIXELS = ((0 - MEAN) / STD, (1 - MEAN) / STD)  # the box of normalized images

COMPOSITES = {
    "epsilon_plus": (composites.epsilon_plus, zennit.composites.EpsilonPlus, ()),
    "epsilon_plus_flat": (composites.epsilon_plus_flat, zennit.composites.EpsilonPlusFlat, ()),
    "epsilon_alpha2_beta1": (composites.epsilon_alpha2_beta1, zennit.composites.EpsilonAlpha2Beta1, ()),
    "epsilon_alpha2_beta1_flat": (composites.epsilon_alpha2_beta1_flat, zennit.composites.EpsilonAlpha2Beta1Flat, ()),
    "epsilon_gamma_box": (composites.epsilon_gamma_box, zennit.composites.EpsilonGammaBox, PIXELS),
    "excitation_backprop": (composites.excitation_backprop, zennit.composites.ExcitationBackprop, ()),
    "guided_backprop": (composites.guided_backprop, zennit.composites.GuidedBackprop, ()),
    "deconvnet": (composites.deconvnet, zennit.composites.DeconvNet, ()),
    "beta_smooth": (composites.beta_smooth, zennit.composites.BetaSmooth, ()),
}
GRADIENT_LIKE = ("guided_backprop", "deconvnet", "beta_smooth")


def images(batch: int, size: int) -> Tensor:
    pixels = torch.rand(batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (pixels - MEAN) / STD


class ReLUPerCall(nn.Module):
    """A ReLU that has a module of its own for each call, none of them in place."""

    def __init__(self):
        super().__init__()
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.calls = 0

    def forward(self, x):
        relu = self.relus[self.calls % len(self.relus)]
        self.calls += 1
        return relu(x)


@contextmanager
def relus_of_their_own(model: nn.Module) -> Iterator[None]:
    """zennit's beta smooth rule needs its ReLUs' inputs, of which it keeps one per module, and that uncopied.

    So in the blocks of a ResNet, which call one ReLU two or three times, the last call's input stands for all; and
    after a ReLU in place, its output stands for its input. lrpfunc explains the model as it is.
    """
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU)
    ]
    for parent, name, _ in replaced:
        setattr(parent, name, ReLUPerCall())
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


@contextmanager
def without_eps(model: nn.Module) -> Iterator[None]:
    """Make identities of batch norms that zennit merged.

    Merging leaves each batch norm in its place, with mean 0, variance 1 and its old eps. It goes on to divide by
    sqrt(1 + eps), which puts outputs off by 2e-5 (VGG-11) to 2e-4 (ResNet-50), and relevance by 5e-6 to 7e-3. Setting
    eps to 0 after merging has that eps where it belongs, in the merged weights, and makes the merged network the
    original function again. lrpfunc's canonical program has no batch norms left.
    """
    batch_norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [module.eps for module in batch_norms]
    for module in batch_norms:
        module.eps = 0.0
    try:
        yield
    finally:
        for module, eps in zip(batch_norms, before, strict=True):
            module.eps = eps


def network_by_zennit(composite, model: nn.Module, x: Tensor, relevance: Tensor, merged: bool) -> tuple[Tensor, Tensor]:
    """The output and the relevance of x under a composite. `merged`: its canonizers merge the batch norms."""
    with (
        relus_of_their_own(model),
        Gradient(model, composite) as attributor,
        without_eps(model) if merged else nullcontext(),
    ):
        return attributor(x, relevance)


# -- composites on a small network ------------------------------------------------------------------------------------


@functools.cache
def small_network() -> tuple[nn.Module, tuple, lrpfunc.Canonical]:
    """A network, what it was traced to, and the canonical form of that."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )
    traced = lrpfunc.functionalize(randomize(model.double()), images(2, 16))
    return model, traced, lrpfunc.canonize(*traced)


OPTIONS = {
    "epsilon_plus": {"epsilon": 0.1, "stabilizer": 0.01},
    "epsilon_plus_flat": {"epsilon": 0.1, "stabilizer": 0.01},
    "epsilon_alpha2_beta1": {"epsilon": 0.1, "stabilizer": 0.01},
    "epsilon_alpha2_beta1_flat": {"epsilon": 0.1, "stabilizer": 0.01},
    "epsilon_gamma_box": {"epsilon": 0.1, "gamma": 0.5, "stabilizer": 0.01},
    "excitation_backprop": {"stabilizer": 0.01},
}


@pytest.mark.parametrize("zero_bias", [False, True], ids=["bias", "zero_bias"])
@pytest.mark.parametrize("options", ["defaults", "options"])
@pytest.mark.parametrize("canonized", [True, False], ids=["merged", "batch norms kept"])
@pytest.mark.parametrize("name", OPTIONS)
def test_composite_options(name, canonized, options, zero_bias):
    """R_out is anything here, not only an output. Batch norms that are kept let relevance pass."""
    ours, theirs, arguments = COMPOSITES[name]
    keywords = OPTIONS[name] if options == "options" else {}
    model, traced, canonical = small_network()
    x, relevance = images(2, 16), draw(2, 5, seed=9)
    oracle = theirs(
        *arguments,
        **keywords,
        zero_params="bias" if zero_bias else None,
        canonizers=[zennit.canonizers.SequentialMergeBatchNorm()] if canonized else None,
        # zennit's excitation backprop alone has no entry for batch norms: their gradient would scale relevance.
        layer_map=[(zennit.types.BatchNorm, zennit.rules.Pass())] if name == "excitation_backprop" else None,
    )
    output, expected = network_by_zennit(oracle, model, x, relevance, merged=canonized)
    fmodel, params = canonical[:2] if canonized else traced
    y, pullback = lrpfunc.vjp(fmodel, params, x, ours(*arguments, **keywords, zero_bias=zero_bias))
    assert_parity(y, output)
    assert_parity(pullback(relevance), expected)


@pytest.mark.parametrize("beta", [0.5, 10.0])
def test_beta_of_beta_smooth(beta):
    model, traced, _ = small_network()
    x, relevance = images(2, 16), draw(2, 5, seed=9)
    _, expected = network_by_zennit(zennit.composites.BetaSmooth(beta), model, x, relevance, merged=False)
    _, pullback = lrpfunc.vjp(*traced, x, composites.beta_smooth(beta))
    assert_parity(pullback(relevance), expected)


# -- composites on torchvision's networks -----------------------------------------------------------------------------


class Subject(NamedTuple):
    """A network in the form that each library explains, and the question."""

    model: nn.Module
    traced: tuple
    canonical: lrpfunc.Canonical
    x: Tensor
    classes: Tensor


@functools.lru_cache(maxsize=1)  # a VGG in float64 takes a gigabyte
def subject(name: str) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
    model = randomize(model.double()).requires_grad_(False)
    x = images(2, 32 if name == "resnet18" else 64)
    traced = lrpfunc.functionalize(model, x)
    return Subject(model, traced, lrpfunc.canonize(*traced), x, classes=torch.tensor([3, 8]))


def seed_of(output: Tensor, classes: Tensor) -> Tensor:
    return output * F.one_hot(classes, output.shape[-1])


@pytest.mark.parametrize("name", GRADIENT_LIKE)
def test_gradient_like_composite_without_canonization(name):
    """Nothing is merged and no eps is touched: a gradient goes through batch norms and sums as they are."""
    ours, theirs, _ = COMPOSITES[name]
    model, traced, _, x, classes = subject("resnet18")
    y, pullback = lrpfunc.vjp(*traced, x, ours())
    relevance = seed_of(y, classes)
    output, expected = network_by_zennit(theirs(), model, x, relevance, merged=False)
    assert_parity(y, output)
    assert_parity(pullback(relevance), expected)


# What the plain run has; the slow one has the rest, so together every composite meets every network.
DEFAULT = {
    "resnet18": set(COMPOSITES),
    "resnet50": set(),
    "vgg11": set(),
    "vgg11_bn": {"epsilon_gamma_box"},
    "vgg16": set(),
    "vgg16_bn": set(),
}
NETWORKS = [
    pytest.param(network, composite, marks=() if composite in default else pytest.mark.slow)
    for network, default in DEFAULT.items()
    for composite in COMPOSITES
]


@pytest.mark.parametrize(("network", "name"), NETWORKS)
def test_composite(network, name):
    ours, theirs, arguments = COMPOSITES[name]
    model, _, (fmodel, params, *_), x, classes = subject(network)
    y, pullback = lrpfunc.vjp(fmodel, params, x, ours(*arguments))
    relevance = seed_of(y, classes)
    got = pullback(relevance)

    is_resnet = network.startswith("resnet")
    canonizer = zennit.torchvision.ResNetCanonizer() if is_resnet else zennit.torchvision.VGGCanonizer()
    oracle = theirs(*arguments, canonizers=[canonizer])
    output, expected = network_by_zennit(oracle, model, x, relevance, merged=True)
    assert_parity(y, output, DEEP)
    assert_parity(got, expected, DEEP)
    if name == "epsilon_plus_flat":  # one is enough: the seed does not depend on the rules
        assert_parity(lrpfunc.attribute(fmodel, params, x, ours(), target=classes), expected, DEEP)


# -- captum -----------------------------------------------------------------------------------------------------------


class Flattening(nn.Module):
    """A convolutional network that flattens by a function, as captum has no rule for nn.Flatten."""

    def __init__(self, pool: nn.Module, bias: bool):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=bias),
            nn.ReLU(),
            pool,
            nn.Conv2d(6, 8, 3, stride=2, bias=bias),
            nn.ReLU(),
            nn.AvgPool2d(3),
        )
        self.head = nn.Linear(8, 5, bias=bias)

    def forward(self, x):
        return self.head(self.layers(x).flatten(1))


def by_captum(model: Flattening, x: Tensor, target: int, epsilon: float) -> Tensor:
    for layer in (*model.layers, model.head):
        if not isinstance(layer, nn.ReLU):
            layer.rule = EpsilonRule(epsilon)
    # Input that requires a gradient keeps captum from warning that it will have it require one.
    return LRP(model).attribute(x.clone().requires_grad_(), target=target).detach()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("epsilon", [1e-9, 1e-2])
def test_epsilon_is_captums(epsilon, bias):
    x = draw(2, 3, 16, 16)
    model = filled(Flattening(nn.AvgPool2d(2), bias)).requires_grad_(True)
    everywhere = composites.by_kind({"linear": rules.epsilon(epsilon), "average_pool": rules.norm(epsilon)})
    got = lrpfunc.attribute(*lrpfunc.functionalize(model, x), x, everywhere, target=2)
    assert_parity(got, by_captum(model, x, 2, epsilon))


def test_epsilon_is_captums_with_max_pooling():
    """captum stabilizes maximum pooling too, which costs relevance where maxima are not far above its epsilon."""
    x = draw(2, 3, 16, 16)
    model = filled(Flattening(nn.MaxPool2d(2), bias=False)).requires_grad_(True)
    got = lrpfunc.attribute(*lrpfunc.functionalize(model, x), x, composites.epsilon(1e-9), target=2)
    assert_parity(got, by_captum(model, x, 2, 1e-9), tolerance=1e-6)
