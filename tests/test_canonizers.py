"""Canonization case by case: the same function, nothing mutated, undone bit for bit (law 7)."""

import copy
import functools
import pickle
import pydoc
import types

import optree
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.ops import FrozenBatchNorm2d

import lrpfunc
from lrpfunc import canonizers, composites, operations, rules
from lrpfunc.errors import CanonizeError, InputError, ParameterError, RuleError, TraceError
from lrpfunc.program import Variable
from tests.helpers import randomize, relative_error

DOUBLE = torch.float64


class Net(nn.Module):
    """Layers by name, and a forward that is given: `Net(lambda m, x: m.bn(m.conv(x)), conv=..., bn=...)`."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def signed(model: nn.Module, dead: float = 0.0) -> nn.Module:
    """Random statistics and parameters, also biases; a quarter of the batch norms' scales negative, the last `dead`."""
    generator = torch.Generator().manual_seed(1)
    model = randomize(model).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                for buffer in module.buffers():
                    buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=DOUBLE) + 0.5)
            elif getattr(module, "running_var", None) is not None and module.weight is not None:
                module.weight[1::4] *= -1
                module.weight[-1:] = dead
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.uniform_(-0.5, 0.5, generator=generator)
    return model.requires_grad_(False)


@functools.lru_cache(maxsize=2)
def traced(model: nn.Module, x: torch.Tensor) -> tuple:
    """The program and parameters of a model that nothing changes any more."""
    return lrpfunc.functionalize(model, x)


def canonical_of(model: nn.Module, x: torch.Tensor, passes=None) -> lrpfunc.Canonical:
    """The canonical form of a model, after checking all that must hold of any."""
    fmodel, params = traced(model, x)
    before = {name: leaf.clone() for name, leaf in params.items()}
    canonical = lrpfunc.canonize(fmodel, params, passes)
    expected = model(x)
    assert torch.equal(fmodel(params, x), expected)
    assert relative_error(canonical.fmodel(canonical.params, x), expected) < 1e-13
    assert params.keys() == before.keys() <= canonical.params.keys()
    assert all(torch.equal(before[name], leaf) for name, leaf in params.items())
    restored = canonical.restore(canonical.params)
    assert restored.keys() == params.keys()
    assert all(torch.equal(before[name], leaf) for name, leaf in restored.items())
    return canonical


def fates(canonical: lrpfunc.Canonical) -> dict[str, tuple[str, str]]:
    return {name: tuple(fate) for name, fate in canonical.report.fates.items()}


def operators(program) -> list[str]:
    return [equation.operator for equation in program.equations]


# -- batch norms behind layers ----------------------------------------------------------------------------------------

LAYERS = {
    "linear": lambda: (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
    "linear without bias": lambda: (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (3, 4)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6), (3, 4, 7)),
    "conv2d": lambda: (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv2d same": lambda: (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv2d grouped": lambda: (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv2d depthwise": lambda: (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), (3, 4, 5, 5)),
    "conv2d reflect": lambda: (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv3d": lambda: (nn.Conv3d(4, 6, 2, dilation=2), nn.BatchNorm3d(6), (3, 4, 4, 4, 4)),
    "transposed1d": lambda: (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (3, 4, 5)),
    "transposed2d": lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "transposed2d grouped": lambda: (
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6),
        (3, 4, 5, 5),
    ),
    "transposed3d": lambda: (nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6), (3, 4, 3, 3, 3)),
    "without affine": lambda: (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (3, 4, 5, 5)),
    "frozen": lambda: (nn.Conv2d(4, 6, 3, bias=False), FrozenBatchNorm2d(6), (3, 4, 5, 5)),
    "large eps": lambda: (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.3), (3, 4, 5, 5)),
}


def pair(case: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer, norm, shape = LAYERS[case]()
    return signed(nn.Sequential(layer, norm, nn.ReLU())), torch.randn(shape, dtype=DOUBLE)


@pytest.mark.parametrize("case", LAYERS)
def test_a_batch_norm_is_folded_into_the_layer_before_it(case):
    model, x = pair(case)
    canonical = canonical_of(model, x)
    fmodel, params = traced(model, x)
    assert relative_error(fmodel(canonical.params, x), model(x)) < 1e-13  # the original program too
    assert not any("batch_norm" in operator for operator in operators(canonical.fmodel))
    assert canonical.params.keys() == params.keys()
    identity = {"eps": 0.0, "running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}
    for part, value in identity.items():
        assert (canonical.params.get(f"1.{part}", torch.tensor(value)) == value).all()
    assert str(canonical.report) == "batch norm  became  where\n1           merged  0"


def test_folding_by_hand():
    # s = gamma / sqrt(var + eps) = 6 / sqrt(3 + 1) = 3, so W' = 3 * 2 and b' = 3 * (5 - 1) + 7
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=1.0)).eval().requires_grad_(False)
    for tensor, value in zip(
        (model[0].weight, model[0].bias, model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var),
        (2.0, 5.0, 6.0, 7.0, 1.0, 3.0),
        strict=True,
    ):
        tensor.fill_(value)
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, torch.ones(1, 1)))
    assert canonical.params["0.weight"].item() == 6.0
    assert canonical.params["0.bias"].item() == 19.0


def conv(width: int = 6, **arguments) -> nn.Conv2d:
    return nn.Conv2d(4, width, 3, padding=1, **arguments)


# Between a layer and its batch norm there may be what only moves or averages; what the batch norm is merged into.
BETWEEN = {
    "flatten and unflatten": (lambda m, x: m.bn(m.a(x).flatten(2)).unflatten(2, (5, 5)), lambda: {"a": conv()}, "a"),
    "dropout": (lambda m, x: m.bn(m.drop(m.a(x))), lambda: {"a": conv(), "drop": nn.Dropout()}, "a"),
    "transpose": (lambda m, x: m.bn(m.a(x).transpose(2, 3)), lambda: {"a": conv()}, "a"),
    "permuted channels": (
        lambda m, x: m.bn(m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        lambda: {"a": nn.Linear(4, 6, bias=False)},
        "a",
    ),
    "average pool": (lambda m, x: m.bn(F.avg_pool2d(m.a(x), 2)), lambda: {"a": conv(bias=False)}, "a"),
    "average of what is there": (
        lambda m, x: m.bn(F.avg_pool2d(m.a(x), 3, 2, 1, count_include_pad=False)),
        lambda: {"a": conv()},
        "a",
    ),
    "adaptive pool": (lambda m, x: m.bn(F.adaptive_avg_pool2d(m.a(x), 2)), lambda: {"a": conv()}, "a"),
    "mean": (lambda m, x: m.bn(m.a(x).mean((2, 3))), lambda: {"a": conv()}, "a"),
    "upsampling": (lambda m, x: m.bn(F.interpolate(m.a(x), scale_factor=2)), lambda: {"a": conv()}, "a"),
    "reflection": (lambda m, x: m.bn(F.pad(m.a(x), (1, 2, 1, 0), mode="reflect")), lambda: {"a": conv()}, "a"),
    "groups of channels": (lambda m, x: m.bn(m.a(x).reshape(-1, 6, 10, 5)), lambda: {"a": conv(12)}, "a"),
    "features to channels": (
        lambda m, x: m.bn(m.a(x.flatten(1)).view(-1, 6, 2, 2)),
        lambda: {"a": nn.Linear(100, 24, bias=False)},
        "a",
    ),
    "channel shuffle": (
        lambda m, x: m.bn(m.a(x).view(-1, 2, 3, 5, 5).transpose(1, 2).reshape(-1, 6, 5, 5)),
        lambda: {"a": conv(groups=2)},
        "a",
    ),
    "concatenation": (
        lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)),
        lambda: {"a": conv(2, bias=False), "b": nn.Conv2d(4, 4, 1)},
        "a, b",
    ),
    "concatenation in space": (
        lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 3)),
        lambda: {"a": conv(), "b": conv(bias=False)},
        "a, b",
    ),
    "sum": (lambda m, x: m.bn(m.a(x) + m.b(x)), lambda: {"a": conv(bias=False), "b": conv()}, "a, b"),
    "difference": (lambda m, x: m.bn(m.a(x) - m.b(x)), lambda: {"a": conv(), "b": conv()}, "a, b"),
    "sum with one weight": (lambda m, x: m.bn(m.a(x) + m.a(x.flip(0))), lambda: {"a": conv()}, "a, a:1"),
    "sum of sums, pooled": (
        lambda m, x: m.bn(F.avg_pool2d(m.a(x) + (m.b(x) - torch.cat([m.c(x), m.d(x)], 1)), 2)),
        lambda: {"a": conv(), "b": conv(), "c": conv(3), "d": conv(3)},
        "a, b, c, d",
    ),
    "sum that broadcasts": (
        lambda m, x: m.bn(m.a(x) + m.b(x).mean((2, 3), keepdim=True)),
        lambda: {"a": conv(), "b": conv()},
        "a, b",
    ),
    "its own shape": (lambda m, x: m.bn(m.a(x)).view(m.a(x).shape[0], -1), lambda: {"a": conv()}, None),
    "weight norm": (
        lambda m, x: m.bn(m.a(x)),
        lambda: {"a": nn.utils.parametrizations.weight_norm(conv(bias=False))},
        "a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BETWEEN)
def test_a_batch_norm_is_folded_through_what_moves_or_averages(case):
    forward, layers, into = BETWEEN[case]
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6) if case in ("flatten and unflatten", "mean") else nn.BatchNorm2d(6)
    model, x = signed(Net(forward, **layers(), bn=norm)), torch.randn(3, 4, 5, 5, dtype=DOUBLE)
    canonical = canonical_of(model, x, canonizers.merge_batch_norm)
    assert not any("batch_norm" in operator for operator in operators(canonical.fmodel))
    if into is not None:
        assert fates(canonical)["bn"] == ("merged", into)
    fmodel, params = traced(model, x)
    if case not in ("sum with one weight", "weight norm"):  # these need leaves of their own
        assert canonical.params.keys() == params.keys()
        assert relative_error(fmodel(canonical.params, x), model(x)) < 1e-13


def test_a_batch_norm_after_a_batch_norm_is_folded_too():
    torch.manual_seed(0)
    model = signed(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)))
    canonical = canonical_of(model, torch.randn(2, 2, 5, 5, dtype=DOUBLE))
    assert operators(canonical.fmodel) == ["conv2d"]
    assert fates(canonical) == {"1": ("merged", "0"), "2": ("merged", "0")}


def test_batch_norms_without_a_layer_are_folded_into_one():
    torch.manual_seed(0)
    model = signed(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3), nn.Tanh()))
    canonical = canonical_of(model, torch.randn(2, 3, 4, 4, dtype=DOUBLE))
    assert operators(canonical.fmodel) == ["batch_norm", "tanh"]
    assert fates(canonical)["1"] == ("merged", "0")


def test_folding_is_idempotent():
    canonical = canonical_of(*pair("conv2d"))
    again = lrpfunc.canonize(canonical.fmodel, canonical.params)
    assert all(torch.equal(again.params[name], leaf) for name, leaf in canonical.params.items())
    assert again.fmodel is canonical.fmodel
    assert str(again.report) == repr(again.report) == "no batch norms"


def test_restore_keeps_what_was_changed_elsewhere():
    model = randomize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)))
    fmodel, params = lrpfunc.functionalize(model, torch.randn(2, 4))
    canonical = lrpfunc.canonize(fmodel, params)
    trained = {**canonical.params, "3.bias": torch.ones(2)}
    restored = canonical.restore(trained)
    assert torch.equal(restored["3.bias"], torch.ones(2))
    assert torch.equal(restored["0.weight"], params["0.weight"])


def test_a_shared_weight_gets_its_own_leaf_for_each_use():
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 3, 3, padding=1), "one": nn.BatchNorm2d(3), "two": nn.BatchNorm2d(3)}
    model = signed(Net(lambda m, x: m.two(m.conv(m.one(m.conv(x)).relu())), **layers))
    x = torch.randn(2, 3, 5, 5, dtype=DOUBLE)
    canonical = canonical_of(model, x)
    params = traced(model, x)[1]
    assert torch.equal(canonical.params["conv.weight"], params["conv.weight"])
    assert set(canonical.params) - set(params) == {"conv.weight'", "conv.bias'", "conv:1.weight", "conv:1.bias"}


def test_a_batch_norm_of_weights_is_a_constant():
    def f(params, x):
        weight = F.batch_norm(params["w"], torch.zeros(3), torch.full((3,), 2.0), eps=0.1)
        return F.batch_norm(F.conv2d(x, weight), params["mean"], params["var"])

    params = {"w": torch.randn(4, 3, 2, 2), "mean": torch.rand(4), "var": torch.rand(4) + 0.5}
    x = torch.randn(2, 3, 5, 5)
    canonical = lrpfunc.canonize(*lrpfunc.trace(f, params, x))
    assert [fate.became for fate in canonical.report.fates.values()] == ["merged"]
    assert relative_error(canonical.fmodel(canonical.params, x), f(params, x)) < 1e-6


LEFT = {
    "an input before it": (
        lambda m, x: m.bn(x).tanh(),
        lambda: {},
        "before it: an input; behind it: tanh is no linear layer",
    ),
    "a layer read twice": (
        lambda m, x: (lambda y: m.bn(y) + y)(m.a(x)),
        lambda: {"a": conv(4)},
        "before it: others read a too; behind it: add is no linear layer",
    ),
    "a layer whose result is an output": (
        lambda m, x: (lambda y: (y, m.bn(y)))(m.a(x)),
        lambda: {"a": conv(4)},
        "before it: others read a too; behind it: an output",
    ),
    "differing pixels": (
        lambda m, x: m.a(torch.cat([m.bn(x), x], 2).mean((2, 3))),
        lambda: {"a": nn.Linear(4, 3)},
        "behind it: cat joins other sizes",
    ),
    "scaled": (lambda m, x: m.a(2 * m.bn(x)), lambda: {"a": conv()}, "behind it: mul is no linear layer"),
    "a part": (
        lambda m, x: m.bn(m.a(x).chunk(2, 1)[0]),
        lambda: {"a": conv(8)},
        "before it: only a part of chunk; behind it: an output",
    ),
    "a constant added": (lambda m, x: m.bn(m.a(x) + 1.0), lambda: {"a": conv(4)}, "before it: add has a constant term"),
    "zeros around": (
        lambda m, x: m.bn(F.pad(m.a(x), (1, 1))),
        lambda: {"a": conv(4)},
        "before it: pad changes constants",
    ),
    "pooled zeros": (
        lambda m, x: m.bn(F.avg_pool2d(m.a(x), 3, 2, 1)),
        lambda: {"a": conv(4)},
        "before it: avg_pool2d changes constants",
    ),
    "channels mixed": (
        lambda m, x: m.bn(m.a(x).transpose(1, 2).reshape(-1, 4, 5, 5)),
        lambda: {"a": conv(4)},
        "before it: its channels are not the features of a",
    ),
    "tokens": (
        lambda m, x: m.bn(m.a(x.flatten(2)).unsqueeze(3)),
        lambda: {"a": nn.Linear(25, 9)},
        "before it: its channels are not the features of a",
    ),
    "a broadcast sum": (
        lambda m, x: m.bn(m.a(x) + m.b(x)),
        lambda: {"a": conv(4), "b": conv(1)},
        "before it: add broadcasts its channels",
    ),
    "an output behind it": (lambda m, x: m.bn(x), lambda: {}, "before it: an input; behind it: an output"),
    "a product of matrices": (
        lambda m, x: m.bn(x).flatten(1) @ torch.ones(100, 2, dtype=DOUBLE),
        lambda: {},
        "behind it: matmul is no linear layer",
    ),
    "a sum behind it": (lambda m, x: m.a(m.bn(x) + x), lambda: {"a": conv(4)}, "behind it: add is no linear layer"),
    "a maximum of padded zeros behind it": (
        lambda m, x: m.a(F.max_pool2d(F.pad(m.bn(x), (1, 1)), 2)),
        lambda: {"a": conv(4)},
        "behind it: max_pool2d is no linear layer",
    ),
    "a maximum of channels behind it": (
        lambda m, x: m.a(F.max_pool1d(m.bn(x).flatten(2).transpose(1, 2), 2)),
        lambda: {"a": nn.Conv1d(25, 3, 1)},
        "behind it: max_pool1d mixes its channels",
    ),
    "padding with ones": (
        lambda m, x: m.a(F.pad(m.bn(x), (1, 1), value=1.0)),
        lambda: {"a": conv(4)},
        "behind it: pad adds values other than zero",
    ),
    "flattened zeros": (
        lambda m, x: m.a(F.pad(m.bn(x), (1, 1)).flatten(1)),
        lambda: {"a": nn.Linear(140, 3)},
        "behind it: flatten comes behind zero padding",
    ),
    "pixels mixed": (
        lambda m, x: m.a(m.bn(x).transpose(1, 3)),
        lambda: {"a": nn.Conv2d(5, 3, 1)},
        "behind it: its channels are not the features of a",
    ),
    "channels averaged": (
        lambda m, x: m.a(m.bn(x).mean(1, keepdim=True)),
        lambda: {"a": nn.Conv2d(1, 3, 1)},
        "behind it: mean mixes its channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_batch_norms_that_cannot_be_folded_are_left_and_reported(case):
    forward, layers, why = LEFT[case]
    torch.manual_seed(0)
    model, x = signed(Net(forward, **layers(), bn=nn.BatchNorm2d(4))), torch.randn(3, 4, 5, 5, dtype=DOUBLE)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    assert why in canonical.report.left["bn"]
    assert canonical.fmodel is fmodel
    assert canonical.params is params
    listing = lrpfunc.explain(canonical.fmodel, composites.epsilon())
    assert {row[1]: row[-1] for row in listing.rows}["bn"] == "pass_through()"


# -- batch norms before layers ----------------------------------------------------------------------------------------

# Layers of 4 inputs and the sizes of theirs; whether the bias must become a map.
BEHIND = {
    "linear": lambda: (nn.Linear(4, 3), (), False),
    "1x1": lambda: (nn.Conv2d(4, 3, 1, bias=False), (5, 5), False),
    "not padded": lambda: (nn.Conv2d(4, 6, 3, stride=2, groups=2), (7, 6), False),
    "valid": lambda: (nn.Conv2d(4, 3, 3, padding="valid"), (5, 5), False),
    "1x1 same": lambda: (nn.Conv2d(4, 3, 1, padding="same"), (5, 5), False),
    "reflecting": lambda: (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), (5, 5), False),
    "circular": lambda: (nn.Conv3d(4, 3, 3, padding=1, padding_mode="circular"), (4, 3, 5), False),
    "replicating": lambda: (nn.Conv1d(4, 3, 3, padding=2, padding_mode="replicate"), (5,), False),
    "padded": lambda: (nn.Conv2d(4, 3, 3, padding=1), (5, 5), True),
    "same": lambda: (nn.Conv2d(4, 3, (3, 7), padding="same", bias=False), (5, 5), True),
    "dilated": lambda: (nn.Conv2d(4, 3, 3, padding=2, dilation=2, stride=(1, 2)), (6, 5), True),
    "depthwise": lambda: (nn.Conv2d(4, 8, 3, padding=1, groups=4), (5, 5), True),
    "grouped": lambda: (nn.Conv2d(4, 6, 3, padding=(0, 2), groups=2, bias=False), (5, 5), True),
    "smaller than the kernel": lambda: (nn.Conv2d(4, 3, 5, padding=3), (2, 3), True),
    "1d": lambda: (nn.Conv1d(4, 3, 3, padding=1, stride=2), (8,), True),
    "3d": lambda: (nn.Conv3d(4, 6, 3, padding=1, groups=2), (3, 4, 5), True),
    "transposed": lambda: (nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), (4, 5), True),
    "transposed grouped": lambda: (nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, bias=False), (4, 5), True),
    "transposed 1d": lambda: (nn.ConvTranspose1d(4, 2, 4, stride=3), (5,), True),
    "transposed 3d": lambda: (nn.ConvTranspose3d(4, 2, 2, stride=2), (2, 3, 2), True),
}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.mark.parametrize("case", BEHIND)
def test_a_batch_norm_is_folded_into_the_layer_behind_it(case):
    torch.manual_seed(0)
    layer, sizes, is_mapped = BEHIND[case]()
    model = signed(Net(lambda m, x: m.layer(m.bn(x)), bn=NORMS[len(sizes)](4), layer=layer))
    x = torch.randn(2, 4, *sizes, dtype=DOUBLE)
    canonical = canonical_of(model, x)
    assert fates(canonical) == {"bn": ("merged right", "layer")}
    assert operators(canonical.fmodel)[-1].endswith("_bias_map") == is_mapped
    assert ("layer.shift" in canonical.params) == is_mapped
    assert relative_error(canonical.fmodel(canonical.params, x[:1]), model(x[:1])) < 1e-13


def test_the_bias_map_follows_the_size_of_the_image():
    torch.manual_seed(0)
    model = signed(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)))
    small, large = (torch.randn(2, 4, n, n + 1, dtype=DOUBLE) for n in (4, 9))
    params = canonical_of(model, small).params
    fmodel = lrpfunc.canonize(*lrpfunc.functionalize(model, large)).fmodel
    assert relative_error(fmodel(params, large), model(large)) < 1e-13


def test_a_bias_map_by_hand():
    # y = 2 x + 3 and w = (1, 10, 100), b = 5: the shift adds 3 * (110, 111, 11) to the bias from place to place
    model = nn.Sequential(nn.BatchNorm1d(1, eps=1.0), nn.Conv1d(1, 1, 3, padding=1)).eval().requires_grad_(False)
    model[0].weight.fill_(2.0), model[0].bias.fill_(3.0), model[0].running_var.fill_(0.0)
    model[1].weight.copy_(torch.tensor([[[1.0, 10.0, 100.0]]])), model[1].bias.fill_(5.0)
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    assert canonical.params["1.weight"].flatten().tolist() == [2.0, 20.0, 200.0]
    values = canonical.fmodel.bind(canonical.params, (x,))
    for equation in canonical.fmodel.equations:
        canonical.fmodel.store(equation, equation.evaluate(values), values)
    assert values["1.bias"].flatten().tolist() == [335.0, 338.0, 38.0]

    # z = conv + map = (420 + 335, 642 + 338, 64 + 38); all of R = z: the input gets x w^T 1, the rest is the map's
    seed = lambda y: y  # noqa: E731
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, rules.epsilon(0.0), seed)
    assert relevance.flatten().tolist() == pytest.approx([1 * 22.0, 2 * 222.0, 3 * 220.0])
    unbiased = lrpfunc.attribute(canonical.fmodel, canonical.params, x, rules.epsilon(0.0, zero_bias=True), seed)
    assert unbiased.sum().item() == pytest.approx(755 + 980 + 102)


ROUTES = {
    "two layers": (
        lambda m, x: (lambda y: m.a(y).relu() + m.b(y))(m.bn(x)),
        lambda: {"a": conv(), "b": nn.Conv2d(4, 6, 1)},
        ("merged right", "a, b"),
    ),
    "zero padding, then a pool": (
        lambda m, x: m.a(F.avg_pool2d(F.pad(m.bn(x), (1, 0, 2, 1)), 2)),
        lambda: {"a": conv()},
        ("merged right", "a"),
    ),
    "a pool over zeros": (
        lambda m, x: m.a(F.avg_pool2d(m.bn(x), 3, 2, 1)),
        lambda: {"a": conv()},
        ("merged right", "a"),
    ),
    "reflection, upsampling": (
        lambda m, x: m.a(F.interpolate(F.pad(m.bn(x), (1, 1, 0, 2), mode="replicate"), size=(4, 9), mode="bilinear")),
        lambda: {"a": nn.Conv2d(4, 6, 1)},
        ("merged right", "a"),
    ),
    "flattened": (lambda m, x: m.a(m.bn(x).flatten(1)), lambda: {"a": nn.Linear(100, 3)}, ("merged right", "a")),
    "addmm": (
        lambda m, x: torch.addmm(m.a.bias, m.bn(x).mean((2, 3)), m.a.weight.t()),
        lambda: {"a": nn.Linear(4, 3)},
        ("merged right", "a.bias"),
    ),
    "parts of a concatenation": (
        lambda m, x: m.a(torch.cat([x.tanh(), m.bn(x), x], 1)),
        lambda: {"a": nn.Conv2d(12, 3, 3, padding=1, bias=False)},
        ("merged right", "a"),
    ),
    "relu": (lambda m, x: m.a(m.bn(x).relu()), lambda: {"a": conv(bias=False)}, ("threshold", "relu, a")),
    "leaky relu": (lambda m, x: m.a(F.leaky_relu(m.bn(x), 0.2)), lambda: {"a": conv()}, ("threshold", "leaky_relu, a")),
    "hardtanh": (lambda m, x: m.a(F.hardtanh(m.bn(x), -0.3, 0.4)), lambda: {"a": conv()}, ("threshold", "hardtanh, a")),
    "relu6": (lambda m, x: m.a(F.relu6(m.bn(x))), lambda: {"a": conv()}, ("threshold", "relu6, a")),
    "clamps": (
        lambda m, x: m.a(m.bn(x).clamp(max=0.5).clip(min=-0.5).clamp_min(-0.2).clamp_max(0.3)),
        lambda: {"a": conv()},
        ("threshold", "clamp, clamp:1, clamp_min, clamp_max, a"),
    ),
    "global pool": (
        lambda m, x: m.a(F.adaptive_avg_pool2d(m.bn(x).relu(), 1).flatten(1)),
        lambda: {"a": nn.Linear(4, 3)},
        ("threshold", "relu, a"),
    ),
    "flattened relu": (
        lambda m, x: m.a(m.bn(x).flatten(1).relu()),
        lambda: {"a": nn.Linear(100, 3)},
        ("threshold", "relu, a"),
    ),
    "relu, zero padding": (
        lambda m, x: m.a(F.pad(m.bn(x).relu(), (1, 1, 1, 1))),
        lambda: {"a": nn.Conv2d(4, 6, 3)},
        ("threshold", "relu, a"),
    ),
    "shuffled": (
        lambda m, x: m.a(m.bn(x).relu().view(-1, 2, 2, 5, 5).transpose(1, 2).flatten(1, 2)),
        lambda: {"a": conv(groups=2)},
        ("threshold", "relu, a"),
    ),
    "a layer that also reads it without": (
        lambda m, x: m.a(m.bn(x)) + m.b(F.relu(m.bn(x), inplace=True)),
        lambda: {"a": conv(), "b": conv(bias=False)},
        ("merged right", "a"),
    ),
    "relu of a concatenation": (
        lambda m, x: m.a(torch.cat([m.bn(x), x.sigmoid()], 1).relu()),
        lambda: {"a": nn.Conv2d(8, 3, 3, padding=1)},
        ("threshold", "relu, a"),
    ),
    "two readings of a concatenation": (
        lambda m, x: m.a(torch.cat([m.bn(x), m.c(x)], 1)),
        lambda: {"a": nn.Conv2d(8, 3, 3, padding=1), "c": nn.BatchNorm2d(4)},
        ("merged right", "a"),
    ),
    "norm, relu, norm, relu": (
        lambda m, x: m.a(m.c(m.bn(x).relu()).relu()),
        lambda: {"a": conv(), "c": nn.BatchNorm2d(4)},
        ("threshold", "relu, relu:1, a"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROUTES)
def test_a_batch_norm_is_folded_along_its_way_to_the_right(case):
    forward, layers, fate = ROUTES[case]
    torch.manual_seed(0)
    model, x = signed(Net(forward, **layers(), bn=nn.BatchNorm2d(4))), torch.randn(3, 4, 5, 5, dtype=DOUBLE)
    canonical = canonical_of(model, x)
    assert fates(canonical)["bn"] == fate
    assert canonical.report.left == {}
    assert not any("batch_norm" in operator for operator in operators(canonical.fmodel))
    again = lrpfunc.canonize(canonical.fmodel, canonical.params)
    assert again.fmodel is canonical.fmodel


# -- threshold ReLUs --------------------------------------------------------------------------------------------------


def test_threshold_relus_by_hand():
    # relu(a x + b) with (a, b) = (2, 1), (-2, 1), (0, 1), (0, -1): bends at -1/2 and 1/2, constants 1 and 0
    model = nn.Sequential(nn.BatchNorm1d(4, eps=1.0), nn.ReLU(), nn.Linear(4, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, -2.0, 0.0, 0.0])), model[0].running_var.fill_(0.0)
        model[0].bias.copy_(torch.tensor([1.0, 1.0, 1.0, -1.0])), model[2].weight.fill_(10.0)
    x = torch.tensor([[-3.0, 3.0, 5.0, 5.0], [1.0, -1.0, 5.0, 5.0]])
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    assert canonical.params["1.low"].flatten().tolist() == [-0.5, -torch.inf, -torch.inf, -torch.inf]
    assert canonical.params["1.high"].flatten().tolist() == [torch.inf, 0.5, torch.inf, torch.inf]
    assert canonical.params["2.weight"].tolist() == [[20.0, -20.0, 0.0, 0.0]]
    assert canonical.params["2.bias"].tolist() == [10.0 + 10.0 + 10.0]
    assert canonical.fmodel(canonical.params, x).flatten().tolist() == [10.0, 70.0]

    # t(x) = (-1/2, 1/2, 5, 5) and (1, -1, 5, 5). What t cuts off is a constant, whose share stays there.
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, rules.epsilon(0.0), lambda y: y)
    assert relevance.tolist() == [[0.0, 0.0, 0.0, 0.0], [20.0, 20.0, 0.0, 0.0]]
    # Without biases relevance passes through t, so it is w t.
    passed = composites.epsilon(0.0, zero_bias=True)
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, passed, lambda y: y - 30)
    assert relevance.tolist() == [[-10.0, -10.0, 0.0, 0.0], [20.0, 20.0, 0.0, 0.0]]


def test_a_scale_too_small_to_divide_by_counts_as_zero():
    model = nn.Sequential(nn.BatchNorm1d(2, eps=1.0), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1e-40, -1e-40])), model[0].running_var.fill_(0.0)
        model[0].bias.copy_(torch.tensor([-1.0, 1.0]))
    x = torch.randn(5, 2)
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    torch.testing.assert_close(canonical.fmodel(canonical.params, x), model(x).detach())
    assert canonical.params["2.weight"].isfinite().all()


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(
        growth_rate=4, block_config=(2, 2), num_init_features=6, bn_size=2, num_classes=5
    )


class PreActivation(nn.Module):
    """A residual network that normalizes before each convolution, as timm's resnetv2 does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 8, 8, 8, 8))
        self.convs = nn.ModuleList(nn.Conv2d(n, 8, 3, padding=1, bias=False) for n in (6, 8, 8, 8))
        self.short, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        y = self.norms[0](x).relu()
        x = self.short(y) + self.convs[1](self.norms[1](self.convs[0](y)).relu())
        x = x + self.convs[3](F.relu6(self.norms[3](self.convs[2](F.leaky_relu(self.norms[2](x))))))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.norms[4](x), inplace=True), 1).flatten(1))


@pytest.mark.parametrize("build", [densenet, PreActivation])
def test_networks_that_normalize_before_their_layers_have_no_batch_norm_left(build):
    torch.manual_seed(0)
    model, x = signed(build()), torch.randn(2, 3, 40, 40, dtype=DOUBLE)
    canonical = canonical_of(model, x)
    assert canonical.report.left == {}
    assert {fate.became for fate in canonical.report.fates.values()} == {"merged", "threshold"}
    listing = lrpfunc.explain(canonical.fmodel, composites.epsilon_plus(), strict=True)
    assert {row[-1] for row in listing.rows if row[3] == "threshold_relu"} == {"clamp()"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_folding_in_less_precision_loses_no_more_than_that(dtype):
    torch.manual_seed(0)
    model, x = signed(PreActivation()), torch.randn(2, 3, 40, 40, dtype=DOUBLE)
    fmodel, params = lrpfunc.functionalize(model, x)
    cast = optree.tree_map(lambda leaf: leaf.to(dtype), params)
    canonical = lrpfunc.canonize(fmodel, cast)
    assert {leaf.dtype for leaf in canonical.params.values()} == {dtype}
    lost = relative_error(fmodel(cast, x.to(dtype)).double(), model(x))
    assert relative_error(canonical.fmodel(canonical.params, x.to(dtype)).double(), model(x)) < 4 * lost


# -- relevance --------------------------------------------------------------------------------------------------------


def total_over_logit(fmodel, params, x, entries=None) -> torch.Tensor:
    """Relevance under epsilon_plus, summed, over the explained logit, without any bias."""
    unbiased = {name: torch.zeros_like(leaf) if name.endswith("bias") else leaf for name, leaf in params.items()}
    logits = fmodel(unbiased, x)
    relevance = lrpfunc.attribute(fmodel, unbiased, x, composites.epsilon_plus(zero_bias=True, entries=entries))
    return relevance.flatten(1).sum(1) / logits.max(1).values


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_what_canonization_is_for(name):
    """Relevance sums to the logit, which it does not where batch norms are moved by their gradient, as hooks do it.

    Passed through batch norms (our default for those that are left) it keeps its sum, too. No channel is dead here: a
    threshold ReLU has a value, and so relevance, also where its input is zero, and dead layers cannot pass that on.
    """
    torch.manual_seed(0)
    model, x = signed(torchvision.models.get_model(name), dead=0.5), torch.randn(2, 3, 64, 64, dtype=DOUBLE)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    one = torch.ones(2, dtype=DOUBLE)
    torch.testing.assert_close(total_over_logit(canonical.fmodel, canonical.params, x), one, atol=1e-4, rtol=0)
    by_gradient = total_over_logit(fmodel, params, x, composites.by_kind({"batch_norm": rules.gradient()}))
    assert ((by_gradient - 1).abs() > 1e-2).all()
    torch.testing.assert_close(total_over_logit(fmodel, params, x), one, atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", [densenet, PreActivation])
def test_lrp_0_is_input_times_gradient_where_batch_norms_became_threshold_relus(build):
    torch.manual_seed(0)
    model, x = signed(build()), torch.randn(2, 3, 40, 40, dtype=DOUBLE)
    canonical = canonical_of(model, x)
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, composites.epsilon(0.0), target=1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(relevance, x * gradient, rtol=1e-9, atol=1e-12)


# The canonical form has operations of its own: laws 4 to 6 must hold of them too.


def deep() -> tuple[nn.Module, torch.Tensor]:
    """Bias maps before and behind a threshold ReLU."""
    torch.manual_seed(0)
    model, x = two_way()
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    return signed(nn.Sequential(*model, *head), dead=0.5), x


def shallow() -> tuple[nn.Module, torch.Tensor]:
    """One threshold ReLU and one bias map, all that the compiler has not seen elsewhere."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(2), nn.ReLU(), nn.Conv1d(2, 3, 2, padding=1)]
    return signed(nn.Sequential(*layers, nn.Flatten()), dead=0.5), torch.randn(2, 2, 4, dtype=DOUBLE)


PRESETS = ("epsilon", "epsilon_gamma_box", "epsilon_plus_flat", "epsilon_alpha2_beta1")


def attribution(name: str, fmodel):
    """The relevance of the canonical form under a preset, canonization included, as a function of params and x."""
    arguments = (-3.0, 3.0) if name == "epsilon_gamma_box" else ()
    composite = getattr(composites, name)(*arguments, epsilon=1e-2)

    def f(params, x):
        canonical = lrpfunc.canonize(fmodel, params)
        return lrpfunc.attribute(canonical.fmodel, canonical.params, x, composite, 1)

    return f


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_transforms_of_a_canonical_attribution(name):
    model, x = deep()
    fmodel, params = lrpfunc.functionalize(model, x)
    f = attribution(name, fmodel)
    expected = f(params, x)
    close(make_fx(f)(params, x)(params, 2 * x), f(params, 2 * x))
    close(vmap(lambda x: f(params, x[None])[0])(x), expected)
    changed = {key: leaf * 1.1 for key, leaf in params.items()}
    stacked = {key: torch.stack([leaf, changed[key]]) for key, leaf in params.items()}
    close(vmap(f, (0, None))(stacked, x), torch.stack([expected, f(changed, x)]))


# Slow, as the compiler traces canonization itself, Python line by Python line; what backends see, the operations that
# are traced, `make_fx` shows above.
COMPILED = [(shallow, "epsilon_gamma_box", "eager"), *[(deep, name, "aot_eager") for name in PRESETS]]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "name", "backend"), COMPILED)
def test_a_canonical_attribution_compiles(build, name, backend):
    model, x = build()
    fmodel, params = lrpfunc.functionalize(model, x)
    f = attribution(name, fmodel)
    torch._dynamo.reset()
    close(torch.compile(f, fullgraph=True, backend=backend)(params, x), f(params, x))


def test_relevance_at_a_threshold_relu_is_what_passes_through():
    model, x = deep()
    canonical = canonical_of(model, x)
    _, inner = lrpfunc.attribute(
        canonical.fmodel, canonical.params, x, composites.epsilon(0.0, zero_bias=True), at=["3", "5"]
    )
    assert torch.equal(inner["3"], inner["5"])


def test_rules_of_folded_batch_norms_say_what_to_name_instead():
    model, x = pair("conv2d")
    canonical = canonical_of(model, x)
    with pytest.raises(RuleError, match=r"no layer matches the pattern '1'"):
        lrpfunc.attribute(canonical.fmodel, canonical.params, x, {"1": rules.flat()}, target=(0, 0, 0))


# -- passes -----------------------------------------------------------------------------------------------------------


def two_way() -> tuple[nn.Module, torch.Tensor]:
    """Batch norms that are merged to the left, to the right, and as a threshold."""
    torch.manual_seed(0)
    model = signed(
        nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2),
            nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1),
        )
    )  # fmt: skip
    return model, torch.randn(2, 3, 6, 6, dtype=DOUBLE)


@functools.cache
def traced_two_way() -> tuple:
    """The program and parameters of `two_way`, for tests that only read them."""
    return lrpfunc.functionalize(*two_way())


def test_each_pass_can_be_used_alone_and_in_a_chain():
    model, x = two_way()
    left, right, threshold = ({"2"}, {"0"}, {"4"})
    for one, folded in (
        (canonizers.merge_batch_norm, left),
        (canonizers.merge_batch_norm_right, right),
        (canonizers.threshold_relu, left | right | threshold),  # where nothing is merged to the left
        (canonizers.chain(canonizers.merge_batch_norm, canonizers.merge_batch_norm_right), left | right),
        (canonizers.chain(), set()),
    ):
        canonical = canonical_of(model, x, one)
        assert set(canonical.report.fates) - set(canonical.report.left) == folded
    assert canonical_of(model, x, canonizers.merge_batch_norm).report.left["0"] == "no pass was told to fold it"
    program, params = canonizers.merge_batch_norm(*traced(model, x))
    assert relative_error(program(params, x), model(x)) < 1e-13


@pytest.mark.parametrize("gamma", [[-2.0, 3.0], [2.0, 3.0], [0.0, -3.0]])
def test_a_maximum_commutes_with_a_scale_of_any_sign(gamma):
    """By hand: of w max(a x + d) the pixel with the largest a x has w a x, and d keeps w d."""
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0), nn.MaxPool1d(3), nn.Conv1d(2, 1, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(gamma)), model[0].bias.copy_(torch.tensor([1.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[[5.0], [7.0]]]))
    x = torch.tensor([[[1.0, 4, 2], [-1, 3, 2]]], dtype=DOUBLE)
    canonical = canonical_of(model, x)
    assert canonical.report.fates["0"] == ("merged right", "1, 2")
    assert ("1.sign" in canonical.params) == (min(gamma) < 0)
    torch.testing.assert_close(canonical.fmodel(canonical.params, x), model(x), rtol=1e-13, atol=0)
    contributions = torch.tensor([5.0, 7.0])[:, None] * torch.tensor(gamma)[:, None] * x[0]
    places = (torch.tensor(gamma)[:, None] * x[0]).argmax(1)
    expected = torch.zeros_like(x)
    expected[0, [0, 1], places] = contributions[[0, 1], places]
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, rules.epsilon(0), (0, 0))
    torch.testing.assert_close(relevance, expected, rtol=1e-12, atol=0)


def test_the_report_is_a_table():
    assert str(canonical_of(*two_way()).report) == (
        "batch norm  became        where\n"
        "0           merged right  1\n"
        "2           merged        1\n"
        "4           threshold     5, 6"
    )


def test_named_batch_norms_are_merged_into_named_layers():
    model, x = two_way()
    for pairs, became in (
        ([("1", "2")], {"0": "left", "2": "merged", "4": "left"}),
        ([(("1",), "0"), ("6", "4")], {"0": "merged right", "2": "left", "4": "threshold"}),
    ):
        canonical = canonical_of(model, x, canonizers.merge_named(pairs))
        assert {name: fate.became for name, fate in canonical.report.fates.items()} == became
    two = signed(Net(lambda m, x: m.bn(m.a(x) + m.b(x)), a=conv(), b=conv(), bn=nn.BatchNorm2d(6)))
    both = canonical_of(two, torch.randn(2, 4, 5, 5, dtype=DOUBLE), canonizers.merge_named([(("b", "a"), "bn")]))
    assert fates(both)["bn"] == ("merged", "a, b")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("7", "2")], r"no layer is called '7'\..* `print\(fmodel\)` lists all names\."),
        ([("1", "bn")], r"no layer is called 'bn'\."),
        (
            [("1", "3")],
            r"'3' is no batch norm or parallel sum but max_pool2d: name the layer first, then the norm or sum",
        ),
        ([("3", "2")], r"'3' is no linear layer but max_pool2d: nothing can be merged into it\."),
        ([("6", "0")], r"batch norm '0' has 3 channels, but layer '6' has 4 inputs and 2 outputs\."),
        ([("6", "2")], r"'2' cannot be merged into '6'\. Before it: it would go into '1'; behind it: 4 \(batch_norm\)"),
    ],
)
def test_names_that_do_not_fit_are_refused(pairs, message):
    with pytest.raises(CanonizeError, match=message):
        lrpfunc.canonize(*traced_two_way(), canonizers.merge_named(pairs))


def test_equations_are_replaced_by_traced_functions():
    model, x = two_way()
    swapped = copy.deepcopy(model)
    swapped[5] = nn.Softplus()
    fmodel, params = lrpfunc.functionalize(model, x)
    program, leaves = canonizers.replace("5", lambda params, x: F.softplus(x))(fmodel, params)
    assert torch.equal(program(leaves, x), swapped(x))
    assert torch.equal(program(leaves, x[:1]), swapped(x[:1]))
    assert leaves.keys() == params.keys()
    assert {e.name: e.operator for e in program.equations}["5"] == "softplus"
    assert "relu" in operators(fmodel)

    def doubled(params, x):
        return F.conv2d(x, params["6.weight"], params["6.bias"]) + F.conv2d(x, params["6.weight"] * torch.tensor(1.0))

    program, leaves = canonizers.replace("6", doubled)(fmodel, params)
    expected = 2 * model(x) - model[6].bias[:, None, None]
    assert relative_error(program(leaves, x), expected) < 1e-13
    assert leaves.keys() > params.keys()  # the constant
    names = [equation.name for equation in operations.active_equations(program)]
    assert [name for name in names if name.startswith("6")] == ["6.6", "6.conv2d", "6.add"]


class Attention(nn.Module):
    """A block of several equations, with a mask from outside, called once or twice."""

    def __init__(self, calls: int):
        super().__init__()
        self.gate, self.calls, self.head = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), calls, nn.Linear(4, 2)
        self.block = Net(lambda m, x: (x * m.scale(x).sigmoid()).relu(), scale=nn.Linear(4, 4))

    def forward(self, x):
        x = self.block(x)
        for _ in range(self.calls - 1):
            x = self.block(x.tanh())
        return self.head(x)


def test_a_block_is_replaced_by_its_path():
    torch.manual_seed(0)
    model, x = signed(Attention(1)), torch.randn(3, 4, dtype=DOUBLE)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(
        fmodel, params, canonizers.replace("block", lambda params, x: x + params["head.bias"][0])
    )
    expected = model.head(x + model.head.bias[0])
    torch.testing.assert_close(canonical.fmodel(canonical.params, x), expected)
    assert canonical.restore(canonical.params).keys() == params.keys()
    relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x, composites.epsilon(0.0))
    assert relevance.shape == x.shape


def test_a_batch_norm_in_a_replaced_block_is_reported():
    model, x = two_way()
    canonical = lrpfunc.canonize(
        *lrpfunc.functionalize(model, x),
        canonizers.chain(canonizers.replace("2", lambda params, x: x), canonizers.DEFAULT),
    )
    assert fates(canonical)["2"] == ("replaced", "by <lambda>")
    two = signed(Net(lambda m, x: m.bn(x) + x, bn=nn.BatchNorm2d(3)))
    gone = lrpfunc.canonize(*lrpfunc.functionalize(two, x), canonizers.replace("add", lambda params, a, b: b))
    assert fates(gone) == {"bn": ("gone", "nothing reads it")}


@pytest.mark.parametrize(
    ("calls", "name", "function", "message"),
    [
        (1, "blok", F.relu, r"no layer is called 'blok'\. Did you mean 'block'.* `print\(fmodel\)` lists all names\."),
        (2, "block", lambda params, x, y: (x + y, y), r"'block' is no block of its own: others between its equations"),
        (1, "block", lambda params, x: x[:, :2], r"of 'block' must return \(batch, 4\) .*, but returns \(batch, 2\)"),
        (1, "head", lambda params, x: (x, x), r"of 'head' must return \(batch, 2\) .*, but returns \(batch, 4\) .*, "),
    ],
)  # fmt: skip
def test_replacements_that_do_not_fit_are_refused(calls, name, function, message):
    fmodel, params = lrpfunc.functionalize(signed(Attention(calls)), torch.randn(3, 4, dtype=DOUBLE))
    with pytest.raises(CanonizeError, match=message):
        canonizers.replace(name, function)(fmodel, params)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_parameters_are_refused():
    model, x = pair("conv2d")
    canonical = canonical_of(model, x)
    fmodel, params = traced(model, x)
    with pytest.raises(ParameterError, match=r"lacks the leaf '0.bias'"):
        lrpfunc.canonize(fmodel, {name: leaf for name, leaf in params.items() if name != "0.bias"})
    with pytest.raises(ParameterError, match=r"lacks the leaf '0.bias'"):
        canonical.restore({name: leaf for name, leaf in params.items() if name != "0.bias"})
    other = lrpfunc.functionalize(signed(nn.Linear(4, 3)), torch.randn(2, 4, dtype=DOUBLE))[1]
    with pytest.raises(ParameterError, match=r"params lacks the leaf"):
        canonical.restore(other)
    nested, nested_params = lrpfunc.trace(lambda p, x: x @ p["a"]["w"], {"a": {"w": torch.eye(3)}}, torch.randn(2, 3))
    with pytest.raises(CanonizeError, match=r"needs the parameters as a flat dict"):
        lrpfunc.canonize(nested, nested_params)


@pytest.mark.parametrize(("value", "shown"), [(-0.5, "-0.49999"), (float("nan"), "nan"), (-1e-5, "0")])
@pytest.mark.parametrize("position", [0, 1])
def test_a_variance_that_is_not_positive_is_refused(value, shown, position):
    layers = [nn.Linear(3, 3), nn.ReLU()]
    layers.insert(position, nn.BatchNorm1d(3))
    model = nn.Sequential(*layers[: position + 1], *layers[position + 1 :], nn.Linear(3, 2)).double().eval()
    model[position].running_var[1] = value
    fmodel, params = lrpfunc.functionalize(model, torch.randn(2, 3, dtype=DOUBLE))
    with pytest.raises(
        CanonizeError,
        match=rf"norm '{position}' cannot be folded: .* positive and all finite, but channel 1 has .* eps {shown}",
    ):
        lrpfunc.canonize(fmodel, params)


def test_a_functional_batch_norm_of_a_traced_function_is_folded():
    def f(params, x):
        y = F.conv2d(x, params["w"], params["b"])
        return F.batch_norm(y, params["mean"], params["var"], params["gamma"], params["beta"], eps=1e-3)

    params = {name: torch.rand(4, dtype=DOUBLE) + 0.5 for name in ("b", "mean", "var", "gamma", "beta")}
    params["w"] = torch.randn(4, 3, 2, 2, dtype=DOUBLE)
    x = torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    fmodel, lifted = lrpfunc.trace(f, params, x)
    canonical = lrpfunc.canonize(fmodel, lifted)
    assert relative_error(canonical.fmodel(canonical.params, x), f(params, x)) < 1e-13
    assert operators(canonical.fmodel) == ["conv2d"]
    assert lifted["batch_norm.eps"].item() == 1e-3


def test_batch_norms_that_normalize_by_the_batch_are_refused():
    for norm in (nn.BatchNorm1d(3).train(), nn.BatchNorm1d(3, track_running_stats=False).eval()):
        with pytest.raises(TraceError, match=r"batch norm '1' is in training mode.*running statistics"):
            lrpfunc.functionalize(nn.Sequential(nn.Linear(3, 3), norm), torch.randn(2, 3))


# -- what reviews found ------------------------------------------------------------------------------------------------


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


def statistics(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parameters of a functional batch norm of three channels, and others."""
    return {"m": random(3), "v": torch.rand(3, dtype=DOUBLE) + 0.5, "g": random(3), "b": random(3), **more}


def norm(p, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, p["m"], p["v"], p["g"], p["b"])


FUNCTIONS = {
    "parameters that are outputs too": (
        lambda p, x: (norm(p, F.conv2d(x, p["w"])), p["b"], p["w"]),
        lambda: statistics(w=random(3, 3, 2, 2)),
    ),
    "one leaf as scale and shift": (
        lambda p, x: F.batch_norm(F.batch_norm(x, p["m"], p["v"], p["g"], p["g"]), p["m"], p["v"]).tanh(),
        lambda: statistics(),
    ),
    "one leaf as scale and shift behind a layer": (
        lambda p, x: F.batch_norm(F.conv2d(x, p["w"]), p["m"], p["v"], p["g"], p["g"]),
        lambda: statistics(w=random(3, 3, 2, 2)),
    ),
    "a bias that depends on the input": (
        lambda p, x: F.conv2d(norm(p, x), p["w"], x.detach().mean((0, 2, 3)), padding=1),
        lambda: statistics(w=random(3, 3, 3, 3)),
    ),
    "bounds that cross": (
        lambda p, x: F.conv2d(norm(p, x).clamp(1.0, 0.0), p["w"]),
        lambda: statistics(w=random(2, 3, 1, 1)),
    ),
    "statistics of the batch": (
        lambda p, x: F.batch_norm(F.conv2d(x, p["w"]), x.mean((0, 2, 3)), x.var((0, 2, 3)), p["g"], p["b"]),
        lambda: statistics(w=random(3, 3, 2, 2)),
    ),
    "statistics of the batch before a layer": (
        lambda p, x: F.conv2d(F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3))), p["w"]),
        lambda: statistics(w=random(3, 3, 2, 2)),
    ),
    "a bias of one for all": (
        lambda p, x: norm(p, F.linear(x.mean((2, 3)), p["w"], p["one"])),
        lambda: statistics(w=random(3, 3), one=random(1)),
    ),
    "a bias of one for all, behind": (
        lambda p, x: F.linear(norm(p, x).mean((2, 3)), p["w"], p["one"]),
        lambda: statistics(w=random(2, 3), one=random(1)),
    ),
    "padded channels": (
        lambda p, x: F.conv2d(
            F.pad(F.batch_norm(x[:, :1], p["m"][:1], p["v"][:1]), (0, 0, 0, 0, 1, 1)), p["w"], padding=1
        ),
        lambda: statistics(w=random(2, 3, 3, 3)),
    ),
    "a mean over everything": (
        lambda p, x: F.conv2d(norm(p, x).mean([], keepdim=True).expand(1, 3, 4, 4), p["w"]),
        lambda: statistics(w=random(2, 3, 1, 1)),
    ),
    "a mean over everything before it": (
        lambda p, x: F.batch_norm(F.conv2d(x, p["w"]).mean(None, keepdim=True).expand(2, 3, 2, 2), p["m"], p["v"]),
        lambda: statistics(w=random(3, 3, 1, 1)),
    ),
    "an empty tensor in a concatenation": (
        lambda p, x: norm(p, torch.cat([x.new_zeros(0), F.conv2d(x, p["w"])], 1)),
        lambda: statistics(w=random(3, 3, 1, 1)),
    ),
    "a weight of one dimension": (
        lambda p, x: F.batch_norm(F.linear(x.flatten(2), p["w"]), p["m"], p["v"]),
        lambda: statistics(w=random(25)),
    ),
    "no parameters": (
        lambda p, x: F.conv2d(F.batch_norm(x, x.new_zeros(3), x.new_full((3,), 2.0)), x.new_ones(2, 3, 1, 1)),
        dict,
    ),
    "a sum whose first term takes no shift": (
        lambda p, x: norm(p, F.avg_pool2d(F.conv2d(x, p["w"]), 3, 1, 1).sub(F.conv2d(x, p["u"]), alpha=2.0)),
        lambda: statistics(w=random(3, 3, 1, 1), u=random(3, 3, 1, 1)),
    ),
    "an affine map along the last axis": (
        lambda p, x: x.transpose(1, 3) * (p["g"].reshape(1, 1, 1, -1) * (p["v"].reshape(1, 1, 1, -1) + 1e-5).rsqrt())
        + (p["b"].reshape(1, 1, 1, -1) - p["m"].reshape(1, 1, 1, -1) * (p["g"] * (p["v"] + 1e-5).rsqrt())),
        lambda: statistics(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS)
def test_odd_functions_stay_what_they_are(case):
    function, make = FUNCTIONS[case]
    torch.manual_seed(0)
    params, x = make(), random(2, 3, 5, 5)
    fmodel, leaves = lrpfunc.trace(function, params, x)
    before = {name: leaf.clone() for name, leaf in leaves.items()}
    canonical = lrpfunc.canonize(fmodel, leaves)
    outputs, expected = (optree.tree_leaves(f) for f in (canonical.fmodel(canonical.params, x), function(params, x)))
    assert all(relative_error(got, wanted) < 1e-12 for got, wanted in zip(outputs, expected, strict=True))
    assert all(torch.equal(before[name], leaf) for name, leaf in canonical.restore(canonical.params).items())
    if case.startswith("statistics"):
        assert "its own parameters depend on the input" in next(iter(canonical.report.left.values()))
    if case == "a sum whose first term takes no shift":
        assert canonical.report.left == {}


def test_models_of_two_dtypes_are_folded():
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 3, 3, padding=1, bias=False)}
    model = signed(Net(lambda m, x: m.b(m.bn(m.a(x).double().tanh()).relu()), **layers))
    model.a.float()
    x = torch.randn(2, 4, 5, 5)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    assert canonical.report.left == {}
    assert relative_error(canonical.fmodel(canonical.params, x), model(x)) < 1e-12


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, -1.0), (1e-3, -100.0), (-1e-6, 1.0), (1e-6, 1.0)])
def test_bends_beyond_half_precision_are_left_out(scale, shift):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval().requires_grad_(False)
    model[0].weight.fill_(scale), model[0].bias.fill_(shift)
    x = torch.randn(2, 2, 3, 3)
    fmodel, params = lrpfunc.functionalize(model, x)
    halves = optree.tree_map(lambda leaf: leaf.half(), params)
    canonical = lrpfunc.canonize(fmodel, halves)
    got = canonical.fmodel(canonical.params, x.half())
    torch.testing.assert_close(got.float(), model(x), rtol=1e-2, atol=1e-2)


def test_dead_channels_have_the_derivative_that_they_have():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LeakyReLU(0.1), nn.Linear(3, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.zero_(), model[0].bias.copy_(torch.tensor([1.0, -1.0, 0.5]))
    x = random(4, 3)
    fmodel, params = lrpfunc.functionalize(model, x)

    def loss(weight, is_canonical):
        given = {**params, "0.weight": weight}
        program, leaves = lrpfunc.canonize(fmodel, given)[:2] if is_canonical else (fmodel, given)
        return program(leaves, x).square().sum()

    expected, got = (grad(loss)(params["0.weight"], is_canonical) for is_canonical in (False, True))
    assert expected.all()
    torch.testing.assert_close(got, expected)


def test_the_statistics_of_batch_norms_that_are_left_have_derivatives():
    model = signed(nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.Conv2d(3, 2, 1)), dead=0.5)
    x = random(2, 3, 4, 4)
    fmodel, params = lrpfunc.functionalize(model, x)

    def total(mean):
        given = {**params, "0.running_mean": mean}
        return lrpfunc.attribute(fmodel, given, x, composites.epsilon(1e-2), (0, 0, 0)).square().sum()

    mean = params["0.running_mean"]
    direction, step = random(3), 1e-6
    slope = (total(mean + step * direction) - total(mean - step * direction)) / (2 * step)
    torch.testing.assert_close(grad(total)(mean) @ direction, slope, rtol=1e-6, atol=1e-9)
    both = torch.stack([mean, mean + 1])
    by_loop = torch.stack([grad(total)(each) for each in both])
    torch.testing.assert_close(grad(lambda means: vmap(total)(means).sum())(both), by_loop)


def test_several_replacements_with_constants_keep_them_apart():
    model, x = signed(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), random(3, 4)
    fmodel, params = lrpfunc.functionalize(model, x)
    both = canonizers.chain(
        canonizers.replace("0", lambda params, x: x * torch.tensor([2.0, 2.0, 2.0, 2.0], dtype=DOUBLE)),
        canonizers.replace("1", lambda params, x: x * torch.tensor([3.0, 3.0, 3.0, 3.0], dtype=DOUBLE)),
    )
    program, leaves = both(fmodel, params)
    torch.testing.assert_close(program(leaves, x), 6 * x)
    named = {"lifted_tensor_0": torch.tensor(2.0)}
    program, leaves = lrpfunc.trace(lambda p, x: x * p["lifted_tensor_0"] * torch.tensor([3.0] * 4), named, x)
    torch.testing.assert_close(program(leaves, x), 6 * x)


def test_a_replacement_that_decides_on_the_batch_size_is_held_to_its_branch():
    model, x = signed(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), random(3, 4)
    branching = canonizers.replace("1", lambda params, x: x * 2 if x.shape[0] > 1 else x * 3)
    program, leaves = branching(*lrpfunc.functionalize(model, x))
    torch.testing.assert_close(program(leaves, x), 2 * model[0](x))
    with pytest.raises(InputError, match="'batch' of input 'input' must be at least 2, but is 1"):
        program(leaves, x[:1])


def test_each_call_of_a_layer_is_replaced():
    model = signed(Net(lambda m, x: m.a(m.a(x).tanh()), a=nn.Linear(4, 4)))
    x = random(3, 4)
    program, leaves = canonizers.replace("a", lambda params, x: x * 2)(*lrpfunc.functionalize(model, x))
    torch.testing.assert_close(program(leaves, x), 2 * torch.tanh(2 * x))
    assert [equation.name for equation in program.equations] == ["a", "tanh", "a:1"]


def test_replacements_follow_the_batch_wherever_it_is():
    model = signed(Net(lambda m, x: m.act(m.a(x.transpose(0, 1))).transpose(0, 1), a=nn.Linear(4, 4), act=nn.ReLU()))
    x = random(3, 5, 4)
    program, leaves = canonizers.replace("act", lambda params, x: x.exp())(*lrpfunc.functionalize(model, x))
    torch.testing.assert_close(program(leaves, x[:2]), model.a(x[:2]).exp())


def test_a_replacement_under_grad_and_in_another_dtype():
    model, x = signed(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))), random(3, 4)
    fmodel, params = lrpfunc.functionalize(model, x)
    smooth = canonizers.replace("1", lambda params, x: F.softplus(x) * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE))

    def total(weight):
        canonical = lrpfunc.canonize(fmodel, {**params, "0.weight": weight}, smooth)
        return canonical.fmodel(canonical.params, x).sum()

    weight = params["0.weight"]
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)
    expected = grad(lambda w: model[2](F.softplus(F.linear(x, w, model[0].bias)) * scales).sum())(weight)
    torch.testing.assert_close(grad(total)(weight), expected)
    singles = optree.tree_map(lambda leaf: leaf.float(), params)
    program, leaves = smooth(fmodel, singles)
    assert program(leaves, x.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, p: lrpfunc.canonize(nn.Linear(1, 1), p), r"a program is needed, .*but got Linear\."),
        (lambda f, p: canonizers.merge_batch_norm(p, f), r"a program is needed, .*but got dict\."),
        (lambda f, p: lrpfunc.canonize(f, p, [[canonizers.DEFAULT]]), r"but got list\. For several .*chain"),
        (lambda f, p: lrpfunc.canonize(f, p, "merge_batch_norm"), r"a pass is a function .*, but got str\."),
        (lambda f, p: lrpfunc.canonize(f, p, canonizers.chain([])), r"a pass is a function .*, but got list"),
        (lambda f, p: lrpfunc.canonize(f, p, lambda f, p: None), r"the pass '<lambda>' must return .* NoneType"),
        (lambda f, p: lrpfunc.canonize(f, p, canonizers.replace), r"needs a name and a function .*, but got Program"),
        (lambda f, p: lrpfunc.canonize(f, p, canonizers.chain), r"the pass 'chain' must return .*, call that first"),
        (lambda f, p: lrpfunc.canonize(f, p, lambda f, p: lrpfunc.functionalize(nn.ReLU(), torch.ones(2))), r"dropped"),
        (lambda f, p: canonizers.merge_named(("1", "2")), r"needs pairs of names.*, but got '1'"),
        (lambda f, p: canonizers.merge_named([(0, 1)]), r"needs pairs of names.*, but got \(0, 1\)"),
        (lambda f, p: canonizers.merge_named([((), "2")]), r"needs pairs of names.*, but got \(\(\), '2'\)"),
        (lambda f, p: canonizers.replace(2, F.relu), r"needs a name and a function .*, but got int and"),
        (lambda f, p: canonizers.replace("5", None), r"needs a name and a function .* str and NoneType"),
        (lambda f, p: canonizers.replace("5", lambda x: x)(f, p), r"replaces '5' .* of the 1 inputs \(batch, 4,"),
        (lambda f, p: canonizers.replace("5", F.softplus)(f, p), r"replaces '5' must be a function f\(params, \*inp"),
        (lambda f, p: canonizers.replace("5", lambda p, x: None)(f, p), r"must return .*, but returns no tensor\."),
    ],
)  # fmt: skip
def test_what_is_no_pass_is_refused(call, message):
    with pytest.raises(CanonizeError, match=message):
        call(*traced_two_way())


def test_no_pass_at_all_and_a_mapping_of_names():
    model, x = two_way()
    fmodel, params = traced_two_way()
    assert lrpfunc.canonize(fmodel, params, canonizers.chain()).fmodel is fmodel
    canonical = canonical_of(model, x, canonizers.merge_named({"1": "2"}))
    assert fates(canonical)["2"] == ("merged", "1")


def test_several_passes_are_a_list_too():
    fmodel, params = traced_two_way()
    several = [canonizers.merge_batch_norm, canonizers.merge_batch_norm_right]
    for passes in (several, tuple(several), canonizers.chain(*several)):
        canonical = lrpfunc.canonize(fmodel, params, passes)
        assert [fate.became for fate in canonical.report.fates.values()] == ["merged right", "merged", "left"]
    assert lrpfunc.canonize(fmodel, params, []).fmodel is fmodel


def test_a_report_has_a_table_for_each_subject():
    one = canonizers.Fate("merged", "conv")
    report = canonizers.Report({"bn": one, "sum": one}, {"batch norm": ["bn"], "branch": ["sum"], "mask": []})
    norms, branches = (
        "batch norm  became  where\nbn          merged  conv",
        "branch  became  where\nsum     merged  conv",
    )
    assert str(report) == f"{norms}\n\n{branches}\n\nno masks"


def test_our_passes_look_like_functions():
    for one in canonizers.PASSES:
        assert getattr(canonizers, one.__name__) is one
        assert repr(one) == f"Fold(name='{one.__name__}')"
        assert pickle.loads(pickle.dumps(one)) == one
        assert "Args:" in pydoc.render_doc(one)


def without(params: dict, name: str) -> dict:
    return {key: leaf for key, leaf in params.items() if key != name}


def undeclared(program, params) -> tuple:
    """A program that reads the leaf 'new' and does not say so."""
    new = {"params.1.bias": Variable("params.new", (4,), DOUBLE)}
    return program.replace(equations=tuple(equation.renamed(new) for equation in program.equations)), params


def dropping(program, params) -> tuple:
    """A program that fits its parameters, but has lost the leaf '1.bias'."""
    left = without(params, "1.bias")
    return program.with_parameters(program.parameters, left), left


def misread(program, params) -> tuple:
    """A program that declares the leaf '1.bias' in another shape than that in which it reads it."""
    declared = {**program.parameters, "1.bias": Variable("params.1.bias", (7,), DOUBLE)}
    changed = {**params, "1.bias": params["1.bias"].new_zeros(7)}
    return program.with_parameters(declared, changed), changed


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f, p: (f, without(p, "1.bias")), r"pass 'broken' returned .*: params lacks the leaf '1\.bias'"),
        (lambda f, p: (f, {**p, "more": p["1.bias"]}), r"pass 'broken' returned .*: params has the leaf 'more'"),
        (
            lambda f, p: (f, {**p, "1.bias": p["1.bias"][:2]}),
            r"pass 'broken' returned .*: leaf '1\.bias' of params must have shape \(4\), but has \(2,\)",
        ),
        (lambda f, p: (f, list(p.values())), r"pass 'broken' returned .* do not fit the program it returned: params"),
        (dropping, r"pass 'broken' dropped the leaf '1\.bias': a pass may only add leaves"),
        (undeclared, r"a program that reads the leaf 'new' of shape \(4\), but its parameters have no such leaf\."),
        (misread, r"reads the leaf '1\.bias' of shape \(4\), but its parameters have one of shape \(7\)\. .*with_par"),
    ],
)
def test_a_pass_whose_result_is_ill_formed_is_refused_by_name(broken, message):
    broken = types.FunctionType(broken.__code__, broken.__globals__, "broken", None, broken.__closure__)
    for passes in (broken, canonizers.chain(canonizers.merge_batch_norm, broken)):
        with pytest.raises(CanonizeError, match=message):
            lrpfunc.canonize(*traced_two_way(), passes)


def test_a_batch_norm_of_an_empty_batch_is_left():
    x, none, one = torch.randn(0, dtype=DOUBLE), torch.zeros(0, dtype=DOUBLE), torch.ones(0, dtype=DOUBLE)
    fmodel, params = lrpfunc.trace(lambda p, x: F.batch_norm(x, p["m"], p["v"]) * 2, {"m": none, "v": one}, x)
    assert str(lrpfunc.canonize(fmodel, params).report).splitlines()[1].endswith("there are no channels")
