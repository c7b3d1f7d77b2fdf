"""torchvision's classifiers, with the preprocessing and the class names of their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from lrpfunc.errors import ModelError
from lrpfunc.extras import extra
from lrpfunc.pictures.classifiers.classifier import Classifier, Standard
from lrpfunc.pictures.classifiers.parameters import DEFAULT, RANDOM, filled, initialized, outputs
from lrpfunc.pictures.weights import Choice, is_file, read_state

SLOW = ("googlenet", "inception_v3")  # they warn that their own initialization is slow


def torchvision_names() -> list[str]:
    """All names of torchvision's classifiers."""
    models = _models()
    return models.list_models(module=models)


def of_torchvision(name: str, weights: str | None) -> Classifier:
    """One of torchvision's classifiers. Errors: `ModelError` for weights that are unknown, missing or do not fit."""
    known = _models().get_model_weights(name)
    is_named = weights is not None and weights in known.__members__
    entry = known[weights] if is_named else known.DEFAULT
    preprocess = standard(entry.transforms())
    choice = None
    if weights is None or is_named:
        model = _downloaded(name, entry)
    elif weights == RANDOM:
        model = initialized(lambda: _empty(name))
    else:
        model, choice = _from_file(name, weights, list(known.__members__))
    # A fine-tuned head has other classes than those that the names are of.
    is_tuned = weights is not None and not is_named and outputs(model) not in (None, len(entry.meta["categories"]))
    categories = () if is_tuned else tuple(entry.meta["categories"])
    origin = choice.label if choice else weights or DEFAULT
    notes = choice.notes if choice else ()
    packages = ("torchvision",)
    return Classifier(
        name, model, preprocess, preprocess.mean, preprocess.std, categories, origin, packages, notes=notes
    )


def standard(preset: Any) -> Standard:
    """torchvision's preprocessing as ours."""
    return Standard(
        preset.crop_size[0], tuple(preset.mean), tuple(preset.std), preset.resize_size[0], preset.interpolation.value
    )


def _models() -> Any:
    return extra("torchvision.models", "cli", "a model by its name")


def _downloaded(name: str, entry: Any) -> nn.Module:
    try:
        return _models().get_model(name, weights=entry)
    except OSError as error:  # urllib's errors are among them
        raise ModelError(
            f"cannot download the weights {entry} from {entry.url} ({error}). Give a file with --weights FILE, "
            "or --weights random to try things out without."
        ) from error


def _empty(name: str, **options: Any) -> nn.Module:
    if name in SLOW:
        options = {"init_weights": False, "aux_logits": False, **options}
    return _models().get_model(name, weights=None, **options)


def _from_file(name: str, weights: str, known: list[str]) -> tuple[nn.Module, Choice]:
    """A torchvision model with the parameters of a file, and as many classes as they have."""
    if not is_file(weights):
        raise ModelError(f"{name} has no weights '{weights}': there are {', '.join(known)}, random, or a file.")
    state = read_state(weights)
    if name in SLOW:
        raise ModelError(
            f"a file does not say whether {name} scales its inputs itself (transform_input): "
            "give your model as module.path:factory."
        )
    return filled(lambda classes: _empty(name, num_classes=classes), state)
