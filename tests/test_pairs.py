"""Law 11: one function, one explanation. A pair writes a function in two ways; every composite gives one map."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpfunc
from lrpfunc import composites, rules
from tests.helpers import randomize
from tests.recurrent import WrittenOut

DOUBLE = torch.float64
TINY = 1e-13  # stabilizers stand at other sums in the two; what they take is no part of the law


def of_layers(rule):
    kinds = {"sum": rules.norm(TINY), "average_pool": rules.norm(TINY), "affine": rules.affine(TINY)}
    return composites.by_kind({"linear": rule, "normalization": rules.normalization(TINY), **kinds})


EXPLAINED = {
    "epsilon": of_layers(rules.epsilon(TINY)),
    "zplus": of_layers(rules.zplus(TINY)),
    "gamma": of_layers(rules.gamma(0.25, TINY)),
    "epsilon_plus_flat": composites.epsilon_plus_flat(TINY, TINY),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(TINY, TINY),
    "attn_lrp": composites.attn_lrp(),
    "cp_lrp": composites.cp_lrp(),
}
X = torch.randn(3, 4, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def weight(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(sum(shape) + 1))


KERNEL, MAP = weight(4, 4, 3), weight(4)
W, V, U, B, HEAD = weight(6, 6), weight(6, 6) / 2, weight(6, 6) / 3, weight(6), weight(5, 6)


def headed(f: Callable) -> Callable:
    """Between two layers: what arrives is a coefficient, and relevance goes on below."""
    return lambda p, x: F.linear(f(F.linear(x, p["first"])).mean(1), p["head"])


class Pair(NamedTuple):
    one: Callable
    other: Callable


def attention(to_values: Callable) -> Callable:
    def f(x):
        query, key, value = F.linear(x, W), F.linear(x, V), F.linear(x, U)
        return to_values((query @ key.transpose(1, 2) / 6**0.5), value)

    return f


def sdpa(x):
    return F.scaled_dot_product_attention(F.linear(x, W), F.linear(x, V), F.linear(x, U))


def recurrent(layer: nn.RNNBase) -> Pair:
    layer = randomize(layer.double()).requires_grad_(False)
    return Pair(lambda x: layer(x)[0], lambda x: WrittenOut(layer)(x)[0])


def written(x):
    y = torch.zeros_like(x)
    y[..., :3] = x[..., :3] * 2
    y[..., 3:] += x[..., 3:]
    return y


PAIRS = {
    "affine and bias": Pair(lambda x: F.linear(x, W, B).relu(), lambda x: (x @ W.T + B).relu()),
    "bias before": Pair(lambda x: F.linear(x, W, B).relu(), lambda x: (B + F.linear(x, W)).relu()),
    "einsum": Pair(lambda x: F.linear(x, W, B).relu(), lambda x: (torch.einsum("bti,oi->bto", x, W) + B).relu()),
    "convolution": Pair(
        lambda x: F.conv1d(x, KERNEL, MAP, padding=1).relu(),
        lambda x: (F.conv1d(x, KERNEL, padding=1) + MAP[:, None]).relu(),
    ),
    "in place": Pair(lambda x: F.linear(x, W).relu() * 2, lambda x: F.linear(x, W).relu_().mul_(2)),
    "written": Pair(written, lambda x: torch.cat([x[..., :3] * 2, x[..., 3:]], -1)),
    "glu": Pair(lambda x: F.glu(F.linear(x, torch.cat([W, V]))), lambda x: F.linear(x, W) * F.linear(x, V).sigmoid()),
    "sigmoid": Pair(lambda x: F.linear(x, W).sigmoid(), lambda x: 1 / (1 + torch.exp(-F.linear(x, W)))),
    "log softmax": Pair(lambda x: F.linear(x, W).log_softmax(-1), lambda x: F.linear(x, W).softmax(-1).log()),
    "gates": Pair(
        lambda x: (x * F.linear(x, W[:1]).sigmoid()).sum(1, keepdim=True),
        lambda x: F.linear(x, W[:1]).sigmoid().transpose(1, 2) @ x,
    ),
    "gates by einsum": Pair(
        lambda x: (x * F.linear(x, W[:1]).exp()).sum(1, keepdim=True),
        lambda x: torch.einsum("bti,bto->boi", x, F.linear(x, W[:1]).exp()),
    ),
    "activated factors": Pair(
        lambda x: (F.linear(x, V) * F.linear(x, W[:1]).relu()).sum(1, keepdim=True),
        lambda x: F.linear(x, W[:1]).relu().transpose(1, 2) @ F.linear(x, V),
    ),
    "silu": Pair(lambda x: F.silu(F.linear(x, W)), lambda x: F.linear(x, W) * F.linear(x, W).sigmoid()),
    "a product by einsum": Pair(lambda x: torch.einsum("bti,i->bti", x.relu(), W[0]), lambda x: x.relu() * W[0]),
    "an outer product by einsum": Pair(
        lambda x: torch.einsum("bti,o->boti", x, W[0, :3]).relu().sum(1),
        lambda x: (x[:, None] * W[0, :3, None, None]).relu().sum(1),
    ),
    "an outer product of two by einsum": Pair(
        lambda x: torch.einsum("bti,bsi->btsi", x.relu(), F.linear(x, W)).sum(2),
        lambda x: (x.relu()[:, :, None] * F.linear(x, W)[:, None]).sum(2),
    ),
    "addcmul": Pair(
        lambda x: torch.addcmul(x, F.linear(x, W), F.linear(x, V), value=0.5),
        lambda x: x + 0.5 * (F.linear(x, W) * F.linear(x, V)),
    ),
    "addcmul in place": Pair(
        lambda x: torch.addcmul(F.linear(x, U), F.linear(x, W), F.linear(x, V), value=0.5),
        lambda x: F.linear(x, U).addcmul_(F.linear(x, W), F.linear(x, V), value=0.5),
    ),
    "lerp in place": Pair(
        lambda x: torch.lerp(x, F.linear(x, W), F.linear(x, V)),
        lambda x: (x * 1).lerp_(F.linear(x, W), F.linear(x, V)),
    ),
    "baddbmm in place": Pair(
        lambda x: x + F.linear(x, W[:4]) @ x,
        lambda x: (x * 1).baddbmm_(F.linear(x, W[:4]), x),
    ),
    "weighted sum": Pair(
        lambda x: (x * F.linear(x, W[:1]).softmax(1)).sum(1, keepdim=True),
        lambda x: F.linear(x, W[:1]).softmax(1).transpose(1, 2) @ x,
    ),
    "attention": Pair(sdpa, attention(lambda scores, value: scores.softmax(-1) @ value)),
    "attention by einsum": Pair(
        sdpa, attention(lambda scores, value: torch.einsum("bij,bjd->bid", scores.softmax(-1), value))
    ),
    "lstm": recurrent(nn.LSTM(6, 3, batch_first=True, bidirectional=True)),
    "gru": recurrent(nn.GRU(6, 6, 2, batch_first=True)),
    "rnn": recurrent(nn.RNN(6, 6, nonlinearity="relu", batch_first=True)),
    "layer norm": Pair(
        lambda x: F.layer_norm(x, (6,), W[0], B),
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * W[0] + B,
    ),
}


SCORES = weight(1, 6) * 2
MASK = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=DOUBLE)[:, None]


def scored(probabilities: Callable) -> Callable:
    """The mean of the positions of a sequence, each by its probability."""
    return lambda x: (x * probabilities(F.linear(x, SCORES))).sum(1, keepdim=True)


def exp_over_sum(shift: Callable, total: Callable = lambda e: e.sum(1, keepdim=True)) -> Callable:
    def f(s):
        powers = torch.exp(s - shift(s))
        return powers / total(powers)

    return f


WRITTEN_SOFTMAXES = {
    "plain": exp_over_sum(lambda s: 0),
    "less the maximum": exp_over_sum(lambda s: s.max(1, keepdim=True).values),
    "less the largest of all": exp_over_sum(lambda s: s.amax()),
    "a sum that gets its axis back": exp_over_sum(lambda s: s.amax(1, keepdim=True), lambda e: e.sum(1)[:, None]),
    "a sum that is expanded": exp_over_sum(lambda s: 0, lambda e: e.sum(1, keepdim=True).expand_as(e)),
    "kept from zero": exp_over_sum(lambda s: 0, lambda e: e.sum(1, keepdim=True) + 1e-12),
    "by the inverse": lambda s: (e := s.exp()) * (1 / e.sum(1, keepdim=True)),
    "less the logarithm of the sum": lambda s: (s - s.logsumexp(1, keepdim=True)).exp(),
    "by its logarithm": lambda s: s.log_softmax(1).exp(),
}


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.parametrize("written", WRITTEN_SOFTMAXES)
def test_a_softmax_that_is_written_out_is_explained_as_one_that_is_called(written, name):
    one = explained(scored(lambda s: s.softmax(1)), EXPLAINED[name])
    other = explained(scored(WRITTEN_SOFTMAXES[written]), EXPLAINED[name])
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


@pytest.mark.parametrize("written", WRITTEN_SOFTMAXES)
def test_a_softmax_that_is_written_out_has_the_modules_value_and_derivatives(written):
    probabilities = WRITTEN_SOFTMAXES[written]
    fmodel, params = lrpfunc.trace(lambda p, x: probabilities(x), {}, X)
    assert torch.equal(fmodel(params, X), probabilities(X))
    torch.autograd.gradcheck(lambda x: fmodel(params, x), X[:1].clone().requires_grad_())
    listed = lrpfunc.explain(fmodel, composites.attn_lrp(), strict=True)
    assert listed.rows[-1][-1].startswith("softmax(")


def test_a_masked_softmax():
    called = scored(lambda s: s.masked_fill(MASK == 0, -torch.inf).softmax(1))
    written = scored(lambda s: (e := (s - s.amax(1, keepdim=True)).exp() * MASK) / e.sum(1, keepdim=True))
    one, other = (explained(f, composites.attn_lrp()) for f in (called, written))
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


NO_SOFTMAXES = {
    "a sum along another axis": lambda s: (e := s.exp()) / e.sum(2, keepdim=True)[:, :1],
    "a sum of less precision": lambda s: (e := s.exp()) / e.sum(1, keepdim=True, dtype=torch.float32),
    "another sum": lambda s: s.exp() / (s * 2).exp().sum(1, keepdim=True),
    "an active factor": lambda s: (e := s.exp() * s.tanh()) / e.sum(1, keepdim=True),
    "less than nothing": lambda s: (e := s.exp()) / (e.sum(1, keepdim=True) - 0.5),
}


@pytest.mark.parametrize("name", NO_SOFTMAXES)
def test_what_is_no_softmax_is_left(name):
    fmodel, params = lrpfunc.trace(lambda p, x: NO_SOFTMAXES[name](x), {}, X)
    assert "exp" in {equation.operator for equation in fmodel.equations}
    assert torch.equal(fmodel(params, X), NO_SOFTMAXES[name](X))


def less_threshold(s: Tensor) -> Tensor:
    """The positive part is sparsemax. Source: Martins and Astudillo 2016, arXiv:1602.02068, algorithm 1."""
    largest = s.sort(-1, descending=True).values
    sums, counts = largest.cumsum(-1), torch.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    support = (1 + counts * largest > sums).sum(-1, keepdim=True)
    return s - (sums.gather(-1, support - 1) - 1) / support


@pytest.mark.parametrize("zero", [lambda s: s.clamp(min=0), lambda s: torch.max(torch.zeros_like(s), s)])
def test_sparsemax_is_a_gate_under_cp_lrp(zero):
    def sparsemax(s):
        return zero(less_threshold(s))

    def by_position(x):
        return (F.linear(x, U) * sparsemax(F.linear(x, SCORES)[..., 0])[..., None]).sum(1, keepdim=True)

    def by_matrix(x):
        return sparsemax(F.linear(x, SCORES).transpose(1, 2)) @ F.linear(x, U)

    def detached(x):
        return sparsemax(F.linear(x, SCORES).transpose(1, 2)).detach() @ F.linear(x, U)

    one, other, expected = (explained(f, composites.cp_lrp()) for f in (by_position, by_matrix, detached))
    for got in (one, other):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def explained(f: Callable, rule) -> Tensor:
    params = {"first": weight(6, 6), "head": HEAD}
    fmodel, params = lrpfunc.trace(headed(f), params, X)
    return lrpfunc.attribute(fmodel, params, X, rule, target=1)


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.parametrize("pair", PAIRS)
def test_one_function_has_one_explanation(pair, name):
    one, other = (explained(f, EXPLAINED[name]) for f in PAIRS[pair])
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


def small() -> nn.Module:
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)
        )
    ).double()


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_decomposed_or_scripted_module_is_the_module(name):
    model, x = small(), torch.randn(2, 3, 8, 8, dtype=DOUBLE)

    def of(module):
        canonical = lrpfunc.canonize(*lrpfunc.functionalize(module, x))
        return lrpfunc.attribute(canonical.fmodel, canonical.params, x, EXPLAINED[name], target=1)

    decomposed = torch.export.export(model, (x,)).run_decompositions().module()
    torch.testing.assert_close(of(decomposed), of(model), rtol=1e-9, atol=1e-9)
