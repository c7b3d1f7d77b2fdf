"""What a program keeps for the next explanation: a loop gives what single calls give, whatever changes in between."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import RuleError
from lrpfunc.operations import kernels
from lrpfunc.program import fast_paths
from tests.helpers import randomize


@pytest.fixture(autouse=True)
def small_layers_as_well(monkeypatch):
    monkeypatch.setattr(kernels, "LEAST", 0)


X = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU(), nn.Conv2d(64, 16, 1), nn.ReLU()]
    return randomize(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)))


@pytest.fixture
def traced():
    return lrpfunc.functionalize(network(), X)


def alone(fmodel, params, x, entries, **options):
    """What a call gives that finds nothing kept: of a program that was not explained before."""
    return lrpfunc.attribute(copy.deepcopy(fmodel), params, x, entries, **options)


COMPOSITES = {
    "epsilon": composites.epsilon,
    "epsilon_plus_flat": composites.epsilon_plus_flat,
    "alpha2_beta1": composites.epsilon_alpha2_beta1,
    "gamma_box": lambda: composites.epsilon_gamma_box(-3.0, 3.0),
    "gradient": rules.gradient,
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_every_call_of_a_loop_gives_the_same_to_the_last_bit(traced, name):
    fmodel, params = traced
    expected = alone(fmodel, params, X, COMPOSITES[name](), target=1)
    for _ in range(4):  # with a composite made anew, as one writes it in a loop
        assert torch.equal(lrpfunc.attribute(fmodel, params, X, COMPOSITES[name](), target=1), expected)
    one = alone(fmodel, params, X[:1], COMPOSITES[name](), target=1)
    assert torch.equal(lrpfunc.attribute(fmodel, params, X[:1], COMPOSITES[name](), target=1), one)


def in_place(params):
    params["2.weight"].mul_(-1)


def behind_the_back_of_torch(params):
    params["2.weight"].data.mul_(-1)


def permuted_behind_the_back_of_torch(params):
    params["2.weight"].data.copy_(params["2.weight"].flip(2, 3))


def shared_with_numpy(params):
    params["2.weight"].numpy()[...] *= -1


def other_memory(params):
    params["2.weight"].data = -params["2.weight"].data


def bias_in_place(params):
    params["0.bias"].data.add_(1)


def another_tensor(params):
    params["2.weight"] = params["2.weight"].neg()


CHANGES = [
    in_place, behind_the_back_of_torch, permuted_behind_the_back_of_torch, shared_with_numpy, other_memory,
    bias_in_place, another_tensor,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["epsilon", "epsilon_plus_flat"])
def test_parameters_that_change_between_calls(traced, name, change):
    fmodel, params = traced
    entries = COMPOSITES[name]()
    for _ in range(3):
        before = lrpfunc.attribute(fmodel, params, X, entries, target=1)
    change(params)
    expected = alone(fmodel, params, X, entries, target=1)
    assert not torch.equal(before, expected)
    for _ in range(3):
        assert torch.equal(lrpfunc.attribute(fmodel, params, X, entries, target=1), expected)


def counted():
    """LRP-0 that counts how many times it makes something of a weight."""
    made: list[torch.Tensor] = []

    def weight(operation):
        made.append(operation.weight)
        return operation.weight * 1

    def forward(operation, x):
        output = operation.linear(operation.hoisted(weight), operation.bias)(x)
        return output, output

    def backward(operation, output, flow):
        c = flow.coefficient(output, lrpfunc.stabilizer(0))
        return lrpfunc.Flow(coefficient=operation.linear(operation.hoisted(weight)).adjoint(c))

    return lrpfunc.Rule("counted()", forward, backward, hoists=(weight,)), made


def test_of_what_comes_for_the_second_time_all_is_made_once(traced):
    fmodel, params = traced
    rule, made = counted()

    def calls(given=params) -> int:
        made.clear()
        lrpfunc.attribute(fmodel, given, X, {"2": rule})
        return len(made)

    assert [calls() for _ in range(4)] == [2, 1, 0, 0]
    params["2.weight"].data.mul_(2)
    assert [calls() for _ in range(2)] == [1, 0]
    twin = {name: tensor.clone() for name, tensor in params.items()}
    assert [calls(twin), calls(twin), calls(twin), calls(), calls(), calls()] == [2, 1, 0, 2, 1, 0]
    lrpfunc.attribute(fmodel, params, X, composites.epsilon())  # of one explanation only
    assert calls() == 2


def test_of_layers_that_are_not_laid_out_nothing_is_kept(traced):
    fmodel, params = traced
    rule, made = counted()
    for _ in range(4):
        lrpfunc.attribute(fmodel, params, X, {"10": rule})
    assert len(made) == 8


def test_where_parameters_have_derivatives_nothing_is_kept(traced):
    fmodel, params = traced
    rule, _ = counted()
    for _ in range(3):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
        lrpfunc.attribute(fmodel, leaves, X, {"2": rule}).square().sum().backward()
        (expected,) = torch.autograd.grad(
            alone(fmodel, leaves, X, {"2": rule}).square().sum(), leaves["2.weight"], retain_graph=False
        )
        torch.testing.assert_close(leaves["2.weight"].grad, expected)
    learned = {name: tensor.requires_grad_() for name, tensor in params.items()}
    gradients = [
        torch.autograd.grad(lrpfunc.attribute(fmodel, learned, X, {"2": rule}).sum(), learned["2.weight"])[0]
        for _ in range(3)
    ]
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients)
    assert gradients[0].any()


def test_what_is_kept_serves_transforms_of_the_input_alone(traced):
    fmodel, params = traced
    entries = composites.epsilon_plus()

    def explain(x):
        return lrpfunc.attribute(fmodel, params, x[None], entries, target=1)[0]

    for _ in range(2):
        found = torch.func.vmap(explain)(X)
        tangent = torch.func.jvp(explain, (X[0],), (X[1],))[1]
    for _ in range(3):
        lrpfunc.attribute(fmodel, params, X, entries, target=1)
    torch.testing.assert_close(torch.func.vmap(explain)(X), found)
    torch.testing.assert_close(torch.func.jvp(explain, (X[0],), (X[1],))[1], tangent)
    stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in params.items()}
    both = torch.func.vmap(lambda p: lrpfunc.attribute(fmodel, p, X, entries, target=1))(stacked)
    torch.testing.assert_close(both[0], lrpfunc.attribute(fmodel, params, X, entries, target=1))


@pytest.fixture
def of_one_size():
    """A program whose first layer makes the same of a box for all inputs."""
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 22 * 22, 4)]
    return lrpfunc.functionalize(randomize(nn.Sequential(*layers)), X)


@pytest.mark.parametrize("is_one_rule", [True, False])
def test_corners_of_a_box_that_change_between_calls(of_one_size, is_one_rule):
    fmodel, params = of_one_size
    low, high = torch.full((3, 1, 1), -3.0), torch.full((3, 1, 1), 3.0)
    first = composites.epsilon_gamma_box(low, high)

    def again():
        return first if is_one_rule else composites.epsilon_gamma_box(low, high)

    for _ in range(3):
        before = lrpfunc.attribute(fmodel, params, X, again(), target=1)
    low.data.fill_(-7.0)
    expected = alone(fmodel, params, X, first, target=1)
    assert not torch.equal(before, expected)
    for _ in range(3):
        assert torch.equal(lrpfunc.attribute(fmodel, params, X, again(), target=1), expected)


def test_corners_of_a_box_that_have_derivatives(of_one_size):
    fmodel, params = of_one_size
    low, high = torch.full((3, 1, 1), -3.0), torch.full((3, 1, 1), 3.0)
    entries = composites.epsilon_gamma_box(low, high)
    for _ in range(3):
        lrpfunc.attribute(fmodel, params, X, entries, target=1)
    low.requires_grad_()
    (found,) = torch.autograd.grad(lrpfunc.attribute(fmodel, params, X, entries, target=1).square().sum(), low)
    (expected,) = torch.autograd.grad(alone(fmodel, params, X, entries, target=1).square().sum(), low)
    assert torch.equal(found, expected)


def test_what_inference_mode_leaves_serves_calls_with_derivatives(traced):
    fmodel, params = traced
    entries = composites.epsilon_plus_flat()
    with torch.inference_mode():
        for _ in range(3):
            lrpfunc.attribute(fmodel, params, X, entries, target=1)
    assert fmodel.kept.made
    gradients = []
    for program in (fmodel, copy.deepcopy(fmodel)):
        x = X.clone().requires_grad_()
        relevance = lrpfunc.attribute(program, params, x, entries, target=1)
        gradients += torch.autograd.grad(relevance.square().sum(), x)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_a_rule_that_another_one_was_made_of_is_another_one(traced):
    fmodel, params = traced
    rule = rules.zplus()
    by_rule = lrpfunc.parameter_relevance(fmodel, params, X, rule, 1)["2.weight"]
    by_derivative = lrpfunc.parameter_relevance(fmodel, params, X, rule._replace(parameters=None), 1)["2.weight"]
    fresh = copy.deepcopy(fmodel)
    assert torch.equal(
        by_derivative, lrpfunc.parameter_relevance(fresh, params, X, rule._replace(parameters=None), 1)["2.weight"]
    )
    assert not torch.allclose(by_rule, by_derivative)


@pytest.mark.parametrize(
    "changes",
    [
        {"stops": lambda operation: (0,)},
        {"parameters": None},
        {"hoists": (abs, abs)},
        {"takes_steps": True},
        {"recalls": True},
        {"gives": ""},
    ],
)
def test_rules_that_say_something_else_of_themselves_are_not_the_same(changes):
    assert rules.is_same(rules.zplus(), rules.zplus())
    assert not rules.is_same(rules.zplus(), rules.zplus()._replace(**changes))


OTHERS = {
    "another epsilon": ({"rules": composites.epsilon(1e-3)}, {"rules": composites.epsilon(0.5)}),
    "another layer": ({"rules": {"0": rules.zplus()}}, {"rules": {"2": rules.zplus()}}),
    "a stated range": ({"rules": rules.zplus()}, {"rules": rules.zplus(), "input_range": (0.0, 9.0)}),
    "corners of a box": (
        {"rules": composites.first_layer(rules.zbox(torch.tensor(-4.0), torch.tensor(4.0)))},
        {"rules": composites.first_layer(rules.zbox(torch.tensor(-5.0), torch.tensor(4.0)))},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_explanation_finds_nothing_of_the_one_before(traced, name):
    fmodel, params = traced
    x = X.abs()
    for _ in range(2):
        for options in OTHERS[name]:
            for _ in range(3):
                found = lrpfunc.attribute(fmodel, params, x, target=1, **options)
            assert torch.equal(found, lrpfunc.attribute(copy.deepcopy(fmodel), params, x, target=1, **options))


def test_a_mapping_that_changes_is_another_one(traced):
    fmodel, params = traced
    entries = {"*": rules.epsilon()}
    for _ in range(3):
        lrpfunc.attribute(fmodel, params, X, entries, target=1)
    entries["2"] = rules.zplus()
    assert torch.equal(
        lrpfunc.attribute(fmodel, params, X, entries, target=1), alone(fmodel, params, X, entries, target=1)
    )


def test_what_was_chosen_is_told_from_what_was_left_open():
    fmodel, params = lrpfunc.trace(lambda p, x: (x * p).cumprod(1), torch.ones(3), torch.ones(1, 3))
    x = torch.tensor([[1.0, 2.0, 3.0]])
    for _ in range(3):
        lrpfunc.attribute(fmodel, params, x, {"cumprod": rules.input_times_gradient()}, strict=True)
    with pytest.raises(RuleError, match="no rule for 'cumprod'"):
        lrpfunc.attribute(fmodel, params, x, {}, strict=True)


def test_without_fast_paths_nothing_is_kept(traced, monkeypatch):
    fmodel, params = traced
    for _ in range(3):
        fast = lrpfunc.attribute(fmodel, params, X, composites.epsilon_plus(), target=1)
    monkeypatch.setattr(fast_paths, "taken", False)
    slow = lrpfunc.attribute(fmodel, params, X, composites.epsilon_plus(), target=1)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    assert not torch.equal(fast, slow)


def test_copies_of_a_program_have_nothing_kept_and_parameters_stay_nobodys():
    fmodel, params = lrpfunc.functionalize(network(), X)
    for _ in range(3):
        lrpfunc.attribute(fmodel, params, X, composites.epsilon_plus())
    assert fmodel.kept.made
    assert copy.deepcopy(fmodel).kept is None
    assert pickle.loads(pickle.dumps(fmodel)).kept is None
    weight = weakref.ref(params["2.weight"])
    del params
    gc.collect()
    assert weight() is None
