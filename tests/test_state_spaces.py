"""State spaces: decays and steps are constants, on recurrences by hand beside x * gradient of functions with detach.

`test_eager_oracle.py` compares the models of Hugging Face.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import InputError
from tests.helpers import relative_error

STEPS, WIDTH, STATE = 5, 4, 3
ATTN, CP = composites.attn_lrp(), composites.cp_lrp()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


P = {
    "norm": random(WIDTH),
    "in": random(WIDTH, 2 * WIDTH),
    "mix": random(WIDTH, WIDTH + 2 * STATE),
    "bias": random(WIDTH),
    "A": random(WIDTH, STATE).exp(),
    "D": random(WIDTH, 1)[:, 0],
    "out": random(WIDTH, 2),
}
X = random(2, STEPS, WIDTH)


def same(v: Tensor) -> Tensor:
    return v


def constant(v: Tensor) -> Tensor:
    return v.detach()


def half(v: Tensor) -> Tensor:
    return v.detach() + (v - v.detach()) / 2


class Marks(NamedTuple):
    """What a model does to its values on the way: nothing, or what a rule makes of their derivatives."""

    constant: Callable = same
    factor: Callable = same  # of B x and C h
    selected: Callable = same  # B and C
    gate: Callable = same
    signal: Callable = same


PLAIN = Marks()
SURROGATES = {
    "attn_lrp": Marks(constant, half, gate=half, signal=half),
    "cp_lrp": Marks(constant, half, gate=constant),
    "mamba_lrp": Marks(constant, selected=constant, gate=half, signal=half),  # Jafari et al. 2024
}


def recurrent(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, m: Marks) -> Tensor:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t; y_t = C_t h_t, as Mamba writes it."""
    decay = torch.exp(dt[..., None] * A)
    written = m.factor(m.constant(dt[..., None]) * B[:, :, None]) * m.factor(x)[..., None]
    h, read = torch.zeros(x.shape[0], x.shape[2], A.shape[1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = m.constant(decay[:, t]) * h + written[:, t]
        read.append((m.factor(h) @ m.factor(C[:, t])[..., None])[..., 0])
    return torch.stack(read, 1)


def by_einsum(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, m: Marks) -> Tensor:
    decay = torch.exp(torch.einsum("btd,dn->btdn", dt, A))
    if m is PLAIN:
        written = torch.einsum("btd,btn,btd->btdn", dt, B, x)
    else:
        written = torch.einsum("btdn,btd->btdn", m.factor(m.constant(dt)[..., None] * B[:, :, None]), m.factor(x))
    h, read = written[:, 0], []
    for t in range(x.shape[1]):
        h = m.constant(decay[:, t]) * h + written[:, t] if t else h
        read.append(torch.einsum("bdn,bn->bd", m.factor(h), m.factor(C[:, t])))
    return torch.stack(read, 1)


def all_at_once(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, m: Marks) -> Tensor:
    """y_t = sum_s (C_t B_s exp(sum_{s < r <= t} dt_r a)) dt_s x_s, with one decay for all states, as Mamba-2 has it."""
    total = torch.cumsum(dt.mean(-1) * A[0, 0], 1)
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    decay = torch.exp((total[:, :, None] - total[:, None]).masked_fill(mask, -torch.inf))
    scores = torch.einsum("btn,bsn->bts", m.factor(C), m.factor(B)) * m.constant(decay)
    return m.factor(scores) @ m.factor(m.constant(dt) * x)


SCANS = {"recurrent": recurrent, "by einsum": by_einsum, "all at once": all_at_once}


def block(scan: Callable, p: dict, x: Tensor, m: Marks) -> Tensor:
    """Norm, projection, activation, selective scan, skip connection, gate, as in Mamba; the logits of the last step."""

    def silu(v: Tensor) -> Tensor:
        return F.silu(v) if m is PLAIN else v * torch.sigmoid(v).detach()

    normed = x * m.constant(torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)) * p["norm"]
    signal, gate = (normed @ p["in"]).chunk(2, -1)
    u = silu(signal)
    dt, B, C = (u @ p["mix"]).split([WIDTH, STATE, STATE], -1)
    y = scan(u, F.softplus(dt + p["bias"]), -p["A"], m.selected(B), m.selected(C), m) + u * p["D"]
    return (x + m.signal(y) * m.gate(silu(gate)))[:, -1] @ p["out"]


def expected(scan: str, how: str, target: int = 1) -> Tensor:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(block(SCANS[scan], P, x, SURROGATES[how])[:, target].sum(), x)
    return X * gradient


def traced(scan: str, m: Marks = PLAIN, x: Tensor = X):
    return lrpfunc.trace(lambda p, x: block(SCANS[scan], p, x, m), P, x)


@pytest.mark.parametrize("how", ["attn_lrp", "cp_lrp"])
@pytest.mark.parametrize("scan", SCANS)
def test_a_selective_scan_is_x_times_the_gradient_without_decays_and_steps(scan, how):
    fmodel, params = traced(scan)
    composite = {"attn_lrp": ATTN, "cp_lrp": CP}[how]
    assert lrpfunc.explain(fmodel, composite, strict=True).fallbacks == ()
    found = lrpfunc.attribute(fmodel, params, X, composite, target=1)
    assert relative_error(found, expected(scan, how)) < 1e-12
    if how == "cp_lrp":  # which conserves: the only bias is the step's
        torch.testing.assert_close(found.sum((1, 2)), fmodel(params, X)[:, 1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("scan", SCANS)
def test_attn_lrp_is_mamba_lrp_where_the_model_detaches_what_it_selects_by(scan):
    fmodel, params = traced(scan, Marks(selected=constant))
    found = lrpfunc.attribute(fmodel, params, X, ATTN, target=1)
    assert relative_error(found, expected(scan, "mamba_lrp")) < 1e-12


def test_attn_lrp_is_mamba_lrp_where_products_by_name_have_gates():
    fmodel, params = traced("recurrent")
    entries = {"mul:4": rules.gate(to=1), "matmul*": rules.gate(to=0)}  # x of dt B x, h of C h
    named = composites.attn_lrp(entries=entries)
    products = [row for row in lrpfunc.explain(fmodel, named).rows if row[-1].startswith("gate(")]
    assert sum(row[2] == "bilinear" for row in products) == STEPS
    found = lrpfunc.attribute(fmodel, params, X, named, target=1)
    assert relative_error(found, expected("recurrent", "mamba_lrp")) < 1e-12


def test_another_number_of_steps_is_refused_with_the_way_out():
    fmodel, params = traced("recurrent")
    with pytest.raises(InputError, match=r"must have shape \(batch, 5, 4\), but has \(2, 6, 4\). Trace the model"):
        fmodel(params, random(2, 6, WIDTH))


# -- decays, wherever they are ----------------------------------------------------------------------------------------

DECAYED = {
    "exp": lambda x, a: x * a.exp(),
    "in front": lambda x, a: torch.exp(-a) * x,
    "of a step": lambda x, a: x * torch.exp(-F.softplus(a)),
    "exp2": lambda x, a: x * torch.exp2(a),
    "a number to the power": lambda x, a: x * 0.5 ** a.sigmoid(),
    "one minus": lambda x, a: x * (1 - a.abs().neg().exp()),
    "a root": lambda x, a: x * (1 - torch.exp(-2 * a.sigmoid())).sqrt(),
    "a product of decays": lambda x, a: x * (a.exp() * torch.exp(-F.softplus(a))),
    "a sum along steps": lambda x, a: x * torch.cumsum(a, 0).exp(),
    "a matrix": lambda x, a: a.exp() @ x,
    "a larger one": lambda x, a: x * torch.maximum(a.exp(), a.neg().exp()),
    "two together": lambda x, a: _step_and_decay(x, F.softplus(a)),
    "a clamped step": lambda x, a: _step_and_decay(x, F.softplus(a).clamp(0, 2)),
    "an activated signal": lambda x, a: torch.exp(-a) * torch.relu(x),
    "a gate, too": lambda x, a: torch.exp(-a) * torch.sigmoid(x),
}


def _step_and_decay(x: Tensor, dt: Tensor) -> Tensor:
    return dt * x + torch.exp(-0.1 * dt) * x


@pytest.mark.parametrize("composite", [ATTN, CP, composites.epsilon(0.0)], ids=["attn", "cp", "epsilon"])
@pytest.mark.parametrize("name", DECAYED)
def test_what_is_decayed_takes_all(name, composite):
    x, a = random(3, 3), random(3, 3, 1)[..., 0]
    fmodel, params = lrpfunc.trace(lambda _, x, a: DECAYED[name](x, a), {}, x, a)
    of_x, of_a = lrpfunc.attribute(fmodel, params, (x, a), composite, target=lambda y: y, strict=True)
    assert not of_a.any()
    torch.testing.assert_close(of_x.sum(), DECAYED[name](x, a).sum())


NOT_DECAYED = {
    "a softplus": lambda x, a: x * F.softplus(a),
    "of something else": lambda x, a: x * F.softplus(a) + torch.exp(-F.softplus(a + 1)) * x,
    "decays in part": lambda x, a: x * torch.cat([a[:2].exp(), a[2:]]),
}


@pytest.mark.parametrize("name", NOT_DECAYED)
def test_what_no_decay_is_made_of_is_an_activation(name):
    x, a = random(3, 3), random(3, 3, 1)[..., 0]
    fmodel, params = lrpfunc.trace(lambda _, x, a: NOT_DECAYED[name](x, a), {}, x, a)
    assert lrpfunc.attribute(fmodel, params, (x, a), ATTN, target=lambda y: y)[1].any()


def test_an_activation_is_no_gate_to_a_state():
    x, a, c = random(3, 3), random(3, 3, 1)[..., 0], random(3, 3, 2)[..., 0]
    fmodel, params = lrpfunc.trace(lambda _, x, a, c: F.silu(c) * (a.exp() * x), {}, x, a, c)
    of_x, of_a, of_c = lrpfunc.attribute(fmodel, params, (x, a, c), CP, target=lambda y: y)
    assert not of_a.any()
    torch.testing.assert_close(of_x, of_c)


def test_an_exponential_on_its_own_is_left_to_the_gradient():
    fmodel, _ = lrpfunc.trace(lambda _, x: x.exp() @ P["out"], {}, random(3, WIDTH))
    assert lrpfunc.explain(fmodel, ATTN).fallbacks == ("exp",)


# -- zeros ------------------------------------------------------------------------------------------------------------

VANISHING = {
    "zeros": lambda x: x.exp() * torch.zeros(3, 3, dtype=x.dtype),
    "zeros_like": lambda x: torch.zeros_like(x) * x.exp(),
    "new_zeros": lambda x: x.exp() * x.new_zeros(3, 3),
    "full": lambda x: x.exp() * torch.full((3, 3), 0.0, dtype=x.dtype),
    "full_like": lambda x: x.exp() * torch.full_like(x, 0),
    "new_full": lambda x: x.exp() * x.new_full((3, 3), 0.0),
    "a number": lambda x: x.exp() * 0,
    "zero_": lambda x: x.exp() * x.clone().zero_(),
    "moved": lambda x: x.exp() * x.new_zeros(2, 1, 3)[:1].expand(1, 3, 3).transpose(1, 2).reshape(3, 3).to(x.dtype),
    "once more": lambda x: x.exp() * (x.sigmoid() * x.new_zeros(3, 3)),
    "a numerator": lambda x: x.new_zeros(3, 3) / x.exp(),
    "a matrix product": lambda x: x.exp() @ x.new_zeros(3, 3),
    "an einsum": lambda x: torch.einsum("ij,jk->ik", x.exp(), x.new_zeros(3, 3)),
}


@pytest.mark.parametrize("name", VANISHING)
def test_what_is_zero_whatever_the_input_is_a_constant(name):
    x = random(3, 3)
    fmodel, params = lrpfunc.trace(lambda _, x: x + VANISHING[name](x), {}, x)
    listing = lrpfunc.explain(fmodel, ATTN, strict=True)
    assert [row[-1] for row in listing.rows if row[1] == "exp"] == ["constant"]
    torch.testing.assert_close(lrpfunc.attribute(fmodel, params, x, ATTN, target=lambda y: y), x)


NOT_VANISHING = {
    "ones": lambda x: x.exp() * torch.ones_like(x),
    "full": lambda x: x.exp() * torch.full((3, 3), 2.0, dtype=x.dtype),
    "full_like": lambda x: x.exp() * torch.full_like(x, 2.0),
    "new_full": lambda x: x.exp() * x.new_full((3, 3), 2.0),
    "a number": lambda x: x.exp() * 2,
    "written": lambda x: x.exp() * x.new_zeros(3, 3).index_fill(0, torch.tensor([1]), 2.0),
    "in part": lambda x: x.exp() * torch.cat([x.new_zeros(2, 3), x.new_ones(1, 3)]),
    "padded": lambda x: x.exp() * F.pad(x.new_zeros(2, 3), (0, 0, 0, 1), value=1.0),
    "a numerator of zeros": lambda x: x.exp() / (1 + x.new_zeros(3, 3)),
}


@pytest.mark.parametrize("name", NOT_VANISHING)
def test_what_is_not_zero_everywhere_is_no_constant(name):
    fmodel, _ = lrpfunc.trace(lambda _, x: x + NOT_VANISHING[name](x), {}, random(3, 3))
    assert lrpfunc.explain(fmodel, ATTN).fallbacks == ("exp",)
