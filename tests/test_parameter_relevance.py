"""Law 12, and each rule's terms by hand: what weights, biases, scales, shifts and tables have contributed."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

import lrpfunc
from lrpfunc import composites, rules
from tests.cases import law, subject
from tests.helpers import randomize

close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)
DOUBLE = torch.float64

W = torch.tensor([[2.0, -1.0, 0.5], [-0.5, 1.0, 3.0]], dtype=DOUBLE)
B = torch.tensor([0.25, -0.75], dtype=DOUBLE)
X = torch.tensor([[1.0, 2.0, -1.0], [0.5, 1.5, 2.0]], dtype=DOUBLE)
R = torch.tensor([[3.0, 1.0], [-2.0, 4.0]], dtype=DOUBLE)


def dense(rule, w=W, b=B):
    fmodel, params = lrpfunc.trace(lambda p, x: F.linear(x, p["w"], p["b"]), {"w": w, "b": b}, X)
    return lrpfunc.parameter_relevance(fmodel, params, X, rule, lambda y: R)


def outer(s, x):
    """sum over samples of s x^T."""
    return torch.einsum("ni,nj->ij", s, x)


Z = X @ W.T + B
PLUS, MINUS = W.clamp(min=0), W.clamp(max=0)
XPLUS, XMINUS = X.clamp(min=0), X.clamp(max=0)
GAIN = XPLUS @ PLUS.T + XMINUS @ MINUS.T + B.clamp(min=0)
LOSS = XPLUS @ MINUS.T + XMINUS @ PLUS.T + B.clamp(max=0)


def by_sign(s):
    return PLUS * outer(s, XPLUS) + MINUS * outer(s, XMINUS)


def against(s):
    return MINUS * outer(s, XPLUS) + PLUS * outer(s, XMINUS)


def gamma_by_hand(g):
    up, down = W + g * PLUS, W + g * MINUS
    above = XPLUS @ up.T + XMINUS @ down.T + B + g * B.clamp(min=0)
    below = XPLUS @ down.T + XMINUS @ up.T + B + g * B.clamp(max=0)
    s, t = torch.where(Z > 0, R / above, 0.0), torch.where(Z < 0, R / below, 0.0)
    weight = up * outer(s, XPLUS) + down * outer(s, XMINUS) + down * outer(t, XPLUS) + up * outer(t, XMINUS)
    return weight, (B + g * B.clamp(min=0)) * s.sum(0) + (B + g * B.clamp(max=0)) * t.sum(0)


def box_by_hand(low, high):
    s = R / (X @ W.T - (low * PLUS + high * MINUS).sum(1))
    return PLUS * outer(s, X - low) + MINUS * outer(s, X - high), torch.zeros(2, dtype=DOUBLE)


BY_HAND = {
    "epsilon": (rules.epsilon(0), (W * outer(R / Z, X), B * (R / Z).sum(0))),
    "epsilon, zero_bias": (
        rules.epsilon(0, zero_bias=True), (W * outer(R / (Z - B), X), torch.zeros(2, dtype=DOUBLE)),
    ),
    "zplus": (rules.zplus(0), (by_sign(R / GAIN), B.clamp(min=0) * (R / GAIN).sum(0))),
    "alpha_beta": (
        rules.alpha_beta(2, 1, 0),
        (
            2 * by_sign(R / GAIN) - against(R / LOSS),
            2 * B.clamp(min=0) * (R / GAIN).sum(0) - B.clamp(max=0) * (R / LOSS).sum(0),
        ),
    ),
    "gamma": (rules.gamma(0.5, 0), gamma_by_hand(0.5)),
    "zbox": (rules.zbox(-2.0, 3.0, 0), box_by_hand(-2.0, 3.0)),
    "wsquare": (
        rules.wsquare(0),
        (
            W.square() * outer(R / (W.square().sum(1) + B.square()), torch.ones_like(X)),
            B.square() * (R / (W.square().sum(1) + B.square())).sum(0),
        ),
    ),
    "flat": (rules.flat(0), (outer(R / 3, torch.ones_like(X)), torch.zeros(2, dtype=DOUBLE))),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_a_rule_shares_among_weights_as_it_does_among_inputs(name):
    rule, (weight, bias) = BY_HAND[name]
    found = dense(rule)
    close(found["w"], weight)
    close(found["b"], bias)
    close(weight.sum() + bias.sum(), R.sum())


# -- law 12 -----------------------------------------------------------------------------------------------------------


# Gradients, and what is not shared where an output has no negative terms.
NO_SHARE = ("gradient", "pass_through", "relu", "alpha_beta(2", "alpha_beta(1.5")


@law
def test_parameters_of_a_layer_sum_to_what_arrived_there(case):
    """Where relevance is shared by terms, and stabilizers take nothing."""
    fmodel, params, x = case.subject
    entries = case.exact or case.rules
    found = lrpfunc.parameter_relevance(fmodel, params, x, entries, 1)
    assert found.keys() == params.keys()
    assert all(found[name].shape == p.shape for name, p in params.items())
    layers: dict[str, list] = {}
    for entry in lrpfunc.ledger(fmodel, params, x, entries, 1).entries:
        name = entry.name.partition(":")[0]
        if entry.kind in ("convolution", "dense") and f"{name}.weight" in params:
            layers.setdefault(name, []).append(entry)  # a layer may be called twice
    assert layers
    for name, called in layers.items():
        if any(
            rule in called[0].rule for rule in ("gradient", "pass_through", "relu", "alpha_beta(2", "alpha_beta(1.5")
        ):
            continue  # no share, or one of what is not there
        total = sum(found[f"{name}.{leaf}"].sum() for leaf in ("weight", "bias") if f"{name}.{leaf}" in found)
        torch.testing.assert_close(
            total.item(),
            sum(entry.arrived for entry in called),
            rtol=1e-4,
            atol=1e-6,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@law
def test_samples_by_vmap_sum_to_the_batch(case):
    fmodel, params, x = case.subject
    batch = lrpfunc.parameter_relevance(fmodel, params, x, case.rules, 1)

    def one(sample):
        return lrpfunc.parameter_relevance(fmodel, params, sample[None], case.rules, 1)

    close({name: r.sum(0) for name, r in vmap(one)(x).items()}, batch)


# -- what is no layer -------------------------------------------------------------------------------------------------


def relevance(function, params, x, rules_=None, seed=None):
    fmodel, params = lrpfunc.trace(function, params, x)
    rules_ = composites.epsilon(0) if rules_ is None else rules_
    return lrpfunc.parameter_relevance(fmodel, params, x, rules_, seed or (lambda y: y))


def test_scales_and_shifts_written_out():
    p = {"scale": torch.tensor([2.0, -1.0, 3.0], dtype=DOUBLE), "shift": torch.tensor([1.0, 0.5, -2.0], dtype=DOUBLE)}
    found = relevance(lambda p, x: x * p["scale"] + p["shift"], p, X)
    close(found["scale"], (X * p["scale"]).sum(0))
    close(found["shift"], 2 * p["shift"])


def test_batch_norms_before_folding_and_after():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).double()
    fmodel, params = lrpfunc.functionalize(model, X)
    found = lrpfunc.parameter_relevance(fmodel, params, X, rules.epsilon(0) and composites.epsilon(0), lambda y: y)
    norm = model[1]
    h = model[0](X)
    normal = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    close(found["1.weight"], (normal * norm.weight).sum(0).detach())
    close(found["1.bias"], 2 * norm.bias.detach())
    assert not found["1.running_mean"].any()
    assert not found["1.running_var"].any()
    canonical = lrpfunc.canonize(fmodel, params)
    folded = lrpfunc.parameter_relevance(canonical.fmodel, canonical.params, X, composites.epsilon(0), lambda y: y)
    close(folded["0.weight"], canonical.params["0.weight"] * outer(torch.ones_like(h), X).detach())
    close(folded["0.weight"].sum() + folded["0.bias"].sum(), model(X).sum().detach())
    assert not folded["1.weight"].any()


def test_tables_get_the_relevance_of_their_rows():
    torch.manual_seed(0)
    table, head = torch.randn(6, 4, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    ids = torch.tensor([[1, 3, 1], [0, 5, 3]])
    found = relevance(lambda p, i: F.embedding(i, p["table"]).sum(1) @ p["head"], {"table": table, "head": head}, ids)
    expected = torch.zeros_like(table)
    for row in ids:
        for i in row:
            expected[i] += table[i] * head.sum(1)
    close(found["table"], expected)
    assert not found["table"][2].any()
    close(found["head"].sum(), found["table"].sum())


@pytest.mark.parametrize("rule", [rules.epsilon(0), rules.zplus(0), rules.flat(0)])
def test_what_is_made_of_parameters_hands_on(rule):
    """A transposed weight, tied to another place, and one that is normalized."""
    w = W.T.contiguous()
    found = relevance(lambda p, x: x @ p["w"], {"w": w}, X, rule)
    direct = relevance(lambda p, x: F.linear(x, p["w"].t()), {"w": w}, X, rule)
    close(direct["w"], found["w"])
    close(found["w"].sum(), (X @ w).sum())
    tied = relevance(lambda p, x: (x @ p["w"]).relu() @ p["w"].t(), {"w": w}, X, rules.epsilon(0))
    y = (X @ w).relu() @ w.T
    close(tied["w"].sum(), 2 * y.sum())


def test_a_normalized_weight_gets_what_its_direction_and_size_give():
    p = {"v": W, "g": torch.tensor([[1.5], [0.5]], dtype=DOUBLE)}
    found = relevance(lambda p, x: F.linear(x, p["g"] * p["v"] / p["v"].norm(dim=1, keepdim=True)), p, X)
    y = F.linear(X, p["g"] * W / W.norm(dim=1, keepdim=True))
    close(found["g"].sum(), y.sum())
    close(found["v"].sum(), torch.zeros((), dtype=DOUBLE), atol=1e-9)  # its size has no effect


def test_a_class_token_and_positions_keep_their_share():
    p = {"token": torch.tensor([[1.0, -2.0, 0.5]], dtype=DOUBLE), "place": torch.randn(3, 3, dtype=DOUBLE)}
    found = relevance(lambda p, x: torch.cat([p["token"], x]) + p["place"], p, X, seed=lambda y: y)
    close(found["token"], p["token"])
    close(found["place"], p["place"])


def test_integers_and_what_nothing_reads_get_zeros():
    p = {"w": W, "steps": torch.tensor(3), "other": torch.ones(2, dtype=DOUBLE)}
    found = relevance(lambda p, x: F.linear(x, p["w"]), p, X)
    assert found["steps"] == 0
    assert not found["other"].any()
    assert found["w"].any()


def test_several_outputs_of_one_equation():
    p = {"w": torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)}
    found = relevance(lambda p, x: torch.stack((x * p["w"]).split(1, 1)[:2]).sum(0), p, X)
    close(found["w"], torch.stack([(X[:, 0] * 1).sum(), (X[:, 1] * 2).sum(), torch.zeros((), dtype=DOUBLE)]))


def test_nothing_changes_for_the_inputs():
    fmodel, params, x = subject("branches")
    before = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), 1)
    lrpfunc.parameter_relevance(fmodel, params, x, composites.epsilon_plus(), 1)
    close(lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), 1), before)
