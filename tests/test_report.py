"""Reports without a browser: what the page holds is what the files hold, and nothing in them can break out of it."""

import base64
import hashlib
import io
import json
import os
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from lrpfunc.errors import FileError, InputError
from lrpfunc.pictures import hdf5
from lrpfunc.pictures.report import page as report_page
from lrpfunc.pictures.report import rows as report_rows

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;'\"{{ 7 * 7 }}"
FIELDS = ("target", "logit", "sum", "probability", "truth", "top", "numbers", "largest", "result")
VOID = {"meta", "link", "input", "img"}


def write_run(path, attribution, *, details=None, categories=(), failures=(), **columns):
    """A file of a run; the columns that are not given follow from those that are."""
    attribution = np.asarray(attribution, dtype=np.float32)
    n = len(attribution)
    prediction = np.asarray(columns.pop("prediction", np.eye(3)[np.arange(n) % 3]), dtype=np.float32)
    target = np.asarray(columns.pop("target", prediction.argmax(1) if n else []), dtype=int)
    columns = {
        "attribution": attribution,
        "prediction": prediction,
        "label": prediction.argmax(1) if n else [],
        "index": np.arange(n),
        "target": target,
        "logit": prediction[np.arange(n), np.minimum(target, prediction.shape[1] - 1)],  # of one logit, for
        "relevance_sum": attribution.sum(axis=(1, 2, 3)),
        "data": np.zeros(attribution.shape, dtype=np.uint8),
        "file": [f"{i}.png" for i in range(n)],
        **columns,
    }
    columns["file"] = [name if isinstance(name, bytes) else name.encode() for name in columns["file"]]
    longest = max((len(name) for name in columns["file"]), default=1)
    schema = hdf5.Schema(n, attribution.shape[1:], prediction.shape[1], longest)
    rows = [(0, {name: np.asarray(entries) for name, entries in columns.items()})] if n else []
    details = {"model": "net"} if details is None else details
    hdf5.write(path, schema, details, list(categories), [hdf5.Failure(*failure) for failure in failures], rows)
    return path


def relevance(n=4, channels=3, height=6, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, channels, height, width)).astype(np.float32)


class Page(HTMLParser):
    """A page as the standard library reads it: elements with attributes, texts, and the scripts' texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.styles, self.texts, self._open = [], [], [], [], []
        self.feed(text)
        self.rows = [row_of(row) for block in self.json("class", "rows") for row in block]
        self.pictures = [text.split(" ") for attrs, text in self.scripts if attrs.get("class") == "picture"]
        self.images = [decoded_image(image) for image, *_ in self.pictures]
        self.levels = [decoded_levels(packed) for *_, packed in self.pictures]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            attrs, text = self.scripts.pop()
            self.scripts.append((attrs, text + data))
        elif inside == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    def json(self, attribute, value):
        return [json.loads(text) for attrs, text in self.scripts if attrs.get(attribute) == value]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def facts(self):
        (facts,) = self.json("id", "page")
        return facts

    @property
    def means(self):
        """Of each class: its number, and of each side (side, count, largest, levels)."""
        (means,) = self.json("id", "mean-maps")
        return [
            (target, [(*each, decoded_levels(packed).tolist()) for *each, packed in found]) for target, found in means
        ]

    def maps(self):
        """The relevance that the page shows."""
        shape = self.facts["height"], self.facts["width"]
        return [
            (levels.reshape(shape) - 128.0) / 127 * row["largest"]
            for levels, row in zip(self.levels, self.rows, strict=True)
        ]


def row_of(values):
    """A row by names; what the other run of a comparison says of it is under "other"."""
    index, file, label, explanation, *other = values
    row = {"index": index, "file": file, "label": label, **dict(zip(FIELDS, explanation, strict=True))}
    if other:
        row["other"] = dict(zip(FIELDS, other[0], strict=True))
        row["correlation"], row["cosine"] = other[1:]
    return row


def decoded_image(url):
    head, data = url.split(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert image.format.lower() in head
        return np.asarray(image)


def decoded_levels(packed):
    return np.frombuffer(zlib.decompress(base64.b64decode(packed, validate=True)), dtype=np.uint8)


def report(tmp_path, *paths, **options):
    summary = report_page.write(paths, tmp_path / "report.html", **options)
    return Page(summary.path.read_text(encoding="utf-8"))


def test_every_row_is_there_with_its_numbers(tmp_path):
    generator = np.random.default_rng(1)
    prediction, target = generator.normal(size=(4, 7)).astype(np.float32) * 3, [6, 0, 2, 2]
    path = write_run(
        tmp_path / "run.h5",
        relevance(),
        prediction=prediction,
        target=target,
        label=[6, -1, 2, 1],
        index=[10, 11, 17, 12],
        logit=[1.5, -2.25, 1e-9, 123456.7],
        file=["a/ä.png", "b.png", b"\xff.png", "c.png"],
    )
    page = report(tmp_path, path)
    probabilities = torch.softmax(torch.tensor(prediction, dtype=torch.float64), dim=1)
    best = probabilities.topk(5)
    assert [row["index"] for row in page.rows] == [10, 11, 17, 12]
    assert [row["file"] for row in page.rows] == ["a/ä.png", "b.png", "\ufffd.png", "c.png"]
    assert [row["label"] for row in page.rows] == [6, -1, 2, 1]
    assert [row["target"] for row in page.rows] == target
    assert [row["top"] for row in page.rows] == best.indices.tolist()
    expected = {
        "logit": [1.5, -2.25, 1e-9, 123456.7],
        "sum": relevance().sum(axis=(1, 2, 3)),
        "probability": probabilities[torch.arange(4), torch.tensor(target)],
        "numbers": best.values,
    }
    for name, values in expected.items():
        np.testing.assert_allclose([row[name] for row in page.rows], values, rtol=1e-6, atol=0)


def test_small_relevance_is_kept_to_half_a_step_with_zero_exact(tmp_path):
    attribution = relevance(height=5, width=9)
    attribution[:, :, 2] = 0
    page = report(tmp_path, write_run(tmp_path / "run.h5", attribution))
    for shown, given in zip(page.maps(), attribution.sum(axis=1), strict=True):
        largest = np.abs(given).max()
        np.testing.assert_allclose(shown, given, rtol=0, atol=largest / 254 * (1 + 1e-5))
        assert np.abs(shown).max() == pytest.approx(largest, rel=1e-6)
        assert (shown[2] == 0).all()


@pytest.mark.parametrize(
    ("height", "width", "fitted"), [(20, 24, (13, 16)), (48, 7, (16, 2)), (17, 17, (16, 16)), (16, 5, (16, 5))]
)
def test_large_relevance_is_averaged_by_area(tmp_path, height, width, fitted):
    attribution = relevance(height=height, width=width)
    page = report(tmp_path, write_run(tmp_path / "run.h5", attribution), size=16)
    assert (page.facts["height"], page.facts["width"]) == fitted
    for shown, given in zip(page.maps(), attribution.sum(axis=1, dtype=float), strict=True):
        # Every pixel in as many parts as make both sizes whole: then a mean over blocks is the average by area.
        fine = given.repeat(fitted[0], axis=0).repeat(fitted[1], axis=1)
        expected = fine.reshape(fitted[0], height, fitted[1], width).mean(axis=(1, 3))
        np.testing.assert_allclose(shown, expected, rtol=0, atol=np.abs(expected).max() / 254 * (1 + 1e-5))


def test_the_steps_of_relevance_by_hand(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run.h5", [[[[-4.0, 0.0, 1.0, 4.0]]]]))
    assert page.levels[0].tolist() == [1, 128, 160, 255]  # 127 / 4 = 31.75 is 32 steps above 128
    assert page.rows[0]["largest"] == 4


def test_relevance_of_zero_is_zero(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run.h5", np.zeros((1, 1, 2, 2))))
    assert page.levels[0].tolist() == [128] * 4
    assert page.rows[0]["largest"] == 0
    assert page.means == [(0, [(0, 1, 0, [128] * 4)])]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_small_inputs_are_kept_exactly(tmp_path, channels):
    data = np.random.default_rng(2).integers(0, 256, size=(2, channels, 4, 5), dtype=np.uint8)
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance(2, channels, 4, 5), data=data))
    for shown, given in zip(page.images, data, strict=True):
        if channels in (3, 4):
            assert shown.tolist() == given[:3].transpose(1, 2, 0).tolist()
        else:
            assert shown.tolist() == np.rint(given.mean(axis=0)).tolist()


def test_large_inputs_become_small_jpegs(tmp_path):
    down, across = np.mgrid[0:1:90j, 0:1:120j]
    data = (255 * np.stack([down, across, down * across]))[None].astype(np.uint8)
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance(1, 3, 90, 120), data=data), size=100)
    assert page.images[0].shape == (75, 100, 3)
    with Image.fromarray(data[0].transpose(1, 2, 0)) as image:
        expected = np.asarray(image.resize((100, 75), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(page.images[0] - expected).max() < 16
    assert np.abs(page.images[0] - expected).mean() < 2


def test_means_of_classes_by_hand(tmp_path):
    attribution = np.zeros((4, 2, 1, 3))
    attribution[0, 0] = [2, -4, 0]  # divided by its largest magnitude: 0.5, -1, 0
    attribution[1, :, 0] = [[1, 0, 1], [1, 0, 3]]  # channels sum to 2, 0, 4: 0.5, 0, 1
    attribution[2, 1] = [100, 50, 0]  # of another class: 1, 0.5, 0
    attribution[3, 0] = [np.nan, 1, 1]  # no part of any mean
    path = write_run(tmp_path / "run.h5", attribution, target=[2, 2, 0, 0])
    assert report(tmp_path, path).means == [
        (0, [(0, 1, 1, [255, 192, 128])]),
        (2, [(0, 2, 0.5, [255, 1, 255])]),  # 0.5, -0.5, 0.5
    ]


def test_what_is_not_finite_has_no_number(tmp_path):
    attribution = relevance(2)
    attribution[0, 0, 0, 0] = np.inf
    path = write_run(tmp_path / "run.h5", attribution, prediction=[[np.nan, 1], [2, 1]], target=[0, 0], label=[1, 0])
    row, other = report(tmp_path, path).rows
    assert (row["logit"], row["sum"], row["largest"], row["probability"]) == (None, None, None, None)
    assert row["top"] == [1, 0]  # a class with no logit is not the prediction
    assert other["largest"] > 0


def test_several_files_make_one_page(tmp_path):
    both = relevance(5)
    one = write_run(tmp_path / "1.h5", both[:2], index=[0, 2], details={"model": "net", "shard": "1/2"})
    two = write_run(tmp_path / "2.h5", both[2:], index=[1, 3, 4], details={"model": "net", "shard": "2/2"})
    page = report(tmp_path, one, two)
    assert [row["index"] for row in page.rows] == [0, 2, 1, 3, 4]
    for shown, given in zip(page.maps(), both.sum(axis=1), strict=True):
        np.testing.assert_allclose(shown, given, rtol=0, atol=np.abs(given).max() / 250)
    assert "model net" in page.text
    assert "shard 1/2 2/2" in page.text
    assert "5 samples. 100.0% recognized: 5 of 5" in page.text


def test_rows_read_one_by_one_give_the_same_page(tmp_path, monkeypatch):
    path, calls = write_run(tmp_path / "run.h5", relevance(5), target=[0, 1, 1, 2, 0]), []
    whole = report(tmp_path, path)
    monkeypatch.setattr(report_rows, "BLOCK_BYTES", 1)
    page = report(tmp_path, path, overwrite=True, progress=lambda done, of: calls.append((done, of)))
    assert (page.rows, page.means) == (whole.rows, whole.means)
    assert [each.tolist() for each in page.levels] == [each.tolist() for each in whole.levels]
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_sample_with_several_targets_counts_once(tmp_path):
    path = write_run(
        tmp_path / "run.h5",
        relevance(5),
        index=[0, 0, 1, 1, 2],
        target=[0, 1, 0, 1, 0],
        prediction=[[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]],
        label=[0, 0, 1, 1, -1],
    )
    summary = report_page.write([path], tmp_path / "report.html")
    assert summary == (tmp_path / "report.html", 3, (tmp_path / "report.html").stat().st_size, "")
    page = Page(summary.path.read_text())
    assert "3 samples, 5 explanations. 50.0% recognized: 1 of 2 whose class is known." in page.text


def test_without_labels_nothing_is_said_of_accuracy(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance(1), label=[-1]))
    assert "1 sample. The true classes are not known." in page.text


def test_title_details_and_errors_are_shown(tmp_path):
    path = write_run(
        tmp_path / "run.h5",
        relevance(),
        details={"model": "net", "composite": {"name": "epsilon", "entries": []}, "canonized": True, "weights": None},
        failures=[(4, "broken.jpg", "it is cut off"), (7, "empty.jpg", "it is empty")],
    )
    page = report(tmp_path, path, title="My run")
    assert "My run My run 4 samples." in page.text  # the title of the window and the heading
    assert "model net composite name epsilon entries none canonized yes weights none" in page.text
    assert "2 samples could not be explained broken.jpg (number 4): it is cut off" in page.text
    assert "empty.jpg (number 7): it is empty" in page.text


def test_no_errors_no_list_of_them(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance()))
    assert "could not be explained" not in page.text
    assert "Which pixels decide? LRP on net" in page.text


def test_hostile_names_are_text(tmp_path):
    calm = report(
        tmp_path, write_run(tmp_path / "calm.h5", relevance(), failures=[(1, "a", "b")], categories=["a"] * 3)
    )
    path = write_run(
        tmp_path / "run.h5",
        relevance(),
        details={"model": HOSTILE},
        categories=[HOSTILE, "<!--<script>", "]]>"],
        file=[HOSTILE, "<!--<script>", "</template>", "a"],
        failures=[(4, HOSTILE, HOSTILE)],
    )
    page = report(tmp_path, path, overwrite=True)
    # As many and the same elements as with tame names, so nothing was taken for markup.
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in calm.elements]
    assert [attrs for _, attrs in page.elements] == [attrs for _, attrs in calm.elements]
    assert page.rows[0]["file"] == page.facts["names"][0] == HOSTILE
    assert page.rows[1]["file"] == "<!--<script>"
    assert page.text.count(HOSTILE) == 5  # window, heading, details, file and reason of the error


def test_names_that_are_no_text_do_not_stop_the_page(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance(), details={"model": "net-\udcff"}))
    assert "Which pixels decide? LRP on net-?" in page.text


def test_the_page_asks_nothing_of_any_network(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance()))
    everything = (tmp_path / "report.html").read_text()
    assert "http:" not in everything
    assert "https:" not in everything
    links = [value for _, attrs in page.elements for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert links == ["data:,"]
    (style,), code = page.styles, page.scripts[-1][1]
    assert "url(" not in style
    assert "@import" not in style
    assert not any(word in code for word in ("fetch(", "XMLHttpRequest", "import ", "innerHTML", "eval("))
    (policy,) = (attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    for kind, text in (("script", code), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy


def test_the_colours_have_zero_in_the_middle(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run.h5", relevance()))
    tables = {
        name: np.frombuffer(base64.b64decode(table), np.uint8).reshape(-1, 3).tolist()
        for name, _, table in page.facts["colors"]
    }
    assert {len(table) for table in tables.values()} == {255}
    step = np.arange(255)
    up, down = np.clip(step * 255 / 127, 0, 255), np.clip((254 - step) * 255 / 127, 0, 255)
    # bwr from its definition: blue to white, white to red, both on straight lines.
    np.testing.assert_allclose(tables["bwr"], np.stack([up, np.minimum(up, down), down], axis=1), atol=1)
    np.testing.assert_allclose(tables["gray"], np.stack([step * 255 / 254] * 3, axis=1), atol=1)
    ends = {name: [tuple(table[0]), tuple(table[127]), tuple(table[254])] for name, table in tables.items()}
    assert ends["seismic"] == [(0, 0, 76), (255, 255, 255), (127, 0, 0)]
    assert ends["coldnhot"] == [(0, 255, 255), (0, 0, 0), (255, 255, 255)]
    assert (ends["viridis"][0], ends["viridis"][2]) == ((68, 1, 84), (253, 231, 36))
    diverging = {name for name, middle_is_zero, _ in page.facts["colors"] if middle_is_zero}
    assert diverging == {"seismic", "bwr", "coldnhot"}


def test_a_run_without_rows_gives_a_page_that_says_so(tmp_path):
    path = write_run(tmp_path / "run.h5", np.zeros((0, 3, 4, 4)), failures=[(0, "a.png", "it is cut off")])
    summary = report_page.write([path], tmp_path / "report.html")
    page = Page(summary.path.read_text())
    assert summary.samples == 0
    assert "There is nothing to show: this run holds no explanations." in page.text
    assert "a.png (number 0): it is cut off" in page.text
    assert page.scripts == []


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path, out = write_run(tmp_path / "run.h5", relevance()), tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(FileError, match=r"report\.html exists: choose another --out, or give --overwrite\."):
        report_page.write([path], out)
    assert out.read_text() == "mine"
    assert report_page.write([path], out, overwrite=True).bytes == out.stat().st_size > 10_000


def test_what_fails_on_the_way_leaves_the_old_page_and_nothing_else(tmp_path):
    path, out = write_run(tmp_path / "run.h5", relevance()), tmp_path / "report.html"
    out.write_text("mine")

    def stop(done, of):
        assert out.read_text() == "mine"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report_page.write([path], out, overwrite=True, progress=stop)
    assert out.read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report.html", "run.h5"]


def test_the_page_may_not_replace_its_own_source(tmp_path):
    path = write_run(tmp_path / "run.h5", relevance())
    with pytest.raises(FileError, match=r"run\.h5 is one of the files to read: choose another --out\."):
        report_page.write([path], tmp_path / "." / "run.h5", overwrite=True)


def test_impossible_places_are_refused(tmp_path):
    path = write_run(tmp_path / "run.h5", relevance())
    with pytest.raises(FileError, match=r"cannot write .*: there is no folder .*/missing\."):
        report_page.write([path], tmp_path / "missing" / "report.html")
    with pytest.raises(FileError, match=r"is a folder: name a file in it, such as --out .*report\.html\."):
        report_page.write([path], tmp_path)


@pytest.mark.parametrize("size", [0, 7, 1025])
def test_impossible_sizes_are_refused(tmp_path, size):
    path = write_run(tmp_path / "run.h5", relevance())
    with pytest.raises(InputError, match=f"need a size from 8 to 1024 pixels, but it is {size}."):
        report_page.write([path], tmp_path / "report.html", size=size)


def test_no_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="needs one file of `lrpfunc dataset` at least, but got none"):
        report_page.write([], tmp_path / "report.html")


def test_shards_with_samples_in_common_are_refused(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / f"{name}.h5", relevance())
    with pytest.raises(FileError, match=r"shards that share no sample, but \d+ of these are in two or more files"):
        report_page.write([tmp_path / "one.h5", tmp_path / "two.h5"], tmp_path / "report.html")


def test_an_unfinished_run_and_an_odd_place_are_refused(tmp_path):
    path = write_run(tmp_path / "run.h5.part", relevance())
    with pytest.raises(FileError, match=r"part is of an unfinished run: finish it by the same command with --resume"):
        report_page.write([path], tmp_path / "report.html")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is no regular file: choose another --out"):
        report_page.write([write_run(tmp_path / "run.h5", relevance())], tmp_path / "pipe", overwrite=True)


def test_a_file_given_twice_is_refused(tmp_path):
    path = write_run(tmp_path / "run.h5", relevance())
    with pytest.raises(InputError, match="needs each file once"):
        report_page.write([path, tmp_path / "." / "run.h5"], tmp_path / "report.html")


def test_a_missing_file_is_an_error_and_leaves_no_page(tmp_path):
    with pytest.raises(FileError, match=r"there is no file .*run\.h5"):
        report_page.write([tmp_path / "run.h5"], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"attribution": relevance(height=5)}, "image size"),
        ({"prediction": np.eye(4)}, "number of classes"),
        ({"categories": ["a", "b", "c"]}, "class names"),
        ({"details": {"model": "net", "composite": "gamma"}}, "composite"),
        ({"details": {"model": "another", "names": "b"}}, "model, names"),
    ],
)
def test_files_of_different_runs_are_refused(tmp_path, other, what):
    one = write_run(tmp_path / "1.h5", relevance())
    two = write_run(tmp_path / "2.h5", **{"attribution": relevance(), **other})
    with pytest.raises(FileError, match=rf"needs files of one run, but .*1\.h5 and .*2\.h5 differ in {what}\."):
        report(tmp_path, one, two)
