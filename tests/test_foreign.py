"""Derivatives of explanations through every operation: right, or refused, and never silently zero."""

import pytest
import torch
import torchvision
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import RuleError
from tests.derivatives import directional, inner, random_like
from tests.samples import SAMPLES

DOUBLE = torch.float64

# -- operators that torch did not make --------------------------------------------------------------------------------


@torch.library.custom_op("lrpfunc_tests::powers", mutates_args=())
def powers(x: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x**3 * factor, (x > 0).long(), x**2


@powers.register_fake
def _(x, factor):
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.long), torch.empty_like(x)


def _powers_backward(ctx, cubed, _, squared):
    x, factor = ctx.saved_tensors
    return 3 * x**2 * factor * cubed + 2 * x * squared, (x**3 * cubed).sum_to_size(factor.shape)


def _powers_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


powers.register_autograd(_powers_backward, setup_context=_powers_context)

X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, -0.1]], dtype=DOUBLE)
FACTOR = torch.tensor([2.0, 1.0, -1.0], dtype=DOUBLE)


def cubes(p, x):
    cubed, positive, _ = powers(x, p)
    return cubed + positive


def squares(p, x):
    return powers(x, p)[2] * p


def test_an_operator_of_others_has_its_gradient():
    fmodel, p = lrpfunc.trace(cubes, FACTOR, X)
    assert torch.equal(grad(lambda x: fmodel(p, x).sum())(X), 3 * X**2 * FACTOR)
    assert torch.equal(grad(lambda p: fmodel(p, X).sum())(p), (X**3).sum(0))
    assert torch.equal(vmap(grad(lambda x: fmodel(p, x[None]).sum()))(X), 3 * X**2 * FACTOR)
    other, p = lrpfunc.trace(squares, FACTOR, X)
    assert torch.equal(grad(lambda x: other(p, x).sum())(X), 2 * X * FACTOR)


def test_an_operator_of_others_maps():
    fmodel, p = lrpfunc.trace(cubes, FACTOR, X)
    stacked = torch.stack([X, X * 2])
    assert torch.equal(vmap(lambda x: fmodel(p, x))(stacked), torch.stack([fmodel(p, x) for x in stacked]))
    found = vmap(lambda x: lrpfunc.attribute(fmodel, p, x, rules.epsilon(0), lambda y: y))(stacked)
    expected = [lrpfunc.attribute(fmodel, p, x, rules.epsilon(0), lambda y: y) for x in stacked]
    assert torch.equal(found, torch.stack(expected))


def test_what_it_has_no_derivative_of_is_refused():
    fmodel, p = lrpfunc.trace(cubes, FACTOR, X)
    explained = lambda p, x: lrpfunc.attribute(fmodel, p, x, rules.epsilon(), lambda y: y)  # noqa: E731
    remedy = r"take finite differences, or give its layer a rule that needs none\.$"
    forward = rf"torch has no forward-mode derivative of lrpfunc_tests::powers: {remedy}"
    with pytest.raises(RuleError, match=f"^{forward}"):
        jvp(lambda x: fmodel(p, x), (X,), (X,))
    with pytest.raises(RuleError, match=f"at layer 'powers': {forward}"):
        jvp(lambda x: explained(p, x), (X,), (X,))
    with pytest.raises(RuleError, match=f"at layer 'powers': {forward}"):
        jvp(lambda p: explained(p, X), (p,), (p,))
    with forward_ad.dual_level(), pytest.raises(RuleError, match=forward):
        fmodel(p, forward_ad.make_dual(X, X))
    second = rf"torch has no second derivative of lrpfunc_tests::powers: {remedy}"
    with pytest.raises(RuleError, match=second):
        grad(lambda x: explained(p, x).sum())(X)
    _, pullback = lrpfunc.vjp(fmodel, p, X, rules.epsilon())
    with pytest.raises(RuleError, match=second):
        grad(lambda s: pullback(s).sum())(X)


def test_what_does_not_move_it_passes_it():
    fmodel, p = lrpfunc.trace(lambda p, x: cubes(p, x[0].detach()) + x[1], FACTOR, (X, X))
    found = jvp(lambda x: fmodel(p, (X, x)), (X,), (X,))[1]
    assert torch.equal(found, X)


def pooled(seed=0):
    """Windows of maps between two tanh, so that adjoints and values depend on what is derived."""
    x = torch.randn(1, 2, 6, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    boxes = torch.tensor([[0, 1.2, 0.3, 5.1, 4.2], [0, 0.0, 2.0, 4.7, 5.0]], dtype=DOUBLE)
    f = lambda p, x: torchvision.ops.roi_align(x.tanh(), p, 2).tanh().flatten(1)  # noqa: E731
    fmodel, boxes = lrpfunc.trace(f, boxes, x)
    return lambda x: lrpfunc.attribute(fmodel, boxes, x, composites.epsilon(1e-2), 3), x


def test_an_operator_that_is_linear_has_all_derivatives():
    explained, x = pooled()
    direction = random_like(x)
    expected = directional(explained, x, direction)
    torch.testing.assert_close(jvp(explained, (x,), (direction,))[1], expected, rtol=1e-5, atol=1e-7)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(explained(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(dual, expected, rtol=1e-5, atol=1e-7)
    weights = random_like(x, seed=5)
    total = lambda x: (explained(x) * weights).sum()  # noqa: E731
    slope = (expected * weights).sum()
    torch.testing.assert_close(inner(grad(total)(x), direction), slope, rtol=1e-5, atol=1e-7)
    watched = x.clone().requires_grad_()
    total(watched).backward()
    torch.testing.assert_close(inner(watched.grad, direction), slope, rtol=1e-5, atol=1e-7)
    stacked = torch.stack([direction, -2 * direction])
    mapped = vmap(lambda t: jvp(explained, (x,), (t,))[1])(stacked)
    torch.testing.assert_close(mapped, torch.stack([expected, -2 * expected]), rtol=1e-5, atol=1e-7)
    curvature = jvp(grad(total), (x,), (direction,))[1]
    torch.testing.assert_close(curvature, directional(grad(total), x, direction), rtol=1e-4, atol=1e-6)


# -- every operation --------------------------------------------------------------------------------------------------

CONSTANT = {  # whose outputs depend on no input through what has a derivative, or are not of floats in double precision
    "detach", "fill", "ones_of", "sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "floor_divide",
    "div: rounded", "pow: zero",
}  # fmt: skip
STRAIGHT_THROUGH = {"fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"}  # by torch's own design
REFUSED = {"segment_reduce": ("jvp", "grad"), "grid_sampler": ("jvp",)}  # by torch, in its own words
SINGLE = {"to", "_to_copy", "type_as", "dequantized"}  # makes float32, of which differences say little
DERIVED = sorted(
    name
    for name in SAMPLES.keys() - CONSTANT - STRAIGHT_THROUGH - SINGLE
    if any(x.is_floating_point() for x in SAMPLES[name].inputs)
)


def weighted(output):
    """A relevance of every output that depends on its value and its place."""
    if isinstance(output, (tuple, list)):
        return type(output)(map(weighted, output))
    if not (output.is_floating_point() or output.is_complex()):
        return torch.zeros_like(output)
    places = torch.arange(output.numel(), dtype=DOUBLE) + 0.3
    return output.real * places.cos().reshape(output.shape)


@pytest.mark.parametrize("name", DERIVED)
def test_derivatives_of_explanations_agree_with_finite_differences(name):
    sample = SAMPLES[name]
    fmodel, params = sample.trace()
    moving = [i for i, x in enumerate(sample.inputs) if x.is_floating_point()]

    def total(*values):
        inputs = list(sample.inputs)
        for i, value in zip(moving, values, strict=True):
            inputs[i] = value
        relevance = lrpfunc.attribute(fmodel, params, tuple(inputs), composites.epsilon(1e-2), weighted)
        return sum((r**2 + r).sum() for r in relevance if r.is_floating_point())

    at = tuple(sample.inputs[i] for i in moving)
    direction = random_like(at)
    expected = directional(lambda values: total(*values), at, direction)
    found = {
        "jvp": lambda: jvp(total, at, direction)[1],
        "grad": lambda: inner(grad(total, argnums=tuple(range(len(at))))(*at), direction),
    }
    for way, derivative in found.items():
        if way in REFUSED.get(name, ()):
            with pytest.raises(RuntimeError, match=r"not.* implemented"):
                derivative()
        else:
            torch.testing.assert_close(derivative(), expected, rtol=1e-4, atol=1e-6)
