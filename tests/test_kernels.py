"""Convolutions by oneDNN with weights in its own layout: as torch's own, taken only where nobody watches."""

import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc import compat, composites
from lrpfunc.operations import kernels
from lrpfunc.program import fast_paths

pytestmark = pytest.mark.skipif(not compat.has_packed_convolutions(), reason="this CPU's torch has no oneDNN")

GEOMETRIES = [  # channels in and out, groups, kernel, stride, padding, dilation
    (16, 8, 1, 3, 1, 1, 1),
    (16, 8, 1, 1, 1, 0, 1),
    (3, 8, 1, 7, 2, 3, 1),
    (16, 16, 8, 3, 1, 1, 1),
    (16, 32, 8, 5, 2, 2, 1),
    (16, 8, 4, 3, 2, 1, 1),
    (8, 8, 1, 3, 1, 2, 2),
    (8, 8, 1, 5, 3, 2, 1),
    (8, 8, 1, 2, 2, 1, 3),
]
SIZE = (17, 14)


@pytest.fixture(autouse=True)
def small_layers_as_well(monkeypatch):
    monkeypatch.setattr(kernels, "LEAST", 0)


def last(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def taken(monkeypatch):
    """How often each of oneDNN's two functions is called."""
    calls = {"packed_convolution": 0, "packed_transposed": 0, "pack_convolution": 0, "pack_transposed": 0}

    def counted(name):
        original = getattr(compat, name)

        def call(*arguments):
            calls[name] += 1
            return original(*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(compat, name, counted(name))
    return calls


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_functions_are_those_of_torch(geometry, kept):
    inside, out, groups, k, stride, padding, dilation = geometry
    packs = compat.TensorTable() if kept else None
    x, weight, bias = last(4, inside, *SIZE), last(out, inside // groups, k, k, seed=1), last(1, out, 1, 1).flatten()
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    found = kernels.convolve(packs, x, weight, bias, stride, [padding], [dilation, dilation], groups)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.stride() == expected.stride()
    left_over = [
        n - ((m - 1) * stride - 2 * padding + dilation * (k - 1) + 1)
        for n, m in zip(SIZE, expected.shape[2:], strict=True)
    ]
    s = last(*expected.shape, seed=2)
    expected = F.conv_transpose2d(s, weight, None, stride, padding, left_over, groups, dilation)
    found = kernels.convolve_transposed(packs, s, weight, None, stride, padding, left_over, groups, dilation)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())


def test_a_weight_is_laid_out_once_for_inputs_of_a_shape_and_anew_when_it_changes(taken):
    packs, weight = compat.TensorTable(), torch.ones(3, 2, 3, 3)

    def convolved(x):
        return kernels.convolve(packs, x, weight, None, 1, 0, 1, 1)

    x = last(1, 2, 9, 9)
    first = convolved(x)
    assert torch.equal(convolved(x), first)
    assert taken["pack_convolution"] == 1
    weight.mul_(2)
    torch.testing.assert_close(convolved(x), 2 * first)
    y = last(2, 2, 8, 8)
    torch.testing.assert_close(convolved(y), F.conv2d(y, weight), rtol=1e-4, atol=1e-4)
    assert taken["pack_convolution"] == 3


def test_what_was_made_of_a_weight_goes_with_it():
    packs, weight = compat.TensorTable(), torch.ones(3, 2, 3, 3)
    kernels.convolve(packs, X, weight, None, 1, 0, 1, 1)
    assert len(packs) == 1
    del weight
    gc.collect()
    assert not len(packs)


X, WEIGHT = last(4, 2, 9, 9), torch.ones(3, 2, 3, 3)
NOT_TAKEN = {
    "channels first": (X.contiguous(), WEIGHT, 0),
    "float64": (X.double(), WEIGHT.double(), 0),
    "one image": (X[0], WEIGHT, 0),
    "nothing": (X[:0], WEIGHT, 0),
    "each channel by itself": (X, torch.ones(2, 1, 3, 3), 0),
    "padding by name": (X, WEIGHT, "same"),
    "differentiated": (X.clone().requires_grad_(), WEIGHT, 0),
    "a weight in training": (X, WEIGHT.clone().requires_grad_(), 0),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_where_it_does_not_apply(name, taken):
    x, weight, padding = NOT_TAKEN[name]
    assert kernels.convolve(None, x, weight, None, 1, padding, 1, 1) is None
    if padding == 0 and weight.shape[1] > 1:
        assert kernels.convolve_transposed(None, x, weight.transpose(0, 1), None, 1, 0, 0, 1, 1) is None
    assert not any(taken.values())


def test_what_takes_no_time_is_not_laid_out(monkeypatch, taken):
    monkeypatch.setattr(kernels, "LEAST", X[:, 0].numel() * WEIGHT.numel() + 1)
    assert kernels.convolve(compat.TensorTable(), X, WEIGHT, None, 1, 0, 1, 1) is None
    assert not any(taken.values())


def test_who_turns_onednn_off_has_it_off(monkeypatch, taken):
    assert kernels.convolve(None, X, WEIGHT, None, 1, 0, 1, 1) is not None
    monkeypatch.setattr(compat, "has_packed_convolutions", lambda: False)
    assert kernels.convolve(None, X, WEIGHT, None, 1, 0, 1, 1) is None
    assert taken["packed_convolution"] == 1


class Net(nn.Module):
    """Convolutions of several kinds, a transposed one among them, as a U-Net has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv2d(9, 4, 1)

    def forward(self, x):
        h = self.up(torch.relu(self.deep(torch.relu(self.first(x)))))
        return self.last(torch.cat([torch.relu(h), x], 1)).mean((2, 3))


@pytest.fixture(scope="module")
def net():
    model = Net().eval().requires_grad_(False)
    return *lrpfunc.functionalize(model, torch.zeros(1, 3, 12, 10)), torch.randn(4, 3, 12, 10)


COMPOSITES = ["epsilon", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box", "excitation_backprop"]


def made(name):
    return composites.epsilon_gamma_box(-3.0, 3.0) if name == "epsilon_gamma_box" else getattr(composites, name)()


@pytest.mark.parametrize("name", COMPOSITES)
def test_explanations_are_those_of_the_generic_path(name, net, taken, monkeypatch):
    """Law 9."""
    fmodel, params, x = net
    explain = lrpfunc.prepare(fmodel, params, made(name))
    found = [explain(x, 1), explain(x, 1), explain(x[:1], 1), lrpfunc.attribute(fmodel, params, x, made(name), 1)]
    assert min(taken.values()) > 0
    monkeypatch.setattr(fast_paths, "taken", False)
    expected = lrpfunc.attribute(fmodel, params, x, made(name), 1)
    for relevance, generic in zip(found, [expected, expected, expected[:1], expected], strict=True):
        torch.testing.assert_close(relevance, generic, rtol=1e-3, atol=1e-4 * generic.abs().max().item())


def test_prepared_explanations_are_mapped_copied_and_pickled_after_they_were_used(net, taken):
    fmodel, params, x = net
    explain = lrpfunc.prepare(fmodel, params, composites.epsilon_plus())
    expected = explain(x, 1)
    used = taken["packed_convolution"]
    for other in (pickle.loads(pickle.dumps(explain)), copy.deepcopy(explain)):
        torch.testing.assert_close(other(x, 1), expected)
    assert taken["packed_convolution"] == 3 * used
    mapped = torch.func.vmap(lambda x: explain(x[None], 1)[0])(x)
    torch.testing.assert_close(mapped, expected, rtol=1e-3, atol=1e-4)
    assert taken["packed_convolution"] == 3 * used
    gradient = torch.func.grad(lambda x: explain(x, 1).square().sum())(x)
    assert gradient.isfinite().all()


def test_a_weight_that_is_changed_in_place_is_laid_out_anew(net):
    fmodel, params, x = net
    own = {name: value.clone() for name, value in params.items()}
    explain = lrpfunc.prepare(fmodel, own, composites.epsilon())
    explain(x, 1)
    for value in own.values():
        value.mul_(-0.5)
    torch.testing.assert_close(explain(x, 1), lrpfunc.attribute(fmodel, own, x, composites.epsilon(), 1))
