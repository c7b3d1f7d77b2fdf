"""Explainers: predictions and relevance are those of the functional core, and wanted classes are the right ones."""

import functools
import sys

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import attributors, composites, digits, rules
from lrpfunc.errors import ModelError, RuleError, TargetError
from lrpfunc.pictures import explainers
from lrpfunc.pictures.classifiers import Classifier, Standard
from lrpfunc.pictures.explainers import Wanted, explainer, wanted_classes
from lrpfunc.pictures.methods import METHODS
from tests.helpers import Branches, relative_error

DIRECT = {
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(0.0, 1.0),  # digits: paper is 0, ink 1
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "excitation_backprop": composites.excitation_backprop(),
    "deconvnet": composites.deconvnet(),
    "guided_backprop": composites.guided_backprop(),
    "beta_smooth": composites.beta_smooth(),
}


@pytest.fixture(scope="module")
def shipped():
    return digits.load()


@pytest.fixture(scope="module")
def ready(classifier, shipped):
    return explainer(classifier, shipped.images[:1])


@pytest.fixture(scope="module")
def canonical(shipped):
    """The canonized program and its parameters, by the functional core alone."""
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, shipped.images))
    return fmodel, params


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module `rules_d` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tmp_path.joinpath("rules_d.py").write_text(
        "from lrpfunc import composites, rules\n"
        "composite = composites.epsilon(0.5)\n"
        "layers = {'head': rules.zplus(), 'stem': rules.flat()}\n"
        "rule = rules.gamma(0.1)\n"
        "uncalled = composites.epsilon_plus\n"
        "number = 3\n"
    )
    yield
    sys.modules.pop("rules_d", None)


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIRECT)
def test_a_composite_by_name_is_the_composite_itself(name, classifier, shipped, canonical):
    x = shipped.images[:6]
    found = explainer(classifier, x[:1], name).attribute(x, [Wanted("top")])
    start = (lambda y: (y == y.amax(1, keepdim=True)).float()) if name in explainers.GRADIENTS else None
    relevance = lrpfunc.attribute(*canonical, x, DIRECT[name], start)
    assert relative_error(found.relevance[:, 0], relevance) < 1e-5
    assert relevance.abs().amax((1, 2, 3)).min() > 0


def test_every_composite_has_a_name():
    assert list(explainers.COMPOSITES) == list(DIRECT)


def test_the_box_is_that_of_the_preprocessing():
    torch.manual_seed(0)
    model, own = Branches(bias=True).eval(), Standard(8)
    rgb = Classifier("own", model, own, own.mean, own.std)
    low = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])[:, None, None]
    high = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])[:, None, None]
    x = low + (high - low) * torch.rand(2, 3, 8, 8)
    expected = lrpfunc.attribute(*lrpfunc.functionalize(model, x), x, composites.epsilon_gamma_box(low, high))
    found = explainer(rgb, x[:1], "epsilon_gamma_box", canonize=False).attribute(x, [Wanted("top")])
    assert relative_error(found.relevance[:, 0], expected) < 1e-5


def test_several_classes_are_each_what_they_are_alone(ready, shipped, canonical):
    x, labels = shipped.images[:7], shipped.labels[:7]
    wanted = [Wanted("top"), Wanted("class", 3), Wanted("label"), Wanted("top", 2)]
    found = ready.attribute(x, wanted, labels)
    logits = shipped.model(x).detach()
    order = logits.argsort(1, descending=True)
    assert found.relevance.shape == (7, 4, 1, 8, 8)
    torch.testing.assert_close(found.prediction, logits, rtol=1e-4, atol=1e-5)
    expected = torch.stack([order[:, 0], torch.full((7,), 3), labels, order[:, 2]], dim=1)
    assert torch.equal(found.target, expected)
    for column, one in enumerate(wanted):
        alone = ready.attribute(x, [one], labels)
        torch.testing.assert_close(alone.prediction, found.prediction, rtol=1e-5, atol=1e-5)
        assert torch.equal(alone.target[:, 0], expected[:, column])
        direct = lrpfunc.attribute(*canonical, x, composites.epsilon_plus_flat(), target=expected[:, column])
        assert relative_error(found.relevance[:, column], direct) < 1e-5
        assert relative_error(alone.relevance[:, 0], direct) < 1e-5


def test_without_canonization_batch_norms_stay(classifier, shipped, ready):
    plain = explainer(classifier, shipped.images[:1], canonize=False)
    assert plain.report is None
    assert set(ready.report.fates) == {"stem.1", "residual.0.1", "residual.2.1", "widen.1"}
    x = shipped.images[:3]
    expected = lrpfunc.attribute(*lrpfunc.functionalize(shipped.model, x), x, composites.epsilon_plus_flat())
    found = plain.attribute(x, [Wanted("top")])
    assert relative_error(found.relevance[:, 0], expected) < 1e-5
    assert relative_error(ready.attribute(x, [Wanted("top")]).relevance[:, 0], expected) > 1e-2


def test_a_batch_is_its_samples_and_nothing_is_left_to_autograd(ready, shipped):
    x = shipped.images[:5]
    whole = ready.attribute(x, [Wanted("top"), Wanted("class", 0)])
    for number in range(5):
        alone = ready.attribute(x[number : number + 1], [Wanted("top"), Wanted("class", 0)])
        torch.testing.assert_close(alone.relevance[0], whole.relevance[number], rtol=1e-4, atol=1e-6)
    assert not whole.prediction.requires_grad
    assert not whole.relevance.requires_grad


# -- composites of the user's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("composite", composites.epsilon(0.5)),
        ("layers", {"head": rules.zplus(), "stem": rules.flat()}),
        ("rule", rules.gamma(0.1)),
    ],
)
def test_a_composite_of_ones_own(name, entries, mine, classifier, shipped, canonical):
    x = shipped.images[:2]
    found = explainer(classifier, x[:1], f"rules_d:{name}").attribute(x, [Wanted("class", 4)])
    expected = lrpfunc.attribute(*canonical, x, entries, target=4)
    assert relative_error(found.relevance[:, 0], expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "epsilon_pluss",
            ModelError,
            r"no composite is called 'epsilon_pluss'\. Did you mean 'epsilon_plus'.*own as mod",
        ),
        ("rules_d:composit", ModelError, r"'rules_d' has no 'composit'\. Did you mean 'composite'"),
        ("rules_e:composite", ModelError, "there is no module 'rules_e'"),
        ("rules-d:composite", ModelError, r"a composite of your own is given as module\.path:name"),
        ("rules_d:number", RuleError, "rules must be a composite, .* but is int"),
        ("rules_d:uncalled", RuleError, "a composite must return a mapping"),
    ],
)
def test_composites_that_are_none(name, error, message, mine, classifier, shipped):
    with pytest.raises(error, match=message):
        explainer(classifier, shipped.images[:1], name)


# -- models and devices that cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta", ""])
def test_a_device_that_cannot_be_used(device, classifier, shipped):
    with pytest.raises(ModelError, match=rf"the device '{device}' cannot be used here \(.+\)\.") as caught:
        explainer(classifier, shipped.images[:1], device=device)
    assert "\n" not in str(caught.value)


class Pair(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x.sum((2, 3))


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (nn.Conv2d(3, 2, 3), r"\(1, 2, 6, 6\)"),
        (Pair(), "tuple"),
    ],
)
def test_models_that_do_not_give_logits(model, got):
    own = Classifier("my model", model.eval(), Standard(8))
    with pytest.raises(ModelError, match=rf"my model must give logits \(N, classes\), but gives {got}\."):
        explainer(own, torch.rand(1, 3, 8, 8))


def test_a_wrong_number_of_names(shipped):
    own = Classifier("my model", shipped.model, Standard(8), categories=("a", "b"))
    with pytest.raises(ModelError, match="my model has 10 classes, but 2 names for them"):
        explainer(own, shipped.images[:1])


def test_inputs_that_do_not_fit_the_model(classifier):
    with pytest.raises(ModelError, match=r"digits cannot be traced with an input of 3x8x8: .*cannot be exported"):
        explainer(classifier, torch.rand(1, 3, 8, 8))


def test_channels_that_do_not_fit_the_pixels(classifier):
    own = Classifier("my model", nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Standard(), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(
        ModelError, match=r"my model takes inputs for pixels of 3 channels, .* but they have 1\. Give --mean"
    ):
        explainer(own, torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize("name", explainers.GRADIENTS)
def test_gradients_do_not_start_from_the_logit(classifier, shipped, name):
    """Or a negative logit would show what speaks against the class as what speaks for it."""
    x = shipped.images[:4]
    ready = explainer(classifier, x[:1], name)
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, x[:1]))
    for target in range(10):
        found = ready.attribute(x, [Wanted("class", target)])
        ones = torch.eye(10)[target].expand(4, 10)
        expected = lrpfunc.vjp(fmodel, params, x, DIRECT[name])[1](ones)
        torch.testing.assert_close(found.relevance[:, 0], expected)


# -- wanted classes ---------------------------------------------------------------------------------------------------

NAMES = ("cat", "Dog", "crane", "crane", "12")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["top"], [("top", 0)]),
        (["top1"], [("top", 0)]),
        (["top3"], [("top", 0), ("top", 1), ("top", 2)]),
        (["top5"], [("top", rank) for rank in range(5)]),
        (["label"], [("label", 0)]),
        (["0"], [("class", 0)]),
        (["3"], [("class", 3)]),
        (["12"], [("class", 4)]),  # a name, before it is a number
        (["CAT"], [("class", 0)]),
        (["dog"], [("class", 1)]),
        (["1", "dog", "Dog", "top", "top2"], [("class", 1), ("top", 0), ("top", 1)]),
        ([], []),
    ],
)
def test_wanted_classes_in_words(texts, expected):
    assert wanted_classes(texts, NAMES, 5, with_labels=True) == expected


@pytest.mark.parametrize(
    ("text", "categories", "message"),
    [
        ("top6", NAMES, "'top6' asks for 6 classes, but the model has 5"),
        ("top0", NAMES, "'top0' asks for 0 classes"),
        ("label", NAMES, "the target 'label' needs a data set whose classes are known"),
        ("5", NAMES, "there is no class 5: the model has 5, 0 to 4"),
        ("-1", NAMES, "there is no class -1: the model has 5, 0 to 4"),
        ("crane", NAMES, "'crane' is the name of the classes 2 and 3: give the number of the one you mean"),
        (
            "cta",
            NAMES,
            r"no class is called 'cta'\. Did you mean 'cat' or 'crane'\? Give top, a name or a number from 0 to 4\.",
        ),
        ("cat", (), r"no class is called 'cat'\. The model's classes have no names\. Give top"),
        ("", NAMES, "no class is called ''"),
    ],
)
def test_wanted_classes_that_there_are_not(text, categories, message):
    with pytest.raises(TargetError, match=message):
        wanted_classes([text], categories, 5)


def test_wanted_classes_of_a_prediction():
    prediction = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])
    labels = torch.tensor([2, 0])
    assert [Wanted("top", rank).of(prediction, labels).tolist() for rank in range(3)] == [[1, 2], [2, 0], [0, 1]]
    ties = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    assert [Wanted("top", rank).of(ties, labels[:1]).item() for rank in range(4)] == [1, 0, 2, 3]
    assert Wanted("label").of(prediction, labels).tolist() == [2, 0]
    assert Wanted("class", 1).of(prediction, labels).tolist() == [1, 1]


# -- methods beside LRP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_by_name_is_the_attributor(name, classifier, shipped, canonical):
    x = shipped.images[:3]
    found = explainer(classifier, x[:1], name).attribute(x, [Wanted("class", 3), Wanted("top")])
    gradient = functools.partial(attributors.gradient, *canonical, target=3)
    expected = {
        "gradient": gradient,
        "gradient_times_input": lambda x: x * gradient(x),
        "smooth_grad": lambda x: attributors.smooth_grad(gradient, x),
        "integrated_gradients": lambda x: attributors.integrated_gradients(gradient, x),
        "occlusion": lambda x: attributors.occlusion(attributors.score(*canonical, x, 3), x, 1),
    }[name](x)
    assert relative_error(found.relevance[:, 0], expected) < 1e-4
    torch.testing.assert_close(found.prediction, shipped.model(x).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.target[:, 1], found.prediction.argmax(1))
    assert not torch.equal(found.relevance[:, 0], found.relevance[:, 1])


def test_what_a_window_loses_is_shared_among_channels():
    torch.manual_seed(0)
    model, own = Branches(bias=True).eval(), Standard(8)
    x = torch.randn(2, 3, 8, 8)
    found = explainer(Classifier("own", model, own), x[:1], "occlusion").attribute(x, [Wanted("class", 1)])
    lost = model(x)[0, 1] - model(torch.where(torch.arange(64).reshape(8, 8) == 9, 0.0, x))[0, 1]
    torch.testing.assert_close(found.relevance[0, 0, :, 1, 1].sum(), lost.detach(), rtol=1e-3, atol=1e-5)
