"""Pictures of single images: which files there are, what is in them, and what is said about each."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import lrpfunc
from lrpfunc import composites, digits, heatmaps
from lrpfunc.errors import FileError, InputError, TargetError
from lrpfunc.pictures import drawing, panels
from lrpfunc.pictures.classifiers import Classifier, Standard
from lrpfunc.pictures.outputs import BINARY, CLASSES, VALUES, Meaning

KINDS = ("heatmap", "overlay", "panel")


@pytest.fixture(scope="module")
def written(folder, classifier, tmp_path_factory):
    """Two digits under two classes each."""
    out = tmp_path_factory.mktemp("out") / "new" / "pictures"
    paths = [folder / "3" / "003.png", folder / "7" / "017.png"]
    return out, *panels.write(paths, out, classifier, targets=["top", "0"])[:2]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def colors(path):
    """The different colours of a picture, as numbers."""
    return set(np.unique(pixels(path).astype(int) @ (1 << 16, 1 << 8, 1)).tolist())


def enlarged(small, factor):
    return np.repeat(np.repeat(small, factor, 0), factor, 1)


def shown(folder, name):
    """A digit as the network takes it."""
    return 1 - torch.from_numpy(pixels(folder / name)[None, None, :, :, 0].copy()) / 255


def picture(out, one, kind):
    """The file of a picture."""
    (path,) = out.glob(f"{one.image.stem}.*.{one.composite}.{one.target}.{kind}.png")
    return path


def assert_files(out, names, maker="digits.epsilon_plus_flat"):
    """Three pictures of each `image.class`, and what made them in their names."""
    names = [f"{name.partition('.')[0]}.{maker}.{name.partition('.')[2]}" for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{n}.{kind}.png" for n in names for kind in KINDS)


# -- what is written --------------------------------------------------------------------------------------------------


def test_three_pictures_for_each_image_and_class(written):
    out, done, failed = written
    assert failed == []
    assert_files(out, ["003.3", "003.0", "017.7", "017.0"])
    assert [(s.image.name, s.target, s.label) for s in done] == [
        ("003.png", 3, "3"),
        ("003.png", 0, "0"),
        ("017.png", 7, "7"),
        ("017.png", 0, "0"),
    ]


def test_numbers_and_pixels_are_those_of_the_model(written, folder):
    out = written[0]
    shipped = digits.load()
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, shipped.images))
    for one in written[1]:
        x = shown(folder, f"{one.image.parent.name}/{one.image.name}")
        logits = shipped.model(x).detach()
        relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus_flat(), target=one.target)
        assert one.score == pytest.approx(logits[0, one.target].item(), rel=1e-4)
        assert one.probability == pytest.approx(logits.softmax(1)[0, one.target].item(), rel=1e-4)
        assert one.relevance_sum == pytest.approx(relevance.sum().item(), rel=1e-4)
        colored = heatmaps.colorize(relevance[0])
        difference = pixels(picture(out, one, "heatmap")).astype(int) - enlarged(colored, 28)  # 8 pixels become 224
        assert np.abs(difference).max() <= 2  # a step of the colour map, where rounding may differ
        seen = enlarged(pixels(one.image), 28)
        large = relevance[0].repeat_interleave(28, -1).repeat_interleave(28, -2)
        overlay = np.asarray(heatmaps.overlay(Image.fromarray(seen), large))
        assert np.abs(pixels(picture(out, one, "overlay")).astype(int) - overlay).max() <= 2


def test_panels_have_the_picture_and_the_heatmap_in_them(written):
    out, done, _ = written
    for one in done:
        panel = picture(out, one, "panel")
        assert pixels(panel).shape[1] > pixels(panel).shape[0] > 200
        for part in (one.image, picture(out, one, "heatmap"), picture(out, one, "overlay")):
            assert len(colors(part) & colors(panel)) > 0.9 * len(colors(part)), part


def test_large_pictures_are_not_enlarged_and_styles_are_heeded(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 5, stride=5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    own = Classifier("own", model, Standard(230, (0.0,) * 3, (1.0,) * 3), (0.0,) * 3, (1.0,) * 3)
    noise = np.random.default_rng(0).integers(0, 256, (230, 230, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    style = drawing.Style("coldnhot", 0.9)
    out = tmp_path / "out"
    (one,), *_ = panels.write([tmp_path / "noise.png"], out, own, ["epsilon"], canonize=False, style=style)
    x = torch.from_numpy(noise).movedim(-1, 0)[None] / 255
    relevance = lrpfunc.attribute(*lrpfunc.functionalize(model, x), x, composites.epsilon())
    expected = heatmaps.colorize(relevance[0], "coldnhot", quantile=0.9)
    got = pixels(picture(out, one, "heatmap"))
    assert got.shape == (230, 230, 3)
    assert (np.abs(got.astype(int) - expected).max(-1) <= 8).mean() > 0.999
    assert not np.array_equal(expected, heatmaps.colorize(relevance[0], "coldnhot"))
    overlay = np.asarray(heatmaps.overlay(Image.fromarray(noise), relevance[0], "coldnhot", quantile=0.9))
    assert (np.abs(pixels(picture(out, one, "overlay")).astype(int) - overlay).max(-1) <= 8).mean() > 0.999


@pytest.mark.parametrize(("side", "factor"), [(8, 28), (100, 3), (223, 2), (224, 1), (300, 1)])
def test_small_pictures_are_enlarged_by_a_whole_factor(side, factor):
    small = np.random.default_rng(0).integers(0, 256, (side - 1, side, 3), dtype=np.uint8)
    large = np.asarray(drawing.lookable(Image.fromarray(small)))
    np.testing.assert_array_equal(large, enlarged(small, factor))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_can_be_seen(channels):
    values = torch.rand(channels, 4, 5)
    seen = np.asarray(drawing.picture_of(values))
    expected = values if channels == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    np.testing.assert_array_equal(seen, (expected * 255).round().byte().movedim(0, -1))


# -- what made them ---------------------------------------------------------------------------------------------------


def test_every_picture_says_what_made_it(written):
    out, done, _ = written
    for path in out.iterdir():
        with Image.open(path) as image:
            facts = json.loads(image.text["lrpfunc"])
            assert image.text["Software"] == f"lrpfunc {lrpfunc.__version__}"
            assert image.text["Description"].endswith(
                f"digits (DEFAULT) · epsilon_plus_flat · lrpfunc {facts['lrpfunc']}"
            )
        (one,) = (d for d in done if d.image.name == facts["image"].split("/")[-1] and d.target == facts["target"])
        assert facts["probability"] == one.probability
        assert facts["score"] == one.score
        assert (facts["model"], facts["weights"], facts["composite"]) == ("digits", "DEFAULT", "epsilon_plus_flat")
        assert (facts["score_is"], facts["class"], facts["canonized"]) == ("logit", one.label, True)


@pytest.mark.parametrize("file_format", drawing.FORMATS)
def test_relevance_is_written_as_it_is(file_format, folder, classifier, tmp_path):
    path, shipped = folder / "3" / "003.png", digits.load()
    _, _, files, *_ = panels.write([path], tmp_path / "out", classifier, ["epsilon"], relevance=file_format)
    assert files[-1].name == f"003.digits.epsilon.3.relevance.{file_format}"
    loaded = np.load(files[-1])
    x = shown(folder, "3/003.png")
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, shipped.images))
    expected = lrpfunc.attribute(fmodel, params, x, composites.epsilon(), target=3)[0]
    relevance = loaded if file_format == "npy" else loaded["relevance"]
    assert (relevance.shape, relevance.dtype) == ((1, 8, 8), np.float32)
    np.testing.assert_allclose(relevance, expected, rtol=1e-4, atol=1e-6)
    if file_format == "npz":
        np.testing.assert_array_equal(loaded["input"], x[0])
        np.testing.assert_allclose(loaded["output"], shipped.model(x).detach()[0], rtol=1e-4, atol=1e-5)
        assert int(loaded["target"]) == 3
        assert json.loads(str(loaded["about"]))["composite"] == "epsilon"


def test_a_sheet_has_a_row_for_each_image_and_a_column_for_each_composite(folder, classifier, tmp_path, monkeypatch):
    seen = []
    figure = heatmaps.figure
    monkeypatch.setattr(heatmaps, "figure", lambda *a, **k: seen.append((a, k)) or figure(*a, **k))
    paths = [folder / str(i) / f"00{i}.png" for i in range(9)]
    names = ("epsilon", "epsilon_plus")
    done, _, files, *_ = panels.write(paths, tmp_path / "out", classifier, names)
    sheets = [k for _, k in seen if k["columns"][0] == "input" and len(k["columns"]) == 3 and "rows" in k]
    assert [len(k["rows"]) for k in sheets] == [8, 1]
    assert [path.name for path in files[-2:]] == [f"comparison-{i}.digits.epsilon+epsilon_plus.png" for i in (1, 2)]
    cells = next(a[0] for a, k in seen if len(k.get("rows", ())) == 8)
    assert [len(row) for row in cells] == [3] * 8
    for row, image in zip(cells, range(8), strict=True):
        for column, composite in enumerate(names, start=1):
            one = next(d for d in done if d.image == paths[image] and d.composite == composite)
            alone = drawing.lookable(heatmaps.heatmap(one.relevance))
            np.testing.assert_array_equal(np.asarray(row[column]), np.asarray(alone))
    with Image.open(files[-1]) as sheet:
        assert "epsilon, epsilon_plus" in sheet.text["Description"]
    style = drawing.Style(scale=drawing.ONE)
    done, *_ = panels.write(paths[:2], tmp_path / "one", classifier, names, style=style)
    cells, maps = seen[-1][0][0], [one.relevance for one in done]  # by image, then composite
    joint = [drawing.lookable(one) for one in heatmaps.heatmap(torch.stack(maps), joint=True)]
    for drawn, expected in zip([cell for row in cells for cell in row[1:]], joint, strict=True):
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


def test_a_format_that_there_is_not(folder, classifier, tmp_path):
    with pytest.raises(InputError, match="relevance is saved as npz or npy, but 'csv' was asked for"):
        panels.write([folder / "3" / "003.png"], tmp_path / "out", classifier, relevance="csv")


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.png", "x/b.jpg"], ["a", "b"]),
        (["x/a.png", "x/a.jpg"], ["a.png", "a.jpg"]),
        (["x/a.png", "y/a.png", "z/b.png"], ["x_a.png", "y_a.png", "z_b.png"]),
        (["x/A.png", "y/a.PNG"], ["x_A.png", "y_a.PNG"]),  # the same name where capitals do not count
        (["r/x/a.png", "s/x/a.png"], ["r_x_a.png", "s_x_a.png"]),
        (["x/a.png", "./x/a.png", "x/../x/a.png"], ["a"]),
    ],
)
def test_names_have_as_much_of_the_path_as_they_need(paths, names):
    assert list(panels._names([Path(path) for path in paths]).values()) == names


def test_names_are_never_the_same():
    paths = [Path("/t/a_b/c.png"), Path("/t/a/b_c.png"), Path("/t/z/c.png")]
    names = panels._names(paths)
    assert list(names) == paths
    assert len(set(names.values())) == 3


def test_links_keep_their_own_names(folder, classifier, tmp_path):
    os.symlink(folder / "3" / "003.png", tmp_path / "three.png")
    panels.write([tmp_path / "three.png"], tmp_path / "out", classifier)
    assert_files(tmp_path / "out", ["three.3"])


def test_names_of_classes_are_made_fit_for_files(folder, classifier, tmp_path):
    names = ["../a/b: c*", *["x" * 200] * 8, ""]
    own = Classifier("own", classifier.model, classifier.preprocess, (1.0,), (-1.0,), names)
    done, *_ = panels.write([folder / "3" / "003.png"], tmp_path / "out", own, targets=["0", "1", "9"])
    assert_files(tmp_path / "out", ["003.0-_a_b_c_", f"003.1-{'x' * 40}", "003.9-"], "own.epsilon_plus_flat")
    assert [s.label for s in done] == [names[0], names[1], ""]


def test_long_names_that_begin_alike_stay_different():
    names = [f"mypackage_explanations_composites:{name}" for name in ("epsilon_plus", "epsilon_flat")]
    short = [panels._short(name) for name in names]
    assert len(set(short)) == 2
    assert all(len(name) <= panels.LETTERS for name in short)
    assert panels._short("epsilon") == "epsilon"


def test_a_sheet_of_other_images_stands_beside_an_earlier_one(folder, classifier, tmp_path):
    for number in (3, 5):
        panels.write([folder / str(number) / f"00{number}.png"], tmp_path, classifier, ("epsilon", "epsilon_plus"))
    assert len(list(tmp_path.glob("comparison-?.digits.epsilon+epsilon_plus.png"))) == 2


def test_a_class_wanted_twice_is_one(folder, classifier, tmp_path):
    path = folder / "3" / "003.png"
    done, *_ = panels.write([path, path], tmp_path / "out", classifier, targets=["3", "top", "top2", "3"])
    assert [s.target for s in done] == [3, 9]
    assert_files(tmp_path / "out", ["003.3", "003.9"])


# -- what fails -------------------------------------------------------------------------------------------------------


def test_images_that_cannot_be_explained_are_listed(folder, classifier, tmp_path):
    bad, missing, good = tmp_path / "bad.png", tmp_path / "missing.png", folder / "3" / "003.png"
    bad.write_bytes(b"nothing")
    told: list = []
    progress = told.append
    done, failed, *_ = panels.write(
        [bad, good, missing], tmp_path / "out", classifier, progress=lambda *numbers: progress(numbers)
    )
    assert [s.image for s in done] == [good]
    assert failed == [(bad, "is no image that Pillow can read"), (missing, "is missing")]
    assert told == [(1, 3, 1), (2, 3, 1), (3, 3, 2)]


def test_images_of_another_size_or_without_finite_relevance_are_listed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 15), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()  # of 16 pixels alone
    model[0].weight.data.abs_()  # sums of the highest numbers are infinite

    def preprocess(image):
        x = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
        return x * 9e37 * 100 if image.getpixel((0, 0)) == (9, 9, 9) else x

    for name, size, color in [("good", 16, 200), ("large", 20, 200), ("wild", 16, 9), ("fine", 16, 100)]:
        Image.new("RGB", (size, size), (color,) * 3).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in ("good", "large", "wild", "fine")]
    done, failed, *_ = panels.write(paths, tmp_path / "out", Classifier("own", model, preprocess), ["epsilon"])
    assert [s.image.stem for s in done] == ["good", "fine"]
    assert [f.image.stem for f in failed] == ["large", "wild"]
    assert "20" in failed[0].reason
    assert failed[1].reason.startswith("own gives nan or infinite outputs: its weights may be so, or its input too")


def test_nothing_that_can_be_explained_is_an_error(classifier, tmp_path):
    with pytest.raises(FileError, match=r"none of the images can be explained: .*a\.png is missing\.$"):
        panels.write([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out", classifier)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_image(folder, classifier, tmp_path):
    with pytest.raises(
        FileError, match=r"digits is a folder: give images, such as .*/digits/\*\.jpg, or use `lrpfunc d"
    ):
        panels.write([folder / "3" / "003.png", folder], tmp_path / "out", classifier)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"style": drawing.Style("colourful")}, InputError, "no colour map is called 'colourful'"),
        ({"style": drawing.Style(quantile=0.0)}, InputError, "quantile must be above 0"),
        ({"targets": ["eleven"]}, TargetError, "no class is called 'eleven'"),
        ({"targets": ["label"]}, TargetError, "needs a data set whose classes are known"),
    ],
)
def test_wrong_wishes_are_errors_before_anything_is_written(options, error, message, folder, classifier, tmp_path):
    with pytest.raises(error, match=message):
        panels.write([folder / "3" / "003.png"], tmp_path / "out", classifier, **options)
    assert not (tmp_path / "out").exists()


def as_written(found, meaning=Meaning(CLASSES)):  # noqa: B008 (a constant)
    return panels.Written(found, [], [], meaning, ())


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_prints_what_the_model_says(written):
    file = io.StringIO()
    panels.table(as_written(written[1]), Console(file=file, width=1000))
    head, *lines = file.getvalue().splitlines()
    assert head.split() == ["image", "class", "probability", "logit", "relevance", "sum"]
    for line, one in zip(lines, written[1], strict=True):
        path, label, probability, logit, total = line.split()
        assert (path, label) == (str(one.image), one.label)
        assert float(probability.removesuffix("%")) / 100 == pytest.approx(one.probability, abs=1e-4)
        assert float(logit) == pytest.approx(one.score, rel=1e-3)
        assert float(total) == pytest.approx(one.relevance_sum, rel=1e-3)


def test_the_table_takes_names_as_they_are(written):
    odd = written[1][0]._replace(image=Path("a[red]b[/].png"), label="[bold]cat, tabby")
    file = io.StringIO()
    panels.table(as_written([odd]), Console(file=file, width=1000))
    assert re.search(r"a\[red\]b\[/\]\.png +3 \[bold\]cat, tabby ", file.getvalue())


def test_the_table_of_values_and_of_one_logit(written):
    one = written[1][0]
    for meaning, found, header in [
        (
            Meaning(VALUES, "mm"),
            one._replace(probability=None, label="length"),
            "image value of value in mm relevance sum",
        ),
        (Meaning(BINARY), one._replace(target=0, label="not 1"), "image class probability logit relevance sum"),
        (Meaning(CLASSES, are_probabilities=True), one, "image class probability relevance sum"),
    ]:
        file = io.StringIO()
        panels.table(as_written([found, found._replace(composite="other")], meaning), Console(file=file, width=1000))
        head, first, second = file.getvalue().splitlines()
        assert " ".join(head.split()) == header.replace("image", "image composite", 1)
        assert (first.split()[1], second.split()[1]) == ("epsilon_plus_flat", "other")
