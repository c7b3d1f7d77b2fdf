"""What outputs mean: classes, one logit, labels, values, probabilities already; and that each is explained as it is."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import ModelError
from lrpfunc.pictures.classifiers import Classifier, Standard
from lrpfunc.pictures.explainers import Wanted, explainer
from lrpfunc.pictures.outputs import BINARY, CLASSES, LABELS, VALUES, Meaning, meaning_of, settle
from tests.helpers import relative_error

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Some layers, and what stands behind them."""

    def __init__(self, outputs, end=None):
        super().__init__()
        torch.manual_seed(outputs)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, outputs))
        self.end = end or nn.Identity()

    def forward(self, x):
        return self.end(self.body(x))


class Do(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def ready(model, **wish):
    own = Classifier("mine", model.eval(), Standard(8), meaning=Meaning(**wish))
    return explainer(own, IMAGES[:1], "epsilon")


def by_hand(outputs, target):
    """The relevance of a logit of the layers alone."""
    fmodel, params = lrpfunc.functionalize(Net(outputs).eval(), IMAGES)
    return lrpfunc.attribute(fmodel, params, IMAGES, composites.epsilon(), target=target)


# -- one logit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, Do(lambda z: z.squeeze(1)), nn.Sigmoid(), Do(lambda z: z.sigmoid().flatten())])
def test_one_logit_is_for_a_class_or_against_it(end):
    found = ready(Net(1, end))
    assert (found.meaning.kind, found.meaning.are_probabilities, found.choices) == (BINARY, False, 2)
    results = found.attribute(IMAGES, [Wanted("class", 1), Wanted("class", 0), Wanted("top")])
    logit = Net(1)(IMAGES).detach()
    torch.testing.assert_close(results.prediction, logit)
    torch.testing.assert_close(found.meaning.probabilities(logit)[:, 1], 1 / (1 + (-logit[:, 0]).exp()))
    torch.testing.assert_close(found.meaning.probabilities(logit).sum(1), torch.ones(3))
    expected = by_hand(1, 0)
    assert relative_error(results.relevance[:, 0], expected) < 1e-5
    assert relative_error(results.relevance[:, 1], -expected) < 1e-5
    assert results.target[:, 2].tolist() == [int(z > 0) for z in logit[:, 0]]


def test_a_logit_of_minus_192_hundredths_is_13_percent():
    logit = torch.tensor([[-1.92]])
    meaning = Meaning(BINARY)
    assert meaning.probabilities(logit)[0].tolist() == pytest.approx([0.8721, 0.1279], abs=1e-4)
    assert meaning.scores(logit)[0].tolist() == pytest.approx([1.92, -1.92])
    assert [meaning.name(i, ()) for i in (0, 1)] == ["not 1", "1"]
    assert meaning.names(["tumour"]) == ("not tumour", "tumour")
    assert meaning.names(["healthy", "ill"]) == ("healthy", "ill")


def test_what_is_said_of_one_logit_and_what_is_explained_unless_told():
    found = ready(Net(1))
    assert found.notes == (
        "mine has one output: it is taken for one logit, for class 1 or against it (sigmoid). If it is a value, say so "
        "by --regression.",
    )
    assert found.wanted([]) == [Wanted("class", 1)]
    assert found.wanted(["not", "0", "1", "top"]) == [Wanted("class", 0), Wanted("class", 1), Wanted("top")]


def test_gradients_against_a_logit_start_from_minus_one():
    own = Classifier("mine", Net(1).eval(), Standard(8))
    found = explainer(own, IMAGES[:1], "guided_backprop").attribute(IMAGES, [Wanted("class", 1), Wanted("class", 0)])
    fmodel, params = lrpfunc.functionalize(Net(1).eval(), IMAGES)
    _, pullback = lrpfunc.vjp(fmodel, params, IMAGES, composites.guided_backprop())
    for column, start in enumerate((1.0, -1.0)):
        assert relative_error(found.relevance[:, column], pullback(torch.full((3, 1), start))) < 1e-5


# -- probabilities already --------------------------------------------------------------------------------------------

SOFTMAXES = {
    "module": nn.Softmax(1),
    "last axis": nn.Softmax(-1),
    "logarithm": nn.LogSoftmax(1),
    "written out": Do(lambda z: (e := z.exp()) / e.sum(1, keepdim=True)),
    "clamped": Do(lambda z: z.softmax(1).clamp(1e-6, 1 - 1e-6)),
    "in four dimensions": Do(lambda z: z[:, :, None, None].softmax(1)),
    "cast": Do(lambda z: z.softmax(1, dtype=torch.float64).float()),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_the_logit_before_a_softmax_is_explained(name):
    found = ready(Net(4, SOFTMAXES[name]))
    assert (found.meaning.kind, found.meaning.are_probabilities) == (CLASSES, False)
    assert "the logit in front of it is explained; --as-is explains what comes out." in found.notes[0]
    results = found.attribute(IMAGES, [Wanted("class", 2)])
    torch.testing.assert_close(found.meaning.probabilities(results.prediction), Net(4)(IMAGES).softmax(1).detach())
    assert relative_error(results.relevance[:, 0], by_hand(4, 2)) < 1e-5


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.LogSigmoid(), Do(lambda z: 1 / (1 + (-z).exp()))])
def test_several_sigmoids_are_labels(end):
    found = ready(Net(4, end))
    assert (found.meaning.kind, found.meaning.are_probabilities) == (LABELS, False)
    results = found.attribute(IMAGES, [Wanted("class", 2)])
    torch.testing.assert_close(found.meaning.probabilities(results.prediction), Net(4)(IMAGES).sigmoid().detach())
    assert relative_error(results.relevance[:, 0], by_hand(4, 2)) < 1e-5


@pytest.mark.parametrize(
    ("outputs", "end", "kind"), [(4, nn.Softmax(1), CLASSES), (4, nn.Sigmoid(), LABELS), (1, nn.Sigmoid(), BINARY)]
)
def test_as_is_keeps_what_comes_out(outputs, end, kind):
    found = ready(Net(outputs, end), as_is=True)
    assert (found.meaning.kind, found.meaning.are_probabilities) == (kind, True)
    assert "what comes out of it is explained" in found.notes[0]
    results = found.attribute(IMAGES, [Wanted("class", 0), Wanted("class", found.choices - 1)])
    probabilities = end(Net(outputs)(IMAGES)).detach()
    torch.testing.assert_close(results.prediction, probabilities)
    expected = torch.cat([1 - probabilities, probabilities], 1) if kind == BINARY else probabilities
    torch.testing.assert_close(found.meaning.probabilities(probabilities), expected)
    torch.testing.assert_close(found.meaning.scores(probabilities), expected)
    fmodel, params = lrpfunc.functionalize(Net(outputs, end).eval(), IMAGES)
    last = lrpfunc.attribute(fmodel, params, IMAGES, composites.epsilon(), target=outputs - 1)
    assert relative_error(results.relevance[:, 1], last) < 1e-5


def test_logarithms_of_sigmoids_as_they_are_have_no_probabilities():
    found = ready(Net(4, nn.LogSigmoid()), as_is=True)
    assert (found.meaning.kind, found.meaning.word) == (VALUES, "value in log probability")


def test_a_part_of_a_softmax_is_a_probability_for_or_against():
    found = ready(Net(2, Do(lambda z: z.softmax(1)[:, 1])))
    assert (found.meaning.kind, found.meaning.are_probabilities, found.choices) == (BINARY, True, 2)
    assert "a part of it comes out, and is explained as it is" in found.notes[0]
    prediction = found.attribute(IMAGES, [Wanted("class", 1)]).prediction
    torch.testing.assert_close(prediction[:, 0], Net(2)(IMAGES).softmax(1)[:, 1].detach())


@pytest.mark.parametrize(
    "end", [Do(lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2), Do(lambda z: F.normalize(z.square(), 1.0))]
)
def test_outputs_that_sum_to_one_are_probabilities(end):
    found = ready(Net(4, end))
    assert (found.meaning.kind, found.meaning.are_probabilities) == (CLASSES, True)
    assert "the outputs of mine are probabilities (they sum to 1)" in found.notes[0]
    prediction = found.attribute(IMAGES, [Wanted("top")]).prediction
    torch.testing.assert_close(found.meaning.probabilities(prediction).sum(1), torch.ones(3))


NO_LOGITS = {
    "per cent": (4, Do(lambda z: z.softmax(1) * 100), "softmax and a scale or a shift"),
    "sharpened": (4, Do(lambda z: 2 * z.sigmoid() - 1), "sigmoid and a scale or a shift"),
    "against": (1, Do(lambda z: 1 - z.sigmoid()), "sigmoid and a scale or a shift"),
    "against, as a vector": (1, Do(lambda z: 1 - z.sigmoid()[:, 0]), "sigmoid and a scale or a shift"),
    "logarithm of a loss": (4, Do(lambda z: -z.log_softmax(1)), "log_softmax and a scale or a shift"),
    "expected": (
        1,
        Do(lambda z: (torch.cat([z, -z], 1).softmax(1) * torch.tensor([1.0, 5.0])).sum(1)),
        "softmax and a",
    ),
    "relu6": (4, Do(lambda z: F.relu6(z + 3) / 6), "relu6"),
    "hardtanh": (4, nn.Hardtanh(), "hardtanh"),
    "tanh": (4, nn.Tanh(), "tanh"),
    "counts": (1, nn.Softplus(), "softplus"),
    "rates": (1, Do(torch.exp), "exp"),
    "relu": (1, nn.ReLU(), "relu"),
    "bounded grades": (1, Do(lambda z: z.clamp(0, 10)), "clamp"),
}


@pytest.mark.parametrize("name", NO_LOGITS)
def test_what_is_no_logit_has_no_probability(name):
    outputs, end, said = NO_LOGITS[name]
    found = ready(Net(outputs, end))
    assert (found.meaning.kind, found.choices) == (VALUES, outputs)
    assert f"mine ends in {said}" in found.notes[0]
    assert "what comes out is no logit: it is taken for values." in found.notes[0]
    results = found.attribute(IMAGES, [Wanted("class", 0)])
    torch.testing.assert_close(results.prediction, end(Net(outputs)(IMAGES)).detach().reshape(3, outputs))


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize(
    "end", [nn.Hardsigmoid(), Do(lambda z: z.clamp(0, 1)), Do(lambda z: (z / 6 + 0.5).clamp(0, 1))]
)
def test_bounds_of_zero_and_one_are_those_of_probabilities(outputs, end):
    found = ready(Net(outputs, end))
    assert (found.meaning.kind, found.meaning.are_probabilities) == (LABELS if outputs > 1 else BINARY, True)
    assert "what comes out of it is explained." in found.notes[0]
    results = found.attribute(IMAGES, [Wanted("class", 0)])
    torch.testing.assert_close(results.prediction, end(Net(outputs)(IMAGES)).detach())


@pytest.mark.parametrize("end", [Do(lambda z: z.clamp(-50, 50)), Do(lambda z: 3 * z + 1), nn.LeakyReLU(), nn.ReLU()])
def test_logits_that_are_scaled_or_bounded_are_logits(end):
    found = ready(Net(4, end))
    assert (found.meaning.kind, found.meaning.are_probabilities, found.notes) == (CLASSES, False, ())


def test_shares_of_a_smoothed_softmax_are_probabilities():
    found = ready(Net(4, Do(lambda z: z.softmax(1) * 0.9 + 0.025)))
    assert (found.meaning.kind, found.meaning.are_probabilities) == (CLASSES, True)


def test_a_softmax_inside_or_over_samples_is_no_end():
    inside = ready(Net(4, Do(lambda z: z.softmax(1) @ torch.eye(4) * 3)))
    samples = ready(Net(4, Do(lambda z: z.softmax(0) - 2)))
    assert [found.meaning.are_probabilities for found in (inside, samples)] == [False, False]
    assert inside.notes == samples.notes == ()


# -- labels and values ------------------------------------------------------------------------------------------------


def test_labels_do_not_exclude_each_other():
    found = ready(Net(4), kind=LABELS)
    logits = Net(4)(IMAGES).detach()
    torch.testing.assert_close(found.meaning.probabilities(logits), 1 / (1 + (-logits).exp()))
    assert (found.choices, found.notes) == (4, ())


def test_values_have_a_unit_and_no_probability():
    found = ready(Net(1), kind=VALUES, unit="years")
    assert (found.choices, found.notes, found.meaning.word) == (1, (), "value in years")
    assert found.meaning.probabilities(torch.ones(2, 1)) is None
    results = found.attribute(IMAGES, found.wanted([]))
    torch.testing.assert_close(results.prediction, Net(1)(IMAGES).detach())
    assert relative_error(results.relevance[:, 0], by_hand(1, 0)) < 1e-5
    assert found.name(0) == "value 0"


def test_a_value_between_0_and_1_is_explained_behind_its_sigmoid():
    found = ready(Net(1, nn.Sigmoid()), kind=VALUES)
    torch.testing.assert_close(
        found.attribute(IMAGES, [Wanted("class", 0)]).prediction, Net(1)(IMAGES).sigmoid().detach()
    )


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "meaning", [Meaning(CLASSES), Meaning(BINARY), Meaning(LABELS, are_probabilities=True), Meaning(VALUES, "m/s")]
)
def test_a_meaning_is_kept_with_a_run(meaning):
    assert meaning_of({"output": meaning.as_json()}) == meaning


def test_runs_of_older_versions_have_classes():
    assert meaning_of({}) == Meaning(CLASSES)


@pytest.mark.parametrize("kept", [{"kind": "colours"}, {"sort": "classes"}, [1], None, {"kind": "values", "unit": 3}])
def test_a_meaning_that_is_none(kept):
    with pytest.raises(ModelError, match="what the outputs mean is not known: "):
        meaning_of({"output": kept})


def test_a_binary_model_has_one_logit():
    with pytest.raises(ModelError, match="mine has 4 outputs, but one logit for or against a class is one"):
        ready(Net(4), kind=BINARY)


def test_infinite_logits():
    outputs = torch.tensor([[math.inf]])
    assert Meaning(BINARY).probabilities(outputs).tolist() == [[0.0, 1.0]]


def test_a_program_is_settled_without_a_classifier():
    program, _ = lrpfunc.functionalize(Net(3, nn.Softmax(1)).eval(), IMAGES)
    settled = settle(program, Meaning(), torch.rand(3, 3), "the net")
    assert len(settled.program.equations) < len(program.equations)
    assert settled.notes == (
        "the net ends in softmax: the logit in front of it is explained; --as-is explains what comes out.",
    )
