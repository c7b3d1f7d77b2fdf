"""The rules against numbers worked by hand, and what they refuse."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc import Flow, composites, custom_vjp, rules
from lrpfunc.errors import RuleError
from lrpfunc.rules.flows import rectify

X = torch.tensor([[1.0, 2.0]])
W = torch.tensor([[1.0, 1.0], [2.0, -0.5]])
B = torch.tensor([1.0, -2.0])


def pulled(rule, relevance, x=X, function=F.linear, *parameters):
    parameters = parameters or (W,)
    _, pullback = torch.func.vjp(lambda x: custom_vjp(rule, function)(x, *parameters), x)
    return pullback(torch.tensor(relevance))[0]


def expect(got, *numbers):
    torch.testing.assert_close(got, torch.tensor([list(numbers)]))


def test_epsilon_by_hand():
    # z = (3, 1) and R = z give s = (1, 1), so R_x = x * (w^T s) = (1 * 3, 2 * 0.5)
    expect(pulled(rules.epsilon(0.0), [[3.0, 1.0]]), 3.0, 1.0)
    # epsilon = 1 gives s = (3 / 4, 1 / 2), so R_x = (1 * (0.75 + 1), 2 * (0.75 - 0.25))
    expect(pulled(rules.epsilon(1.0), [[3.0, 1.0]]), 1.75, 1.0)


def test_the_bias_keeps_its_share_of_epsilon_unless_it_is_left_out():
    # z = (3 + 1, 1 - 2) = (4, -1): s = (3 / 4, -1); without bias z = (3, 1): s = (1, 1)
    expect(pulled(rules.epsilon(0.0), [[3.0, 1.0]], X, F.linear, W, B), 0.75 - 2.0, 2 * (0.75 + 0.5))
    expect(pulled(rules.epsilon(0.0, zero_bias=True), [[3.0, 1.0]], X, F.linear, W, B), 3.0, 1.0)


def test_zplus_by_hand():
    # z+ = (3, 2): R = (3, 2) gives s = (1, 1), so R_x = x * (W+^T s) = (1 * 3, 2 * 1)
    expect(pulled(rules.zplus(0.0), [[3.0, 2.0]]), 3.0, 2.0)


def test_alpha_beta_by_hand():
    # d_a = (3, 2), d_b = (0, -1). R = (0, 2): s_a = (0, 1), s_b = (0, -2).
    # R_x = 2 x W+^T s_a - x W-^T s_b = 2 (2, 0) - (0, 2 * (-0.5) * (-2)) = (4, -2)
    expect(pulled(rules.alpha_beta(2, 1, 0.0), [[0.0, 2.0]]), 4.0, -2.0)


def test_alpha_beta_of_a_negative_input_takes_the_other_weights():
    # x = (-1, 2), W = (1, 1), R = 1: contributions -1 and 2, so d_a = 2, d_b = -1 and R_x = (-1 * 1, 2 * 1)
    x, w = torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    expect(pulled(rules.alpha_beta(2, 1, 0.0), [[1.0]], x, F.linear, w), -1.0, 2.0)


def test_gamma_by_hand():
    # z = (3, 1) > 0: W + W+ = ((2, 2), (4, -0.5)), z' = (6, 3); R = (6, 3) gives s = (1, 1), R_x = (1 * 6, 2 * 1.5)
    expect(pulled(rules.gamma(1.0, 0.0), [[6.0, 3.0]]), 6.0, 3.0)


def test_gamma_of_a_negative_output_favours_negative_contributions():
    # x = (1, 2), W = (1, -1): z = -1 < 0, so W + W- = (1, -2), z' = -3; R = -3: s = 1 and R_x = (1, -4)
    expect(pulled(rules.gamma(1.0, 0.0), [[-3.0]], X, F.linear, torch.tensor([[1.0, -1.0]])), 1.0, -4.0)


def test_zbox_by_hand():
    # low = -1, high = 3: z = (3, 1) + (2, 2) - (0, -1.5) = (5, 4.5). R = (5, 4.5): s = (1, 1).
    # R_x = x W^T s + W+^T s - 3 W-^T s = (3 + 3 - 0, 1 + 1 + 1.5)
    expect(pulled(rules.zbox(-1.0, 3.0, 0.0), [[5.0, 4.5]]), 6.0, 3.5)


def test_wsquare_by_hand():
    # W^2 1 = (2, 4.25): R = (2, 4.25) gives s = (1, 1), R_x = (1 + 4, 1 + 0.25)
    expect(pulled(rules.wsquare(0.0), [[2.0, 4.25]]), 5.0, 1.25)


def test_flat_by_hand():
    # Each output has two inputs: R = (2, 4) gives s = (1, 2), R_x = (3, 3)
    expect(pulled(rules.flat(0.0), [[2.0, 4.0]]), 3.0, 3.0)


def test_activations_by_hand():
    x = torch.tensor([[-1.0, 0.0, 2.0, 3.0]])
    relevance = [[1.0, 2.0, 3.0, -4.0]]

    def of(rule):
        _, pullback = torch.func.vjp(custom_vjp(rule, F.relu), x)
        return pullback(torch.tensor(relevance))[0]

    expect(of(rules.pass_through()), 1.0, 2.0, 3.0, -4.0)
    expect(of(rules.gradient()), 0.0, 0.0, 3.0, -4.0)
    expect(of(rules.relu_deconvnet()), 1.0, 2.0, 3.0, 0.0)
    expect(of(rules.relu_guided_backprop()), 0.0, 0.0, 3.0, 0.0)
    gates = torch.sigmoid(torch.tensor([-10.0, 0.0, 20.0, 30.0]))
    expect(of(rules.relu_beta_smooth(10.0)), *(gates * torch.tensor(relevance[0])).tolist())


@pytest.mark.parametrize("first", [rules.gradient(), rules.pass_through()], ids=["a coefficient", "a relevance"])
def test_what_a_clamp_cuts_off_keeps_its_share_in_either_form_of_flow(first):
    # Behind it weights of one: a coefficient of one, or by pass_through of an identity the relevance y.
    cases = {
        lambda x: F.hardtanh(x, -1.0, 2.0): [0.0, 0.0, 0.5, 0.0],
        lambda x: F.leaky_relu(x, 0.25): [-0.75, -0.5, 0.5, 4.0],
    }
    x = torch.tensor([[-3.0, -2.0, 0.5, 4.0]], dtype=torch.float64)
    for f, shares in cases.items():
        fmodel, params = lrpfunc.trace(lambda p, x, f=f: f(x) * 1.0, {}, x)
        scale = fmodel.equations[-1].name
        given = composites.first_match({scale: first}, composites.by_kind({"activation": rules.clamp(0.0)}))
        got = lrpfunc.attribute(fmodel, params, x, given, lambda y: y)
        torch.testing.assert_close(got, torch.tensor([shares], dtype=x.dtype), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("low", "high"), [(-0.3, 0.3), (0.1, 0.7), (-0.7, 1.3), (0.2, 6.0), (1e-6, 40.1)])
def test_what_is_clamped_to_no_number_of_half_precision(dtype, low, high):
    bounds = torch.tensor([low, high], dtype=dtype)
    near = torch.cat([bounds, *(torch.nextafter(bounds, torch.full_like(bounds, end)) for end in (-100.0, 100.0))])
    x = torch.cat([near, torch.tensor([-50.0, 0.25, 50.0], dtype=dtype)])[None]
    fmodel, params = lrpfunc.trace(lambda p, x: F.hardtanh(x, low, high), {}, x.repeat(2, 1))
    found = lrpfunc.attribute(fmodel, params, x, {"hardtanh": rules.clamp()}, lambda y: torch.ones_like(y))
    assert torch.equal(found != 0, (x > bounds[0]) & (x < bounds[1]))


def test_zero_is_not_negative_where_denormal_numbers_are_flushed():
    """A flow at zero is a coefficient of it, whatever sign decides elsewhere."""
    x = torch.tensor([0.0, -0.0, 1.0, -1.0] * 4)
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0] * 4)
    try:
        assert torch.set_flush_denormal(True)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(rectify(torch.ones(16, dtype=dtype), x.to(dtype), keeps_zero=True), expected.to(dtype))
    finally:
        torch.set_flush_denormal(False)


def test_bends_of_each_channel():
    # max(x, low) and the slope 1/2 below: y = (2, 1.5), of which what is not 1/2 x is constant
    x, low, high = (torch.tensor([values]) for values in ([2.0, 1.0], [0.0, 2.0], [torch.inf, torch.inf]))
    function = lrpfunc.program.functions.threshold_relu
    expect(pulled(rules.clamp(0.0), [[2.0, 1.5]], x, function, low, high, 0.5), 2.0, 0.5)
    expect(pulled(rules.clamp(0.0), [[2.0, 2.0]], x, function, low, high, 0.0), 2.0, 0.0)


def test_a_clamp_hands_on_what_was_shared_whatever_the_value_is():
    model = nn.Sequential(nn.Hardtanh(0.0, 1.0), nn.Linear(2, 1))
    fmodel, params = lrpfunc.functionalize(model, X)
    entries = composites.first_match(composites.by_kind({"dense": rules.flat()}), {"0": rules.clamp()})
    expect(lrpfunc.attribute(fmodel, params, X, entries, lambda y: y * 0 + 1), 0.5, 0.5)


def test_a_clamp_needs_an_activation_with_bends():
    fmodel, params = lrpfunc.trace(lambda p, x: torch.tanh(x), {}, X)
    with pytest.raises(RuleError, match=r"'tanh' \(tanh\) must be a ReLU of some kind, or a clamp by numbers"):
        lrpfunc.attribute(fmodel, params, X, {"tanh": rules.clamp()}, target=0)


def test_sums_and_products_by_hand():
    def f(params, a, b):
        return a + b, a * b, a * torch.sigmoid(b)

    a, b = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    fmodel, params = lrpfunc.trace(f, {}, a, b)
    _, pullback = lrpfunc.vjp(fmodel, params, (a, b), rules.epsilon())

    def of(*seeds):
        return [r.item() for r in pullback(tuple(torch.tensor([[s]]) for s in seeds))]

    assert of(4.0, 0.0, 0.0) == pytest.approx([3.0, 1.0], rel=1e-5)  # by contribution
    assert of(0.0, 4.0, 0.0) == [2.0, 2.0]  # a product: halves
    assert of(0.0, 0.0, 4.0) == [4.0, 0.0]  # a gate: the signal takes all


def test_constants_by_hand():
    def f(params, x):
        return (x * 3 + 2) @ params

    x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.5]])
    fmodel, params = lrpfunc.trace(f, w, x)
    # 3 x + 2 = (5, 8), z = 5 + 4 = 9 = R. As a coefficient s = 1, c = w: R_x = x * 3 w, the shift keeps 2 (1 + 0.5).
    expect(lrpfunc.attribute(fmodel, params, x, rules.epsilon(0.0)), 3.0, 3.0)
    # flat hands on relevance whatever the value is, 4.5 for each: constants take nothing of it, as in the layer that
    # has them in its bias.
    expect(lrpfunc.attribute(fmodel, params, x, rules.flat(0.0)), 4.5, 4.5)
    # An activation hands on relevance of the value, sigmoid(8) = z = R: the shift keeps 2 / 8, a factor nothing.
    fmodel, params = lrpfunc.trace(lambda p, x: torch.sigmoid(x * 3 + 2)[:, 1:], {}, x)
    z = torch.sigmoid(torch.tensor(8.0))
    expect(lrpfunc.attribute(fmodel, params, x, rules.epsilon(0.0)), 0.0, float(z) * 6 / 8)


def layer_forms():
    """One linear layer as several operations write it."""
    return {
        "linear": lambda p, x: F.linear(x, p["w"], p["b"]),
        "addmm": lambda p, x: torch.addmm(p["b"], x, p["w"].T),
        "einsum": lambda p, x: torch.einsum("bi,oi->bo", x, p["w"]),
        "einsum from the right": lambda p, x: torch.einsum("oi,bi->bo", p["w"], x),
        "matmul": lambda p, x: x @ p["w"].T,
        "tensordot": lambda p, x: torch.tensordot(x, p["w"].T, 1),
    }


@pytest.mark.parametrize("form", [name for name in layer_forms() if name != "linear"])
@pytest.mark.parametrize(
    "rule",
    [
        rules.epsilon(0.1), rules.zplus(), rules.alpha_beta(), rules.gamma(), rules.zbox(-3, 3), rules.wsquare(),
        rules.flat(), rules.epsilon(0.1, zero_bias=True), rules.zplus(zero_bias=True),
    ],
    ids=lambda rule: rule.label,
)  # fmt: skip
def test_a_layer_is_a_layer_however_it_is_written(form, rule):
    torch.manual_seed(0)
    params, x = {"w": torch.randn(4, 6), "b": torch.randn(4) * (form == "addmm")}, torch.randn(3, 6)
    seed = torch.randn(3, 4)
    got, expected = (
        lrpfunc.vjp(*lrpfunc.trace(layer_forms()[name], params, x), x, rule)[1](seed) for name in (form, "linear")
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_mask_of_minus_infinity_and_a_scale_leave_lrp_0_the_gradient():
    """Attention without biases: LRP-0 is input times gradient, wherever the scale is written."""
    torch.manual_seed(0)
    mask = torch.full((4, 4), -torch.inf).triu(1)

    def scores_scaled(p, x):
        return ((x @ p["q"]) @ (x @ p["k"]).mT / 8 + mask).softmax(-1) @ (x @ p["v"])

    def query_scaled(p, x):
        return (((x @ p["q"]) / 8) @ (x @ p["k"]).mT + mask).softmax(-1) @ (x @ p["v"])

    params = {name: torch.randn(5, 5) for name in "qkv"}
    x, seed = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    expected = x * torch.func.vjp(lambda x: scores_scaled(params, x), x)[1](seed)[0]
    for function in (scores_scaled, query_scaled):
        fmodel, own = lrpfunc.trace(function, params, x)
        # The relevance y * s, whose coefficient at the output is s.
        fallback = rules.input_times_gradient(0)
        y, pullback = lrpfunc.vjp(fmodel, own, x, composites.first_match(
            composites.by_kind({"bilinear": fallback, "softmax": fallback}), rules.epsilon(0)))  # fmt: skip
        torch.testing.assert_close(pullback(y * seed), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_handwritten_gelu_passes_relevance_as_the_builtin_does(approximate):
    def handwritten(p, x):
        z = x @ p
        if approximate == "tanh":
            return 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z.pow(3))))
        return z * 0.5 * (1 + torch.erf(z / 2**0.5))

    torch.manual_seed(0)
    w, x = torch.randn(6, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    seed = torch.randn(3, 4, dtype=torch.float64)
    got, expected = (
        lrpfunc.vjp(*lrpfunc.trace(function, w, x), x, rules.epsilon(1e-9))[1](seed)
        for function in (handwritten, lambda p, x: F.gelu(x @ p, approximate=approximate))
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_sums_of_mixed_dtypes_give_each_input_its_own():
    def f(params, x):
        return (x @ params["w"]).double() + x @ params["w"]

    x = torch.randn(2, 3)
    fmodel, params = lrpfunc.trace(f, {"w": torch.randn(3, 2)}, x)
    assert lrpfunc.attribute(fmodel, params, x, rules.epsilon()).dtype == torch.float32


def test_the_fallback_does_not_scale_relevance():
    """A function without a rule that stretches its input a thousandfold: conserved, in either form."""
    fmodel, params = lrpfunc.trace(lambda p, x: torch.special.entr(x), {}, torch.rand(2, 3))
    x = torch.rand(2, 3) + 1.5
    y, pullback = lrpfunc.vjp(fmodel, params, x, rules.epsilon())
    elasticity = x * torch.func.vjp(torch.special.entr, x)[1](torch.ones_like(x))[0] / y
    torch.testing.assert_close(pullback(y), elasticity * y)


def test_coefficients_and_relevances_of_one_flow_agree():
    value, stabilize = torch.tensor([2.0, -4.0]), rules.stabilizer(1.0)
    relevance, coefficient = Flow(relevance=torch.tensor([6.0, 8.0])), Flow(coefficient=torch.tensor([3.0, -2.0]))
    for flow in (relevance, coefficient):
        assert flow.relevance(value).tolist() == [6.0, 8.0]
        assert flow.coefficient(value, stabilize).tolist() == pytest.approx([2.0, -1.6])


def test_nothing_is_divided_where_a_coefficient_meets_no_stabilizer():
    flow = Flow(coefficient=torch.tensor([3.0]))
    assert flow.coefficient(torch.tensor([0.0]), rules.stabilizer(0.0)).item() == 3.0
    assert Flow(relevance=torch.tensor([3.0])).coefficient(torch.tensor([0.0]), rules.stabilizer(0.0)).item() == 0.0


# -- stabilizers ------------------------------------------------------------------------------------------------------


def test_stabilizers_by_hand():
    z = torch.tensor([-2.0, -0.0, 0.0, 0.5])
    assert rules.stabilizer(1.0)(z).tolist() == [-3.0, 1.0, 1.0, 1.5]
    assert rules.stabilizer(1.0, clip=True)(z).tolist() == [-2.0, 1.0, 1.0, 1.0]
    root = (4.25 / 4) ** 0.5
    scaled = rules.stabilizer(1.0, norm_scale=True, dim=0)(z)
    torch.testing.assert_close(scaled, torch.tensor([-2 - root, root, root, 0.5 + root]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_stabilizer_does_not_vanish_in_half_precision(dtype):
    assert (1 / rules.stabilizer(1e-9)(torch.zeros(1, dtype=dtype))).isfinite().all()


def test_a_stabilizer_may_be_any_function():
    rule = rules.epsilon(lambda z: z.abs() + 1.0)
    expect(pulled(rule, [[4.0, 2.0]]), 3.0, 1.0)


# -- a user's own rule ------------------------------------------------------------------------------------------------


def test_custom_vjp_knows_keyword_arguments_and_any_function():
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    y = custom_vjp(rules.gamma(), F.conv2d)(x, w, stride=2, padding=1)
    assert torch.equal(y, F.conv2d(x, w, stride=2, padding=1))

    def squash(x, scale):
        return torch.tanh(x) * scale

    scale = torch.tensor(2.0)
    _, pullback = torch.func.vjp(lambda x: custom_vjp(rules.gradient(), squash)(x, scale), x)
    _, expected = torch.func.vjp(lambda x: squash(x, scale), x)
    seed = torch.randn_like(x)
    torch.testing.assert_close(pullback(seed), expected(seed))


def test_custom_vjp_takes_functions_without_a_name():
    x = torch.randn(2, 3)
    for function in (nn.ReLU(), functools.partial(F.leaky_relu, negative_slope=0.2)):
        value, pullback = torch.func.vjp(custom_vjp(rules.pass_through(), function), x)
        assert torch.equal(value, function(x))
        assert torch.equal(pullback(x)[0], x)


def test_a_scaled_stabilizer_of_zeros_stays_finite():
    assert (1 / rules.stabilizer(1e-6, norm_scale=True)(torch.zeros(2, 3))).isfinite().all()


LABELS = {
    "epsilon(1e-06)": lambda: rules.epsilon(),
    "epsilon(0.001, zero_bias=True)": lambda: rules.epsilon(1e-3, zero_bias=True),
    "epsilon(0.1234567)": lambda: rules.epsilon(0.1234567),
    "epsilon(stabilizer(0.01, clip=True))": lambda: rules.epsilon(rules.stabilizer(0.01, clip=True)),
    "norm()": lambda: rules.norm(),
    "norm(stabilizer=0.01)": lambda: rules.norm(1e-2),
    "norm(stabilizer=stabilizer(0.01, norm_scale=True, dim=1))": lambda: rules.norm(
        rules.stabilizer(1e-2, norm_scale=True, dim=1)
    ),
    "zplus()": lambda: rules.zplus(1e-6),
    "zplus(stabilizer=0.01, zero_bias=True)": lambda: rules.zplus(0.01, zero_bias=True),
    "alpha_beta(2, 1)": lambda: rules.alpha_beta(),
    "alpha_beta(1.5, 0.5, stabilizer=0)": lambda: rules.alpha_beta(1.5, 0.5, 0),
    "gamma(0.25)": lambda: rules.gamma(),
    "gamma(0.1, stabilizer=stabilizer(0.001, clip=True, norm_scale=True, dim=(1, 2)), zero_bias=True)": lambda: (
        rules.gamma(0.1, rules.stabilizer(1e-3, True, True, [1, 2]), True)
    ),
    "zbox(-1, 1)": lambda: rules.zbox(-1.0, 1.0),
    "zbox(-2.1, 2.6, stabilizer=0.01)": lambda: rules.zbox(-2.1, 2.6, 0.01),
    "wsquare(zero_bias=True)": lambda: rules.wsquare(zero_bias=True),
    "flat()": lambda: rules.flat(),
    "flat(stabilizer=1)": lambda: rules.flat(1),
    "recurrent(epsilon(1e-06))": lambda: rules.recurrent(),
    "recurrent(gamma(0.25), 'both', stabilizer=0)": lambda: rules.recurrent(rules.gamma(), "both", 0),
    "pass_through()": lambda: rules.pass_through(),
    "gradient()": lambda: rules.gradient(),
    "input_times_gradient()": lambda: rules.input_times_gradient(),
    "input_times_gradient(stabilizer=0.01)": lambda: rules.input_times_gradient(0.01),
    "affine()": lambda: rules.affine(),
    "clamp()": lambda: rules.clamp(),
    "clamp(stabilizer=0.01)": lambda: rules.clamp(0.01),
    "relu_deconvnet()": lambda: rules.relu_deconvnet(),
    "relu_guided_backprop()": lambda: rules.relu_guided_backprop(),
    "relu_beta_smooth(10)": lambda: rules.relu_beta_smooth(),
    "halve()": lambda: rules.halve(),
    "halve(stabilizer=0)": lambda: rules.halve(0.0),
    "gate()": lambda: rules.gate(),
    "gate(1, stabilizer=0.01)": lambda: rules.gate(1, 0.01),
    "attention()": lambda: rules.attention(),
    "attention('value')": lambda: rules.attention("value"),
    "attention('value', stabilizer=0)": lambda: rules.attention("value", 0),
    "softmax()": lambda: rules.softmax(),
    "transform()": lambda: rules.transform(),
    "softmax(stabilizer=stabilizer(0.01, clip=True))": lambda: rules.softmax(rules.stabilizer(1e-2, clip=True)),
    "normalization()": lambda: rules.normalization(),
    "normalization(stabilizer=0.01)": lambda: rules.normalization(1e-2),
    "embedding()": lambda: rules.embedding(),
}


@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_the_call_that_makes_the_rule(label):
    assert LABELS[label]().label == label
    assert eval(label, dict(vars(rules))).label == label


def test_every_constructor_has_a_label():
    constructors = {name for name in rules.__all__ if name not in ("Rule", "Stabilizer", "stabilizer")}
    assert {label.partition("(")[0] for label in LABELS} == constructors


def test_tensors_and_functions_are_shown_by_name():
    def mine(z):
        return z + 1

    assert rules.zbox(torch.zeros(3, 1, 1), 1.0).label == "zbox(tensor, 1)"
    assert rules.epsilon(mine).label == "epsilon(mine)"


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.alpha_beta(2, 2), r"alpha - beta = 1 and both >= 0, but got alpha = 2, beta = 2"),
        (lambda: rules.alpha_beta(0.5, -0.5), r"beta must be a number >= 0, but is -0.5"),
        (lambda: rules.gamma(-0.1), r"gamma must be a number >= 0, but is -0.1"),
        (lambda: rules.epsilon(-1e-6), r"a stabilizer that is not a function must be a number >= 0, but is -1e-06"),
        (lambda: rules.epsilon("small"), r"a stabilizer that is not a function must be a number >= 0, but is 'small'"),
        (lambda: rules.epsilon(float("nan")), r"must be a number >= 0, but is nan"),
        (lambda: rules.zbox("a", 1), r"'low' of zbox must be a number or a tensor, but is 'a'"),
        (lambda: rules.relu_beta_smooth("a"), r"beta must be a number >= 0, but is 'a'"),
        (lambda: rules.gate(2), r'a gate passes relevance to="signal", or to factor 0 or 1, but not to 2'),
        (lambda: rules.gate(True), r'a gate passes relevance to="signal", or to factor 0 or 1, but not to True'),
        (lambda: rules.attention("query"), r'attention passes relevance to="all" or to="value", but not to \'query\''),
        (
            lambda: rules.recurrent(to="gate"),
            r'a recurrent layer passes relevance to="signal" or to="both", but not to \'gate\'',
        ),
        (lambda: Flow(), r"either a relevance or a coefficient: give exactly one"),
        (lambda: custom_vjp("epsilon", F.linear), r"custom_vjp needs a rule such as rules.epsilon\(\), but got str"),
        (lambda: custom_vjp(rules.epsilon(), F.linear)(X, W, wieght=W), r"linear takes .* but was given \['wieght'\]"),
    ],
)
def test_bad_hyperparameters_are_refused(make, message):
    with pytest.raises(RuleError, match=message):
        make()


def test_alpha_minus_beta_may_be_one_up_to_rounding():
    assert 1.2 - 0.2 == 1.0 or rules.alpha_beta(1.2, 0.2).label
    assert rules.alpha_beta(0.1 + 0.2 + 1, 0.3).label == "alpha_beta(1.3, 0.3)"


@pytest.mark.parametrize(
    ("rule", "module", "message"),
    [
        (rules.zplus(), nn.ReLU(), r"zplus\(\) at layer 'relu': 'relu' \(relu\) has no weight"),
        (rules.gamma(), nn.Softmax(1), r"has no weight, but the rule needs a weighted equation"),
        (rules.wsquare(), nn.ReLU(), r"has no weight"),
        (rules.zbox(0, 1), nn.ReLU(), r"has no weight"),
        (rules.epsilon(), nn.Sigmoid(), r"is not linear in its inputs, but the rule needs a linear equation"),
        (rules.pass_through(), nn.Linear(4, 3), r"must have one input, of its output's shape, for relevance to pass"),
        (rules.relu_deconvnet(), nn.Linear(4, 3), r"must have one input, of its output's shape"),
        (rules.halve(), nn.ReLU(), r"is not a product of two values that depend on the input"),
    ],
)
def test_a_rule_on_an_equation_that_it_cannot_handle_says_so(rule, module, message):
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.functionalize(module, x)
    with pytest.raises(RuleError, match=message):
        lrpfunc.attribute(fmodel, params, x, lrpfunc.composites.by_kind({"*": rule}))


def test_affine_refuses_two_inputs():
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.trace(lambda params, x: x * x.tanh(), {}, x)
    with pytest.raises(RuleError, match=r"must have one input that is scaled or shifted by constants"):
        lrpfunc.attribute(fmodel, params, x, composites.by_kind({"product": rules.affine()}))


@pytest.mark.parametrize(
    "bound",
    [torch.zeros(3), torch.zeros(6, 6), torch.zeros(2, 1, 1), torch.zeros(1, 1, 1, 1, 1), torch.zeros(5, 3, 1, 1)],
)
def test_an_ambiguous_box_is_refused(bound):
    x = torch.randn(2, 3, 6, 6)
    fmodel, params = lrpfunc.functionalize(nn.Conv2d(3, 4, 3), x)
    with pytest.raises(RuleError, match=r"'low' of zbox must be a number or have the dimensions of one sample"):
        lrpfunc.attribute(fmodel, params, x, rules.zbox(bound, 1.0), target=(0, 0, 0))


@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 6, 6), (1, 3, 1, 1), (2, 3, 6, 6)])
def test_a_box_broadcasts_to_one_sample_or_the_batch(shape):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(nn.Conv2d(3, 4, 3).double(), x)
    got = lrpfunc.attribute(fmodel, params, x, rules.zbox(torch.full(shape, -3.0), 3.0), target=(0, 0, 0))
    expected = lrpfunc.attribute(fmodel, params, x, rules.zbox(-3.0, 3.0), target=(0, 0, 0))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def broken(backward):
    return rules.Rule("broken", lambda operation, x: (operation(x), x), backward)


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (
            lambda o, x, flow: Flow(relevance=x[:, :1]),
            r"broken at layer 'linear' must .* of its input, \(2, 4\), but returned",
        ),
        (lambda o, x, flow: [flow, flow], r"must return 1 flow\(s\), one per input, but returned 2"),
        (lambda o, x, flow: x, r"must return Flow\(relevance=...\) or .*, but returned Tensor"),
    ],
)
def test_a_rule_that_returns_something_else_is_named(backward, message):
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.functionalize(nn.Linear(4, 3), x)
    with pytest.raises(RuleError, match=message):
        lrpfunc.attribute(fmodel, params, x, broken(backward))


@pytest.mark.parametrize("result", [None, torch.zeros(2, 3), (1, 2, 3)])
def test_a_forward_that_returns_no_pair_is_named(result):
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.functionalize(nn.Linear(4, 3), x)
    bad = rules.Rule("bad", lambda operation, x: result, rules.epsilon().backward)
    with pytest.raises(
        RuleError, match=r"bad at layer 'linear': forward must return \(output, residuals\), but returned"
    ):
        lrpfunc.attribute(fmodel, params, x, bad)


def test_custom_vjp_checks_what_a_rule_returns():
    bad = broken(lambda o, x, flow: Flow(relevance=x[:, :1]))
    _, pullback = torch.func.vjp(lambda x: custom_vjp(bad, F.linear)(x, W), X)
    with pytest.raises(RuleError, match=r"broken of linear must return the shape of its input, \(1, 2\)"):
        pullback(torch.ones(1, 2))


def test_a_weighted_rule_on_a_sum_says_so():
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.trace(lambda p, x: x + x.tanh(), {}, x)
    with pytest.raises(RuleError, match=r"zplus\(\) at layer 'add': 'add' \(add\) has no weight"):
        lrpfunc.attribute(fmodel, params, x, {"add": rules.zplus()})


def test_a_forward_that_returns_another_shape_is_named():
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.functionalize(nn.Linear(4, 3), x)
    bad = rules.Rule("bad", lambda operation, x: (operation(x)[:, :1], None), rules.epsilon().backward)
    with pytest.raises(RuleError, match=r"bad at layer 'linear': forward must return .* of shape \(batch, 3\), but"):
        lrpfunc.attribute(fmodel, params, x, bad)
