"""`merge_parallel`: branches that are summed against the layer that they are, made by hand and by timm."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc import canonizers, composites, rules
from lrpfunc.canonizers import PARALLEL, merge_parallel
from lrpfunc.errors import CanonizeError
from tests.helpers import randomize, relative_error
from tests.test_canonizers import Net, canonical_of, fates, signed

DOUBLE = torch.float64


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, padding: int | str = 1, **more) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, **more)


def scale_and_shift(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - scale * norm.running_mean


def around(weight: torch.Tensor, zeros: int = 1) -> torch.Tensor:
    """A kernel with zeros around it, along each of its axes."""
    return F.pad(weight, (zeros, zeros) * (weight.dim() - 2))


def diagonal(values: torch.Tensor, axes: int = 2, groups: int = 1) -> torch.Tensor:
    """The kernel of size one that scales channels, one of so many groups after another."""
    matrix = torch.diag(values)
    blocks = [block.chunk(groups, 1)[i] for i, block in enumerate(matrix.chunk(groups))]
    return torch.cat(blocks).reshape(len(values), -1, *[1] * axes)


def of_channels(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1, 1, 1)


ONES = torch.ones(4, dtype=DOUBLE)
IMAGES = (3, 4, 6, 6)

# The sum, its layers, the shape of its input, and by hand the weight and the bias of the layer "a" that it is.
MERGED = {
    "3 x 3 and 1 x 1": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 5), "b": conv(4, 5, 1, 0)},
        IMAGES,
        lambda m: (m.a.weight + around(m.b.weight), m.a.bias + m.b.bias),
    ),
    "smaller one first": (
        lambda m, x: m.b(x) + m.a(x),
        lambda: {"a": conv(bias=False), "b": conv(4, 4, 1, 0)},
        IMAGES,
        lambda m: (m.a.weight + around(m.b.weight), m.b.bias),
    ),
    "a norm and the input": (
        lambda m, x: m.a(x) + m.n(x) + x,
        lambda: {"a": conv(), "n": nn.BatchNorm2d(4)},
        IMAGES,
        lambda m: (m.a.weight + around(diagonal(scale_and_shift(m.n)[0] + 1)), m.a.bias + scale_and_shift(m.n)[1]),
    ),
    "norms behind": (
        lambda m, x: m.n(m.a(x)) - m.o(m.b(x)),
        lambda: {"a": conv(), "n": nn.BatchNorm2d(4), "b": conv(4, 4, 1, 0, bias=False), "o": nn.BatchNorm2d(4)},
        IMAGES,
        lambda m: (
            of_channels(scale_and_shift(m.n)[0]) * m.a.weight
            - around(of_channels(scale_and_shift(m.o)[0]) * m.b.weight),
            scale_and_shift(m.n)[0] * m.a.bias + scale_and_shift(m.n)[1] - scale_and_shift(m.o)[1],
        ),
    ),
    "a norm of the sum": (
        lambda m, x: m.n(m.a(x) + x),
        lambda: {"a": conv(), "n": nn.BatchNorm2d(4)},
        IMAGES,
        lambda m: (
            of_channels(scale_and_shift(m.n)[0]) * (m.a.weight + around(diagonal(ONES))),
            scale_and_shift(m.n)[0] * m.a.bias + scale_and_shift(m.n)[1],
        ),
    ),
    "channels apart": (
        lambda m, x: m.a(x) + m.b(x) + x,
        lambda: {"a": conv(groups=2), "b": conv(4, 4, 1, 0, groups=4)},
        IMAGES,
        lambda m: (
            m.a.weight + around(diagonal(m.b.weight.flatten() + 1, groups=2)),
            m.a.bias + m.b.bias,
        ),
    ),
    "even kernels and strides": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 5, 4, 1, stride=2), "b": conv(4, 5, 2, 0, stride=2)},
        IMAGES,
        lambda m: (m.a.weight + around(m.b.weight), m.a.bias + m.b.bias),
    ),
    "the same size": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 4, 5, "same"), "b": conv(4, 4, (3, 1), (1, 0))},
        IMAGES,
        lambda m: (m.a.weight + F.pad(m.b.weight, (2, 2, 1, 1)), m.a.bias + m.b.bias),
    ),
    "one dilated": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 4, 5, 2), "b": conv(4, 4, 2, 1, dilation=2)},
        IMAGES,
        lambda m: (m.a.weight + F.pad(spread(m.b.weight), (1, 1, 1, 1)), m.a.bias + m.b.bias),
    ),
    "both dilated": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 4, 3, 2, dilation=2), "b": conv(4, 4, 1, 0, dilation=3)},
        IMAGES,
        lambda m: (m.a.weight + around(m.b.weight), m.a.bias + m.b.bias),
    ),
    "scaled": (
        lambda m, x: x - m.g * (m.a(x) / 2 - m.n(x)),
        lambda: {"a": conv(), "n": nn.BatchNorm2d(4), "g": nn.Parameter(torch.randn(4, 1, 1))},
        IMAGES,
        lambda m: (
            around(diagonal(ONES))
            - of_channels(m.g) * (m.a.weight / 2 - around(diagonal(scale_and_shift(m.n)[0]))),
            -m.g.flatten() * (m.a.bias / 2 - scale_and_shift(m.n)[1]),
        ),
    ),
    "Python's sum": (
        lambda m, x: -sum([m.a(x), m.b(x), x]),
        lambda: {"a": conv(bias=False), "b": conv(bias=False)},
        IMAGES,
        lambda m: (-m.a.weight - m.b.weight - around(diagonal(ONES)), None),
    ),
    "a layer twice": (
        lambda m, x: torch.add(m.a(x), m.a(x), alpha=-0.25),
        lambda: {"a": conv()},
        IMAGES,
        lambda m: (0.75 * m.a.weight, 0.75 * m.a.bias),
    ),
    "one axis": (
        lambda m, x: m.a(x) + m.n(x),
        lambda: {"a": nn.Conv1d(4, 4, 3, padding=1), "n": nn.BatchNorm1d(4)},
        (3, 4, 6),
        lambda m: (m.a.weight + around(diagonal(scale_and_shift(m.n)[0], 1)), m.a.bias + scale_and_shift(m.n)[1]),
    ),
    "three axes": (
        lambda m, x: m.a(x) + m.b(x) + m.n(x),
        lambda: {"a": nn.Conv3d(4, 4, 3, padding=1), "b": nn.Conv3d(4, 4, 1), "n": nn.BatchNorm3d(4)},
        (2, 4, 3, 4, 3),
        lambda m: (
            m.a.weight + around(m.b.weight + diagonal(scale_and_shift(m.n)[0], 3)),
            m.a.bias + m.b.bias + scale_and_shift(m.n)[1],
        ),
    ),
    "transposed": (
        lambda m, x: m.a(x) - 3 * m.b(x),
        lambda: {"a": nn.ConvTranspose2d(4, 6, 3, 2, groups=2), "b": nn.ConvTranspose2d(4, 6, 3, 2, groups=2)},
        IMAGES,
        lambda m: (m.a.weight - 3 * m.b.weight, m.a.bias - 3 * m.b.bias),
    ),
    "dense": (
        lambda m, x: (m.a(x) + m.b(x)) / 2,
        lambda: {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3, bias=False)},
        (3, 4),
        lambda m: ((m.a.weight + m.b.weight) / 2, m.a.bias / 2),
    ),
    "dense and a norm": (
        lambda m, x: m.a(x) + m.n(x),
        lambda: {"a": nn.Linear(4, 4), "n": nn.BatchNorm1d(4)},
        (3, 4),
        lambda m: (m.a.weight + torch.diag(scale_and_shift(m.n)[0]), m.a.bias + scale_and_shift(m.n)[1]),
    ),
    "tokens": (
        lambda m, x: x + m.g * m.a(x),
        lambda: {"a": nn.Linear(4, 4), "g": nn.Parameter(torch.randn(4))},
        (3, 5, 4),
        lambda m: (torch.diag(ONES) + m.g[:, None] * m.a.weight, m.g * m.a.bias),
    ),
    "addmm": (
        lambda m, x: m.a(x) + torch.addmm(m.c, x, m.w) + x,
        lambda: {
            "a": nn.Linear(4, 4, bias=False),
            "c": nn.Parameter(torch.randn(4)),
            "w": nn.Parameter(torch.randn(4, 4)),
        },
        (3, 4),
        lambda m: (m.a.weight + m.w.T + torch.diag(ONES), m.c),
    ),
}  # fmt: skip


def spread(weight: torch.Tensor) -> torch.Tensor:
    """A kernel of two by two with a zero between its entries."""
    wide = weight.new_zeros(*weight.shape[:2], 3, 3)
    wide[..., ::2, ::2] = weight
    return wide


def rectified(forward):
    """The function with a ReLU behind it, so that not all relevance has one sign."""
    return lambda m, x: forward(m, x).relu().flatten(1)


RULES = (rules.epsilon(), rules.zplus(), rules.alpha_beta(2, 1), rules.gamma(0.25))


@pytest.mark.parametrize("case", MERGED)
def test_branches_are_merged_into_one_layer(case):
    forward, layers, shape, by_hand = MERGED[case]
    torch.manual_seed(0)
    model, x = signed(Net(rectified(forward), **layers())), torch.randn(shape, dtype=DOUBLE)
    canonical = canonical_of(model, x)
    layer, *rest = canonical.fmodel.equations
    assert (layer.name, [equation.operator for equation in rest]) == ("a", ["relu", "flatten"])
    assert canonical.report.left == {}
    assert [fates(canonical)[name] for name in canonical.report.subjects["parallel sum"]] == [(PARALLEL, "a")]
    again = lrpfunc.canonize(canonical.fmodel, canonical.params)
    assert again.fmodel is canonical.fmodel
    weight, bias = by_hand(model)
    geometry = layer.arguments[3:]
    plain = {"w": weight} if bias is None else {"w": weight, "b": bias}
    one = lrpfunc.trace(lambda p, x: layer.function(x, p["w"], p.get("b"), *geometry).relu().flatten(1), plain, x)
    for rule in RULES:
        got, expected = (
            lrpfunc.attribute(*program, x, {"*": rule}, target=lambda y: y) for program in (canonical[:2], one)
        )
        assert relative_error(got, expected) < 1e-12


# -- what is left -----------------------------------------------------------------------------------------------------

LEFT = {
    "a branch that others read": (
        lambda m, x: (lambda y: (y + m.b(x)) * y)(m.a(x)),
        lambda: {"a": conv(), "b": conv()},
        "its terms: others read a too",
    ),
    "a branch that is an output": (
        lambda m, x: (lambda y: (y, y + m.b(x)))(m.a(x)),
        lambda: {"a": conv(), "b": conv()},
        "its terms: others read a too",
    ),
    "kernels across": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 4, (1, 3), (0, 1)), "b": conv(4, 4, (3, 1), (1, 0))},
        "its terms: the kernel of a does not hold that of b",
    ),
    "entries between others": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 4, 3, 2, dilation=2), "b": conv(4, 4, 2, "same")},
        "its terms: the kernel of a does not hold that of b",
    ),
    "channels apart": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 4, 5, 2, groups=4), "b": conv(4, 4, 1, 0)},
        "its terms: b mixes channels that a keeps apart",
    ),
    "strides": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": conv(4, 4, 7, 3, stride=5), "b": conv(4, 4, 3, 0, stride=3)},
        "its terms: a and b have different strides",
    ),
    "a transposed convolution and its input": (
        lambda m, x: m.a(x) + x,
        lambda: {"a": nn.ConvTranspose2d(4, 4, 3, padding=1)},
        "its terms: a and the input are no layers of one kind",
    ),
    "transposed convolutions of two geometries": (
        lambda m, x: m.a(x) + m.b(x),
        lambda: {"a": nn.ConvTranspose2d(4, 4, 3, padding=1), "b": nn.ConvTranspose2d(4, 4, 1)},
        "its terms: a and b are no layers of one kind",
    ),
    "a bias of the input": (
        lambda m, x: F.conv2d(x, m.a.weight, x.detach().mean((0, 2, 3)), padding=1) + m.b(x),
        lambda: {"a": conv(), "b": conv(4, 4, 1, 0)},
        "its terms: the bias of a is not constant",
    ),
    "a bias of another shape": (
        lambda m, x: (lambda y: torch.addmm(m.c, y, m.w) + y)(x.mean((2, 3))),
        lambda: {"c": nn.Parameter(torch.randn(1, 4)), "w": nn.Parameter(torch.randn(4, 4))},
        "its terms: the bias of w is not one number for each channel",
    ),
    "pixels scaled": (
        lambda m, x: m.p * m.a(x) + m.b(x),
        lambda: {"a": conv(), "b": conv(), "p": nn.Parameter(torch.randn(6, 6))},
        "its terms: mul scales a channel differently from place to place",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_branches_that_are_no_one_layer_are_left_and_reported(case):
    forward, layers, why = LEFT[case]
    torch.manual_seed(0)
    model, x = signed(Net(forward, **layers())), torch.randn(IMAGES, dtype=DOUBLE)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    (reason,) = canonical.report.left.values()
    assert why in reason
    assert canonical.fmodel is fmodel
    assert canonical.params is params


# Sums that are no linear branches of one input; they are not listed.
OTHER = {
    "a residual": (lambda m, x: x + m.b(m.a(x).relu()), lambda: {"a": conv(), "b": conv()}),
    "two inputs": (lambda m, x: m.a(x) + m.b(x.relu()), lambda: {"a": conv(), "b": conv()}),
    "no layer": (lambda m, x: 2 * x - x.neg(), lambda: {}),
    "one term": (lambda m, x: 3 * m.a(x) + 0, lambda: {"a": conv()}),
    "a constant": (lambda m, x: m.a(x) + 1.0, lambda: {"a": conv()}),
    "a quotient without rest": (
        lambda m, x: torch.div(m.a(x), 0.1, rounding_mode="trunc") + m.b(x),
        lambda: {"a": conv(), "b": conv()},
    ),
    "a broadcast sum": (lambda m, x: m.a(x) + m.b(x), lambda: {"a": conv(), "b": conv(4, 1)}),
    "a scale of the input": (
        lambda m, x: m.a(x) * x.detach().mean((2, 3), keepdim=True) + m.b(x),
        lambda: {"a": conv(), "b": conv()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_other_sums_stay_what_they_are(case):
    forward, layers = OTHER[case]
    canonical = canonical_of(signed(Net(forward, **layers())), torch.randn(IMAGES, dtype=DOUBLE))
    assert list(canonical.report.subjects) == ["batch norm"]
    assert canonical.params.keys() == canonical.restore(canonical.params).keys()


def test_what_can_be_merged_of_a_sum_is_merged():
    model = signed(Net(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=conv(groups=4), b=conv(4, 4, 5, 2, groups=4), c=conv()))
    canonical = canonical_of(model, torch.randn(IMAGES, dtype=DOUBLE))
    assert [equation.name for equation in canonical.fmodel.equations] == ["b", "c", "add:1"]
    assert fates(canonical) == {
        "add": (PARALLEL, "b"),
        "add:1": ("left", "its terms: the kernel of c does not hold that of b"),
    }


# -- the pass ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """RepVGG's, with its output scaled."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.three = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.one = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return (self.one(x) + self.three(x) + self.norm(x)).relu()


def blocks() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return signed(nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(48, 3))), torch.randn(
        2, 3, 4, 4, dtype=DOUBLE
    )


def test_the_report_has_a_row_for_each_sum():
    model, x = blocks()
    canonical = canonical_of(nn.Sequential(model[0]), x)
    assert str(canonical.report) == (
        "batch norm  became           where\n"
        "0.one.1     merged           0.one.0\n"
        "0.three.1   merged           0.three.0\n"
        "0.norm      merged parallel  0.three.0\n"
        "\n"
        "parallel sum  became           where\n"
        "0.add:1       merged parallel  0.three.0"
    )
    alone = canonical_of(nn.Sequential(model[0]), x, merge_parallel)
    assert alone.report.left["0.add:1"] == "its terms: the batch norm 0.one.1 is not merged"


def test_sums_are_merged_by_name():
    model, x = (
        signed(Net(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv(4, 4, 1, 0))),
        torch.randn(IMAGES, dtype=DOUBLE),
    )
    named = canonical_of(model, x, canonizers.merge_named({("b", "a"): "add"}))
    assert fates(named) == {"add": (PARALLEL, "a")}
    with pytest.raises(
        CanonizeError, match=r"parallel sum 'add' .* into 'a'\. Its terms: it would go into 'a' and 'b'"
    ):
        canonical_of(model, x, canonizers.merge_named([("a", "add")]))


def relevance(fmodel, params, x) -> torch.Tensor:
    canonical = lrpfunc.canonize(fmodel, params)
    return lrpfunc.attribute(canonical.fmodel, canonical.params, x, composites.epsilon_plus(), target=1)


@pytest.mark.parametrize("name", ["0.three.0.weight", "0.one.1.running_var", "1.norm.weight"])
def test_relevance_has_derivatives_in_what_was_merged(name):
    model, x = blocks()
    fmodel, params = lrpfunc.functionalize(model, x)
    leaf = params[name].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda leaf: relevance(fmodel, {**params, name: leaf}, x), leaf, fast_mode=True)


def test_stacked_parameters_are_merged_as_each_of_them():
    model, x = blocks()
    fmodel, params = lrpfunc.functionalize(model, x)
    several = [{name: (1 + 0.1 * i) * leaf for name, leaf in params.items()} for i in range(2)]
    stacked = {name: torch.stack([one[name] for one in several]) for name in params}
    got = torch.func.vmap(lambda params: relevance(fmodel, params, x))(stacked)
    assert relative_error(got, torch.stack([relevance(fmodel, one, x) for one in several])) < 1e-12


def test_half_precision_is_rounded_once():
    model = signed(Net(lambda m, x: m.a(x) + m.n(x), a=conv(), n=nn.BatchNorm2d(4))).bfloat16()
    fmodel, params = lrpfunc.functionalize(model, torch.randn(IMAGES, dtype=torch.bfloat16))
    exact = lrpfunc.canonize(fmodel, {name: leaf.float() for name, leaf in params.items()}).params
    half = lrpfunc.canonize(fmodel, params).params
    for name in ("a.weight", "a.bias"):
        assert torch.equal(half[name], exact[name].bfloat16())


# -- models -----------------------------------------------------------------------------------------------------------

PRESETS = {
    "epsilon": composites.epsilon(),
    "plus": composites.epsilon_plus(),
    "plus_flat": composites.epsilon_plus_flat(),
    "alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "gamma_box": composites.epsilon_gamma_box(low=-3.0, high=3.0),
    "attn_lrp": composites.attn_lrp(),
}


def repvgg() -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(ByoBlockCfg(type="rep", d=2, c=width, s=2, gs=0) for width in (8, 12))
    return ByobNet(ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8), num_classes=5)


def mobileone() -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    apart = ByoBlockCfg(type="one", d=1, c=8, s=2, gs=1, block_kwargs={"num_conv_branches": 2})
    across = ByoBlockCfg(type="one", d=1, c=8, s=1, gs=0, block_kwargs={"num_conv_branches": 3, "kernel_size": 1})
    return ByobNet(ByoModelCfg(blocks=([apart, across], [apart]), stem_type="one", stem_chs=8), num_classes=5)


def repvit() -> nn.Module:
    from timm.models.repvit import RepVit

    return RepVit(embed_dim=(8, 12), depth=(2, 1), num_classes=5)


def fastvit() -> nn.Module:
    from timm.models.fastvit import FastVit

    sizes = {"layers": (1, 1), "embed_dims": (8, 32), "mlp_ratios": (2, 2), "num_classes": 5}
    return FastVit(token_mixers=("repmixer", "attention"), layer_scale_init_value=0.5, **sizes)


def repghost() -> nn.Module:
    from timm.models.repghost import RepGhostNet

    return RepGhostNet([[[3, 8, 16, 0, 1]], [[5, 24, 24, 0.25, 2]], [[3, 36, 24, 0, 1]]], width=0.5, num_classes=5)


SMALL = {one.__name__: one for one in (repvgg, mobileone, repvit, fastvit, repghost)}
WHOLE = ("repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "repghostnet_050")


@pytest.mark.dev
@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)])
def test_models_as_trained_have_the_maps_of_the_fused_ones(name):
    pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own
        trained, fused = trained_and_fused(name)
    x = torch.randn(1, 3, 64, 64, dtype=DOUBLE)
    one, other = (lrpfunc.canonize(*lrpfunc.functionalize(model, x)) for model in (trained, fused))
    assert one.report.left == {}
    assert [e.operator for e in one.fmodel.equations] == [e.operator for e in other.fmodel.equations]
    for preset, composite in PRESETS.items():
        maps = [lrpfunc.attribute(c.fmodel, c.params, x, composite, target=0) for c in (one, other)]
        assert relative_error(*maps) < 1e-9, preset


def trained_and_fused(name: str) -> tuple[nn.Module, nn.Module]:
    import timm
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    model = SMALL[name]() if name in SMALL else timm.create_model(name, num_classes=5)
    trained = randomize(model).double().requires_grad_(False)
    torch.set_default_dtype(DOUBLE)  # in which timm makes the fused layers
    try:
        return trained, reparameterize_model(trained)
    finally:
        torch.set_default_dtype(torch.float32)
