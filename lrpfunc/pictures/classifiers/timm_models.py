"""timm's models by name, `timm:resnet50.a1_in1k`, with the preprocessing and the class names that timm gives them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lrpfunc.errors import ModelError, near_misses
from lrpfunc.extras import extra
from lrpfunc.pictures.classifiers.classifier import Classifier, Standard
from lrpfunc.pictures.classifiers.parameters import DEFAULT, RANDOM, filled, initialized
from lrpfunc.pictures.weights import Choice, first_sentence, is_file, read_state

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "timm:"


def timm_names() -> list[str]:
    """All models, alone (their default weights) and with the tag of weights behind a dot."""
    timm = _timm()
    return [*timm.list_models(), *timm.list_pretrained()]


def of_timm(name: str, weights: str | None) -> Classifier:
    """A model of timm by `timm:NAME` or `timm:NAME.TAG`.

    Errors: `ModelError` for a name that is unknown, weights that are unknown, missing or do not fit, and a model that
    gives features instead of logits; `MissingExtraError`.
    """
    known, short = timm_names(), name.removeprefix(PREFIX)
    if short not in known:
        raise ModelError(
            f"timm has no model '{short}'.{near_misses(short, known)} timm.list_models() and timm.list_pretrained() "
            "list all names."
        )
    choice = None
    if weights in (None, DEFAULT):
        model = _downloaded(name)
    elif weights == RANDOM:
        model = initialized(lambda: _empty(short))
    else:
        model, choice = _from_file(name, weights)
    if not _classes(model):
        raise ModelError(
            f"{name} gives features, not logits: it has no classes. Choose other weights, --weights FILE with a head, "
            "or your own as module.path:factory."
        )
    config = _timm().data.resolve_model_data_config(model)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    origin = choice.label if choice else weights or DEFAULT
    notes = choice.notes if choice else ()
    return Classifier(name, model, _preprocessing(config), mean, std, _names(model), origin, ("timm",), notes=notes)


def _timm() -> Any:
    return extra("timm", "timm", "a model timm:NAME")


def _empty(short: str, **options: Any) -> nn.Module:
    return _timm().create_model(short, pretrained=False, **options)


def _classes(model: Any) -> int:
    return getattr(model, "num_classes", 0) or 0


def _downloaded(name: str) -> nn.Module:
    try:
        return _timm().create_model(name.removeprefix(PREFIX), pretrained=True)
    # timm, huggingface_hub and what they download with have errors of their own, some of them RuntimeErrors
    except Exception as error:
        raise ModelError(
            f"cannot download the weights of {name} ({first_sentence(error)}). Give a file with --weights FILE, "
            "or --weights random to try things out without."
        ) from error


def _from_file(name: str, weights: str) -> tuple[nn.Module, Choice]:
    if not is_file(weights):
        raise ModelError(
            f"{name} has no weights '{weights}': there are DEFAULT, random, or a file. Tags are part of the name, as "
            "in timm:resnet50.a1_in1k."
        )
    return filled(lambda classes: _empty(name.removeprefix(PREFIX), num_classes=classes), read_state(weights))


def _preprocessing(config: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """timm's preprocessing, as ours where that is the same, so that parts of it can be replaced."""
    channels, height, width = config["input_size"]
    if config["crop_mode"] != "center" or height != width or channels != len(config["mean"]) or channels not in (1, 3):
        return _timm().data.create_transform(**config)
    resize = math.floor(height / config["crop_pct"])
    return Standard(height, tuple(config["mean"]), tuple(config["std"]), resize, config["interpolation"])


def _names(model: nn.Module) -> tuple[str, ...]:
    """What its classes are called if they are ImageNet's: WordNet's first word, unless that stands for several."""
    data = _timm().data
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return ()
    described = data.ImageNetInfo(subset).label_descriptions()
    firsts = [words.split(", ")[0] for words in described]
    often = Counter(firsts)
    return tuple(words if often[first] > 1 else first for words, first in zip(described, firsts, strict=True))
