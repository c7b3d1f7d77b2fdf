"""What is explained where the output is one sample's, and the forms that a target may take."""

import numpy as np
import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import rules
from lrpfunc.attribution.targets import has_batch
from lrpfunc.errors import TargetError
from tests.traced import Model, x_of

LRP_0 = rules.epsilon(0)


def layers(*modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return nn.Sequential(*modules).requires_grad_(False)


def one_number(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model.fc(x)[..., 0]


WITHOUT = {
    "a vector": (layers(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 5, bias=False)), (3,)),
    "as many classes as features": (layers(nn.Linear(3, 3, bias=False)), (3,)),
    "an image": (layers(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(0), nn.Linear(16, 5, bias=False)), (3, 4, 4)),
    "as many classes as colours": (
        layers(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(0), nn.Linear(16, 3, bias=False), nn.Softplus()),
        (3, 4, 4),
    ),
    "the first sample's": (Model(lambda self, x: self.fc(x)[0, :2]), (4, 3)),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_the_arg_max_of_a_sample_without_a_batch_is_explained(name):
    model, shape = WITHOUT[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    fmodel, params = lrpfunc.functionalize(model, x)
    y = fmodel(params, x)
    best = int(y.argmax())
    relevance = lrpfunc.attribute(fmodel, params, x, LRP_0)
    one_hot = torch.nn.functional.one_hot(torch.tensor(best), len(y))
    expected = lrpfunc.vjp(fmodel, params, x, LRP_0)[1](y * one_hot)
    assert torch.equal(relevance, expected)
    for target in (best, best - len(y), torch.tensor(best), (best,), [best], np.int64(best), np.array(best)):
        assert torch.equal(lrpfunc.attribute(fmodel, params, x, LRP_0, target), expected)
    each = lrpfunc.attribute_each(fmodel, params, x, LRP_0, range(len(y)))
    assert torch.allclose(each[best], expected)
    mapped = torch.func.vmap(lambda x: lrpfunc.attribute(fmodel, params, x, LRP_0))(torch.stack([x, -x]))
    assert torch.allclose(mapped[0], expected, atol=1e-6)
    assert lrpfunc.ledger(fmodel, params, x, LRP_0).seed == pytest.approx(float(y[best]))


def test_a_class_that_a_sample_without_a_batch_does_not_have():
    model, shape = WITHOUT["a vector"]
    fmodel, params = lrpfunc.functionalize(model, torch.ones(shape))
    with pytest.raises(TargetError, match=r"target 5 is out of range: the output has 5 classes, 0 to 4\."):
        lrpfunc.attribute(fmodel, params, torch.ones(shape), LRP_0, target=5)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            (3, 0, 0),
            "index 3 of the target is out of range: dimension 1 of the output, (2, 3, 5, 7), has size 3, 0 to 2.",
        ),
        (
            (0, -6, 0),
            "index -6 of the target is out of range: dimension 2 of the output, (2, 3, 5, 7), has size 5, 0 to 4.",
        ),
        (
            [(0, 0, 0), (0, 0, 7)],
            "index 7 of the target is out of range: dimension 3 of the output, (2, 3, 5, 7), has si",
        ),
        (
            (0, torch.tensor([1, 5]), 0),
            "index 5 of the target is out of range: dimension 2 of the output, (2, 3, 5, 7), h",
        ),
    ],
)
def test_an_index_that_an_axis_does_not_have_is_no_class(target, said):
    x = torch.ones(2, 3, 5, 7)
    fmodel, params = lrpfunc.trace(lambda p, x: x * p, torch.tensor(2.0), x)
    with pytest.raises(TargetError) as caught:
        lrpfunc.attribute(fmodel, params, x, LRP_0, target)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (one_number, (4, 3)),
        (lambda self, x: (x.reshape(4, 3) @ self.fc.weight[0]) + torch.zeros(4), (4, 3)),
        (lambda self, x: self.fc(x), (4, 3)),
    ],
)
def test_one_number_for_each_sample_is_no_vector_of_logits(function, shape):
    """Also where the model fixes its batch size."""
    fmodel, _ = lrpfunc.functionalize(Model(function), x_of(*shape))
    assert has_batch(fmodel)


@pytest.mark.parametrize("targets", [np.array([2, 0]), range(2, 0, -1), np.array([1, 1], dtype=np.int32)])
def test_arrays_and_ranges_are_one_target_per_sample(targets):
    fmodel, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x)), x_of())
    expected = lrpfunc.attribute(fmodel, params, x_of(), LRP_0, [int(target) for target in targets])
    assert torch.equal(lrpfunc.attribute(fmodel, params, x_of(), LRP_0, targets), expected)
    stacked = lrpfunc.attribute_each(fmodel, params, x_of(), LRP_0, targets)
    assert torch.allclose(stacked[0], lrpfunc.attribute(fmodel, params, x_of(), LRP_0, int(targets[0])))


def test_arrays_and_ranges_that_do_not_fit():
    fmodel, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x)), x_of())
    for target, message in [
        (np.array([0.5, 1.0]), r"an index tensor must hold integers, but is torch\.float64\."),
        (np.array([0, 1, 2]), r"an index tensor must have shape \(2,\), but has \(3,\)\."),
        (
            np.array(["a", "b"]),
            r"a target must be an int, an index tensor, an array, a range, a tuple, a list or a func",
        ),
        (range(3), r"a list of targets must have one per sample, 2, but has 3\."),
        (range(2, 4), r"target 3 is out of range: the output has 3 classes, 0 to 2\."),
    ]:
        with pytest.raises(TargetError, match=message):
            lrpfunc.attribute(fmodel, params, x_of(), LRP_0, target)
