"""The laws, each for all cases of the table in `tests/cases.py`; what torch.compile has to say is in test_compiling.

`tests/README.md` lists them. Below the table's are the laws that relate rules to each other.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import lrpfunc
from lrpfunc import composites, rules
from tests.cases import ALL, BY_KERNELS, CASES, NETWORKS, in_float64, law, subject
from tests.conservation import watched
from tests.derivatives import directional, inner, random_like
from tests.helpers import branches, randomize

close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)
SLOW = ("llama", "torchvision_vit")  # to trace
every_network = pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS]
)
CLASSES = 3  # every network has as many, or more


def test_rows_have_names_of_their_own_and_speak_of_laws_that_there_are():
    names = [(case.network, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    laws = {name.removeprefix("test_") for name in globals()}
    assert {law for case in CASES for law in (*case.breaks, *case.slow)} <= {*laws, *ALL}


# -- the program is the model, and all remains as it was --------------------------------------------------------------


@every_network
def test_the_program_equals_the_module_exactly(network):
    model, x = NETWORKS[network]()
    fmodel = subject(network).fmodel
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    params = {name: state[name] for name in fmodel.parameters}
    for given in (x, x[:1]):
        tolerance = 1e-6 if network in BY_KERNELS else 0.0
        torch.testing.assert_close(fmodel(params, given), model(given), rtol=tolerance, atol=tolerance)


@every_network
def test_the_module_is_not_mutated(network):
    model, x = NETWORKS[network]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fmodel, params = lrpfunc.functionalize(model, x)
    lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), 1)
    fmodel, params, *_ = lrpfunc.canonize(fmodel, params)
    lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), 1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m.training for m in model.modules())


@law
def test_nothing_is_mutated(case):
    fmodel, params, x = case.subject
    before, x_before = {name: value.clone() for name, value in params.items()}, x.clone()
    lrpfunc.attribute(fmodel, params, x, case.rules, 1, at=[fmodel.equations[-2].name])
    lrpfunc.prepare(fmodel, params, case.rules)(x, 1)
    assert all(torch.equal(before[name], value) for name, value in params.items())
    assert torch.equal(x, x_before)


# -- LRP-0 and conservation -------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 10**6), target=st.integers(0, 4))
def test_lrp_0_is_input_times_gradient(seed, target):
    fmodel, params, _ = subject("branches", bias=False)
    model, x = branches(bias=False, seed=seed)
    params = params | {name: weight.detach() for name, weight in model.named_parameters()}
    gradient = grad(lambda x: fmodel(params, x)[:, target].sum())(x)
    close(lrpfunc.attribute(fmodel, params, x, composites.epsilon(0), target), x * gradient)


@law
def test_relevance_is_conserved_at_every_equation(case):
    """Without biases and stabilizers; what leaves the first layers is the logit."""
    fmodel, params, x = subject(case.network, bias=False)
    seen: list[str] = []
    watching = watched(case.exact or case.rules, seen, rtol=1e-6, atol=1e-9)
    relevance = lrpfunc.attribute(fmodel, params, x, watching, target=1)
    assert set(seen) == set(composites.assign(fmodel, case.rules))
    torch.testing.assert_close(relevance.flatten(1).sum(1), fmodel(params, x)[:, 1], rtol=1e-6, atol=1e-9)


# -- batches and vmap -------------------------------------------------------------------------------------------------


@law
def test_a_batch_equals_its_samples_one_by_one_and_vmap(case):
    params, x = case.subject[1:]
    batch = case.relevance(params, x)
    close(torch.cat([case.relevance(params, sample[None]) for sample in x]), batch)
    close(vmap(lambda sample: case.relevance(params, sample[None])[0])(x), batch)


@law
def test_vmap_over_targets_and_over_the_pullback_equal_the_loop(case):
    fmodel, params, x = case.subject
    loop = torch.stack([case.relevance(params, x, target) for target in range(CLASSES)])
    close(vmap(lambda target: case.relevance(params, x, target))(torch.arange(CLASSES)), loop)
    close(lrpfunc.attribute_each(fmodel, params, x, case.rules, range(CLASSES)), loop)
    y, pullback = lrpfunc.vjp(fmodel, params, x, case.rules)
    close(vmap(pullback)(torch.diag_embed(y).movedim(1, 0)[:CLASSES]), loop)


@law
def test_vmap_over_stacked_parameters_equals_the_loop(case):
    params, x = case.subject[1:]
    floating = {name: p for name, p in params.items() if p.is_floating_point()}
    directions = [random_like(floating, seed) for seed in range(3)]
    stacked = {name: torch.stack([p + 0.1 * d[name] for d in directions]) for name, p in floating.items()}
    mapped = vmap(lambda p: case.relevance({**params, **p}, x))(stacked)
    for i in range(3):
        close(mapped[i], case.relevance({**params, **{name: p[i] for name, p in stacked.items()}}, x))


def test_vmap_over_conditions_equals_the_loop():
    fmodel, params, x = subject("branches")
    epsilons = torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)

    def f(epsilon):
        rule = rules.epsilon(lambda z: z + torch.where(z < 0, -epsilon, epsilon))
        return lrpfunc.attribute(fmodel, params, x, rule, 0)

    mapped = vmap(f)(epsilons)
    for i, value in enumerate([1e-3, 1e-2, 1e-1]):
        close(mapped[i], lrpfunc.attribute(fmodel, params, x, rules.epsilon(value), 0))


# -- derivatives ------------------------------------------------------------------------------------------------------


@law
def test_jvp_and_grad_in_inputs_and_parameters_agree_with_finite_differences(case):
    params, x = case.subject[1:]
    weights = random_like(x, 1)
    both = ({name: p for name, p in params.items() if p.is_floating_point()}, x)
    direction = random_like(both)

    def loss(both):
        return (case.relevance({**params, **both[0]}, both[1]) * weights).sum()

    expected = directional(loss, both, direction)
    torch.testing.assert_close(jvp(loss, (both,), (direction,))[1], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(inner(grad(loss)(both), direction), expected, rtol=1e-5, atol=1e-7)


@law
def test_second_order_agrees_with_finite_differences(case):
    params, x = case.subject[1:]
    x = x[:1]
    direction, other = random_like(x, 4), random_like(x, 5)

    def slope(x):
        return (grad(lambda x: case.relevance(params, x).square().sum())(x) * direction).sum()

    expected = directional(slope, x, other)
    torch.testing.assert_close((grad(slope)(x) * other).sum(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_original_parameters_through_canonization():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    model, x = model.double(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)

    def loss(params):
        canonical = lrpfunc.canonize(fmodel, params)
        return lrpfunc.attribute(canonical.fmodel, canonical.params, x, composites.epsilon_plus(), 1).square().sum()

    direction = random_like(params)
    expected = directional(loss, params, direction, 1e-7)
    torch.testing.assert_close(inner(grad(loss)(params), direction), expected, rtol=1e-4, atol=1e-7)


@law
def test_where_autograd_watches_the_result_is_the_same(case):
    params, x = case.subject[1:]
    expected = case.relevance(params, x)
    close(case.relevance(params, x.clone().requires_grad_()), expected)
    with torch.inference_mode():
        close(case.relevance(params, x.clone()), expected)
    with torch.no_grad():
        close(case.relevance(params, x), expected)


# -- make_fx and torch.export -----------------------------------------------------------------------------------------


@law
def test_make_fx_gives_the_eager_result(case):
    params, x = case.subject[1:]
    made = make_fx(lambda params, x: case.relevance(params, x, None))(params, x)
    close(made(params, 2 * x), case.relevance(params, 2 * x, None))


class Relevance(nn.Module):
    """An explanation as a module, as torch.export takes no function."""

    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, params, x):
        return self.case.relevance(params, x, None)


@law
def test_torch_export_gives_the_eager_result(case):
    params, x = case.subject[1:]
    exported = torch.export.export(Relevance(case), (params, x), strict=False)
    close(exported.module()(params, 2 * x), case.relevance(params, 2 * x, None))


# -- other ways to the same relevance ---------------------------------------------------------------------------------


@law
def test_a_prepared_explanation_and_one_in_segments_are_that_of_attribute(case):
    fmodel, params, x = case.subject
    expected = case.relevance(params, x)
    prepared = lrpfunc.prepare(fmodel, params, case.rules)
    close(prepared(x, 1), expected)
    for segments in (1, 3):
        close(prepared(x, 1, checkpoint=segments), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, of vmap over its attention
@law
def test_the_vjp_of_with_rules_is_the_attribution_under_every_transform(case):
    fmodel, params, x = case.subject
    g = lrpfunc.with_rules(fmodel, case.rules)
    y, pullback = lrpfunc.vjp(fmodel, params, x, case.rules)
    seed = random_like(y)
    expected = pullback(seed)
    assert torch.equal(g(params, x), fmodel(params, x))
    close(torch.func.vjp(lambda x: g(params, x), x)[1](seed)[0], expected)
    leaf = x.clone().requires_grad_()
    close(torch.autograd.grad(g(params, leaf), leaf, seed)[0], expected)
    jacobian = jacrev(lambda x: g(params, x))(x[:1])
    _, of_one = lrpfunc.vjp(fmodel, params, x[:1], case.rules)
    for target in range(CLASSES):
        close(jacobian[0, target], of_one(torch.eye(y.shape[1], dtype=x.dtype)[None, target]))
    mapped = vmap(lambda sample, s: torch.func.vjp(lambda x: g(params, x[None])[0], sample)[1](s)[0])(x, seed)
    close(mapped, expected)


def test_with_rules_is_differentiable_twice():
    fmodel, params, x = subject("branches")
    g = lrpfunc.with_rules(fmodel, composites.epsilon_plus())
    seed = random_like(fmodel(params, x))

    def relevance(f):
        return lambda x: f(x).square().sum()

    through_g = grad(relevance(lambda x: torch.func.vjp(lambda x: g(params, x), x)[1](seed)[0]))(x)
    direct = grad(relevance(lambda x: lrpfunc.vjp(fmodel, params, x, composites.epsilon_plus())[1](seed)))(x)
    close(through_g, direct)


# -- half precision ---------------------------------------------------------------------------------------------------


@law
def test_bfloat16_is_finite_and_near_the_exact_result(case):
    assert half_precision_error(case, torch.bfloat16) < 0.05


@law
def test_float16_is_finite_and_near_the_exact_result(case):
    assert half_precision_error(case, torch.float16) < 0.05


def half_precision_error(case, dtype) -> float:
    """Against the same numbers in float64, so that rounding parameters and samples counts for nothing."""
    params = {name: p.to(dtype) if p.is_floating_point() else p for name, p in case.subject.params.items()}
    x = case.subject.x.to(dtype)
    expected = case.relevance(in_float64(params), x.double())
    found = case.relevance(params, x)
    assert found.dtype == dtype
    assert found.isfinite().all()
    return ((found.double() - expected).norm() / expected.norm()).item()


# -- rules that are each other's limits -------------------------------------------------------------------------------


def both_attributions(one, other):
    fmodel, params, x = subject("branches")
    return [lrpfunc.attribute(fmodel, params, x, rule, 1) for rule in (one, other)]


def test_alpha1_beta0_is_zplus():
    assert torch.equal(*both_attributions(rules.alpha_beta(1, 0), rules.zplus()))


def test_gamma_0_is_epsilon():
    close(*both_attributions(rules.gamma(0.0, 1e-6), rules.epsilon(1e-6)))


def test_large_gamma_is_zplus_where_inputs_and_outputs_are_positive():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, bias=False).double(), torch.rand(2, 3, 5, 5, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(layer, x)
    y = fmodel(params, x)
    seed = torch.rand_like(y) * (y > 0)
    plus, gamma = (
        lrpfunc.vjp(fmodel, params, x, rule)[1](seed) for rule in (rules.zplus(1e-12), rules.gamma(1e9, 1e-12))
    )
    torch.testing.assert_close(gamma, plus, rtol=1e-7, atol=1e-9)
