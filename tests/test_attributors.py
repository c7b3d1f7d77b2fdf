"""Gradients, their averages and occlusion: zennit's and captum's to rounding, by vmap as one by one."""

import functools

import captum.attr as captum
import pytest
import torch
from torch import nn
from torch.func import jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from zennit import attribution as zennit

import lrpfunc
from lrpfunc import attributors, composites
from lrpfunc.attributors import gradient, integrated_gradients, occlusion, score, smooth_grad
from lrpfunc.errors import InputError, TargetError
from tests.helpers import branches

close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)


@pytest.fixture(scope="module")
def net():
    model, x = branches(True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    fmodel, params = lrpfunc.functionalize(model, x)
    return model, fmodel, params, x


def of_class(net, target=2):
    _, fmodel, params, _ = net
    return functools.partial(gradient, fmodel, params, target=target)


def one_hot(output, target=2):
    return torch.eye(output.shape[1], dtype=output.dtype)[target].expand_as(output)


# -- oracles ----------------------------------------------------------------------------------------------------------


def test_the_gradient_is_zennits_and_captums(net):
    model, fmodel, params, x = net
    got, leaf = gradient(fmodel, params, x, 2), x.clone().requires_grad_()
    close(got, zennit.Gradient(model)(x, one_hot(model(x)))[1])
    close(got.abs(), captum.Saliency(model).attribute(leaf, target=2))
    products = captum.InputXGradient(model).attribute(leaf, target=2)
    close(gradient(fmodel, params, x, 2, times_input=True), products.detach())
    close(gradient(fmodel, params, x), gradient(fmodel, params, x, model(x).argmax(1)))
    close(gradient(fmodel, params, x, lambda y: 3 * y * one_hot(y)), 3 * got)


@pytest.mark.parametrize("samples", [1, 5])
def test_smooth_grad_is_zennits_with_the_same_noise(net, samples):
    model, *_, x = net
    torch.manual_seed(3)
    expected = zennit.SmoothGrad(model, n_iter=samples, noise_level=0.2)(x, one_hot(model(x)))[1]
    torch.manual_seed(3)
    size = 0.2 * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    noise = torch.stack([*(torch.randn_like(x) * size for _ in range(samples - 1)), torch.zeros_like(x)])
    close(smooth_grad(of_class(net), x, noise=noise), expected)
    close(smooth_grad(of_class(net), x, noise=noise, chunk_size=2), expected)


def test_smooth_grad_is_captums_with_the_same_noise(net):
    model, *_, x = net
    seen = []

    def watched(x):
        seen.append(x.detach())
        return model(x)

    expected = captum.NoiseTunnel(captum.Saliency(watched)).attribute(
        x.clone().requires_grad_(),
        nt_type="smoothgrad",
        nt_samples=4,
        stdevs=0.3,
        target=2,
        abs=False,
        nt_samples_batch_size=1,
    )
    assert len(seen) == 4
    close(smooth_grad(of_class(net), x, noise=torch.stack(seen) - x), expected)


def test_random_noise_has_the_level_that_is_asked_for():
    x = torch.stack([torch.linspace(0, 1, 400), torch.linspace(-5, 5, 400)]).double()
    seen = []
    smooth_grad(lambda x: seen.append(x) or x, x, samples=30, level=0.25, seed=1)
    assert len(seen) == 30
    assert torch.equal(seen[-1], x)
    spread = (torch.stack(seen[:-1]) - x).std((0, 2))
    torch.testing.assert_close(spread, torch.tensor([0.25, 2.5]).double(), rtol=0.05, atol=0)
    again = []
    smooth_grad(lambda x: again.append(x) or x, x, samples=30, level=0.25, seed=1)
    assert torch.equal(torch.stack(seen), torch.stack(again))


METHODS = {"left": "riemann_left", "middle": "riemann_middle", "right": "riemann_right", "gauss": "gausslegendre"}


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("baseline", ["number", "tensor"])
def test_integrated_gradients_are_captums(net, rule, baseline):
    model, *_, x = net
    start = 0.25 if baseline == "number" else torch.rand(3, 8, 8, dtype=x.dtype)[None].expand_as(x)
    expected = captum.IntegratedGradients(model).attribute(x, start, target=2, n_steps=7, method=METHODS[rule])
    got = integrated_gradients(of_class(net), x, start, 7, rule)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)  # captum's shares are in float32
    close(integrated_gradients(of_class(net), x, start, 7, rule, chunk_size=3), got)


def test_integrated_gradients_are_zennits(net):
    model, *_, x = net
    expected = zennit.IntegratedGradients(model, n_iter=6)(x, one_hot(model(x)))[1]
    close(integrated_gradients(of_class(net), x, steps=6, rule="right"), expected)


def test_integrated_gradients_sum_to_what_the_output_gained(net):
    _, fmodel, params, x = net
    explained = score(fmodel, params, x, 2)
    gained = explained(x) - explained(torch.zeros_like(x))
    for rule in ("middle", "trapezoid", "gauss"):
        found = integrated_gradients(of_class(net), x, steps=400, rule=rule).sum((1, 2, 3))
        torch.testing.assert_close(found, gained, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("window", "stride"), [(2, 2), (3, 2), (3, 1), ((8, 3), (8, 2)), ((1, 3, 3), (1, 3, 3)), (5, 5)]
)
def test_occlusion_is_captums(net, window, stride):
    model, fmodel, params, x = net
    fill = torch.rand(3, 1, 1, dtype=x.dtype)
    sides = (window, window) if isinstance(window, int) else window
    steps = (stride, stride) if isinstance(stride, int) else stride
    whole = (3,) if len(sides) == 2 else ()
    expected = captum.Occlusion(model).attribute(
        x, (*whole, *sides), (*whole, *steps), baselines=fill.expand_as(x), target=2
    )
    for chunk_size in (1, 4):
        got = occlusion(score(fmodel, params, x, 2), x, window, stride, fill, chunk_size=chunk_size)
        torch.testing.assert_close(got.float(), expected)  # captum gives float32


@pytest.mark.parametrize("window", [2, 4, 8])
def test_windows_alone_are_zennits(net, window):
    model, fmodel, params, x = net
    expected = zennit.Occlusion(
        model, window=(3, window, window), stride=(3, window, window), attr_output=lambda y: y * one_hot(y)
    )(x)[1]
    close(occlusion(score(fmodel, params, x, 2), x, window, keep=True), expected)


# -- what they may be of ----------------------------------------------------------------------------------------------


def test_relevance_is_averaged_as_well(net):
    _, fmodel, params, x = net
    explain = functools.partial(lrpfunc.prepare(fmodel, params, composites.epsilon_plus()), target=2)
    noise = torch.randn(3, *x.shape, dtype=x.dtype)
    expected = sum(explain(x + one) for one in noise) / 3
    close(smooth_grad(explain, x, noise=noise), expected)
    close(smooth_grad(explain, x, noise=noise, chunk_size=3), expected)


@pytest.mark.parametrize("name", ["smooth_grad", "integrated_gradients", "occlusion"])
def test_each_maps_and_has_derivatives(net, name):
    _, fmodel, params, x = net

    def attributed(x):
        if name == "occlusion":
            return occlusion(lambda x: fmodel(params, x)[:, 2], x, 4)
        return getattr(attributors, name)(of_class(net), x, 3)

    loop = torch.cat([attributed(sample[None]) for sample in x])
    close(vmap(lambda sample: attributed(sample[None])[0])(x), loop)
    close(attributed(x), loop)
    direction, step = torch.randn_like(x), 1e-6
    slope = (attributed(x + step * direction) - attributed(x - step * direction)) / (2 * step)
    torch.testing.assert_close(jvp(attributed, (x,), (direction,))[1], slope, rtol=1e-4, atol=1e-6)


def test_a_series_is_covered_along_its_last_axis():
    x = torch.arange(12.0).reshape(1, 2, 6)
    got = occlusion(lambda x: x.sum((1, 2)), x, 2)
    close(got, torch.tensor([[[14.0, 14, 22, 22, 30, 30]] * 2]))


def test_what_covers_may_be_a_function():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    got = occlusion(lambda x: x.sum((1, 2, 3)), x, 1, fill=lambda x: x.mean().expand_as(x))
    close(got, x - 1.5)


def test_the_class_of_a_score_is_that_of_the_input():
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p, torch.eye(2), torch.ones(1, 2))
    explained = score(fmodel, params, torch.tensor([[3.0, 5.0], [5.0, 3.0]]))
    close(explained(torch.tensor([[1.0, -1.0], [1.0, -1.0]])), torch.tensor([-1.0, 1.0]))


def test_progress_is_told():
    told = []
    x = torch.ones(1, 1, 4, 4)
    smooth_grad(lambda x: x, x, 5, chunk_size=2, progress=lambda *n: told.append(n))
    integrated_gradients(lambda x: x, x, steps=2, progress=lambda *n: told.append(n))
    occlusion(lambda x: x.sum((1, 2, 3)), x, 2, chunk_size=3, progress=lambda *n: told.append(n))
    assert told == [(2, 5), (4, 5), (5, 5), (1, 2), (2, 2), (3, 4), (4, 4)]


# -- bad input --------------------------------------------------------------------------------------------------------

IMAGE = torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth_grad(lambda x: x, IMAGE, 0), "samples must be a number >= 1, but is 0"),
        (lambda: smooth_grad(lambda x: x, IMAGE, True), "samples must be a number >= 1, but is True"),
        (lambda: smooth_grad(lambda x: x, IMAGE, level=-1), "the level of noise must be a number >= 0, but is -1"),
        (lambda: smooth_grad(lambda x: x, IMAGE, level=float("nan")), "must be a number >= 0, but is nan"),
        (lambda: smooth_grad(lambda x: x, IMAGE, level=None), "the level of noise must be a number >= 0, but is None"),
        (lambda: smooth_grad(lambda x: x, IMAGE, noise=[IMAGE]), r"must be a tensor \(samples, 2, .* but is list"),
        (lambda: smooth_grad(lambda x: x, torch.ones(3)), r"an input must be \(batch, ...\), but is \(3,\): give it"),
        (lambda: smooth_grad(lambda x: x, IMAGE, noise=torch.ones(3, 4)), r"noise must be a tensor \(samples, 2, 3"),
        (lambda: smooth_grad(lambda x: x.sum(), IMAGE, 2), r"must give a tensor like its input, .* but gave \(\)"),
        (lambda: smooth_grad(lambda x: None, IMAGE, 2), "but gave NoneType"),
        (lambda: smooth_grad(lambda x: x, IMAGE, chunk_size=0), "chunk_size must be a number >= 1"),
        (lambda: smooth_grad(lambda x: x, IMAGE.int()), "needs one floating-point tensor .* got torch.int32"),
        (lambda: smooth_grad(lambda x: x, "x"), "needs one floating-point tensor as its input, but got str"),
        (lambda: integrated_gradients(lambda x: x, IMAGE, rule="simpson"), "must be one of left, middle, right"),
        (lambda: integrated_gradients(lambda x: x, IMAGE, steps=1, rule="trapezoid"), "needs two steps at least"),
        (lambda: integrated_gradients(lambda x: x, IMAGE, torch.ones(7)), "the baseline must be a number or bro"),
        (lambda: integrated_gradients(lambda x: x, IMAGE, "black"), "the baseline must be a number or bro"),
        (lambda: occlusion(lambda x: x.sum(), IMAGE, 2, chunk_size=1), r"the score must be one number a sample, \(2,"),
        (lambda: occlusion(lambda x: x.sum((2, 3)), IMAGE, 2), "the score must be one number a sample"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, 5), "a window must have 1 to 4 values along"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, 2, 3), "and a stride 1 to the window's size, but"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, (1, 1, 1, 1)), "one for each of the last axes of"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, 2, (1, 1, 1)), "window and stride must be a number each"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, 2, fill=torch.ones(7)), "what covers must be a number"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, 2.0), "must be a number each, .* but are 2.0 and None"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, None), "must be a number each, .* but are None and None"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, True), "must be a number each, .* but are True and None"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, (2.0, 2)), "must be a number each, .* but are"),
        (lambda: occlusion(lambda x: x.sum((1, 2, 3)), IMAGE, 2, 1.0), "must be a number each, .* but are 2 and 1.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_outputs_of_several_tensors():
    """As detectors have them; a class does not say which tensor is meant."""
    weight, x = torch.tensor([[1.0, -2.0], [3.0, 1.0]], dtype=torch.float64), torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    fmodel, params = lrpfunc.trace(
        lambda p, x: {"where": x.argmax(1), "logits": x @ p.T, "n": 3, "boxes": 5 * x}, weight, x.double()
    )
    target = lambda y: {**y, "logits": y["logits"] * mask, "boxes": 0 * y["boxes"], "where": 0 * y["where"]}  # noqa: E731
    mask = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    close(gradient(fmodel, params, x.double(), target), (mask @ weight).expand(2, 2))
    close(score(fmodel, params, x.double(), target)(2 * x.double()), (2 * x.double() @ weight.T * mask).sum(1))
    for attributor in (gradient, score):
        with pytest.raises(TargetError, match="the output has 2 floating-point tensors, so a class does not say what"):
            attributor(fmodel, params, x.double(), 0)


def test_a_function_is_explained_by_its_derivative_also_where_the_output_is_zero():
    """R_out / output says nothing of an output of zero, such as a logit after a ReLU."""
    weight, x = torch.tensor([[1.0, -2.0], [3.0, 1.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    x[0, 0] = 2.0  # so that the first output is zero
    fmodel, params = lrpfunc.trace(lambda p, x: {"y": x @ p.T}["y"], weight, x)
    assert fmodel(params, x)[0, 0] == 0
    mask = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    close(gradient(fmodel, params, x, lambda y: y * mask), mask @ weight)
    close(gradient(fmodel, params, x, lambda y: y**2 * mask), 2 * (x @ weight.T * mask) @ weight)
    batches = torch.func.vmap(lambda x: gradient(fmodel, params, x[None], lambda y: y * mask)[0])(x)
    close(batches, mask @ weight)


def test_a_score_of_a_function_is_its_sum_wherever_it_is_asked():
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p, torch.eye(2).double(), torch.ones(1, 2).double())
    x = torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    squares = attributors.score(fmodel, params, x, lambda y: y**2)
    close(squares(2 * x), torch.tensor([136.0], dtype=torch.float64))


def test_a_score_of_one_number_a_sample_and_of_no_batch():
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p, torch.ones(2), torch.ones(3, 2))
    close(attributors.score(fmodel, params, torch.ones(3, 2))(torch.eye(3, 2)), torch.tensor([1.0, 1.0, 0.0]))
    layer = nn.Linear(2, 3)
    fmodel, params = lrpfunc.functionalize(layer, torch.ones(2))
    close(attributors.score(fmodel, params, torch.ones(2), 1)(torch.ones(2)), layer(torch.ones(2))[1].detach())


@pytest.mark.parametrize("target", [torch.ones_like, lambda y: (y > 0) * torch.ones(2), lambda y: y.detach()])
def test_a_function_that_does_not_depend_on_the_output(target):
    fmodel, params = lrpfunc.trace(lambda p, x: x @ p, torch.eye(2), torch.ones(1, 2))
    with pytest.raises(TargetError, match="does not depend on the output: let it multiply the output"):
        gradient(fmodel, params, torch.ones(1, 2), target)


class _Largest(TorchDispatchMode):
    """How many values the largest tensor has that is made meanwhile."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.size = max(self.size, made.numel())
        return made


def test_occlusion_holds_no_more_masks_than_it_covers_at_once():
    x = torch.zeros(1, 1, 64, 64)
    with _Largest() as largest:
        occlusion(lambda x: x.sum((1, 2, 3)), x, 16, 8, chunk_size=4)
    assert largest.size == 4 * x.numel()


def test_a_module_is_left_alone(net):
    model, *_, x = net
    assert isinstance(model, nn.Module)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    smooth_grad(of_class(net), x, 2)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
