"""Canonization: the same function, nothing mutated, undone bit for bit (law 7 for `merge_batch_norm`)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import CanonizeError, ParameterError, RuleError
from tests.helpers import randomize, relative_error

LAYERS = {
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
    "linear without bias": (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (3, 4)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6), (3, 4, 7)),
    "conv2d": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv2d same": (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), (3, 4, 5, 5)),
    "conv2d reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "conv3d": (nn.Conv3d(4, 6, 2, dilation=2), nn.BatchNorm3d(6), (3, 4, 4, 4, 4)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (3, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "transposed2d grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    "transposed3d": (nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6), (3, 4, 3, 3, 3)),
    "without affine": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (3, 4, 5, 5)),
    "frozen": (nn.Conv2d(4, 6, 3, bias=False), FrozenBatchNorm2d(6), (3, 4, 5, 5)),
    "large eps": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.3), (3, 4, 5, 5)),
}


def canonical_of(layer: nn.Module, norm: nn.Module, shape: tuple):
    torch.manual_seed(0)
    model = randomize(nn.Sequential(layer, norm, nn.ReLU())).double()
    if isinstance(norm, FrozenBatchNorm2d):
        for buffer in norm.buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    x = torch.randn(shape, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)
    return model, x, fmodel, params, lrpfunc.canonize(fmodel, params)


@pytest.mark.parametrize("case", LAYERS)
def test_a_batch_norm_is_folded_and_restored(case):
    model, x, fmodel, params, canonical = canonical_of(*LAYERS[case])
    before = {name: leaf.clone() for name, leaf in params.items()}
    expected = model(x)
    assert torch.equal(fmodel(params, x), expected)
    assert relative_error(canonical.fmodel(canonical.params, x), expected) < 1e-13
    assert relative_error(fmodel(canonical.params, x), expected) < 1e-13  # the original program too
    assert not any("batch_norm" in equation.operator for equation in canonical.fmodel.equations)
    assert canonical.params.keys() == params.keys()
    assert canonical.params["1.eps"].item() == 0.0
    assert all(torch.equal(before[name], leaf) for name, leaf in params.items())
    restored = canonical.restore(canonical.params)
    assert all(torch.equal(before[name], leaf) for name, leaf in restored.items())
    assert str(canonical.report) == "batch norm  became\n1           merged into 0"


def test_a_batch_norm_after_a_batch_norm_is_folded_too():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3))).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    assert [e.operator for e in canonical.fmodel.equations] == ["conv2d"]
    assert relative_error(canonical.fmodel(canonical.params, x), model(x)) < 1e-13
    restored = canonical.restore(canonical.params)
    assert all(torch.equal(restored[name], leaf) for name, leaf in params.items())
    assert dict(canonical.report.fates) == {"1": "merged into 0", "2": "merged into 0"}


def test_folding_is_idempotent():
    *_, canonical = canonical_of(*LAYERS["conv2d"])
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


class Shared(nn.Module):
    """One convolution under two batch norms: its weight must not be overwritten."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x)).relu()))


def test_a_shared_weight_gets_its_own_leaf_for_each_use():
    model, x = randomize(Shared()).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    assert relative_error(canonical.fmodel(canonical.params, x), model(x)) < 1e-13
    assert torch.equal(canonical.params["conv.weight"], params["conv.weight"])
    assert set(canonical.params) - set(params) == {"conv.weight'", "conv.bias'", "conv:1.weight", "conv:1.bias"}
    restored = canonical.restore(canonical.params)
    assert restored.keys() == params.keys()
    assert all(torch.equal(restored[name], leaf) for name, leaf in params.items())


class Left(nn.Module):
    """Batch norms that must be left alone, each for its own reason."""

    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.read_twice, self.tokens, self.linear = nn.BatchNorm2d(3), nn.BatchNorm1d(3), nn.Linear(9, 9)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        self.computed = nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(self.first(x))
        y = self.read_twice(y) + y
        return self.tokens(self.linear(self.computed(self.normed(y)).flatten(2)))


def test_batch_norms_that_cannot_be_folded_are_left_and_reported():
    model, x = randomize(Left()).double(), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    assert torch.equal(canonical.fmodel(canonical.params, x), model(x))
    assert dict(canonical.report.fates) == {
        "first": "left: it reads an input, not a linear layer",
        "read_twice": "left: others read conv too",
        "computed": "left: parameters of computed or normed are computed",
        "tokens": "left: its channels are not the features of linear",
    }
    listing = lrpfunc.explain(canonical.fmodel, composites.epsilon())
    assert {row[1]: row[-1] for row in listing.rows}["first"] == "pass_through"


def test_a_layer_whose_result_is_also_an_output_is_left():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return y, self.norm(y)

    model, x = randomize(Both()), torch.randn(2, 3, 4, 4)
    fmodel, params = lrpfunc.functionalize(model, x)
    canonical = lrpfunc.canonize(fmodel, params)
    assert dict(canonical.report.fates) == {"norm": "left: others read conv too"}
    assert all(map(torch.equal, canonical.fmodel(canonical.params, x), model(x)))


def test_a_functional_batch_norm_of_a_traced_function_is_folded():
    def f(params, x):
        y = F.conv2d(x, params["w"], params["b"])
        return F.batch_norm(y, params["mean"], params["var"], params["gamma"], params["beta"], eps=1e-3)

    params = {name: torch.rand(4, dtype=torch.float64) + 0.5 for name in ("b", "mean", "var", "gamma", "beta")}
    params["w"] = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    fmodel, lifted = lrpfunc.trace(f, params, x)
    canonical = lrpfunc.canonize(fmodel, lifted)
    assert relative_error(canonical.fmodel(canonical.params, x), f(params, x)) < 1e-13
    assert [e.operator for e in canonical.fmodel.equations] == ["conv2d"]
    assert lifted["batch_norm.eps"].item() == 1e-3


def test_canonization_makes_the_sum_of_relevance_match_the_logit():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)))
    x = torch.randn(2, 1, 5, 5)
    fmodel, params = lrpfunc.functionalize(model, x)
    _, canonical, _, _ = lrpfunc.canonize(fmodel, params)
    unbiased = {name: torch.zeros_like(p) if name.endswith("bias") else p for name, p in canonical.items()}
    relevance = lrpfunc.attribute(fmodel, unbiased, x, composites.epsilon_plus(), 1)
    torch.testing.assert_close(relevance.flatten(1).sum(1), fmodel(unbiased, x)[:, 1], rtol=1e-3, atol=1e-5)


def test_bad_parameters_are_refused():
    _, _, fmodel, params, canonical = canonical_of(*LAYERS["conv2d"])
    with pytest.raises(ParameterError, match=r"lacks the leaf '0.bias'"):
        lrpfunc.canonize(fmodel, {name: leaf for name, leaf in params.items() if name != "0.bias"})
    with pytest.raises(ParameterError, match=r"lacks the leaf '0.bias'"):
        canonical.restore({name: leaf for name, leaf in params.items() if name != "0.bias"})
    nested, nested_params = lrpfunc.trace(lambda p, x: x @ p["a"]["w"], {"a": {"w": torch.eye(3)}}, torch.randn(2, 3))
    with pytest.raises(CanonizeError, match=r"needs the parameters as a flat dict"):
        lrpfunc.canonize(nested, nested_params)


def test_rules_of_folded_batch_norms_say_what_to_name_instead():
    _, x, _, _, canonical = canonical_of(*LAYERS["conv2d"])
    with pytest.raises(RuleError, match=r"no layer matches the pattern '1'"):
        lrpfunc.attribute(canonical.fmodel, canonical.params, x, {"1": lrpfunc.rules.flat()}, target=(0, 0, 0))
