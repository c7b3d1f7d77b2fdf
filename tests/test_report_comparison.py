"""Two runs side by side: which explanations belong together, how alike their maps are, what one run has alone."""

import numpy as np
import pytest

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures.outputs import BINARY, VALUES, Meaning
from lrpfunc.pictures.report import page as report_page
from lrpfunc.pictures.report import rows as report_rows
from lrpfunc.pictures.report.comparison import alikeness
from tests.test_report import decoded_image, decoded_levels, relevance, report, write_run

ONE, OTHER = {"model": "net", "composite": "epsilon"}, {"model": "net", "composite": "epsilon_plus"}


def compared(tmp_path, *paths, **options):
    """A report of the first files beside the last."""
    *paths, last = paths
    beside = last if isinstance(last, list) else [last]
    return report(tmp_path, *paths, beside=beside, **options)


def test_each_sample_has_both_explanations(tmp_path):
    maps, others = relevance(4), relevance(4, seed=1)
    logits = np.random.default_rng(3).normal(size=(2, 4, 3)).astype(np.float32)
    label = [0, 1, 2, -1]
    one = write_run(tmp_path / "1.h5", maps, details=ONE, prediction=logits[0], label=label)
    other = write_run(tmp_path / "2.h5", others, details=OTHER, prediction=logits[1], label=label)
    page = compared(tmp_path, one, other)
    likely = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    for i, row in enumerate(page.rows):
        sums = [each[i].sum(axis=0, dtype=float).ravel() for each in (maps, others)]
        assert row["correlation"] == pytest.approx(np.corrcoef(sums)[0, 1], rel=1e-5)
        assert row["cosine"] == pytest.approx(
            sums[0] @ sums[1] / np.linalg.norm(sums[0]) / np.linalg.norm(sums[1]), rel=1e-5
        )
        for side, explanation in enumerate((row, row["other"])):
            best = logits[side, i].argmax()
            assert explanation["target"] == explanation["top"][0] == best
            assert explanation["logit"] == pytest.approx(logits[side, i, best])
            assert explanation["numbers"][0] == pytest.approx(likely[side, i, best], rel=1e-5)
            known = {-1: "unknown", best: "right"}
            assert explanation["result"] == known.get(label[i], "wrong")
            assert explanation["largest"] == pytest.approx(np.abs(sums[side]).max(), rel=1e-6)
            shown = (decoded_levels(page.pictures[i][2 + side]) - 128.0) / 127 * explanation["largest"]
            np.testing.assert_allclose(shown, sums[side], rtol=0, atol=explanation["largest"] / 250)
        assert decoded_image(page.pictures[i][0]).shape == (6, 8, 3)
        assert page.pictures[i][1] == "-"  # the same input
    assert "Which pixels decide? epsilon beside epsilon_plus on net" in page.text
    assert "They differ in composite." in page.text
    right = [sum(row["result"] == "right" for row in rows) for rows in (page.rows, [row["other"] for row in page.rows])]
    assert f"A: {right[0] / 3:.1%} recognized: {right[0]} of 3 whose class is known. B: {right[1] / 3:.1%}" in page.text


def test_samples_are_matched_by_their_names_whatever_their_order(tmp_path):
    maps = relevance(5)
    names = [f"{letter}.png" for letter in "abcde"]
    one = write_run(tmp_path / "1.h5", maps, details=ONE, file=names)
    order = [3, 0, 4, 2]
    parts = [
        write_run(tmp_path / f"2-{k}.h5", maps[rows], details=OTHER, file=[names[i] for i in rows], index=index)
        for k, (rows, index) in enumerate([(order[:2], [0, 2]), (order[2:], [1, 3])])
    ]
    page = compared(tmp_path, one, parts)
    assert [row["file"] for row in page.rows] == ["a.png", "c.png", "d.png", "e.png"]
    assert [row["correlation"] for row in page.rows] == pytest.approx([1] * 4)
    for i, row in enumerate(page.rows):
        assert row["largest"] == row["other"]["largest"]
        assert page.pictures[i][2] == page.pictures[i][3]
    assert "Only A has 1 sample: left out here." in page.text
    assert "Only B has" not in page.text
    assert "4 samples in both." in page.text


def test_what_one_run_has_alone_is_counted(tmp_path):
    one = write_run(
        tmp_path / "1.h5",
        relevance(6),
        details=ONE,
        file=["a", "a", "a", "b", "c", "c"],
        index=[0, 0, 0, 1, 2, 2],
        target=[0, 1, 2, 0, 0, 1],
    )
    other = write_run(
        tmp_path / "2.h5",
        relevance(5),
        details=OTHER,
        file=["a", "a", "b", "d", "e"],
        index=[0, 0, 1, 3, 4],
        target=[2, 1, 1, 0, 0],
    )
    page = compared(tmp_path, one, other)
    # Of a sample those of one class; of b, where there are none, the first with the first.
    found = [(row["file"], row["target"], row["other"]["target"]) for row in page.rows]
    assert found == [("a", 1, 1), ("a", 2, 2), ("b", 0, 1)]
    assert "2 samples in both, 3 pairs of explanations." in page.text
    assert "Only A has 1 sample and 1 more explanation of the samples that both have: left out here." in page.text
    assert "Only B has 2 samples: left out here." in page.text


def test_where_a_name_stands_for_several_samples_their_numbers_tell(tmp_path):
    maps = relevance(3)
    one = write_run(tmp_path / "1.h5", maps, details=ONE, file=["x", "x", "y"])
    other = write_run(tmp_path / "2.h5", maps[[1, 0, 2]], details=OTHER, file=["x", "x", "y"], index=[1, 0, 7])
    page = compared(tmp_path, one, other)
    assert [(row["index"], row["file"]) for row in page.rows] == [(0, "x"), (1, "x")]
    assert [row["correlation"] for row in page.rows] == pytest.approx([1, 1])
    assert "Only A has 1 sample: left out here." in page.text


def test_alikeness_by_hand():
    maps = np.array(
        [[[1.0, 2, 3]], [[1, 0, 0]], [[0, 0, 0]], [[0.1, 0.1, 0.1]], [[1e-300, -1e-300, 0]], [[1e300, 0, 0]]]
    )
    others = np.array([[[2.0, 4, 6]], [[0, 2, 0]], [[1, 2, 3]], [[1, 2, 3]], [[-1e-300, 1e-300, 0]], [[1e300, 0, 0]]])
    found = alikeness(maps, others)
    np.testing.assert_allclose(found.correlation, [1, -0.5, np.nan, np.nan, -1, 1], rtol=1e-12)
    np.testing.assert_allclose(found.cosine, [1, 0, np.nan, 6 / np.sqrt(42), -1, 1], rtol=1e-12)


def test_what_is_not_finite_has_no_alikeness_and_no_part_in_means(tmp_path):
    maps = relevance(2)
    maps[0, 0, 0, 0] = np.nan
    one = write_run(tmp_path / "1.h5", maps, details=ONE, target=[0, 0])
    other = write_run(tmp_path / "2.h5", relevance(2), details=OTHER, target=[0, 0])
    page = compared(tmp_path, one, other)
    assert (page.rows[0]["correlation"], page.rows[0]["cosine"], page.rows[0]["largest"]) == (None, None, None)
    assert page.rows[0]["other"]["largest"] > 0
    assert page.rows[1]["correlation"] == pytest.approx(1)
    ((_, found),) = page.means
    assert [(side, count) for side, count, *_ in found] == [(0, 1), (1, 2)]


def test_means_are_of_the_same_samples_those_of_the_first_runs_class(tmp_path):
    maps = np.zeros((2, 1, 1, 2))
    maps[0, 0] = [1, 0]
    maps[1, 0] = [0, 1]
    one = write_run(tmp_path / "1.h5", maps, details=ONE, target=[0, 1])
    other = write_run(tmp_path / "2.h5", -maps, details=OTHER, target=[1, 1])
    assert compared(tmp_path, one, other).means == [
        (0, [(0, 1, 1, [255, 128]), (1, 1, 1, [1, 128])]),
        (1, [(0, 1, 1, [128, 255]), (1, 1, 1, [128, 1])]),
    ]


def test_maps_of_another_size_are_brought_to_the_first_ones(tmp_path):
    maps = relevance(2, height=4, width=4)
    large = maps.repeat(2, axis=2).repeat(2, axis=3)
    data = np.random.default_rng(0).integers(0, 255, maps.shape, dtype=np.uint8)
    one = write_run(tmp_path / "1.h5", maps, details={**ONE, "preprocess": "small"}, data=data)
    other = write_run(
        tmp_path / "2.h5", large, details={**ONE, "preprocess": "large"}, data=255 - data.repeat(2, 2).repeat(2, 3)
    )
    for page in (compared(tmp_path, one, other), compared(tmp_path, other, one, size=8, overwrite=True)):
        assert [row["correlation"] for row in page.rows] == pytest.approx([1, 1])
        assert page.pictures[0][1].startswith("data:image/")  # another input
        assert page.pictures[0][2] == page.pictures[0][3]
    assert "They differ in preprocessing. Pictures are prepared differently, so that the maps need not lie" in page.text


def test_rows_read_one_by_one_give_the_same_comparison(tmp_path, monkeypatch):
    one = write_run(tmp_path / "1.h5", relevance(5), details=ONE)
    other = write_run(
        tmp_path / "2.h5", relevance(5, seed=1), details=OTHER, file=[f"{i}.png" for i in (4, 1, 3, 2, 0)]
    )
    whole, calls = compared(tmp_path, one, other), []
    monkeypatch.setattr(report_rows, "BLOCK_BYTES", 1)
    page = compared(tmp_path, one, other, overwrite=True, progress=lambda done, of: calls.append((done, of)))
    assert (page.rows, page.means, page.pictures) == (whole.rows, whole.means, whole.pictures)
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"weights": "new.pt"}, "epsilon on net beside epsilon on net (weights new.pt)"),
        ({"model": "next"}, "epsilon on net beside epsilon on next"),
        ({"targets": ["label"]}, "epsilon on net, targets top beside targets label"),
        ({}, "epsilon on net, twice"),
    ],
)
def test_the_headline_says_what_is_compared(tmp_path, other, said):
    one = write_run(tmp_path / "1.h5", relevance(), details={**ONE, "targets": ["top"]})
    two = write_run(tmp_path / "2.h5", relevance(), details={**ONE, "targets": ["top"], **other})
    page = compared(tmp_path, one, two)
    assert f"Which pixels decide? {said}" in page.text
    expected = f"They differ in {next(iter(other))}." if other else "They are the same in all that makes a map."
    assert expected in page.text


def test_values_are_compared_by_their_change(tmp_path):
    output = {"output": Meaning(VALUES, unit="years").as_json()}
    columns = {"prediction": [[1], [2]], "target": [0, 0]}
    one = write_run(tmp_path / "1.h5", relevance(2), details={**ONE, **output}, **columns)
    other = write_run(tmp_path / "2.h5", relevance(2), details={**OTHER, **output}, **columns)
    page = compared(tmp_path, one, other)
    options = [attrs.get("value") for tag, attrs in page.elements if tag == "option"]
    assert "change" in options
    assert not {"right-wrong", "same", "confidence"} & set(options)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"prediction": np.eye(4)}, r"how many classes there are \(3, 4\)"),
        ({"categories": ["a", "b", "d"]}, "the names of the classes"),
        (
            {"prediction": np.ones((4, 1)), "details": {"output": Meaning(BINARY).as_json()}, "categories": ["a", "b"]},
            r"what the outputs mean \(classes that exclude each other \(softmax\), one logit, .*\)",
        ),
    ],
)
def test_runs_whose_predictions_mean_something_else_are_refused(tmp_path, other, what):
    one = write_run(tmp_path / "1.h5", relevance(), categories=["a", "b", "c"])
    two = write_run(tmp_path / "2.h5", relevance(), **other)
    with pytest.raises(
        FileError, match=rf"1\.h5 and .*2\.h5 cannot be compared: they differ in {what}\. Write a report"
    ):
        compared(tmp_path, one, two)


def test_names_that_one_run_lacks_are_the_others(tmp_path):
    one = write_run(tmp_path / "1.h5", relevance())
    other = write_run(tmp_path / "2.h5", relevance(), categories=["a", "b", "c"])
    assert compared(tmp_path, one, other).facts["names"] == ["a", "b", "c"]


def test_runs_that_have_nothing_in_common_are_refused(tmp_path):
    one = write_run(tmp_path / "1.h5", relevance())
    other = write_run(tmp_path / "2.h5", relevance(), file=list("abcd"))
    with pytest.raises(FileError, match=r"1\.h5 and .*2\.h5 have no sample in common, by the names of the files: only"):
        compared(tmp_path, one, other)
    empty = write_run(tmp_path / "3.h5", np.zeros((0, 3, 6, 8)))
    with pytest.raises(FileError, match="have no sample in common"):
        compared(tmp_path, one, empty)
    assert not (tmp_path / "report.html").exists()


def test_a_run_beside_itself_is_refused(tmp_path):
    one = write_run(tmp_path / "1.h5", relevance())
    with pytest.raises(InputError, match="needs each file once"):
        compared(tmp_path, one, one)
    with pytest.raises(InputError, match="needs one file of `lrpfunc dataset` at least"):
        report_page.write([], tmp_path / "report.html", beside=[one])


def test_the_page_may_not_replace_the_run_beside(tmp_path):
    one, other = (write_run(tmp_path / f"{i}.h5", relevance()) for i in (1, 2))
    with pytest.raises(FileError, match=r"2\.h5 is one of the files to read: choose another --out\."):
        report_page.write([one], other, overwrite=True, beside=[other])


def test_shards_of_the_run_beside_must_be_of_one_run(tmp_path):
    one, *others = (write_run(tmp_path / f"{i}.h5", relevance(), details={"model": f"{i}"}) for i in range(3))
    with pytest.raises(FileError, match=r"needs files of one run, but .*1\.h5 and .*2\.h5 differ in model\."):
        compared(tmp_path, one, others)


def test_errors_and_details_of_both_runs_are_listed(tmp_path):
    one = write_run(tmp_path / "1.h5", relevance(), details=ONE, failures=[(9, "x.png", "it is cut off")])
    other = write_run(tmp_path / "2.h5", relevance(), details=OTHER, failures=[(8, "y.png", "it is empty")])
    page = compared(tmp_path, one, other)
    assert "A: 1 sample could not be explained x.png (number 9): it is cut off" in page.text
    assert "B: 1 sample could not be explained y.png (number 8): it is empty" in page.text
    assert "How A was made model net composite epsilon How B was made model net composite epsilon_plus" in page.text
