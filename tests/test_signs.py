"""What is known of signs, and that it is true."""

import pytest
import torch
import torch.nn.functional as F

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import InputError
from lrpfunc.operations import TABLE, nonnegative
from lrpfunc.program import functions

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

NEVER_BELOW_ZERO = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh, as nn.ReLU6 is": lambda x: F.hardtanh(x, 0.0, 6.0),
    "hardtanh above zero": lambda x: F.hardtanh(x, 0.5, 2.0),
    "hardtanh of what never is": lambda x: F.hardtanh(x.relu()),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softmax": lambda x: x.softmax(1),
    "softplus": F.softplus,
    "exp": torch.exp,
    "abs": torch.abs,
    "square": torch.square,
    "even power": lambda x: x**4,
    "product with itself": lambda x: x * x,
    "sqrt": lambda x: x.abs().sqrt(),
    "clamp": lambda x: x.clamp(0.0, 2.0),
    "clamp min": lambda x: x.clamp(min=0.5),
    "clamp of what is not": lambda x: x.relu().clamp(max=2.0),
    "silu": lambda x: F.silu(x.relu()),
    "max pool": lambda x: F.max_pool2d(x.relu(), 2, padding=1),
    "average pool": lambda x: F.avg_pool2d(x.relu(), 3, 2, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x.relu(), 1),
    "bilinear": lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bilinear"),
    "mean": lambda x: x.relu().mean((2, 3)),
    "sum": lambda x: x.relu() + x.sigmoid(),
    "sum with a number": lambda x: x.relu() + 1.5,
    "product": lambda x: x.relu() * x.abs() * 2.0,
    "quotient": lambda x: x.relu() / 3.0,
    "where": lambda x: torch.where(x > 0.3, x.abs(), 0.5),
    "maximum": lambda x: torch.maximum(x.relu(), x.abs()),
    "cat": lambda x: torch.cat([x.relu(), x.abs()], 1),
    "views": lambda x: x.relu().flatten(1).unsqueeze(1).transpose(1, 2).reshape(2, -1),
    "split": lambda x: x.relu().split(2, 1)[1],
    "pad": lambda x: F.pad(x.relu(), (1, 1)),
    "pad with a number": lambda x: F.pad(x.relu(), (1, 1), value=0.5),
    "masked fill": lambda x: x.relu().masked_fill(x > 1, 2.0),
    "index": lambda x: x.relu()[:, [0, 2]],
}

MAY_BE = {
    "input": lambda x: x * 1.0,
    "leaky relu": F.leaky_relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "clamp": lambda x: x.clamp(-1.0, 2.0),
    "clamp max": lambda x: x.clamp(max=2.0),
    "clamp to below zero": lambda x: x.clamp(0.0, -1.0),
    "hardtanh": lambda x: F.hardtanh(x),
    "hardtanh below zero": lambda x: F.hardtanh(x.relu(), -2.0, -1.0),
    "odd power": lambda x: x**3,
    "difference": lambda x: x.relu() - x.sigmoid(),
    "sum with a negative number": lambda x: x.relu() + -1.5,
    "subtracting sum": lambda x: torch.add(x.relu(), x.sigmoid(), alpha=-1),
    "negative product": lambda x: x.relu() * -2.0,
    "cat with what may be": lambda x: torch.cat([x.relu(), x], 1),
    "pad below zero": lambda x: F.pad(x.relu(), (1, 1), value=-0.5),
    "fill below zero": lambda x: x.relu().masked_fill(x > 1, -2.0),
    "bicubic": lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bicubic"),
    "where": lambda x: torch.where(x > 0.3, x, 0.5),
    "what was an integer": lambda x: x * (x > 0).long().neg().to(x.dtype),
}


def known(function, ranges=None) -> tuple[bool, torch.Tensor]:
    fmodel, params = lrpfunc.trace(lambda params, x: function(x), {}, X)
    variable = fmodel.output_leaves[0]
    return variable.name in nonnegative(fmodel, ranges or {}), fmodel(params, X)


@pytest.mark.parametrize("name", NEVER_BELOW_ZERO)
def test_what_is_never_below_zero_is_known(name):
    is_known, output = known(NEVER_BELOW_ZERO[name])
    assert is_known
    assert (output >= 0).all()


@pytest.mark.parametrize("name", MAY_BE)
def test_what_may_be_below_zero_is_not_taken_for_more(name):
    assert not known(MAY_BE[name])[0]


def test_a_threshold_relu_may_be_below_zero():
    """DenseNet's batch norms become thresholds: its convolutions have inputs of both signs."""
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3, bias=False))
    model[0].running_mean += 1.0
    fmodel, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model.eval().double(), X))
    thresholds = [e for e in fmodel.equations if e.operator == "threshold_relu"]
    assert thresholds
    assert not {e.outputs[0].name for e in thresholds} & nonnegative(fmodel, {})


def test_the_range_of_the_input_counts():
    assert known(lambda x: x.flatten(1), {"x": (0.0, 1.0)})[0]
    assert not known(lambda x: x.flatten(1), {"x": (-1e-9, 1.0)})[0]


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(4, 3, 3), torch.nn.Conv2d(4, 3, 3)

    def forward(self, image, depth):
        return (self.first(image) + self.second(depth)).flatten(1)


def pair():
    torch.manual_seed(0)
    return lrpfunc.functionalize(Pair().double(), X, X)


@pytest.mark.parametrize("given", [(0, 3.0), {"depth": (0.0, 3.0)}, {"image": [0, 9], "depth": (-1, 3)}])
@pytest.mark.parametrize("composite", [composites.epsilon_plus(), composites.epsilon_alpha2_beta1(), rules.gamma()])
def test_a_stated_range_changes_nothing_but_the_time(given, composite):
    fmodel, params = pair()
    x = (X.abs().clamp(max=3), X.abs().clamp(max=3))
    expected = lrpfunc.attribute(fmodel, params, x, composite, target=3)
    got = lrpfunc.attribute(fmodel, params, x, composite, target=3, input_range=given)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_stated_range_saves_convolutions():
    fmodel, params = pair()
    steps = lrpfunc.prepare(fmodel, params, rules.zplus(), input_range={"depth": (0, 1)}).plan.steps
    assert [step.context.is_nonnegative for step in steps if step.equation.operator == "conv2d"] == [False, True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1.0, 0.0), r"input_range must be two numbers \(low, high\) with low <= high, but is \(1.0, 0.0\)"),
        ((0.0,), r"input_range must be two numbers .* but is \(0.0,\)"),
        (("a", "b"), r"input_range must be two numbers"),
        ({"dept": (0, 1)}, r"input_range names 'dept', which is no floating-point input. Did you mean 'depth'\?"),
        ((0.0, 1.0), r"input_range says that 'image' lies in 0 to 1, but it goes from -3.1453 to 2.8321"),
        ({"depth": (-9, 0.5)}, r"input_range says that 'depth' lies in -9 to 0.5, but it goes from"),
    ],
)
def test_ranges_that_are_wrong(given, message):
    fmodel, params = pair()
    with pytest.raises(InputError, match=message):
        lrpfunc.attribute(fmodel, params, (X, X), rules.zplus(), target=0, input_range=given)


def test_a_range_is_not_looked_at_where_values_are_not_known():
    fmodel, params = pair()

    def relevance(x):
        return lrpfunc.attribute(fmodel, params, (x[None], x[None]), rules.zplus(), target=0, input_range=(0, 9))[0][0]

    x = X.abs()
    expected = torch.stack([relevance(sample) for sample in x])
    torch.testing.assert_close(torch.func.vmap(relevance)(x), expected, rtol=1e-9, atol=1e-12)


def test_every_row_is_an_operation():
    signed = [name for name, row in TABLE.items() if row.sign]
    assert not [name for name in signed if not hasattr(torch.ops.aten, name) and not hasattr(functions, name)]


NOT_WHAT_THEY_SEEM = {
    "softplus with a negative beta": lambda x: F.softplus(x, beta=-1),
    "softplus that is linear below zero": lambda x: F.softplus(x, threshold=-5.0),
    "average by a negative divisor": lambda x: F.avg_pool2d(x.relu(), 2, divisor_override=-4),
    "elu of a negative scale": lambda x: torch.ops.aten.elu(x.relu(), 1.0, -1.0, 1.0),
    "alpha by position": lambda x: torch.ops.aten.add.Scalar(x.relu(), 3.0, -1),
    "window in the padding": lambda x: F.max_pool2d(x.relu()[..., :2, :2], 2, 1, 1, dilation=3),
    "negative power": lambda x: x.relu() ** -1,
}


@pytest.mark.parametrize("name", NOT_WHAT_THEY_SEEM)
def test_arguments_that_turn_signs(name):
    assert not known(NOT_WHAT_THEY_SEEM[name])[0]


def test_a_range_holds_no_nan_and_asks_no_values_of_meta_tensors():
    fmodel, params = pair()
    x = X.abs().clamp(max=3)
    with pytest.raises(InputError, match="but it goes from nan to nan"):
        lrpfunc.attribute(fmodel, params, (x, x * torch.nan), rules.zplus(), target=0, input_range=(0, 3))
    meta = {name: leaf.to("meta") for name, leaf in params.items()}
    x = x.to("meta")
    assert lrpfunc.attribute(fmodel, meta, (x, x), rules.zplus(), target=0, input_range=(0, 3))[0].shape == x.shape
