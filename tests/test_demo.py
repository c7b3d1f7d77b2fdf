"""The demo with digits from end to end, its network and its figures."""

import importlib.util
import math
import statistics
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

import lrpfunc
from lrpfunc import digits
from lrpfunc.cli import app
from lrpfunc.digits.network import read
from lrpfunc.pictures import demo
from lrpfunc.pictures.demo import choice
from lrpfunc.pictures.demo import digits as digits_demo
from lrpfunc.pictures.demo.flipping import Flipping

ROOT = Path(__file__).parents[1]
LRP = [name for name in digits_demo.COMPOSITES if name.startswith("epsilon")]


@pytest.fixture(scope="module")
def shipped():
    return digits.load()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return digits_demo.measure(tmp_path_factory.mktemp("demo") / "demo.png", count=2)


@pytest.fixture(scope="module")
def scikit_learn():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.from_numpy(data.images), torch.from_numpy(data.target)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_demo_writes_a_picture_and_prints_every_composite(tmp_path):
    out = tmp_path / "picture.png"
    answer = CliRunner().invoke(app, ["demo", "--out", str(out), "--digits", "3"])
    assert answer.exit_code == 0, answer.output
    for name in digits_demo.COMPOSITES:
        assert answer.output.count(name) >= 3 + 1  # a row per digit, and one for its pixel flipping
    for heading in ("logit", "relevance sum", "ms", "below random", "random order"):
        assert heading in answer.output
    assert "For photos" not in answer.output  # digits were asked for
    assert str(out) in answer.output
    with Image.open(out) as picture:
        picture.load()
        assert picture.width > 600
        assert picture.height > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_without_the_extra_digits_are_shown_and_a_line_says_how_to_get_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "has_photos", lambda: False)
    monkeypatch.setattr(choice, "DIGITS", 1)
    answer = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "picture.png")])
    assert answer.exit_code == 0, answer.output
    assert answer.output.endswith(f"{choice.HINT}\npicture: {tmp_path / 'picture.png'}\n")
    assert choice.HINT == "Digits are shown. For photos: pip install 'lrpfunc[photos]'"
    assert digits_demo.INK_FIRST in answer.output


def test_photos_and_digits_are_not_asked_for_at_once(tmp_path):
    answer = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "a.png"), "--photos", "1", "--digits", "1"])
    assert answer.exit_code == 1
    assert answer.stderr == "error: the demo has either photos or digits: give one of --photos and --digits.\n"


def test_the_digits_shown_follow_the_seed(tmp_path):
    def shown(seed):
        generator = torch.Generator().manual_seed(seed)
        return digits_demo._shuffled_in_tens(40, generator).tolist()

    assert shown(0) == shown(0) != shown(1)
    assert sorted(shown(0)) == list(range(40))
    assert sorted(shown(3)[:10]) == list(range(10))


def test_a_missing_folder_is_one_line_and_no_traceback(tmp_path):
    answer = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "missing" / "demo.png")])
    assert answer.exit_code == 2
    assert answer.stderr.startswith("error: cannot write")
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.output


@pytest.mark.parametrize("count", ["0", "41"])
def test_too_few_or_too_many_digits_are_one_line(tmp_path, count):
    answer = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo.png"), "--digits", count])
    assert answer.exit_code == 1
    assert answer.stderr == f"error: the demo has 1 to 40 digits to show, but {count} were asked for.\n"
    assert not list(tmp_path.iterdir())


def test_an_ending_that_is_no_image_is_one_line(tmp_path):
    answer = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo.xyz")])
    assert answer.exit_code == 1
    assert "must name a format" in answer.stderr


def test_version_and_help():
    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.output) == (0, f"lrpfunc {lrpfunc.__version__}\n")
    answer = CliRunner().invoke(app, ["--help"])
    assert answer.exit_code == 0
    assert "demo" in answer.output


def test_neither_import_nor_help_loads_matplotlib_or_scikit_learn():
    code = """
import sys, lrpfunc
assert not {"lrpfunc.cli", "lrpfunc.pictures.demo", "lrpfunc.heatmaps", "lrpfunc.digits"} & set(sys.modules)
import lrpfunc.cli, lrpfunc.pictures.demo, lrpfunc.heatmaps
print({"matplotlib", "sklearn", "torchvision"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -- the figures ------------------------------------------------------------------------------------------------------


def test_every_map_has_its_figures(result):
    assert [m.composite for m in result.maps] == [name for name in digits_demo.COMPOSITES for _ in range(2)]
    for m in result.maps:
        assert m.logit > 0
        assert m.milliseconds > 0
        assert m.total == pytest.approx(m.relevance.sum().item())
        assert m.relevance.isfinite().all()


def test_positive_rules_give_no_more_than_the_logit(result):
    # The head's bias aside, relevance is only lost here, to positive biases: z+ and flat never share to negative ones.
    for m in result.maps:
        if m.composite in ("epsilon_plus", "epsilon_plus_flat"):
            assert 0 < m.total < m.logit


@pytest.mark.parametrize("name", LRP)
def test_without_biases_relevance_sums_to_the_logit(shipped, name):
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(shipped.model, shipped.images))
    params = {key: torch.zeros_like(p) if key.endswith("bias") else p for key, p in params.items()}
    relevance = lrpfunc.attribute(fmodel, params, shipped.images, digits_demo.COMPOSITES[name])
    logits = fmodel(params, shipped.images).amax(1)
    torch.testing.assert_close(relevance.sum((1, 2, 3)), logits, atol=1e-4, rtol=1e-4)


def test_relevance_beats_random_order(result):
    areas = {f.order: f for f in result.flipping}
    assert list(areas) == [*digits_demo.COMPOSITES, digits_demo.INK_FIRST]
    for name in LRP:
        assert areas[name].gain > 0.2, name
    assert len({f.random for f in result.flipping}) == 1


def test_pixel_flipping_by_hand():
    # The "network" has the logit pair (sum of pixels, 0), so the probability of class 0 is sigmoid(sum).
    def predict(x):
        total = x.flatten(1).sum(1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)

    x = torch.tensor([[[[1.0, 2.0], [4.0, 0.0]]]])
    scores = torch.tensor([[[[2.0, 1.0], [3.0, -1.0]]]])  # flips 4, then 1, then 2, then 0
    curve = demo.pixel_flipping(predict, x, scores, torch.tensor([0]))
    torch.testing.assert_close(curve, torch.tensor([[7.0, 3.0, 2.0, 0.0, 0.0]]).sigmoid())
    curve = demo.pixel_flipping(predict, x, scores, torch.tensor([0]), baseline=1.0)
    torch.testing.assert_close(curve, torch.tensor([[7.0, 4.0, 4.0, 3.0, 4.0]]).sigmoid())


def test_pixel_flipping_takes_colour_images_and_each_sample_its_own_target():
    def predict(x):
        return x.sum((2, 3))  # one class per channel

    x = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 0])
    curves = demo.pixel_flipping(predict, x, x, target)
    assert curves.shape == (3, 21)
    torch.testing.assert_close(curves[:, 0], predict(x).softmax(1)[torch.arange(3), target])
    torch.testing.assert_close(curves[:, -1], torch.full((3,), 0.5))


def test_patch_flipping_by_hand():
    # The "network" has the logit pair (sum of pixels, 0), so the probability of class 0 is sigmoid(sum).
    def predict(x):
        total = x.flatten(1).sum(1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)

    x = torch.tensor([[[[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]])
    scores = torch.zeros(1, 2, 4, 4)
    scores[0, 0, 0, 0], scores[0, 1, 1, 1] = 3.0, -1.0  # 2 for the first patch; channels are summed
    scores[0, 0, 2, 0] = 5.0
    scores[0, 1, 0, 3] = 1.0
    blank = torch.full_like(x, 0.25)
    curve = demo.patch_flipping(predict, x, scores, torch.tensor([0]), blank, patch=2, steps=4)
    torch.testing.assert_close(curve, torch.tensor([[7.0, 4.0, 4.0, 3.0, 4.0]]).sigmoid())
    curve = demo.patch_flipping(predict, x, scores, torch.tensor([1]), blank, patch=2, steps=2)
    torch.testing.assert_close(curve, 1 - torch.tensor([[7.0, 4.0, 4.0]]).sigmoid())


def test_flipping_says_how_sure_it_is_by_hand():
    found = Flipping("order", torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.5, 0.4, 0.2]))
    assert (found.area, found.random) == pytest.approx((0.2, 1.1 / 3))
    assert found.gain == pytest.approx(1 - 0.6 / 1.1)
    assert found.error == pytest.approx(statistics.stdev([0.4, 0.1, 0.0]) / 3**0.5)
    assert found.wins == 2
    assert math.isnan(Flipping("order", torch.ones(1), torch.ones(1)).error)


def test_the_area_under_a_line_is_its_mean():
    assert demo.area_under(torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])).tolist() == [0.5, 1.0]


# -- the network ------------------------------------------------------------------------------------------------------


def test_the_package_data_is_small_and_complete(shipped):
    files = [file for file in resources.files("lrpfunc.digits").joinpath("data").iterdir() if file.is_file()]
    assert {digits.CHECKPOINT, digits.SAMPLES} <= {file.name for file in files}
    assert sum(len(file.read_bytes()) for file in files) < 500_000
    assert not shipped.model.training
    assert shipped.images.shape == (40, 1, 8, 8)
    assert (shipped.images.min(), shipped.images.max()) == (0, 1)
    assert shipped.labels.tolist() == list(range(10)) * 4


def test_the_checkpoint_is_right_on_97_percent_of_held_out_digits(shipped, scikit_learn):
    images, labels = scikit_learn
    _, held_out = digits.split(len(labels))
    with torch.no_grad():
        right = shipped.model(digits.scaled(images[held_out])).argmax(1) == labels[held_out]
    assert right.float().mean() >= 0.97


def test_the_sample_digits_are_held_out_ones(shipped, scikit_learn):
    images, labels = scikit_learn
    training, held_out = digits.split(len(labels))
    assert not set(training.tolist()) & set(held_out.tolist())
    assert len(training) + len(held_out) == len(labels)
    indices = read(digits.SAMPLES)["indices"]
    assert set(indices.tolist()) <= set(held_out.tolist())
    assert torch.equal(shipped.images, digits.scaled(images[indices]))
    assert torch.equal(shipped.labels, labels[indices])


def test_training_runs_and_writes_both_files(tmp_path, capsys, scikit_learn):
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "examples" / "train_digits.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before, state = torch.get_num_threads(), torch.get_rng_state()
    accuracy = example.main(["--epochs", "2", "--out", str(tmp_path)])
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert accuracy > 0.8
    assert f"{accuracy:.2%} of 599 held-out digits" in capsys.readouterr().out
    digits.DigitsNet().load_state_dict(safetensors.torch.load_file(tmp_path / digits.CHECKPOINT))
    shipped = resources.files("lrpfunc.digits").joinpath("data", digits.SAMPLES).read_bytes()
    assert (tmp_path / digits.SAMPLES).read_bytes() == shipped
