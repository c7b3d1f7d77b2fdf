"""What a report makes of outputs that are no plain classes, of what made them, and of names meant to mislead."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lrpfunc.errors import FileError
from lrpfunc.pictures import runs
from lrpfunc.pictures.classifiers import Classifier, Standard
from lrpfunc.pictures.explainers import COMPOSITES, GRADIENTS
from lrpfunc.pictures.outputs import BINARY, CLASSES, LABELS, VALUES, Meaning
from lrpfunc.pictures.report.wording import IN_WORDS, in_words, shown, visible
from tests.test_report import relevance, report, write_run


def meant(tmp_path, meaning, prediction, **columns):
    """A report of a run whose outputs mean something."""
    prediction = np.asarray(prediction, dtype=np.float32)
    details = {"model": "net", "composite": "epsilon", "output": meaning}
    path = write_run(tmp_path / "run.h5", relevance(len(prediction)), prediction=prediction, details=details, **columns)
    return report(tmp_path, path)


def column(page, name):
    return [row[name] for row in page.rows]


# -- one logit --------------------------------------------------------------------------------------------------------


def test_one_logit_has_two_classes_and_a_sigmoid(tmp_path):
    page = meant(
        tmp_path,
        Meaning(BINARY).as_json(),
        [[-1.92], [0.5], [2.0], [0.0]],
        label=[1, 1, 0, -1],
        target=[1, 1, 0, 1],
        logit=[-1.92, 0.5, -2.0, 0.0],
    )
    likely = 1 / (1 + np.exp([1.92, -0.5, -2.0, 0.0]))
    np.testing.assert_allclose(column(page, "probability"), [likely[0], likely[1], 1 - likely[2], 0.5], rtol=1e-6)
    assert column(page, "probability")[0] == pytest.approx(0.1279, abs=1e-4)
    assert column(page, "top") == [[0, 1], [1, 0], [1, 0], [0, 1]]
    np.testing.assert_allclose([sum(row["numbers"]) for row in page.rows], 1, rtol=1e-6)
    assert column(page, "result") == ["wrong", "right", "wrong", "unknown"]
    assert page.facts["names"] == ["not 1", "1"]
    assert page.facts["words"] == ["logit"]
    assert "33.3% recognized: 1 of 3 whose class is known." in page.text


def test_both_sides_of_a_logit_have_their_names(tmp_path):
    columns = {"prediction": [[1.0]], "target": [1], "label": [0], "categories": ["healthy", "ill"]}
    page = meant(tmp_path, Meaning(BINARY).as_json(), **columns)
    assert page.facts["names"] == ["healthy", "ill"]
    assert page.rows[0]["truth"] == pytest.approx(1 / (1 + np.e))
    assert page.rows[0]["result"] == "wrong"


def test_one_probability_needs_no_sigmoid(tmp_path):
    meaning = Meaning(BINARY, are_probabilities=True).as_json()
    page = meant(tmp_path, meaning, [[0.25], [0.75]], target=[1, 1], label=[0, 0])
    assert column(page, "probability") == [0.25, 0.75]
    assert column(page, "numbers") == [[0.75, 0.25], [0.75, 0.25]]
    assert column(page, "result") == ["right", "wrong"]
    assert page.facts["words"] == ["probability"]


def test_a_binary_model_from_its_pictures_to_the_page(tmp_path):
    for i in range(4):
        (tmp_path / "scans" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scans" / str(i % 2) / f"{i}.png")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval()
    classifier = Classifier("mine", model, Standard(8), meaning=Meaning())
    runs.run(tmp_path / "scans", tmp_path / "run.h5", classifier, composite="epsilon")
    page = report(tmp_path, tmp_path / "run.h5")
    names = column(page, "file")
    assert names == ["0/0.png", "0/2.png", "1/1.png", "1/3.png"]
    for row in page.rows:
        with Image.open(tmp_path / "scans" / row["file"]) as image, torch.no_grad():
            logit = float(model(classifier.preprocess(image)[None]))
        assert row["logit"] == pytest.approx(logit, rel=1e-5)
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
        assert row["result"] == ("right" if (logit > 0) == (row["label"] == 1) else "wrong")
    assert "Which pixels decide? epsilon on mine" in page.text


# -- labels, values, probabilities ------------------------------------------------------------------------------------


def test_labels_hold_or_not_each_for_itself(tmp_path):
    prediction = [[3, 1, -2], [-1, -2, -3], [0, 4, -1], [-1, 2, 5]]
    page = meant(tmp_path, Meaning(LABELS).as_json(), prediction, label=[1, 0, 0, -1], target=[0, 0, 1, 2])
    likely = 1 / (1 + np.exp(-np.array(prediction, dtype=float)))
    assert column(page, "result") == ["right", "wrong", "right", "unknown"]  # of 0 the probability is a half
    np.testing.assert_allclose(column(page, "numbers"), -np.sort(-likely, axis=1), rtol=1e-6)
    np.testing.assert_allclose(column(page, "probability"), likely[range(4), [0, 0, 1, 2]], rtol=1e-6)
    np.testing.assert_allclose(column(page, "truth")[:3], likely[range(3), [1, 0, 0]], rtol=1e-6)
    assert column(page, "truth")[3] is None
    assert page.facts["kind"] == "labels"
    assert "66.7% recognized: 2 of 3 whose label is known. Several labels may hold of a sample" in page.text


def test_all_labels_that_hold_are_kept_also_beyond_the_top(tmp_path):
    page = meant(tmp_path, Meaning(LABELS).as_json(), [[1, 2, 3, 4, 5, 6, 7, -1], [-1] * 8], target=[0, 0])
    assert column(page, "top") == [[6, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4]]


def test_values_have_no_probability_and_are_neither_right_nor_wrong(tmp_path):
    meaning = Meaning(VALUES, unit="years").as_json()
    page = meant(tmp_path, meaning, [[3.25], [-7]], target=[0, 0], label=[0, -1], categories=["age"])
    assert column(page, "logit") == [3.25, -7]
    for name in ("probability", "truth", "result"):
        assert column(page, name) == [None, None]
    assert column(page, "numbers") == [[3.25], [-7]]
    assert (page.facts["words"], page.facts["unit"], page.facts["names"]) == (["value in years"], "years", ["age"])
    assert "2 samples. Explained: age in years." in page.text
    assert "recognized" not in page.text
    ids = {attrs.get("id") for _, attrs in page.elements}
    assert not ids & {"label", "predicted", "result"}
    assert "confidence" not in [attrs.get("value") for tag, attrs in page.elements if tag == "option"]


def test_values_stand_in_their_order_not_by_their_size(tmp_path):
    page = meant(tmp_path, Meaning(VALUES).as_json(), [np.arange(30)[::-1]], target=[29])
    assert page.rows[0]["top"] == list(range(20))
    assert page.rows[0]["numbers"] == list(range(29, 9, -1))
    assert page.rows[0]["logit"] == 0


def test_probabilities_are_not_made_anew(tmp_path):
    meaning = Meaning(CLASSES, are_probabilities=True).as_json()
    page = meant(tmp_path, meaning, [[0.25, 0.7, 0.05]], target=[0], label=[1])
    assert page.rows[0]["probability"] == 0.25
    np.testing.assert_allclose(page.rows[0]["numbers"], [0.7, 0.25, 0.05], rtol=1e-6)
    assert page.facts["words"] == ["probability"]
    assert "its sum is the explained probability" in page.text


def test_of_one_class_without_a_meaning_nothing_is_said_but_its_number(tmp_path):
    path = write_run(tmp_path / "run.h5", relevance(1), prediction=[[-1.92]], label=[0])
    page = report(tmp_path, path)
    assert (page.rows[0]["probability"], page.rows[0]["result"]) == (None, None)
    assert page.facts["names"] == ["value"]
    assert "%" not in page.text


@pytest.mark.parametrize(
    "output", [5, None, [], "classes", {"kind": "x"}, {"kind": [1]}, {"kind": "values", "unit": 3}, {}, {"a": 1}]
)
def test_a_meaning_that_nobody_knows_is_one_line(tmp_path, output):
    path = write_run(tmp_path / "run.h5", relevance(), details={"model": "net", "output": output})
    with pytest.raises(FileError) as caught:
        report(tmp_path, path)
    assert "not one that `lrpfunc dataset` wrote" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_one_logit_that_is_three_is_refused(tmp_path):
    path = write_run(tmp_path / "run.h5", relevance(), details={"output": Meaning(BINARY).as_json()})
    with pytest.raises(FileError, match=r"not one that `lrpfunc dataset` wrote: .* one logit .* 3\.$"):
        report(tmp_path, path)


# -- words ------------------------------------------------------------------------------------------------------------


def test_every_composite_has_words_and_gradients_a_warning():
    assert set(IN_WORDS) == set(COMPOSITES)
    for name in COMPOSITES:
        assert ("Sums need not be the probability" in in_words(name, "probability")) == (name in GRADIENTS)
    assert in_words("mine", "logit") == in_words({"name": 1}, "logit") == ""


def test_the_headline_names_composite_model_and_weights(tmp_path):
    details = {"model": "resnet50", "weights": "IMAGENET1K_V2", "composite": "epsilon_plus_flat"}
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance(), details=details))
    assert "Which pixels decide? epsilon_plus_flat on resnet50 (weights IMAGENET1K_V2)" in page.text
    assert IN_WORDS["epsilon_plus_flat"] in page.text
    mine = report(tmp_path, tmp_path / "run.h5", title="Mine", overwrite=True)
    assert "Which pixels" not in mine.text
    assert mine.text.startswith("Mine Mine")


def test_names_cannot_turn_round_or_hide_what_stands_beside_them(tmp_path):
    turned, hidden = "photo\u202egnp.exe", "c\u200bat\n\x07\u2066"
    details = {"model": turned, "composite": f"c{turned}"}
    path = write_run(
        tmp_path / "run.h5",
        relevance(2),
        details=details,
        categories=[turned, hidden, "ok"],
        file=[turned, hidden],
        failures=[(3, turned, hidden)],
    )
    page = report(tmp_path, path, title=f"T{turned}")
    text = (tmp_path / "report.html").read_text()
    assert not any(letter in text for letter in "\u202e\u200b\u2066\x07")
    assert page.rows[0]["file"] == page.facts["names"][0] == r"photo\u202egnp.exe"
    assert page.rows[1]["file"] == page.facts["names"][1] == r"c\u200bat\n\x07\u2066"
    assert r"composite cphoto\u202egnp.exe" in page.text
    assert r"Tphoto\u202egnp.exe" in page.text
    assert r"photo\u202egnp.exe (number 3): c\u200bat\n\x07\u2066" in page.text


def test_letters_that_scripts_need_stay():
    # Joiners, and a variation selector.
    text = "\u0915\u094d\u200d\u0937 \u0646\u200c\u0627 \U0001f469\u200d\u2695\ufe0f e\u0301"
    assert visible(text) == text


def test_details_are_neither_deep_nor_endless():
    deep = {
        "a": [[[[[[1]]]]]],
        "text": "x" * 5000,
        "lines": "one\n  two",
        "none": None,
        "empty": {},
        "nan": float("nan"),
    }
    found = shown(deep)
    assert found["a"] == [[["…"]]]
    assert found["text"] == "x" * 2000 + "…"
    assert found["lines"] == "one two"
    assert (found["none"], found["empty"]) == (None, {})
