"""Law 10: one function, one explanation. A pair writes a function in two ways; every composite gives one map."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpfunc
from lrpfunc import composites, rules
from tests.helpers import randomize

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
    "silu": Pair(lambda x: F.silu(F.linear(x, W)), lambda x: F.linear(x, W) * F.linear(x, W).sigmoid()),
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
    "layer norm": Pair(
        lambda x: F.layer_norm(x, (6,), W[0], B),
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * W[0] + B,
    ),
}


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
