"""The laws of DESIGN section 4, each over all composites or rules it holds for."""

import functools

import hypothesis
import hypothesis.strategies as st
import optree
import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import lrpfunc
from lrpfunc import composites, rules
from tests.conservation import watched
from tests.helpers import branches, randomize

COMPOSITES = {
    "epsilon": composites.epsilon(1e-2),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "excitation_backprop": composites.excitation_backprop(),
    "wsquare": composites.epsilon_plus(entries=composites.first_layer(rules.wsquare())),
    "deconvnet": composites.deconvnet(),
    "guided_backprop": composites.guided_backprop(),
    "beta_smooth": composites.beta_smooth(),
}
every_composite = pytest.mark.parametrize("name", COMPOSITES)
close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


@functools.cache
def traced(bias: bool = True):
    model, x = branches(bias)
    return *lrpfunc.functionalize(model, x), x


def attribution(name: str, bias: bool = True, target=2):
    """`f(params, x)` under one composite, its parameters and samples."""
    fmodel, params, x = traced(bias)
    return lambda params, x: lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target), params, x


# -- law 1: the program is the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_the_program_equals_the_module_exactly(bias):
    model, x = branches(bias, dtype=torch.float32)
    fmodel, params = lrpfunc.functionalize(model, x)
    assert torch.equal(fmodel(params, x), model(x))


@every_composite
def test_nothing_is_mutated(name):
    model, x = branches(True)
    fmodel, params = lrpfunc.functionalize(model, x)
    before = {k: v.clone() for k, v in (*model.state_dict().items(), *((f"params {k}", v) for k, v in params.items()))}
    x_before = x.clone()
    lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], at=["pool"])
    canonical = lrpfunc.canonize(fmodel, params)
    lrpfunc.attribute(canonical.fmodel, canonical.params, x, COMPOSITES[name])
    after = (*model.state_dict().items(), *((f"params {k}", v) for k, v in params.items()))
    assert all(torch.equal(before[k], v) for k, v in after)
    assert torch.equal(x, x_before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m.training for m in model.modules())


# -- law 2: LRP-0 -----------------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 10**6), target=st.integers(0, 4))
def test_lrp_0_is_input_times_gradient(seed, target):
    fmodel, _, _ = traced(bias=False)
    model, x = branches(bias=False, seed=seed)
    params = {name: dict(model.named_parameters())[name].detach() for name in fmodel.parameters}
    gradient = grad(lambda x: fmodel(params, x)[:, target].sum())(x)
    close(lrpfunc.attribute(fmodel, params, x, composites.epsilon(0), target), x * gradient)


# -- law 3: conservation ----------------------------------------------------------------------------------------------

# alpha2_beta1 loses beta's share where a neuron has no negative contributions: it conserves layer by layer, see below.
CONSERVING = ["epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "excitation_backprop", "wsquare"]


@pytest.mark.parametrize("name", [*CONSERVING, "epsilon"])
def test_relevance_is_conserved_at_every_layer(name):
    fmodel, params, x = traced(bias=False)
    seen: list[str] = []
    relevance = lrpfunc.attribute(fmodel, params, x, watched(exact(name), seen, rtol=1e-6, atol=1e-9), target=1)
    assert len(seen) == len(fmodel.equations)
    logit = fmodel(params, x)[:, 1]
    torch.testing.assert_close(relevance.flatten(1).sum(1), logit, rtol=1e-6, atol=1e-9)


RULES = {
    "epsilon": rules.epsilon(1e-14),
    "zplus": rules.zplus(1e-14),
    "alpha_beta(2, 1)": rules.alpha_beta(2, 1, 1e-14),
    "alpha_beta(1.5, 0.5)": rules.alpha_beta(1.5, 0.5, 1e-14),
    "gamma": rules.gamma(0.25, 1e-14),
    "zbox": rules.zbox(-4.0, 4.0, 1e-14),
    "wsquare": rules.wsquare(1e-14),
    "flat": rules.flat(1e-14),
}
LAYERS = {
    "linear": (nn.Linear(40, 5, bias=False), (2, 40)),
    "conv": (nn.Conv2d(16, 6, 3, stride=2, padding=1, groups=2, bias=False), (2, 16, 6, 6)),
    "transposed": (nn.ConvTranspose1d(40, 6, 3, stride=2, bias=False), (2, 40, 6)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_rule_conserves_in_one_layer(rule, layer):
    torch.manual_seed(0)
    module, shape = LAYERS[layer]
    module, x = module.double(), torch.randn(shape, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(module, x)
    y, pullback = lrpfunc.vjp(fmodel, params, x, RULES[rule])
    seed = torch.rand_like(y)  # so many channels that every output has terms of both signs
    close(pullback(seed).sum(), seed.sum(), rtol=1e-7)


def exact(name: str):
    """The composite with stabilizers so small that they take nothing."""
    tiny = {"stabilizer": 1e-14}
    made = {
        "epsilon": composites.epsilon(1e-14),
        "epsilon_plus": composites.epsilon_plus(1e-14, **tiny),
        "epsilon_plus_flat": composites.epsilon_plus_flat(1e-14, **tiny),
        "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0, 1e-14, **tiny),
        "excitation_backprop": composites.excitation_backprop(1e-14),
        "wsquare": composites.epsilon_plus(1e-14, **tiny, entries=composites.first_layer(rules.wsquare(1e-14))),
    }
    return made[name]


# -- law 4: batches and vmap ------------------------------------------------------------------------------------------


@every_composite
def test_a_batch_equals_its_samples_one_by_one_and_vmap(name):
    f, params, x = attribution(name)
    batch = f(params, x)
    close(torch.cat([f(params, sample[None]) for sample in x]), batch)
    close(vmap(lambda sample: f(params, sample[None])[0])(x), batch)


@every_composite
def test_vmap_over_targets_equals_the_loop(name):
    fmodel, params, x = traced()
    mapped = vmap(lambda t: lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], t))(torch.arange(5))
    for target in range(5):
        close(mapped[target], lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target))


@every_composite
def test_vmap_over_the_pullback_shares_one_forward(name):
    fmodel, params, x = traced()
    y, pullback = lrpfunc.vjp(fmodel, params, x, COMPOSITES[name])
    seeds = torch.diag_embed(y).movedim(1, 0)
    mapped = vmap(pullback)(seeds)
    for target in range(5):
        close(mapped[target], lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target))


@every_composite
def test_vmap_over_stacked_parameters_equals_the_loop(name):
    fmodel, _, x = traced()
    models = [branches(True, seed)[0] for seed in range(3)]
    stacked = {k: v.detach() for k, v in stack_module_state(models)[0].items()}
    mapped = vmap(lambda p: lrpfunc.attribute(fmodel, p, x, COMPOSITES[name], 1))(stacked)
    for i in range(3):
        one = {k: v[i] for k, v in stacked.items()}
        close(mapped[i], lrpfunc.attribute(fmodel, one, x, COMPOSITES[name], 1))


def test_vmap_over_conditions_equals_the_loop():
    fmodel, params, x = traced()
    epsilons = torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)

    def f(epsilon):
        rule = rules.epsilon(lambda z: z + torch.where(z < 0, -epsilon, epsilon))
        return lrpfunc.attribute(fmodel, params, x, rule, 0)

    mapped = vmap(f)(epsilons)
    for i, value in enumerate([1e-3, 1e-2, 1e-1]):
        close(mapped[i], lrpfunc.attribute(fmodel, params, x, rules.epsilon(value), 0))


# -- law 5: derivatives -----------------------------------------------------------------------------------------------


def directional(f, primal, direction, step=1e-6):
    """A central difference of a function of a pytree."""

    def move(sign):
        return optree.tree_map(lambda p, d: p + sign * step * d, primal, direction)

    return (f(move(1)) - f(move(-1))) / (2 * step)


def random_like(tree, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return optree.tree_map(lambda p: torch.randn(p.shape, generator=generator, dtype=p.dtype), tree)


@every_composite
def test_jvp_and_grad_in_inputs_and_parameters_agree_with_finite_differences(name):
    f, params, x = attribution(name)
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))

    def loss(both):
        return (f(*both) * weights).sum()

    both = (params, x)
    direction = random_like(both)
    expected = directional(loss, both, direction)
    gradient = grad(loss)(both)
    inner = sum((g * d).sum() for g, d in zip(*map(optree.tree_leaves, (gradient, direction)), strict=True))
    torch.testing.assert_close(jvp(loss, (both,), (direction,))[1], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(inner, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["epsilon", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
def test_second_order_agrees_with_finite_differences(name):
    f, params, x = attribution(name)
    x = x[:1]
    direction, other = random_like(x, 4), random_like(x, 5)

    def slope(x):
        return (grad(lambda x: f(params, x).square().sum())(x) * direction).sum()

    torch.testing.assert_close((grad(slope)(x) * other).sum(), directional(slope, x, other), rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_original_parameters_through_canonization():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    model, x = model.double(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)

    def loss(params):
        canonical = lrpfunc.canonize(fmodel, params)
        return lrpfunc.attribute(canonical.fmodel, canonical.params, x, composites.epsilon_plus(), 1).square().sum()

    direction = random_like(params)
    gradient = grad(loss)(params)
    inner = sum((gradient[k] * direction[k]).sum() for k in params)
    torch.testing.assert_close(inner, directional(loss, params, direction, 1e-7), rtol=1e-4, atol=1e-7)


# -- law 6: compile, make_fx, export ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
def test_torch_compile_without_graph_breaks_gives_the_eager_result(name):
    f, params, x = attribution(name, target=None)
    torch._dynamo.reset()
    close(torch.compile(f, fullgraph=True, backend="aot_eager")(params, x), f(params, x))


def test_torch_compile_with_inductor_gives_the_eager_result():
    f, params, x = attribution("epsilon_plus")
    torch._dynamo.reset()
    close(torch.compile(f, fullgraph=True)(params, x), f(params, x))


@every_composite
def test_make_fx_gives_the_eager_result(name):
    f, params, x = attribution(name, target=None)
    close(make_fx(f)(params, x)(params, 2 * x), f(params, 2 * x))


@every_composite
def test_torch_export_gives_the_eager_result(name):
    f, params, x = attribution(name, target=None)

    class Attribution(nn.Module):
        def forward(self, params, x):
            return f(params, x)

    exported = torch.export.export(Attribution(), (params, x), strict=False)
    close(exported.module()(params, 2 * x), f(params, 2 * x))


# -- law 8: rules that are each other's limits ------------------------------------------------------------------------


def both_attributions(one, other):
    fmodel, params, x = traced()
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


# -- with_rules: a model whose VJP is LRP -----------------------------------------------------------------------------


@every_composite
def test_the_vjp_of_with_rules_is_the_attribution_under_every_transform(name):
    fmodel, params, x = traced()
    g = lrpfunc.with_rules(fmodel, COMPOSITES[name])
    y, pullback = lrpfunc.vjp(fmodel, params, x, COMPOSITES[name])
    seed = torch.randn_like(y)
    expected = pullback(seed)
    assert torch.equal(g(params, x), fmodel(params, x))
    close(torch.func.vjp(lambda x: g(params, x), x)[1](seed)[0], expected)
    leaf = x.clone().requires_grad_()
    close(torch.autograd.grad(g(params, leaf), leaf, seed)[0], expected)
    jacobian = jacrev(lambda x: g(params, x))(x[:1])
    for target in range(5):
        one_hot = torch.eye(5, dtype=x.dtype)[None, target]
        close(jacobian[0, target], lrpfunc.vjp(fmodel, params, x[:1], COMPOSITES[name])[1](one_hot))
    mapped = vmap(lambda sample, s: torch.func.vjp(lambda x: g(params, x[None])[0], sample)[1](s)[0])(x, seed)
    close(mapped, expected)


def test_with_rules_is_differentiable_twice():
    fmodel, params, x = traced()
    g = lrpfunc.with_rules(fmodel, COMPOSITES["epsilon_plus"])
    seed = torch.randn(3, 5, dtype=torch.float64)

    def relevance(f):
        return lambda x: f(x).square().sum()

    through_g = grad(relevance(lambda x: torch.func.vjp(lambda x: g(params, x), x)[1](seed)[0]))(x)
    direct = grad(relevance(lambda x: lrpfunc.vjp(fmodel, params, x, COMPOSITES["epsilon_plus"])[1](seed)))(x)
    close(through_g, direct)


# -- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in COMPOSITES if n not in ("deconvnet", "guided_backprop", "beta_smooth")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near_float32(name, dtype):
    model, x = branches(True, dtype=torch.float32)
    fmodel, params = lrpfunc.functionalize(model, x)
    full = lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], 1)
    half = optree.tree_map(lambda p: p.to(dtype), params)
    low = lrpfunc.attribute(fmodel, half, x.to(dtype), COMPOSITES[name], 1)
    assert low.dtype == dtype
    assert low.isfinite().all()
    assert (low.float() - full).norm() / full.norm() < 0.05


def test_torch_compile_takes_name_patterns():
    fmodel, params, x = traced()
    entries = {"s*": rules.gamma(), "block": rules.zplus(), "*": rules.epsilon()}
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: lrpfunc.attribute(fmodel, params, x, entries), fullgraph=True, backend="eager")
    close(compiled(x), lrpfunc.attribute(fmodel, params, x, entries))
