"""The rules of transformers against plain torch: gradients of the same function, constants detached and halves cut."""

import functools
import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import lrpfunc
from lrpfunc import composites, custom_vjp, rules
from lrpfunc.errors import RuleError

ATTN, CP = composites.attn_lrp(), composites.cp_lrp()


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


class Of(NamedTuple):
    """What of an input a trace depends on."""

    shape: torch.Size
    dtype: torch.dtype


@functools.cache
def traced(function, *inputs: Of):
    samples = (torch.ones(x.shape, dtype=x.dtype) for x in inputs)
    return lrpfunc.trace(lambda _, *values: function(*values), {"unused": torch.ones(1)}, *samples)


def explained(function, inputs, composite=ATTN, strict=True):
    """The coefficients c = R / x of each input of `function(*inputs)`, for a random coefficient of its output."""
    fmodel, params = traced(function, *(Of(x.shape, x.dtype) for x in inputs))
    y, pullback = lrpfunc.vjp(fmodel, params, tuple(inputs), composite, strict)
    relevance = pullback(y * rand(*y.shape, seed=9))
    return [r / x for r, x in zip(relevance, inputs, strict=True)]


def expected(function, inputs):
    """The gradients of an oracle for the same coefficient."""

    def loss(*inputs):
        y = function(*inputs)
        return (y * rand(*y.shape, seed=9)).sum()

    return grad(loss, argnums=tuple(range(len(inputs))))(*inputs)


def compare(found, oracle, **tolerance):
    for one, other in zip(found, oracle, strict=True):
        torch.testing.assert_close(one, other, **{"rtol": 1e-9, "atol": 1e-11, **tolerance})


def cut(value: Tensor, linear: Tensor) -> Tensor:
    """`value` with the derivative of `linear`."""
    return value.detach() + linear - linear.detach()


def halved(product, a, b):
    return cut(product(a, b), (product(a, b.detach()) + product(a.detach(), b)) / 2)


# -- attention --------------------------------------------------------------------------------------------------------

QUERY, KEY, VALUE = rand(2, 4, 3, 5), rand(2, 4, 6, 5, seed=1), rand(2, 4, 6, 2, seed=2)
FEW_HEADS = rand(2, 2, 6, 5, seed=3), rand(2, 2, 6, 2, seed=4)
PATTERN = rand(3, 6, seed=5) > -0.8
BIAS = rand(2, 1, 3, 6, seed=6)
SETTINGS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": PATTERN},
    "float mask": {"attn_mask": BIAS},
    "grouped": {"enable_gqa": True},
    "grouped causal": {"enable_gqa": True, "is_causal": True},
}


def attention_by_hand(query, key, value, to="all", active=(True, True, True), **settings):
    """Attention written out, each product of which shares by the rule."""

    def product(a, b, is_both, first=lambda a, b: a @ b):
        return halved(first, a, b) if is_both else first(a, b)

    if settings.get("enable_gqa"):
        key, value = (x.repeat_interleave(2, 1) for x in (key, value))
    if to == "value":
        query, key = query.detach(), key.detach()
    scores = product(query, key.mT, active[0] and active[1]) * settings.get("scale", query.shape[-1] ** -0.5)
    if settings.get("is_causal"):
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    mask = settings.get("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    is_both = to == "all" and active[2] and (active[0] or active[1])
    return product(scores.softmax(-1), value, is_both)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("to", ["all", "value"])
def test_attention_is_what_its_parts_written_out_are(settings, to):
    inputs = (QUERY, *(FEW_HEADS if "grouped" in settings else (KEY, VALUE)))
    composite = ATTN if to == "all" else CP
    found = explained(lambda *x: F.scaled_dot_product_attention(*x, **SETTINGS[settings]), inputs, composite)
    compare(found, expected(lambda *x: attention_by_hand(*x, to=to, **SETTINGS[settings]), inputs))
    if to == "value":
        assert not found[0].any()
        assert not found[1].any()


@pytest.mark.parametrize("active", [a for a in itertools.product([False, True], repeat=3) if any(a)])
def test_what_is_constant_leaves_its_share_to_the_other(active):
    fixed = (QUERY, KEY, VALUE)
    inputs = [x for x, is_active in zip(fixed, active, strict=True) if is_active]

    def filled(attention):
        def function(*inputs):
            given = iter(inputs)
            return attention(*(next(given) if a else x for x, a in zip(fixed, active, strict=True)))

        return function

    oracle = expected(filled(lambda *x: attention_by_hand(*x, active=active)), inputs)
    compare(explained(filled(F.scaled_dot_product_attention), inputs), oracle)


def test_a_mask_that_depends_on_the_input_is_a_term_of_the_scores():
    inputs = (QUERY, KEY, VALUE, BIAS)
    oracle = expected(lambda q, k, v, m: attention_by_hand(q, k, v, attn_mask=m), inputs)
    compare(explained(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), inputs), oracle)


@pytest.mark.parametrize("composite", [ATTN, CP])
def test_attention_written_out_is_attention(composite):
    inputs = (QUERY, KEY, VALUE)

    def written(q, k, v):
        scores = torch.matmul(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5
        return torch.matmul(F.dropout(F.softmax(scores + BIAS, dim=-1), training=False), v)

    whole = explained(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=BIAS), inputs, composite)
    compare(explained(written, inputs, composite), whole)


def test_rows_without_any_key_are_no_numbers_to_nobody():
    mask = PATTERN.clone()
    mask[1] = False
    for composite in (ATTN, CP):
        found = explained(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask), (QUERY, KEY, VALUE), composite)
        assert all(c.isfinite().all() for c in found)


def test_the_fast_path_of_attention_equals_the_one_that_transforms_see():
    """Recorded by autograd where nobody watches, else in operations with derivatives of any order."""
    for settings in ({}, {"attn_mask": PATTERN}, {"is_causal": True}, {"enable_gqa": True}):
        inputs = (QUERY, *(FEW_HEADS if settings.get("enable_gqa") else (KEY, VALUE)))
        fmodel, params = lrpfunc.trace(
            lambda _, *x, settings=settings: F.scaled_dot_product_attention(*x, **settings), torch.ones(1), *inputs
        )
        seed = rand(2, 4, 3, 2, seed=8)

        def relevance(*inputs, fmodel=fmodel, params=params, seed=seed):
            return lrpfunc.attribute(fmodel, params, inputs, ATTN, target=lambda output: output * seed)

        fast = relevance(*inputs)
        mapped = vmap(relevance, randomness="error")(*(x[None] for x in inputs))
        compare([r[0] for r in mapped], fast)
        compare(relevance(*(x.clone().requires_grad_() for x in inputs)), fast)
        y, pullback = lrpfunc.vjp(fmodel, params, inputs, ATTN)
        compare(pullback(y * seed), fast)
        compare(pullback(y * seed), fast)  # a second time


# -- softmax ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [lambda x: x.softmax(1), lambda x: x.log_softmax(-1)])
def test_a_softmax_has_its_jacobian(function):
    compare(explained(function, (rand(2, 4, 3),)), expected(function, (rand(2, 4, 3),)))


def test_softmax_by_hand():
    # x = (ln 3, 0): y = (3/4, 1/4). c = (1, 0): sum y c = 3/4, so c_x = (3/4 * 1/4, 1/4 * -3/4) and R_x = x c_x
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    _, pullback = torch.func.vjp(lambda x: custom_vjp(rules.softmax(0.0), F.softmax)(x, -1), x)
    relevance = pullback(torch.tensor([[0.75, 0.0]], dtype=torch.float64))[0]
    torch.testing.assert_close(relevance, x * torch.tensor([[3 / 16, -3 / 16]], dtype=torch.float64))


# -- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (torch.mul, ((2, 3, 4), (2, 3, 4))),
        (torch.mul, ((2, 3, 4), (3, 1))),
        (torch.matmul, ((2, 3, 4), (2, 4, 5))),
        (torch.matmul, ((2, 3, 4), (4, 5))),
        (torch.matmul, ((4,), (2, 4, 5))),
        (torch.bmm, ((2, 3, 4), (2, 4, 5))),
        (torch.mm, ((2, 3), (3, 4))),
        (lambda a, b: torch.einsum("bij,bkj->bik", a, b), ((2, 3, 4), (2, 5, 4))),
    ],
)
def test_products_halve(product, shapes):
    inputs = [rand(*shape, seed=i) for i, shape in enumerate(shapes)]
    compare(explained(product, inputs), expected(lambda a, b: halved(product, a, b), inputs))


def test_no_halving_where_a_factor_is_constant():
    constant = rand(4, 5)
    for product in (lambda x: x @ constant, lambda x: x * 3, lambda x: constant.mT @ x.mT):
        compare(explained(product, (rand(3, 4),)), expected(product, (rand(3, 4),)))


GATES = {
    "sigmoid": lambda x, g: x * g.sigmoid(),
    "one minus sigmoid": lambda x, g: (1 - g.sigmoid()) * x,
    "softmax": lambda x, g: x * g.softmax(-1),
    "largest of a softmax": lambda x, g: x * g.softmax(-1).topk(4, -1)[0],
    "silu": lambda x, g: F.silu(g) * x,
    "square of a relu": lambda x, g: F.relu(g).square() * x,
    "gelu written out": lambda x, g: g * 0.5 * (1 + torch.erf(g / 2**0.5)) * x,
    "matmul by a softmax": lambda x, g: g.softmax(-1) @ x.mT,
}


@pytest.mark.parametrize("name", GATES)
def test_cp_lrp_takes_gates_for_constants(name):
    gated, inputs = GATES[name], (rand(3, 4), rand(3, 4, seed=1))
    found = explained(gated, inputs, CP)
    compare(found, expected(lambda x, g: gated(x, g.detach()), inputs))
    assert not found[1].any()
    is_gate = "sigmoid" in name
    assert explained(gated, inputs, ATTN)[1].any() != is_gate  # AttnLRP halves, but not with gates
    assert explained(gated, inputs, composites.attn_lrp(gates="halve"))[1].any()


def test_gates_of_attn_lrp_are_constants_or_halve():
    inputs = (rand(3, 4), rand(3, 4, seed=1))
    compare(explained(GATES["sigmoid"], inputs, ATTN), explained(GATES["sigmoid"], inputs, CP))
    with pytest.raises(RuleError, match=r"gates are \"constant\" or \"halve\", but not 'signal'\."):
        composites.attn_lrp(gates="signal")


def test_presets_for_images_take_sigmoids_for_gates_and_halve_what_is_activated():
    inputs = (rand(3, 4), rand(3, 4, seed=1))
    assert not explained(GATES["sigmoid"], inputs, composites.epsilon(0))[1].any()
    compare(explained(GATES["silu"], inputs, composites.epsilon(0)), explained(GATES["silu"], inputs, ATTN))


def test_gate_and_halve_by_hand():
    # y = a b with a = 2, b = 3, R = 6
    def of(rule):
        fmodel, params = lrpfunc.trace(lambda _, a, b: a * b, torch.ones(1), torch.ones(1, 1), torch.ones(1, 1))
        x = torch.tensor([[2.0]]), torch.tensor([[3.0]])
        found = lrpfunc.attribute(fmodel, params, x, {"mul": rule}, target=0)
        return [r.item() for r in found]

    assert of(rules.halve()) == [3.0, 3.0]
    assert of(rules.gate(0)) == [6.0, 0.0]
    assert of(rules.gate(to=1)) == [0.0, 6.0]
    with pytest.raises(RuleError, match=r"of the factors of 'mul' \(mul\) none is a gate: give to=0 or to=1, or halve"):
        of(rules.gate())


# -- normalizations ---------------------------------------------------------------------------------------------------

WEIGHT, SHIFT, MEAN, VARIANCE = rand(4), rand(4, seed=1), rand(4, seed=2), rand(4, seed=3).square() + 0.5
CHANNELS = (1, 4, 1, 1)


def normalized(x, axes, centered=True, eps=1e-3):
    """(x - mean) / root, the root a constant."""
    offset = x.mean(axes, keepdim=True) if centered else 0
    spread = (x - offset).square().mean(axes, keepdim=True)
    return (x - offset) / (spread + eps).sqrt().detach()


def grouped(x, groups):
    return normalized(x.unflatten(1, (groups, -1)).flatten(2), -1).reshape(x.shape)


def per_channel(x):
    return x * WEIGHT.reshape(CHANNELS) + SHIFT.reshape(CHANNELS)


def global_response(x):
    size = x.norm(dim=(2, 3), keepdim=True)
    return size / (size.mean(1, keepdim=True) + 1)


WHOLE = {
    "layer_norm": (
        lambda x: F.layer_norm(x, (4,), WEIGHT, SHIFT, 1e-3),
        lambda x: normalized(x, -1) * WEIGHT + SHIFT,
    ),
    "layer_norm of two axes": (lambda x: F.layer_norm(x, (5, 4), eps=1e-3), lambda x: normalized(x, (-2, -1))),
    "rms_norm": (lambda x: F.rms_norm(x, (4,), WEIGHT, 1e-3), lambda x: normalized(x, -1, False) * WEIGHT),
    "rms_norm alone": (
        lambda x: F.rms_norm(x, (4,)),
        lambda x: normalized(x, -1, False, torch.finfo(x.dtype).eps),
    ),
    "group_norm": (lambda x: F.group_norm(x, 2, WEIGHT, SHIFT, 1e-3), lambda x: per_channel(grouped(x, 2))),
    "instance_norm": (
        lambda x: F.instance_norm(x, None, None, WEIGHT, SHIFT, True, 0.1, 1e-3),
        lambda x: per_channel(grouped(x, 4)),
    ),
    "instance_norm in evaluation": (
        lambda x: F.instance_norm(x, MEAN, VARIANCE, WEIGHT, SHIFT, False, 0.1, 1e-3),
        lambda x: per_channel((x - MEAN.reshape(CHANNELS)) / (VARIANCE + 1e-3).sqrt().reshape(CHANNELS)),
    ),
    "batch_norm": (
        lambda x: F.batch_norm(x, MEAN, VARIANCE, WEIGHT, SHIFT, False, 0.1, 1e-3),
        lambda x: per_channel((x - MEAN.reshape(CHANNELS)) / (VARIANCE + 1e-3).sqrt().reshape(CHANNELS)),
    ),
    "batch_norm alone": (
        lambda x: F.batch_norm(x, MEAN, VARIANCE, eps=1e-3),
        lambda x: (x - MEAN.reshape(CHANNELS)) / (VARIANCE + 1e-3).sqrt().reshape(CHANNELS),
    ),
    "RMS written out": (
        lambda x: WEIGHT * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)),
        lambda x: normalized(x, -1, False) * WEIGHT,
    ),
    "RMS by a negative power": (
        lambda x: x * torch.pow(x.pow(2).mean(-1, keepdim=True) + 1e-3, -0.5),
        lambda x: normalized(x, -1, False),
    ),
    "RMS by a reciprocal": (
        lambda x: x * (1 / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()),
        lambda x: normalized(x, -1, False),
    ),
    "layer norm written out": (
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-3).sqrt(),
        lambda x: normalized(x, -1),
    ),
    "unit length": (
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / x.norm(dim=-1, keepdim=True).detach(),
    ),
    "global response": (
        lambda x: x * global_response(x),
        lambda x: x * global_response(x).detach(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_denominators_are_constants(name):
    function, oracle = WHOLE[name]
    x = rand(2, 4, 5, 4)
    torch.testing.assert_close(function(x), oracle(x))
    for composite in (ATTN, CP):
        compare(explained(function, (x,), composite), expected(oracle, (x,)))


@pytest.mark.parametrize("name", [n for n in WHOLE if "batch" not in n])  # which the presets pass through
def test_presets_for_images_normalize_alike(name):
    x, weight = rand(2, 4, 5, 4), rand(4, 3)

    def function(x):
        return WHOLE[name][0](x) @ weight

    compare(explained(function, (x,), composites.epsilon(0)), explained(function, (x,)))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_normalization_of_a_relevance_divides_by_the_stabilized_output(name):
    function, oracle = WHOLE[name]
    x, seed = rand(2, 4, 5, 4), rand(2, 4, 5, 4, seed=7)
    fmodel, params = lrpfunc.trace(lambda _, x: function(x), torch.ones(1), x)
    _, pullback = lrpfunc.vjp(fmodel, params, x, composites.by_kind({"*": rules.normalization(0.1)}))
    y = function(x)
    c = seed / (y + torch.copysign(torch.full_like(y, 0.1), y))
    compare([pullback(seed)], [x * grad(lambda x: (oracle(x) * c).sum())(x)])


# -- activations ------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "softsign": F.softsign,
    "square": torch.square,
    "cube": lambda x: x**3,
    "abs": torch.abs,
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3)))),
    "gelu by erf": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "silu written out": lambda x: x * torch.sigmoid(x),
    "silu by a division": lambda x: x / (1 + torch.exp(-x)),
    "quick gelu": lambda x: torch.sigmoid(1.702 * x) * x,
    "mish written out": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish written out": lambda x: x * F.relu6(x + 3) / 6,
    "x times x": lambda x: x * x,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("composite", [ATTN, CP, composites.epsilon(0)])
def test_activations_pass_relevance_as_f_of_x_over_x(name, composite):
    function, x = ACTIVATIONS[name], rand(3, 7)
    (found,) = explained(function, (x,), composite)
    compare([found], [rand(3, 7, seed=9) * function(x) / x])


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "relu"])
def test_activations_have_their_slope_at_zero(name):
    function, zeros = ACTIVATIONS[name], torch.zeros(1, 3, dtype=torch.float64)
    weight, seed = torch.eye(3, dtype=torch.float64), rand(1, 3, seed=9)
    arrived = []

    def backward(operation, residuals, flow):
        arrived.append(flow)
        return rules.epsilon(0.0).backward(operation, residuals, flow)

    # The last layer's output is its bias, one, so that the seed is the coefficient of what the activation gives.
    fmodel, _ = lrpfunc.trace(lambda w, x: F.linear(function(x @ w), w, torch.ones_like(w[0])), weight, zeros)
    entries = {"*": rules.epsilon(0.0)._replace(backward=backward)}
    lrpfunc.vjp(fmodel, weight, zeros, composites.attn_lrp(entries=entries))[1](seed)
    flow = arrived[1]
    assert not flow.is_relevance
    slope = vmap(grad(function))(torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(flow.tensor, seed * slope)


# -- what is no constant, and what is no product ----------------------------------------------------------------------


def sums(function, inputs, composite):
    """The relevance of each input of `function(*inputs)`, summed, where R_out is the output."""
    fmodel, params = lrpfunc.trace(lambda _, *values: function(*values), {"unused": torch.ones(1)}, *inputs)
    return [r.sum().item() for r in lrpfunc.attribute(fmodel, params, tuple(inputs), composite, target=lambda y: y)]


@pytest.mark.parametrize("is_left", [False, True])
@pytest.mark.parametrize("operator", ["linear", "addmm", "matmul", "baddbmm"])
def test_either_operand_of_a_matrix_product_may_be_the_signal(operator, is_left):
    def product(a, b):
        if operator == "linear":
            return (
                F.linear(a, b.mT)
                if a.dim() == 2
                else torch.stack([F.linear(x, y.mT) for x, y in zip(a, b, strict=True)])
            )
        if operator == "addmm":
            return torch.addmm(BIAS[0, 0, 0, :3], a, b)
        return torch.baddbmm(BIAS[0, 0, 0, :3], a[None], b[None])[0] if operator == "baddbmm" else a @ b

    def gated(x, g):
        return (product(x, g.softmax(-1)) if is_left else product(g.softmax(-1), x)) @ RIGHT[:3]

    inputs = (rand(3, 3), rand(3, 3, seed=1))
    found = explained(gated, inputs, CP)
    compare(found, expected(lambda x, g: gated(x, g.detach()), inputs))
    assert not found[1].any()


def test_a_bias_that_depends_on_the_input_is_a_term_and_no_factor():
    weight = rand(4, 3)
    for function in (
        lambda x, b: torch.addmm(b, x, weight),
        lambda x, b: F.linear(x, weight.mT, b[0]) if b.dim() == 2 and len(b) == 1 else x @ weight + b,
        lambda x, b: torch.baddbmm(b[None], x[None], weight[None])[0],
    ):
        x, b = rand(2, 4), rand(1, 3).expand(2, 3).clone() if function.__code__.co_consts[-1] != 1 else rand(2, 3)
        found = sums(function, (x, b), composites.epsilon(0.0))
        assert found == pytest.approx([(x @ weight).sum().item(), b.sum().item()])


def test_similarities_of_values_behind_a_tanh_have_no_gate():
    a, b, c, d = (rand(3, 3, seed=i) for i in range(4))
    inputs = (rand(2, 3), rand(2, 3, seed=1))
    found = explained(lambda x, y: (torch.tanh(x @ a) @ b) @ (torch.relu(y @ c) @ d).mT, inputs, CP)
    assert all(r.any() for r in found)


def test_attention_over_values_behind_a_tanh_conserves():
    q, k, v = (rand(4, 4, seed=i) for i in range(3))

    def function(x):
        h = torch.tanh(x)
        return ((h @ q) @ (h @ k).mT).softmax(-1) @ (h @ v)

    x = rand(5, 4)
    assert sums(function, (x,), CP) == pytest.approx([function(x).sum().item()])


def test_the_root_of_another_input_is_no_denominator():
    x, y = rand(3, 4), rand(3, 4, seed=1).abs()
    for function in (lambda x, y: x * y.sqrt(), lambda x, y: x * y.rsqrt()):
        half = function(x, y).sum().item() / 2
        assert sums(function, (x, y), ATTN) == pytest.approx([half, half])


def test_a_gate_must_be_one_in_all_its_parts():
    inputs = (rand(2, 3), rand(2, 3, seed=1), rand(2, 6, seed=2))
    for function in (
        lambda x, y, z: torch.cat([x.sigmoid(), y], 1) * z,
        lambda x, y, z: torch.cat([y, x.sigmoid()], 1) * z,
    ):
        assert all(sums(function, inputs, CP)[1:])
    parts = sums(lambda x, y, z: torch.cat([x.sigmoid(), y.sigmoid()], 1) * z, inputs, CP)
    assert parts[:2] == [0.0, 0.0]


def test_what_a_constant_is_divided_by_passes_relevance():
    x, weight = rand(2, 4), rand(4, 3)
    for composite in (ATTN, composites.epsilon(0.0)):
        found = sums(lambda x: (2.0 / x) @ weight, (x,), composite)
        assert found == pytest.approx([((2.0 / x) @ weight).sum().item()])


def test_powers_of_and_by_inputs():
    x, weight, exponent = rand(2, 4).abs() + 0.5, rand(4, 3), torch.tensor(3.0, dtype=torch.float64)
    expected_sum = (x**0.5 @ weight).sum().item()
    assert sums(lambda x: (x**0.5) @ weight, (x,), ATTN) == pytest.approx([expected_sum])
    for function in (lambda x: (2**x) @ weight, lambda x: (x**exponent) @ weight):  # left to the gradient
        fmodel, _ = lrpfunc.trace(lambda _, x, function=function: function(x), torch.ones(1), x)
        assert len(lrpfunc.explain(fmodel, ATTN).fallbacks) == 1
        (found,) = explained(function, (x,), strict=False)
        compare([found], expected(function, (x,)))


def test_layers_of_constants_with_weights_that_depend_on_the_input_go_by_the_gradient():
    constant = rand(2, 4)
    for function, w in (
        (lambda w: F.layer_norm(constant, (4,), w) @ RIGHT[:4], rand(4)),
        (lambda w: torch.einsum("ij,jk,kl->il", constant, w, RIGHT), rand(4, 6)),
    ):
        (found,) = explained(function, (w,), strict=False)
        compare([found], expected(function, (w,)), rtol=1e-3, atol=1e-4)  # stabilized where a relevance arrives


def test_an_einsum_of_three_operands_has_a_gate_as_others_do():
    inputs, constant = (rand(2, 3, 4), rand(2, 4, 5)), rand(5, 5)

    def mixed(p, v):
        return torch.einsum("bij,bjc,cd->bid", p.softmax(-1), v, constant)

    found = explained(mixed, inputs, CP, strict=False)
    compare(found, expected(lambda p, v: mixed(p.detach(), v), inputs))
    assert not found[0].any()


# -- where others watch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["mask", "query"])
def test_parameters_of_attention_have_derivatives(what):
    x = rand(2, 3, 4)
    p = {"mask": rand(3, 3), "query": rand(1, 3, 4)}

    def model(p, x):
        query = p["query"].expand(x.shape[0], -1, -1) if what == "query" else x
        return F.scaled_dot_product_attention(query, x, x, p["mask"])

    fmodel, _ = lrpfunc.trace(model, p, x)

    def loss(p):
        return lrpfunc.attribute(fmodel, p, x, ATTN, target=lambda y: y).square().sum()

    leaves = {key: value.clone().requires_grad_() for key, value in p.items()}
    found = torch.autograd.grad(loss(leaves), leaves[what])[0]
    torch.testing.assert_close(found, grad(loss)(p)[what])
    assert found.any()


def test_attention_to_the_inputs_themselves_in_inference_mode():
    fmodel, params = lrpfunc.trace(lambda _, x: F.scaled_dot_product_attention(x, x, x), torch.ones(1), rand(2, 3, 4))
    expected_relevance = lrpfunc.attribute(fmodel, params, rand(2, 3, 4), ATTN, target=lambda y: y)
    x = rand(2, 3, 4)
    with torch.inference_mode():
        compare([lrpfunc.attribute(fmodel, params, x, ATTN, target=lambda y: y)], [expected_relevance])
        compare([lrpfunc.attribute(fmodel, params, x * 1, ATTN, target=lambda y: y)], [expected_relevance])


# -- movements and sums -----------------------------------------------------------------------------------------------

COLUMN, RIGHT, LEFT = rand(4, 1), rand(6, 3), rand(2, 5, 4)
MOVES = {
    "slice": lambda x: x[:, 1:3],
    "slice from the end": lambda x: x[..., -3:-1],
    "slice with steps": lambda x: x[:, ::2, 1::3],
    "slice past the end": lambda x: x[:, 2:99],
    "select": lambda x: x[:, -2],
    "select of the last axis": lambda x: x[..., 1],
    "split": lambda x: torch.cat(x.split(2, 1)[::-1], 1),
    "split into several": lambda x: x.split([1, 3], 1)[1] * 2,
    "chunk": lambda x: x.chunk(2, -1)[0] - x.chunk(2, -1)[1],
    "tensor_split": lambda x: x.tensor_split(3, 2)[1],
    "unbind": lambda x: x.unbind(2)[1],
    "unbind of the first": lambda x: x.movedim(1, 0).unbind()[2],
    "roll": lambda x: x.roll(1, 2),
    "roll of two axes": lambda x: x.roll((1, -2), (1, 2)),
    "roll of all": lambda x: x.roll(3),
    "masked_fill": lambda x: x.masked_fill(torch.arange(6) % 2 == 0, 3.0),
    "to": lambda x: x.to(torch.float32).to(torch.float64),
    "sub": lambda x: x[:, :1] - x,
    "sub of a constant": lambda x: x - 3,
    "neg": lambda x: -x,
    "div": lambda x: x / 7,
    "mul": lambda x: 3 * x,
    "mul by a row": lambda x: x * COLUMN,
    "mean": lambda x: x.mean(1),
    "mean kept": lambda x: x.mean((1, -1), keepdim=True),
    "mean of all": lambda x: x.mean(),
    "sum": lambda x: x.sum(-1),
    "sum of all": lambda x: x.sum(),
    "sum of two": lambda x: x.sum([0, 2]),
    "matmul": lambda x: x @ RIGHT,
    "matmul from the left": lambda x: LEFT @ x,
    "addcmul": lambda x: torch.addcmul(RIGHT.mT, COLUMN[:3], x[:, :3]),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_is_linear_moves_by_its_adjoint(name):
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if name == "to" else {}
    x, function = rand(2, 4, 6), MOVES[name]
    fmodel, params = lrpfunc.trace(lambda _, x: function(x), torch.ones(1), x)
    seed = rand(*fmodel(params, x).shape, seed=9)
    everywhere = composites.by_kind({"*": rules.gradient()})
    _, pullback = lrpfunc.vjp(fmodel, params, x, everywhere)
    compare([pullback(seed)], torch.func.vjp(function, x)[1](seed), **tolerance)
    compare([vmap(pullback)(seed[None])[0]], [pullback(seed)])


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (rules.attention(), r"'exp' \(exp\) is no attention, but the rule needs one"),
        (rules.softmax(), r"'exp' \(exp\) is no softmax, but the rule needs one"),
        (rules.normalization(), r"'exp' \(exp\) is no normalization of one value, but the rule needs one"),
        (rules.embedding(), r"'exp' \(exp\) is no embedding of tokens, but the rule needs one"),
        (rules.halve(), r"'exp' \(exp\) is not a product of two values that depend on the input"),
        (rules.gate(0), r"'exp' \(exp\) is not a product of two values that depend on the input"),
    ],
)
def test_a_rule_for_another_operation_is_refused(rule, message):
    fmodel, params = lrpfunc.trace(lambda _, x: x.exp(), torch.ones(1), torch.ones(1, 2))
    with pytest.raises(RuleError, match=message):
        lrpfunc.attribute(fmodel, params, torch.ones(1, 2), {"exp": rule}, target=0)
