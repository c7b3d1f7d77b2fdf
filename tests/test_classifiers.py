"""Classifiers by name: their preprocessing is torchvision's, their weights are the file's, and what fails says so."""

import json
import sys
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

from lrpfunc import digits
from lrpfunc.errors import FileError, MissingExtraError, ModelError
from lrpfunc.pictures import classifiers
from lrpfunc.pictures.classifiers import Classifier, Standard, shipped, torchvision_models
from lrpfunc.pictures.classifiers.parameters import outputs
from lrpfunc.pictures.weights import Checkpoint


def photo(width, height, seed=0):
    """Noise with large patches in it, so that resizing, cropping and smoothing all matter."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.int64)
    noise = generator.integers(-40, 40, (height, width, 3))
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def sketch(classes=3):
    """A model of the user's own."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def small(name, **options):
    torch.manual_seed(3)
    return models.get_model(name, weights=None, **options).eval()


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A working directory for modules; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def assert_same_parameters(got, expected):
    got, expected = got.state_dict(), expected.state_dict()
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


# -- preprocessing ----------------------------------------------------------------------------------------------------

PRESETS = {
    "resnet18": models.ResNet18_Weights.DEFAULT,  # bilinear, 256 -> 224
    "efficientnet_b1": models.EfficientNet_B1_Weights.IMAGENET1K_V2,  # 255 -> 240
    "efficientnet_b0": models.EfficientNet_B0_Weights.DEFAULT,  # bicubic
    "efficientnet_v2_l": models.EfficientNet_V2_L_Weights.DEFAULT,  # 480, mean and std 0.5
    "vit_b_16": models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,  # bicubic, 384
    "swin_t": models.Swin_T_Weights.DEFAULT,  # bicubic, 232
    "inception_v3": models.Inception_V3_Weights.DEFAULT,  # 342 -> 299
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(301, 457), (97, 61)])
def test_standard_preprocessing_is_torchvisions_own(name, size):
    preset = PRESETS[name].transforms()
    image = photo(*size)
    got = torchvision_models.standard(preset)(image)
    torch.testing.assert_close(got, preset(image), rtol=0, atol=0)


def test_every_torchvision_preset_is_told_by_its_numbers():
    for name in models.list_models(module=models):
        for entry in models.get_model_weights(name):
            preset = entry.transforms()
            assert type(preset).__name__ == "ImageClassification", entry  # no other has other steps
            assert preset.antialias is True, entry
            assert (len(preset.crop_size), len(preset.resize_size)) == (1, 1), entry


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("sizes", [(224, 256), (224, 224), (31, 40), (64, 48)])
@pytest.mark.parametrize("size", [(3, 97), (211, 7), (1, 60), (801, 50), (1, 17), (1000, 2)])
def test_of_strips_only_the_middle_is_made(size, sizes, interpolation):
    """What torchvision makes of the whole, to one step of a byte: Pillow keeps the place of the middle in float32."""
    crop, resize = sizes
    mode = transforms.InterpolationMode(interpolation)
    image = photo(*size)
    whole = transforms.functional.resize(image, [resize], mode)
    expected = np.asarray(transforms.functional.center_crop(whole, [crop]), dtype=np.int64)
    own = Standard(crop, (0.0,) * 3, (1.0,) * 3, resize, interpolation)
    got = (own(image) * 255).round().to(torch.int64).movedim(0, -1).numpy()
    assert got.shape == expected.shape
    if interpolation == "nearest":  # a step aside at the edges of pixels
        assert (got != expected).mean() < 0.02
    else:
        assert abs(got - expected).max() <= 1
        assert (got != expected).mean() < 0.1


def test_a_long_strip_costs_what_a_picture_does(monkeypatch):
    """The 106 bytes of a PNG of 1 x 60,000 pixels were 13 million pixels wide once resized."""
    made = []
    original = Image.Image.resize

    def resize(self, size, *args, **options):
        made.append(size[0] * size[1])
        return original(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for size in [(1, 60000), (60000, 1), (1, 12000), (17, 1), (1, 16)]:
        assert Standard(224, resize=256)(Image.new("RGB", size, (9, 9, 9))).shape == (3, 224, 224)
    assert max(made) <= 16 * 256**2


def test_one_mean_makes_gray():
    x = Standard(size=8, mean=(0.5,), std=(0.25,))(Image.new("RGB", (8, 8), (255, 0, 0)))
    gray = (255 * 19595 + 0x8000 >> 16) / 255  # ITU-R 601, as Pillow does it
    torch.testing.assert_close(x, torch.full((1, 8, 8), (gray - 0.5) / 0.25))


def test_pixels_undo_preprocessing():
    image = photo(40, 40)
    own = Standard(size=40)
    classifier = Classifier("own", sketch(), own, own.mean, own.std)
    pixels = classifier.pixels(own(image)[None])
    np.testing.assert_allclose(pixels[0].movedim(0, -1) * 255, np.asarray(image), atol=1e-3)
    assert classifier.pixels(torch.full((1, 3, 2, 2), 99.0)).max() == 1
    assert classifier.pixels(torch.full((1, 3, 2, 2), -99.0)).min() == 0


def test_the_input_range_is_that_of_black_and_white():
    own = Standard(size=4)
    low, high = Classifier("own", sketch(), own, own.mean, own.std).input_range()
    black, white = (own(Image.new("RGB", (4, 4), color)) for color in ("black", "white"))
    assert low.shape == high.shape == (3, 1, 1)
    torch.testing.assert_close(low.expand(3, 4, 4), black)
    torch.testing.assert_close(high.expand(3, 4, 4), white)
    # Where dark is high, the ends change places.
    low, high = classifiers.load("digits").input_range()
    assert (low.item(), high.item()) == (0, 1)


def test_a_class_without_a_name_is_its_number():
    classifier = Classifier("own", sketch(), Standard(), categories=("cat", "dog"))
    assert [classifier.category(i) for i in (0, 1, 2, -1)] == ["cat", "dog", "2", "-1"]


# -- digits -----------------------------------------------------------------------------------------------------------


def test_digits_take_dark_ink_on_white_paper():
    shipped = digits.load()
    classifier = classifiers.load("digits")
    paper = Image.fromarray(((1 - shipped.images[7, 0]) * 255).round().to(torch.uint8).numpy()).convert("RGB")
    torch.testing.assert_close(classifier.preprocess(paper), shipped.images[7], atol=1 / 255, rtol=0)
    assert_same_parameters(classifier.model, shipped.model)
    assert not classifier.model.training
    assert list(classifier.categories) == list("0123456789")
    assert classifier.weights == "DEFAULT"
    assert_same_parameters(classifiers.load("digits", "DEFAULT").model, shipped.model)


def test_digits_with_other_weights(tmp_path):
    torch.manual_seed(5)
    other = digits.DigitsNet()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    loaded = classifiers.load("digits", str(tmp_path / "other.pt"))
    assert_same_parameters(loaded.model, other)
    assert loaded.weights == str(tmp_path / "other.pt")
    with pytest.raises(FileError, match="there is no file 'OTHER' to take weights from"):
        classifiers.load("digits", "OTHER")


# -- torchvision ------------------------------------------------------------------------------------------------------


def test_all_classifiers_of_torchvision_have_a_name(monkeypatch):
    names = classifiers.names()
    assert names == ["digits", "efficientnet_lite0", *sorted(names[2:])]
    assert {"resnet18", "vit_b_16", "swin_v2_b", "maxvit_t", "googlenet", "vgg16_bn"} <= set(names)
    assert not {"fcn_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18", "raft_large"} & set(names)
    monkeypatch.setattr(torchvision_models, "_empty", lambda name: nn.Linear(1, 1000))
    for name in names[2:]:
        loaded = classifiers.load(name, "random")
        assert (loaded.name, len(loaded.categories)) == (name, 1000)


def test_an_unknown_name_has_near_misses():
    with pytest.raises(
        ModelError, match=r"no model is called 'resnet19'\. Did you mean 'resnet1.*timm:NAME, and your own"
    ):
        classifiers.load("resnet19")
    with pytest.raises(ModelError, match=r"no model is called 'fcn_resnet50'"):
        classifiers.load("fcn_resnet50", "random")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: classifiers.load("resnet18", "random"), "a model by its name needs torchvision"),
        (shipped.imagenet_names, "naming ImageNet's classes needs torchvision"),
    ],
)
def test_without_torchvision_a_line_says_how_to_install_it(load, message, monkeypatch):
    monkeypatch.setattr("lrpfunc.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        load()
    assert str(error.value) == f"{message}: pip install 'lrpfunc[cli]'"


def test_random_weights_are_always_the_same_and_nobody_elses_affair():
    torch.manual_seed(17)
    state = torch.get_rng_state()
    first = classifiers.load("squeezenet1_1", "random")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert_same_parameters(classifiers.load("squeezenet1_1", "random").model, first.model)
    assert not first.model.training
    assert (first.weights, first.category(1)) == ("random", "goldfish")
    one, two = classifiers.load("digits", "random"), classifiers.load("digits", "random")
    assert_same_parameters(one.model, two.model)
    assert not torch.equal(one.model.head.weight, digits.load().model.head.weight)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_that_may_scale_their_inputs_themselves(name, tmp_path):
    with torch.device("meta"):  # their initialization is slow, and said to be by a warning
        model = torchvision_models._empty(name)
    assert not model.transform_input
    assert model.AuxLogits is None if name == "inception_v3" else model.aux1 is None
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=rf"whether {name} scales its inputs itself \(transform_input\): give your"):
        classifiers.load(name, str(tmp_path / "weights.pt"))


@pytest.fixture
def downloads(monkeypatch):
    """What would be downloaded is a model with random weights, and asked for here."""
    asked = []

    def get_model(name, weights=None, **options):
        if weights is not None:
            asked.append((name, weights))
        return original(name, weights=None, **options)

    original = models.get_model
    monkeypatch.setattr(models, "get_model", get_model)
    return asked


def test_named_weights_come_with_their_own_preprocessing(downloads):
    with torch.device("meta"):
        default, swag = (
            classifiers.load("vit_b_16"),
            classifiers.load("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
        )
    entries = models.ViT_B_16_Weights
    assert downloads == [("vit_b_16", entries.IMAGENET1K_V1), ("vit_b_16", entries.IMAGENET1K_SWAG_E2E_V1)]
    assert default.preprocess == Standard(resize=256)
    assert swag.preprocess == Standard(384, resize=384, interpolation="bicubic")
    assert (default.weights, swag.weights) == ("DEFAULT", "IMAGENET1K_SWAG_E2E_V1")
    assert list(swag.categories) == entries.DEFAULT.meta["categories"]


def test_a_download_that_fails_says_what_else_there_is(monkeypatch):
    def get_model(name, weights=None, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(models, "get_model", get_model)
    with pytest.raises(
        ModelError, match=r"cannot download .* from https://.*resnet18.* \(.*no route.*\)\. Give a file with --weights"
    ):
        classifiers.load("resnet18")


def test_unknown_weights_list_the_known_ones():
    with pytest.raises(
        ModelError, match="resnet50 has no weights 'IMAGENET': there are IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, random,"
    ):
        classifiers.load("resnet50", "IMAGENET")
    with pytest.raises(FileError, match=r"there is no file 'missing\.pt' to take weights from"):
        classifiers.load("resnet50", "missing.pt")


# -- files ------------------------------------------------------------------------------------------------------------


def wrapped(state):
    """The same parameters in the ways that training scripts store them."""
    return {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "model": {"model": state, "optimizer": {"lr": 0.1}},
        "model_state_dict": {"model_state_dict": state, "loss": torch.tensor(0.5)},
        "net": {"net": state, "acc": 0.9},
        "data_parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
        "lightning": {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
        "both": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        "counters": {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
    }


@pytest.mark.parametrize("way", wrapped({}))
def test_weights_are_found_where_training_scripts_put_them(way, tmp_path):
    torch.manual_seed(5)
    expected = digits.DigitsNet()
    torch.save(wrapped(expected.state_dict())[way], tmp_path / "weights.pth")
    assert_same_parameters(classifiers.load("digits", str(tmp_path / "weights.pth")).model, expected)


def test_weights_from_safetensors_and_old_files(tmp_path):
    torch.manual_seed(5)
    expected = digits.DigitsNet()
    safetensors.torch.save_file(expected.state_dict(), tmp_path / "weights.safetensors")
    torch.save(expected.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "old.pt"):
        assert_same_parameters(classifiers.load("digits", str(tmp_path / name)).model, expected)


def last_bias(model):
    return [p for p in model.parameters() if p.dim() == 1][-1]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_a_fine_tuned_head_is_recognized_by_its_file(name, tmp_path):
    expected = small(name, num_classes=7)
    torch.save(expected.state_dict(), tmp_path / "tuned.pt")
    loaded = classifiers.load(name, str(tmp_path / "tuned.pt"))
    assert_same_parameters(loaded.model, expected)
    assert len(last_bias(loaded.model)) == 7
    assert loaded.categories == ()
    assert loaded.preprocess == torchvision_models.standard(models.get_model_weights(name).DEFAULT.transforms())


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "densenet121", "convnext_tiny", "maxvit_t", "vgg11"])
def test_a_fine_tuned_head_of_larger_models(name, monkeypatch):
    with torch.device("meta"):
        options = {"input_size": (224, 224)} if name == "maxvit_t" else {}
        state = models.get_model(name, weights=None, num_classes=11, **options).state_dict()
    monkeypatch.setattr(torchvision_models, "read_state", lambda path: Checkpoint(path, state))
    with torch.device("meta"):
        loaded = classifiers.load(name, "tuned.pt")
    assert outputs(loaded.model) == 11
    assert {key: t.shape for key, t in loaded.model.state_dict().items()} == {key: t.shape for key, t in state.items()}
    assert loaded.categories == ()


def test_a_head_of_a_thousand_keeps_the_names(tmp_path):
    expected = small("squeezenet1_1")
    torch.save(expected.state_dict(), tmp_path / "same.pt")
    loaded = classifiers.load("squeezenet1_1", str(tmp_path / "same.pt"))
    assert_same_parameters(loaded.model, expected)
    assert loaded.category(1) == "goldfish"


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = digits.DigitsNet().state_dict()
    state["extra"] = state.pop("head.weight")
    state["stem.0.weight"] = torch.zeros(2, 1, 3, 3)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ModelError) as caught:
        classifiers.load("digits", str(tmp_path / "other.pt"))
    assert str(caught.value) == (
        f"the weights in '{tmp_path / 'other.pt'}' do not fit the model. missing: head.weight; "
        "not of this model: extra; of another shape: stem.0.weight (2, 1, 3, 3) for (16, 1, 3, 3)."
    )


def test_only_the_head_may_differ(tmp_path):
    state = small("squeezenet1_1").state_dict()
    state["features.0.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"model\. of another shape: features\.0\.bias \(7,\) for \(64,\)\.$"):
        classifiers.load("squeezenet1_1", str(tmp_path / "other.pt"))


def test_of_many_weights_that_do_not_fit_a_few_are_named(tmp_path):
    torch.save(digits.DigitsNet().state_dict(), tmp_path / "digits.pt")
    with pytest.raises(
        ModelError, match=r"missing: features\.0\.weight, .*\.bias and 48 more; not of this model: stem"
    ):
        classifiers.load("squeezenet1_1", str(tmp_path / "digits.pt"))


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(3)])
def test_files_with_something_else_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(FileError, match=r"must hold a state dict, names with tensors, but holds (list|dict|Tensor)"):
        classifiers.load("digits", str(tmp_path / "other.pt"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_without_a_warning(tmp_path, recwarn):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    recwarn.clear()
    with pytest.raises(FileError, match="TorchScript"):
        classifiers.load("digits", str(tmp_path / "script.pt"))
    assert not recwarn.list


# -- one's own --------------------------------------------------------------------------------------------------------

MODULE = """
import torch
from torch import nn
from lrpfunc.errors import ModelError
from lrpfunc.pictures.classifiers import Classifier, Standard, shipped, torchvision_models
from lrpfunc.pictures.classifiers.parameters import outputs
from lrpfunc.pictures.weights import Checkpoint

def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout())

instance = network()

def classifier():
    return Classifier("inner", network(), Standard(2, (0.5,) * 3, (0.2,) * 3), (0.5,) * 3, (0.2,) * 3, ("a", "b", "c"))

class Models:
    network = staticmethod(network)

def needs(size):
    return network()

def broken():
    raise RuntimeError("two\\nlines")

def complains():
    raise ModelError("no such thing.")

number = 7

def text():
    return "a model"
"""


@pytest.fixture
def mine(modules):
    modules.joinpath("mine_d.py").write_text(MODULE)
    modules.joinpath("parts_d").mkdir()
    modules.joinpath("parts_d", "inner.py").write_text(MODULE)
    return modules


@pytest.mark.parametrize(
    "name", ["mine_d:network", "mine_d:instance", "mine_d:Models.network", "parts_d.inner:network"]
)
def test_a_module_of_ones_own_gives_a_model(name, mine):
    loaded = classifiers.load(name)
    torch.manual_seed(1)
    expected = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout())
    assert_same_parameters(loaded.model, expected)
    assert not loaded.model.training
    assert (loaded.name, loaded.weights, loaded.categories) == (name, "", ())
    assert loaded.preprocess == Standard(224, classifiers.IMAGENET_MEAN, classifiers.IMAGENET_STD)


def test_a_factory_can_bring_preprocessing_and_names(mine):
    loaded = classifiers.load("mine_d:classifier")
    assert loaded.name == "mine_d:classifier"
    assert loaded.preprocess == Standard(2, (0.5,) * 3, (0.2,) * 3)
    assert (loaded.mean, loaded.std, loaded.categories) == ((0.5,) * 3, (0.2,) * 3, ("a", "b", "c"))


def test_a_factory_with_weights_of_a_file(mine):
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    torch.save(other.state_dict(), mine / "other.pt")
    loaded = classifiers.load("mine_d:network", "other.pt")
    assert torch.equal(loaded.model[1].weight, other[1].weight)
    assert loaded.weights == "other.pt"
    with pytest.raises(
        ModelError, match="weights of mine_d:network are what it gives, or a file: 'random' is for torch"
    ):
        classifiers.load("mine_d:network", "random")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_d:netwrk", r"'mine_d' has no 'netwrk'\. Did you mean 'network' or 'number'\?"),
        ("mine_d:Models.net", r"'mine_d' has no 'Models\.net'\. Did you mean 'network'"),
        ("absent_d:network", "there is no module 'absent_d', neither installed nor below "),
        ("parts_d.absent:network", r"there is no module 'parts_d\.absent', neither"),
        ("mine_d.deeper:network", r"there is no module 'mine_d\.deeper', neither"),
        ("mine_d:number", r"mine_d:number must give an nn\.Module or a lrpfunc.*Classifier, but gives int"),
        ("mine_d:text", "but gives str"),
        ("mine_d:needs", r"calling mine_d:needs\(\) failed: TypeError: .*'size'"),
        ("mine_d:broken", r"calling mine_d:broken\(\) failed: RuntimeError: two"),
        ("mine_d:complains", "^no such thing"),
        (
            "./mine_d.py:network",
            r"a model of your own is given as module\.path:name, but './mine_d\.py:network' is not",
        ),
        (".mine_d:network", "is given as"),
        ("mine_d:", "is given as"),
        (":network", "is given as"),
        ("mine_d:a:b", "is given as"),
    ],
)
def test_what_is_wrong_with_a_module_of_ones_own(name, message, mine):
    with pytest.raises(ModelError, match=message):
        classifiers.load(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import absent_thing_d", r"importing 'bad_d' failed: No module named 'absent_thing_d'"),
        ("from torch import absent_thing", "importing 'bad_d' failed: ImportError: cannot import name"),
        ("def f(:", "importing 'bad_d' failed: SyntaxError: "),
        ("1 / 0", "importing 'bad_d' failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(code, message, modules):
    modules.joinpath("bad_d.py").write_text(code)
    with pytest.raises(ModelError, match=message):
        classifiers.load("bad_d:model")


# -- other preprocessing and names ------------------------------------------------------------------------------------


def test_parts_of_the_preprocessing_can_be_replaced(mine):
    kept = classifiers.load("squeezenet1_1", "random", mean=(0.5, 0.4, 0.3))
    assert kept.preprocess == Standard(224, (0.5, 0.4, 0.3), classifiers.IMAGENET_STD, 256)
    assert (kept.mean, kept.std) == ((0.5, 0.4, 0.3), classifiers.IMAGENET_STD)
    # A size of one's own is what the shorter side gets: nothing of it is cropped.
    sized = classifiers.load("squeezenet1_1", "random", size=64)
    assert sized.preprocess == Standard(64, resize=64)
    gray = classifiers.load("mine_d:network", mean=(0.5,), std=(0.1,))
    assert gray.preprocess(photo(300, 230)).shape == (1, 224, 224)
    assert (gray.mean, gray.std) == ((0.5,), (0.1,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "the size of the input must be a number of pixels >= 1, but is 0"),
        (
            {"mean": (0.5, 0.5, 0.5)},
            "one finite number .* or three .*, and std none that is 0, but are 0.5,0.5,0.5 and -1",
        ),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "but are 0.5,0.5 and 1,1"),
        ({"std": (0.0,)}, "std none that is 0, but are 1 and 0"),
    ],
)
def test_preprocessing_that_cannot_be(options, message):
    with pytest.raises(ModelError, match=message):
        classifiers.load("digits", **options)


def test_preprocessing_of_ones_own_is_not_changed(modules):
    modules.joinpath("special_d.py").write_text(
        "from torch import nn, zeros\nfrom lrpfunc.pictures.classifiers import Classifier\n"
        "model = Classifier('', nn.Linear(1, 1), lambda image: zeros(3, 2, 2))\n"
    )
    with pytest.raises(ModelError, match="special_d:model brings its own preprocessing, so size, mean and std cannot"):
        classifiers.load("special_d:model", size=32)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "null\n eins \r\n\nzwei drei\n"),
        ("marked.txt", "\ufeffnull\neins\nzwei drei"),
        ("names.json", json.dumps(["null", "eins", "zwei drei"])),
        ("MARKED.JSON", "\ufeff" + json.dumps(["null", "eins", "zwei drei"])),
    ],
)
def test_class_names_from_a_file(name, text, tmp_path):
    tmp_path.joinpath(name).write_bytes(text.encode())
    assert classifiers.load("digits", categories=tmp_path / name).categories == ("null", "eins", "zwei drei")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, r"cannot read class names from .*absent\.txt \(.*No such file"),
        ("latin.txt", b"caf\xe9", "cannot read class names from .*codec"),
        ("empty.txt", b" \n", "must hold a class name per line, but has none"),
        ("bad.json", b"[1", r"bad\.json is no JSON \("),
        ("numbers.json", b"[1, 2]", "must hold a JSON list of class names"),
        ("empty.json", b"[]", "must hold a JSON list of class names"),
        ("mapping.json", b'{"0": "a"}', "must hold a JSON list of class names"),
    ],
)
def test_class_names_that_cannot_be_read(name, content, message, tmp_path):
    if content is not None:
        tmp_path.joinpath(name).write_bytes(content)
    with pytest.raises(FileError, match=message):
        classifiers.load("digits", categories=tmp_path / name)
