"""Law 9: fast paths equal the generic path, elementwise.

One switch turns off all that makes a path fast: what is known of signs and of ReLUs, writing over temporaries, the
layout of convolutions, closed forms, epsilon in biases. The pieces that plans decide are turned off one by one, too.
"""

import contextlib
import copy
import re
from functools import partial
from unittest import mock

import hypothesis
import optree
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

import lrpfunc
from lrpfunc import Flow, composites, rules
from lrpfunc.attribution import plans
from lrpfunc.errors import RuleError
from lrpfunc.program import NAMESPACE, arithmetic, fast_paths
from lrpfunc.rules.rule import COEFFICIENTS, RECTIFIED, SAME
from tests.helpers import randomize, relative_error

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}

# What a plan knows, by the function that decides it and what it says of a program of which nothing is known.
PIECES = {"nonnegative": frozenset(), "_forms": (set(), set(), set()), "_lays_out": False}


def generic_path():
    return mock.patch.object(fast_paths, "taken", False)


def plain(z, epsilon=1e-6):
    """The usual stabilizer as a function of which nothing is known, so that no denominator has a closed form."""
    return torch.where(z < 0, z - epsilon, z + epsilon)


COMPOSITES = {
    "epsilon": lambda s: composites.epsilon(s),
    "epsilon_plus": lambda s: composites.epsilon_plus(s, s),
    "epsilon_plus_flat": lambda s: composites.epsilon_plus_flat(s, s),
    "epsilon_alpha2_beta1": lambda s: composites.epsilon_alpha2_beta1(s, s),
    "epsilon_gamma_box": lambda s: composites.epsilon_gamma_box(-3.0, 3.0, s, stabilizer=s),
    "excitation_backprop": lambda s: composites.excitation_backprop(s),
    "zero_bias": lambda s: composites.epsilon_alpha2_beta1(s, s, zero_bias=True),
    "gamma everywhere": lambda s: rules.gamma(0.3, s),
    "wsquare below": lambda s: composites.first_match(
        composites.first_layer(rules.wsquare(s)), composites.epsilon_plus(s, s)
    ),
    # relevance, not coefficients, arrives at ReLUs here
    "flat everywhere": lambda s: composites.by_kind({"convolution": rules.flat(s), "dense": rules.epsilon(s)}),
    "smooth ReLUs": lambda s: composites.epsilon_plus(
        s, s, entries=composites.by_kind({"activation": rules.relu_beta_smooth()})
    ),
    "gamma, smooth ReLUs": lambda s: composites.epsilon_gamma_box(
        -3.0, 3.0, s, stabilizer=s, entries=composites.by_kind({"activation": rules.relu_beta_smooth()})
    ),
}


def mixed(rule, s):
    """A rule below layers and sums that send relevance."""
    flat = dict.fromkeys(("grouped", "up", "head"), rules.flat(s))
    return composites.first_match(flat, composites.by_kind({"sum": as_relevance(s)}), rule(s))


def as_relevance(s):
    """The rule of sums, as a relevance."""
    norm = rules.norm(s)

    def forward(operation, *inputs):
        output, residuals = norm.forward(operation, *inputs)
        return output, (inputs, residuals)

    def backward(operation, residuals, flow):
        inputs, residuals = residuals
        moved = norm.backward(operation, residuals, flow)
        moved = moved if isinstance(moved, tuple) else (moved,)
        return [Flow(relevance=each.relevance(x)) for each, x in zip(moved, inputs, strict=True)]

    return rules.Rule("norm as relevance", forward, backward)


for name, rule in {
    "epsilon": rules.epsilon,
    "zplus": rules.zplus,
    "alpha_beta": lambda s: rules.alpha_beta(2, 1, s),
    "gamma": lambda s: rules.gamma(0.3, s),
}.items():
    COMPOSITES[f"{name} below relevance"] = partial(mixed, rule)


class Network(nn.Module):
    """Layers after ReLUs and after none, sums, both poolings, groups, strides, views and a second reader."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.narrow = nn.Conv2d(8, 4, 1, bias=False)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.linear = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2)
        self.dense = nn.Linear(6 * 4 * 4, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x).relu(), 2)
        y = self.grouped(self.narrow(x).relu())
        x = (self.linear(y) + x).relu() + y.sigmoid()
        x = F.adaptive_avg_pool2d(self.up(x).relu(), 4)
        return self.head(self.dense(x.flatten(1)).relu())


def network(dtype):
    torch.manual_seed(0)
    model = randomize(Network()).to(dtype)
    x = torch.randn(2, 3, 12, 12, dtype=dtype)
    return *lrpfunc.functionalize(model, x), x


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", COMPOSITES)
def test_each_piece_changes_nothing_but_the_time(name, dtype):
    fmodel, params, x = network(dtype)
    rules = COMPOSITES[name](1e-6)
    expected = COMPOSITES[name](plain)
    with generic_path():
        generic, inner = lrpfunc.attribute(fmodel, params, x, expected, at=["stem", "narrow", "grouped", "up", "dense"])
    pieces = [mock.patch.object(plans, name, return_value=nothing) for name, nothing in PIECES.items()]
    for off in (contextlib.nullcontext(), generic_path(), *pieces):
        with off:
            again = copy.deepcopy(fmodel)  # which knows nothing of the other piece
            fast, fast_inner = lrpfunc.attribute(again, params, x, rules, at=list(inner))
        assert relative_error(fast, generic) <= TOLERANCE[dtype], off
        for layer in inner:
            assert relative_error(fast_inner[layer], inner[layer]) <= TOLERANCE[dtype], (off, layer)


def test_what_both_denominators_tell_is_not_kept_once_more():
    """relu(z) = relu(d+ + d-); but where they say nothing of z, or may overflow where it does not."""

    def keeps(rule, dtype=torch.float64) -> bool:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)).to(dtype)
        fmodel, params = lrpfunc.functionalize(model, x := torch.rand(4, 3, dtype=dtype))
        trail = lrpfunc.record(fmodel, params, x, {"0": rule, "2": rules.epsilon()})
        expected = lrpfunc.record(fmodel, params, x, {"0": rule._replace(recalls=False), "2": rules.epsilon()})
        torch.testing.assert_close(trail.pull(1)[0], expected.pull(1)[0])
        relu = model[:2](x)
        tensors = optree.tree_leaves(trail._passed.content(), namespace=NAMESPACE)
        return any(isinstance(t, torch.Tensor) and t.shape == relu.shape and torch.equal(t, relu) for t in tensors)

    assert not keeps(rules.alpha_beta(2, 1))
    assert keeps(rules.alpha_beta(2, 1, zero_bias=True))
    assert keeps(rules.alpha_beta(2, 1, stabilizer=plain))
    assert keeps(rules.zplus())
    assert keeps(rules.alpha_beta(2, 1), torch.bfloat16)


def test_a_rule_of_ones_own_that_recalls_nothing_is_told_so():
    rule, arrived = rules.alpha_beta(2, 1), []

    def backward(operation, residuals, flow):
        arrived.append(flow.tensor)
        return rule.backward(operation, residuals, flow)

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(2, 3)
    fmodel, params = lrpfunc.functionalize(model, x)
    mine = rule._replace(label="mine()", backward=backward)
    with pytest.raises(RuleError, match=r"mine\(\) at layer '0': the ReLU behind it kept nothing, .* recalls=False"):
        lrpfunc.attribute(fmodel, params, x, {"0": mine, "2": rules.epsilon()}, 0)
    found = lrpfunc.attribute(fmodel, params, x, {"0": mine._replace(recalls=False), "2": rules.epsilon()}, 0)
    torch.testing.assert_close(found, lrpfunc.attribute(fmodel, params, x, {"0": rule, "2": rules.epsilon()}, 0))
    assert len(arrived) == 1


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_pieces_have_derivatives_of_their_own(name):
    """Values are written over only where nobody asks for derivatives; the two paths agree in these as well."""
    fmodel, params, x = network(torch.float64)

    def total(rules, params, x):
        return (lrpfunc.attribute(fmodel, params, x, rules, target=1) * x.cos()).sum()

    fast = torch.func.grad(lambda p, x: total(COMPOSITES[name](1e-6), p, x), (0, 1))(params, x)
    with generic_path():
        generic = torch.func.grad(lambda p, x: total(COMPOSITES[name](plain), p, x), (0, 1))(params, x)
    assert relative_error(fast[1], generic[1]) <= 1e-9
    size = max(leaf.abs().max() for leaf in generic[0].values())
    for leaf in params:
        assert (fast[0][leaf] - generic[0][leaf]).abs().max() <= 1e-9 * size, leaf


LAYERS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["conv1d", "conv2d", "conv3d", "transposed2d", "linear", "matmul", "addmm"]),
        "groups": st.sampled_from([1, 2]),
        "stride": st.sampled_from([1, 2]),
        "padding": st.sampled_from([0, 1]),
        "dilation": st.sampled_from([1, 2]),
        "bias": st.booleans(),
        "rectified": st.booleans(),
        "nonnegative": st.booleans(),
        "dead": st.booleans(),
        "dtype": st.sampled_from(list(TOLERANCE)),
        "seed": st.integers(0, 10**6),
    }
)

RULES = {
    "epsilon": rules.epsilon,
    "epsilon_zero_bias": lambda s: rules.epsilon(s, zero_bias=True),
    "zplus": rules.zplus,
    "alpha_beta": lambda s: rules.alpha_beta(2, 1, s),
    "alpha_beta_3": lambda s: rules.alpha_beta(3, 2, s, zero_bias=True),
    "gamma": lambda s: rules.gamma(0.25, s),
    "gamma_5": lambda s: rules.gamma(5.0, s),
    "zbox": lambda s: rules.zbox(-2.0, torch.tensor(2.0, dtype=torch.float64), s),
    "wsquare": rules.wsquare,
    "flat": rules.flat,
}


# What stands above the layer and sends it a relevance or a coefficient.
AS = {
    "relevance": rules.gradient(),
    "coefficient": rules.Rule(
        "as_coefficient",
        lambda operation, x: (operation(x), x),
        lambda operation, x, flow: Flow(coefficient=flow.tensor / plain(x)),
    ),
}


def layer(case) -> tuple[nn.Module, torch.Tensor]:
    """A layer as described, behind a ReLU or not, and an input; a dead layer's outputs are all below zero."""
    groups, bias = case["groups"], case["bias"]
    settings = {"stride": case["stride"], "padding": case["padding"], "groups": groups, "bias": bias}
    dimensions = int(case["kind"][-2]) if case["kind"][-1] == "d" else 0
    if dimensions and case["kind"].startswith("conv"):
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        module: nn.Module = conv(4, 6, 2, dilation=case["dilation"], **settings)
    elif dimensions:
        module = nn.ConvTranspose2d(4, 6, 3, dilation=case["dilation"], **settings)
    else:
        module = nn.Linear(4, 6, bias=bias)
    module = randomize(module, case["seed"])
    if case["dead"]:
        with torch.no_grad():
            module.weight.copy_(-module.weight.abs())
    size = (2, 4, *[5] * dimensions)
    x = torch.randn(size, generator=torch.Generator().manual_seed(case["seed"]), dtype=torch.float64)
    return Layer(module, case).to(case["dtype"]), x.to(case["dtype"])


class Layer(nn.Module):
    def __init__(self, module, case):
        super().__init__()
        self.module, self.case = module, case

    def forward(self, x):
        x = x.relu() if self.case["nonnegative"] else x
        weight, bias = self.module.weight, self.module.bias
        if self.case["kind"] == "matmul":
            z = x @ weight.t()
        elif self.case["kind"] == "addmm":
            z = torch.addmm(weight.new_zeros(6) if bias is None else bias, x, weight.t())
        else:
            z = self.module(x)
        return (z.relu() if self.case["rectified"] else z).clone()


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(case=LAYERS, name=st.sampled_from(list(RULES)), form=st.sampled_from(["relevance", "coefficient"]))
def test_single_layers(case, name, form):
    model, x = layer(case)
    fmodel, params = lrpfunc.functionalize(model, x)
    y = fmodel(params, x)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype) * y

    # Where a denominator is of the size of epsilon, its rounding error counts in units of epsilon.
    epsilon = 1e-6 if case["dtype"] == torch.float64 else 1e-2

    def relevance(stabilizer):
        kinds = {"linear": RULES[name](stabilizer), "movement": AS[form]}
        return lrpfunc.vjp(fmodel, params, x, composites.by_kind(kinds))[1](seed)

    fast = relevance(epsilon)
    assert fast.isfinite().all()
    with generic_path():
        generic = relevance(lambda z: plain(z, epsilon))
    assert relative_error(fast, generic) <= (1e-8 if case["dtype"] == torch.float64 else 2e-3)


# -- corners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("rectified", [False, True])
def test_outputs_that_are_exactly_zero(name, rectified):
    """Blank patches under small integer weights: what random numbers never hit."""
    model = nn.Sequential(nn.Conv2d(2, 4, 2, bias=False), nn.ReLU() if rectified else nn.Identity()).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-1, 2, (4, 2, 2, 2), generator=generator))
    x = torch.randint(-1, 2, (3, 2, 5, 5), generator=generator).double()
    x[0] = 1.0
    fmodel, params = lrpfunc.functionalize(model, x)
    y = fmodel(params, x)
    assert (y == 0).any()
    for seed in (torch.ones_like(y), y):
        fast = lrpfunc.vjp(fmodel, params, x, RULES[name](1e-6))[1](seed)
        with generic_path():
            generic = lrpfunc.vjp(fmodel, params, x, RULES[name](plain))[1](seed)
        assert relative_error(fast, generic) <= 1e-11


def test_gamma_gives_nothing_to_outputs_that_are_zero():
    f = lrpfunc.custom_vjp(rules.gamma(0.25), F.linear)
    _, pullback = torch.func.vjp(lambda x: f(x, torch.tensor([[1.0, -1.0]])), torch.ones(1, 2))
    assert not pullback(torch.ones(1, 1))[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_that_overflow_in_half_precision_do_not_spoil_the_output(dtype):
    x = torch.full((1, 4), 200.0, dtype=dtype)
    weight = torch.tensor([[200.0, 200.0, -200.0, -199.0]], dtype=dtype)
    fmodel, params = lrpfunc.trace(lambda params, x: F.linear(x, params["weight"]), {"weight": weight}, x)
    y, _ = lrpfunc.vjp(fmodel, params, x, rules.alpha_beta(2, 1))
    assert torch.equal(y, fmodel(params, x))


def test_what_a_stabilizer_of_the_users_own_returns_stays_as_it_is():
    fmodel, params, x = network(torch.float32)
    given: list = []

    def constant(z):
        given.append((torch.full_like(z, 2.0), z.clone(), z)[0])
        return given[-1]

    for name in COMPOSITES:
        lrpfunc.attribute(fmodel, params, x, COMPOSITES[name](constant))
    assert given
    assert all((tensor == 2.0).all() for tensor in given)


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_stabilizer_may_return_an_expanded_tensor_and_view_what_it_gets(name):
    fmodel, params, x = network(torch.float32)

    def expanded(z):
        return z.view(len(z), -1).abs().mean().add(1.0).expand(z.shape)

    assert lrpfunc.attribute(fmodel, params, x, COMPOSITES[name](expanded)).isfinite().all()


def test_a_rule_of_the_users_own_may_view_what_arrives():
    fmodel, params, x = network(torch.float32)

    def relevance(move):
        rule = rules.Rule(
            "mine", lambda operation, x: (operation(x), None), lambda operation, _, flow: move(flow.tensor)
        )
        return lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(entries={"relu": rule}))

    viewed = relevance(lambda tensor: Flow(relevance=tensor.view(len(tensor), -1).view(tensor.shape)))
    assert torch.equal(viewed, relevance(lambda tensor: Flow(relevance=tensor)))


def test_nothing_is_written_into_memory_that_is_shared():
    spare = torch.ones(3, 1).expand(3, 4)
    assert not arithmetic.may_overwrite(spare, torch.ones(3, 4))
    fmodel, params = lrpfunc.trace(
        lambda p, x: torch.einsum("bi,j->bj", x, p["w"]), {"w": torch.randn(3)}, torch.randn(2, 4)
    )
    assert lrpfunc.attribute(fmodel, params, torch.randn(2, 4), rules.gamma(), target=0).shape == (2, 4)


@pytest.mark.parametrize("stabilizer", [1e-6, 0.0, plain])
@pytest.mark.parametrize("name", RULES)
def test_what_is_fixed_is_never_written_over(name, stabilizer):
    """A batch of one has the shape of what is made once for all samples."""
    x = torch.rand(1, 4, 5, 5, dtype=torch.float64)
    model = randomize(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 1))).double()
    fmodel, params = lrpfunc.functionalize(model, x.expand(2, -1, -1, -1))
    explain = lrpfunc.prepare(fmodel, params, RULES[name](stabilizer))
    first = explain(x, (0, 0, 0))
    torch.testing.assert_close(explain(x, (0, 0, 0)), first, rtol=0, atol=0)
    torch.testing.assert_close(lrpfunc.attribute(fmodel, params, x, RULES[name](stabilizer), (0, 0, 0)), first)


@pytest.mark.parametrize("rule", [rules.flat(), rules.epsilon(), rules.wsquare()])
def test_relevance_may_be_written_to(rule):
    fmodel, params = lrpfunc.functionalize(nn.Linear(4, 5), torch.randn(2, 4))
    relevance = lrpfunc.attribute(fmodel, params, torch.randn(2, 4), rule, target=1)
    expected = relevance / 2
    relevance /= 2
    assert torch.equal(relevance, expected)


@pytest.mark.parametrize("settings", [{"ceil_mode": True}, {"stride": 1, "padding": 1}, {"dilation": 2}])
def test_maximum_pooling_with_keywords(settings):
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    y, pullback = torch.func.vjp(lambda x: F.max_pool2d(x, 2, **settings), x)
    f = lrpfunc.custom_vjp(rules.gradient(), torch.max_pool2d)
    _, pullback_of_rule = torch.func.vjp(lambda x: f(x, 2, **settings), x)
    assert torch.equal(pullback_of_rule(y)[0], pullback(y)[0])
    fmodel, params = lrpfunc.trace(lambda params, x: F.max_pool2d(x, 2, **settings), {}, x)
    assert torch.equal(lrpfunc.vjp(fmodel, params, x, composites.epsilon())[1](y), pullback(y)[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", [{}, {"ceil_mode": True}, {"stride": 1, "padding": 1}, {"dilation": 2}])
def test_maximum_pooling_under_vmap(settings, layout):
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64).contiguous(memory_format=layout)
    fmodel, params = lrpfunc.trace(lambda params, x: F.max_pool2d(x, 2, **settings), {}, x)
    trail = lrpfunc.record(fmodel, params, x, rules.gradient())
    y, pullback = torch.func.vjp(lambda x: F.max_pool2d(x, 2, **settings), x)
    shares = torch.randn(3, *y.shape, dtype=torch.float64)
    found = trail.pull_each(shares)[0]
    torch.testing.assert_close(found, x * torch.stack([pullback(one / y)[0] for one in shares]))


def test_many_targets_have_weights_laid_out_once():
    """Of convolutions whose images have channels last; each target has what it has by itself."""
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten()]
    model = randomize(nn.Sequential(*layers, nn.Linear(8 * 9 * 9, 4)))
    x = torch.randn(2, 3, 24, 24)
    fmodel, params = lrpfunc.functionalize(model, x)
    for explain in (lrpfunc.prepare(fmodel, params, composites.epsilon_plus()), None):
        each = (
            explain.each
            if explain
            else partial(lrpfunc.attribute_each, fmodel, params, rules=composites.epsilon_plus())
        )
        found = each(x=x, targets=range(4), chunk_size=2)
        for label in range(4):
            expected = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), label)
            torch.testing.assert_close(found[label], expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_a_layer_with_a_negative_factor_is_refused(factor):
    x, weight, bias = torch.randn(2, 4), torch.randn(4, 3), torch.randn(3)
    fmodel, params = lrpfunc.trace(
        lambda p, x: torch.addmm(p["b"], x, p["w"], **{factor: -1}), {"w": weight, "b": bias}, x
    )
    with pytest.raises(RuleError, match="multiplies its weight or bias by a negative number"):
        lrpfunc.attribute(fmodel, params, x, rules.zplus(), target=0)
    lrpfunc.attribute(fmodel, params, x, rules.epsilon(), target=0)


@pytest.mark.parametrize("name", ["zplus", "gamma", "zbox", "wsquare"])
def test_a_rule_of_layers_at_a_product_of_two_inputs(name):
    fmodel, params = lrpfunc.trace(lambda p, x: x @ x.mT, {}, torch.randn(2, 3, 3))
    everywhere = composites.by_kind({"bilinear": RULES[name](1e-6)})
    with pytest.raises(RuleError, match="has no weight, but the rule needs a weighted equation"):
        lrpfunc.prepare(fmodel, params, everywhere)(torch.randn(2, 3, 3), target=(0, 0))


@pytest.mark.parametrize("form", ["relevance", "coefficient", "rectified"])
@pytest.mark.parametrize("gives", [COEFFICIENTS, SAME, RECTIFIED])
def test_a_rule_that_breaks_its_word_is_named(gives, form):
    """Layers below keep only what they need for the form that is declared."""
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.functionalize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), x)

    def backward(operation, x, flow):
        moved = operation.adjoint(flow.tensor) if operation.is_weighted else flow.tensor
        forms = {"relevance": {"relevance": moved}, "coefficient": {"coefficient": moved}}
        return Flow(**forms.get(form, {"coefficient": moved, "rectified": x.relu()}))

    def run(declared):
        mine = rules.Rule("mine()", lambda operation, x: (operation(x), x), backward, gives=declared)
        return lrpfunc.attribute(fmodel, params, x, {"2" if gives == COEFFICIENTS else "1": mine}, target=0)

    needed = {COEFFICIENTS: "a coefficient", SAME: "a coefficient", RECTIFIED: "a rectified coefficient"}[gives]
    returned = "a rectified coefficient" if form == "rectified" else f"a {form}"
    if returned == needed or (needed == "a coefficient" and form == "rectified"):
        torch.testing.assert_close(run(gives), run(""))
        return
    layer, arrived = ("2", "a relevance") if gives == COEFFICIENTS else ("1", "a coefficient")
    message = (
        f"mine() at layer '{layer}' declares gives='{gives}': where {arrived} arrives it must return {needed}, but "
        f"returned {returned}. Return that, or leave `gives` out."
    )
    with pytest.raises(RuleError, match=re.escape(message)):
        run(gives)


@pytest.mark.parametrize("gives", [SAME, RECTIFIED])
def test_a_rule_that_turns_a_relevance_into_what_it_does_not_declare_is_named(gives):
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.functionalize(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x)
    mine = rules.Rule(
        "mine()",
        lambda operation, x: (operation(x), None),
        lambda operation, _, flow: Flow(coefficient=flow.tensor),
        gives=gives,
    )
    with pytest.raises(RuleError, match="where a relevance arrives it must return a relevance, but returned a coeff"):
        lrpfunc.attribute(fmodel, params, x, {"1": mine}, target=0)


def test_a_flow_for_an_input_that_gets_none_is_named():
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.trace(lambda p, x: x * x.sigmoid(), {}, x)
    gate = rules.gate()

    def backward(operation, residuals, flow):
        return [each or flow for each in gate.backward(operation, residuals, flow)]

    message = (
        "gate() at layer 'mul' declares by `stops` that its input 1 gets no flow, but returned one for it. Return None "
        "there, or do not name it."
    )
    with pytest.raises(RuleError, match=re.escape(message)):
        lrpfunc.attribute(fmodel, params, x, {"mul": gate._replace(backward=backward)}, target=0)
