"""Programs cut in two: both are programs, and one after the other is the whole."""

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import ProgramError
from lrpfunc.program import check
from tests.cases import NETWORKS, subject
from tests.test_records import at_all, close, waists

NETS = [pytest.param(n, marks=pytest.mark.slow if n == "torchvision_vit" else ()) for n in NETWORKS]


def composed(upper, params, crossing):
    return upper(params, *crossing) if isinstance(crossing, tuple) else upper(params, crossing)


@pytest.mark.parametrize("network", NETS)
def test_upper_after_lower_is_the_whole(network):
    fmodel, params, x = subject(network)
    last = next(e.name for e in fmodel.equations if e.outputs[0].name == fmodel.output_leaves[0].name)
    for name in at_all(fmodel):
        if name == last:
            continue
        lower, upper = fmodel.cut(name if ":" in name else f"{name}:0")
        check(lower)
        check(upper)
        assert len(lower.equations) < len(fmodel.equations)
        for samples in (x, x[:1]):
            torch.testing.assert_close(composed(upper, params, lower(params, samples)), fmodel(params, samples))


@pytest.mark.parametrize("network", NETS)
def test_relevance_goes_on_through_a_waist(network):
    """Upper's relevance of its input, as the relevance of lower's output, is the relevance of the whole."""
    fmodel, params, x = subject(network)
    rules = composites.epsilon(1e-12)
    expected, inner = lrpfunc.attribute(fmodel, params, x, rules, 1, at=waists(fmodel)[:-1])
    for name in waists(fmodel)[:-1]:
        lower, upper = fmodel.cut(name)
        crossing = lower(params, x)
        if isinstance(crossing, tuple):  # constants that cross
            continue
        arrived = lrpfunc.attribute(upper, params, crossing, rules, 1)
        close(arrived, inner[name], rtol=1e-6, atol=1e-9)
        below = lrpfunc.attribute(lower, params, x, rules, lambda h, arrived=arrived: arrived)
        torch.testing.assert_close(below, expected, rtol=1e-5, atol=1e-7)


def test_a_module_is_cut_behind_its_last_layer_and_another_model_put_between():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))
    x, half = torch.randn(5, 3), nn.Linear(4, 4)
    lower, upper = (fmodel := lrpfunc.functionalize(model, x))[0].cut("0")
    params = fmodel[1]
    between, inner = lrpfunc.functionalize(half, torch.ones(1, 4))
    got = upper(params, between(inner, lower(params, x)))
    torch.testing.assert_close(got, model[1](half(model[0](x))))


def test_a_skip_connection_crosses_too():
    fmodel, params, x = subject("convolutional")
    lower, upper = fmodel.cut("second")
    crossing = lower(params, x)
    assert [tuple(one.shape) for one in crossing] == [(2, 2, 4, 4), (2, 2, 4, 4)]
    assert upper.input_names == ("x", "crossing_1")
    torch.testing.assert_close(upper(params, *crossing), fmodel(params, x))


def test_sizes_do_not_cross():
    fmodel, params = lrpfunc.trace(
        lambda p, x: (x @ p).relu().reshape(x.shape[0], -1).mean(1), torch.eye(3), torch.ones(2, 4, 3)
    )
    name = fmodel.names("relu*")[0]
    lower, upper = fmodel.cut(name)
    x = torch.randn(5, 4, 3)
    torch.testing.assert_close(upper(params, lower(params, x)), fmodel(params, x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("secnd", r"no layer is called 'secnd'\. Did you mean 'second'"),
        ("head", "nothing follows 'head': what the program gives is made there"),
    ],
)
def test_cuts_that_cannot_be(name, message):
    fmodel, *_ = subject("convolutional")
    with pytest.raises(ProgramError, match=message):
        fmodel.cut(name)


def test_a_layer_of_two_outputs_is_no_place_for_a_cut():
    fmodel, _ = lrpfunc.trace(lambda p, x: x.max(1).values + x.split(2, 1)[0].sum(1), {}, torch.ones(2, 4))
    name = next(e.name for e in fmodel.equations if len(e.outputs) > 1)
    with pytest.raises(ProgramError, match=f"'{name}' has no single tensor as its output: cut at a layer that reads"):
        fmodel.cut(name)
