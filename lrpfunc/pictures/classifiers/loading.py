"""The one way to a classifier: by its name, which says from where, with what the user wants to differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrpfunc.errors import ModelError, near_misses
from lrpfunc.extras import is_installed
from lrpfunc.pictures.classifiers.categories import read_categories
from lrpfunc.pictures.classifiers.classifier import Classifier, Standard
from lrpfunc.pictures.classifiers.factories import made
from lrpfunc.pictures.classifiers.shipped import DIGITS, LITE, digits_net, efficientnet_lite0
from lrpfunc.pictures.classifiers.timm_models import PREFIX, of_timm, timm_names
from lrpfunc.pictures.classifiers.torchvision_models import of_torchvision, torchvision_names


def load(
    name: str,
    weights: str | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    categories: Path | None = None,
) -> Classifier:
    """A classifier by its name, in evaluation mode.

    `weights`: `DEFAULT` or another name of torchvision's weights, `random`, or a file with a state dict (.safetensors,
    or what `torch.save` writes). Named models have `DEFAULT` unless told otherwise, a factory's what it gives them.
    `size`, `mean`, `std`: what differs from the model's own preprocessing. `categories`: a file with a class name per
    line, or a JSON list of them.
    Errors: `ModelError` for a name that is unknown, a factory that does not give a model, weights that do not fit;
    `FileError` for a file that is missing or holds something else; `MissingExtraError`.
    """
    classifier = _adapted(_named(name, weights), size, mean, std)
    if categories is not None:
        classifier = replace(classifier, categories=read_categories(categories))
    return replace(classifier, model=classifier.model.eval())


def names() -> list[str]:
    """All names that need neither timm nor a module of the user's own."""
    return [DIGITS, LITE, *torchvision_names()]


def _named(name: str, weights: str | None) -> Classifier:
    if name == DIGITS:
        return digits_net(weights)
    if name == LITE:
        return efficientnet_lite0(weights)
    if name.startswith(PREFIX):
        return of_timm(name, weights)
    if ":" in name:
        return made(name, weights)
    if name not in torchvision_names():
        hint = f" timm has it: '{PREFIX}{name}'." if _is_timms(name) else near_misses(name, names())
        raise ModelError(
            f"no model is called '{name}'.{hint} There are torchvision's classification models, "
            f"'{DIGITS}', '{LITE}', timm's as {PREFIX}NAME, and your own as module.path:factory."
        )
    return of_torchvision(name, weights)


def _is_timms(name: str) -> bool:
    return is_installed("timm") and name in timm_names()


def _adapted(
    classifier: Classifier, size: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Classifier:
    """A classifier with parts of its preprocessing replaced. Errors: `ModelError`."""
    if size is None and mean is None and std is None:
        return classifier
    standard = classifier.preprocess
    if not isinstance(standard, Standard):
        raise ModelError(f"{classifier.name} brings its own preprocessing, so size, mean and std cannot be changed.")
    if size is not None and size < 1:
        raise ModelError(f"the size of the input must be a number of pixels >= 1, but is {size}.")
    mean, std = mean or standard.mean, std or standard.std
    if len(mean) != len(std) or len(mean) not in (1, 3) or 0 in std or not all(map(math.isfinite, (*mean, *std))):
        raise ModelError(
            "mean and std must both have one finite number (gray) or three (RGB), and std none that is 0, "
            f"but are {_listed(mean)} and {_listed(std)}."
        )
    changed = replace(standard, mean=mean, std=std)
    if size is not None:  # nothing is cropped that need not be; without a size, resizing and cropping stay as they are
        changed = replace(changed, size=size, resize=size)
    return replace(classifier, preprocess=changed, mean=mean, std=std)


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
