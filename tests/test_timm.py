"""timm's models by name: timm's own preprocessing, class names and parameters; what fails says so."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lrpfunc import cli
from lrpfunc.errors import MissingExtraError, ModelError
from lrpfunc.pictures import classifiers
from lrpfunc.pictures.classifiers import Standard, loading, timm_models
from lrpfunc.pictures.weights import Checkpoint
from tests.test_classifiers import assert_same_parameters, photo

SMALL = "timm:resnet10t"  # the smallest, 5 M parameters

timm_only = pytest.mark.dev


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


def test_without_timm_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        classifiers.load("timm:resnet50")
    assert str(error.value) == "a model timm:NAME needs timm: pip install 'lrpfunc[timm]'"


@timm_only
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet5o", r"^timm has no model 'resnet5o'\. Did you mean 'resnet50'.* list all names\.$"),
        ("timm:resnet50.a1_in2k", r"Did you mean 'resnet50\.a1_in1k'"),
        ("timm:", r"^timm has no model ''\. timm\.list_models"),
        ("timm:resnet50:x", "timm has no model 'resnet50:x'"),
    ],
)
def test_unknown_names_have_near_misses(name, message, timm):
    with pytest.raises(ModelError, match=message):
        classifiers.load(name, "random")


@timm_only
def test_a_name_that_only_timm_has_says_so(timm):
    with pytest.raises(ModelError, match=r"no model is called 'convnextv2_atto'\. timm has it: 'timm:convnextv2_atto'"):
        classifiers.load("convnextv2_atto")


def test_nobody_needs_timm_for_near_misses(monkeypatch):
    monkeypatch.setattr(loading, "is_installed", lambda name: False)
    with pytest.raises(ModelError, match=r"no model is called 'resnet19'\. Did you mean 'resnet1"):
        classifiers.load("resnet19")


@timm_only
def test_random_weights_are_always_the_same_and_need_no_download(timm):
    first, again = classifiers.load(SMALL, "random"), classifiers.load(SMALL, "random")
    assert_same_parameters(first.model, again.model)
    assert (first.name, first.weights, first.model.training) == (SMALL, "random", False)
    assert first.categories[281:283] == ("tabby", "tiger cat")
    # timm's word for a class is torchvision's, but where one word stands for two classes.
    ours = classifiers.load("squeezenet1_1", "random").categories
    assert {(a, b) for a, b in zip(first.categories, ours, strict=True) if a != b} == {
        ("crane", "crane bird"),
        ("maillot, tank suit", "maillot tank suit"),
    }


@timm_only
@pytest.mark.parametrize("size", [(301, 457), (97, 61)])
@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "vit_base_patch16_224.augreg_in21k", "tf_efficientnet_lite0"])
def test_preprocessing_is_timms(name, size, timm):
    with torch.device("meta"):
        model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    with torch.device("cpu"):
        got = timm_models._preprocessing(config)
        assert isinstance(got, Standard)
        expected = timm.data.create_transform(**config, is_training=False)(photo(*size))
    torch.testing.assert_close(got(photo(*size)), expected, rtol=0, atol=0)


@timm_only
@pytest.mark.parametrize(
    "changed", [{"crop_mode": "squash"}, {"crop_mode": "border"}, {"input_size": (3, 160, 224)}], ids=str
)
def test_preprocessing_that_is_not_the_usual_one_is_left_to_timm(changed, timm):
    with torch.device("meta"):
        config = timm.data.resolve_model_data_config(timm.create_model("resnet10t")) | changed
    got = timm_models._preprocessing(config)
    assert not isinstance(got, Standard)
    assert got(photo(301, 457)).shape == config["input_size"]


@timm_only
def test_weights_of_a_file_and_a_fine_tuned_head(timm, tmp_path):
    torch.manual_seed(2)
    expected = timm.create_model("resnet10t", num_classes=7)
    torch.save({"arch": "resnet10t", "epoch": 3, "state_dict": expected.state_dict()}, tmp_path / "tuned.pth.tar")
    loaded = classifiers.load(SMALL, str(tmp_path / "tuned.pth.tar"))
    assert_same_parameters(loaded.model, expected)
    assert (loaded.categories, loaded.weights) == ((), str(tmp_path / "tuned.pth.tar"))


@timm_only
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "vit_small_patch14_dinov2", "mixnet_s"])
def test_a_fine_tuned_head_of_other_models(name, timm, monkeypatch):
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=11).state_dict()
    monkeypatch.setattr(timm_models, "read_state", lambda path: Checkpoint(path, state))
    with torch.device("meta"):
        loaded = classifiers.load(f"timm:{name}", "tuned.pt")
    assert {key: t.shape for key, t in loaded.model.state_dict().items()} == {key: t.shape for key, t in state.items()}
    assert loaded.model.num_classes == 11
    assert loaded.categories == ()


@timm_only
def test_more_classes_than_a_thousand_have_names_too(timm):
    with torch.device("meta"):
        model = timm.create_model("convnext_tiny.in12k")
    names = timm_models._names(model)
    assert len(names) == model.num_classes == 11821


@timm_only
def test_unknown_weights_are_refused(timm):
    with pytest.raises(ModelError, match=r"^timm:resnet10t has no weights 'IMAGENET': there are DEFAULT, random, or a"):
        classifiers.load(SMALL, "IMAGENET")


@timm_only
def test_a_model_without_classes_is_refused(timm):
    with pytest.raises(ModelError, match=r"^timm:test_vit\.x gives features, not logits: it has no classes\. Choose"):
        _headless(timm)


def _headless(timm):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_models, "timm_names", lambda: ["test_vit.x"])
        patch.setattr(timm_models, "_empty", lambda short: timm.create_model("test_vit", num_classes=0))
        classifiers.load("timm:test_vit.x", "random")


@timm_only
@pytest.mark.parametrize("error", [OSError("no\nnetwork. Try again"), RuntimeError("no network")])
def test_a_download_that_fails_is_one_line_with_a_way_out(error, timm, monkeypatch):
    def offline(name, pretrained):
        raise error

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError) as caught:
        classifiers.load(SMALL)
    assert str(caught.value) == (
        f"cannot download the weights of timm:resnet10t ({type(error).__name__}: no network). Give a file with "
        "--weights FILE, or --weights random to try things out without."
    )


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two pictures in a folder."""
    path = tmp_path / "pictures"
    path.mkdir()
    for seed in range(2):
        image = photo(90, 70, seed)
        assert np.asarray(image).any()
        image.save(path / f"{seed}.png")
    return path


@timm_only
@pytest.mark.parametrize("command", ["image", "inspect", "dataset"])
def test_commands_take_timms_names(command, folder, tmp_path, timm):
    out = tmp_path / ("out.h5" if command == "dataset" else "out")
    given = {"image": [folder / "0.png", "-o", out], "inspect": [], "dataset": [folder, "-o", out, "--workers", "0"]}
    arguments = [command, *given[command], "-m", SMALL, "--weights", "random", "--size", "64"]
    answer = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert answer.exit_code == 0, answer.output
    if command == "inspect":
        assert f"{SMALL}, 1000 classes" in answer.stdout
    else:
        assert out.exists()
    if command == "image":
        (panel,) = out.glob("*.panel.png")
        with Image.open(panel) as picture:
            picture.load()
