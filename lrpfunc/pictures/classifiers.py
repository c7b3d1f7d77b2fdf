"""Image classifiers by name: the module, what turns a picture into its input and back, and what its classes are called.

A name is one of torchvision's classification models, `digits` for the shipped network, or `module.path:factory`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrpfunc import digits
from lrpfunc.errors import FileError, LrpError, ModelError, near_misses
from lrpfunc.pictures.weights import fill, read_state, stripped

if TYPE_CHECKING:
    from PIL import Image

DIGITS, DEFAULT, RANDOM = "digits", "DEFAULT", "random"
IMAGENET_MEAN, IMAGENET_STD, IMAGENET_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224


@dataclass(frozen=True)
class Standard:
    """The usual preprocessing: resize the shorter side to `resize`, crop the middle to `size`, (pixel - mean) / std.

    Pixels are from 0 to 1; one mean means gray pictures, three RGB. Gives (channels, size, size).
    """

    size: int = IMAGENET_SIZE
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as pictures

        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        image = pictures.resize(image, [self.resize or self.size], InterpolationMode(self.interpolation))
        image = pictures.center_crop(image, [self.size])
        return pictures.normalize(pictures.to_tensor(image), list(self.mean), list(self.std))


@dataclass(frozen=True)
class Classifier:
    """A model that gives logits (N, classes), with what people need to talk to it.

    `preprocess`: an RGB PIL image -> its input (C, H, W). `mean`, `std` (per channel): that input is
    (pixel - mean) / std of pixels from 0 to 1; without them it is taken for pixels. `categories`: a name per class, or
    none. `weights`: where the parameters are from.
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    categories: Sequence[str] = ()
    weights: str = ""

    def pixels(self, x: Tensor) -> Tensor:
        """Inputs (N, C, H, W) as people see them, from 0 to 1."""
        return (x * _per_channel(self.std, x) + _per_channel(self.mean, x)).clamp(0, 1)

    def input_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest input that pixels from 0 to 1 can become, (C, 1, 1)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        ends = torch.stack([(0 - mean) / std, (1 - mean) / std])[..., None, None]
        return ends.amin(0), ends.amax(0)

    def category(self, index: int) -> str:
        """The name of a class, its number if it has none."""
        return self.categories[index] if 0 <= index < len(self.categories) else str(index)


def _per_channel(values: Sequence[float], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None]


# -- by name ----------------------------------------------------------------------------------------------------------


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
    or what `torch.save` writes). torchvision's models have `DEFAULT` unless told otherwise, a factory's what it gives
    them. `size`, `mean`, `std`: what differs from the model's own preprocessing. `categories`: a file with a class name
    per line, or a JSON list of them.
    Errors: `ModelError` for a name that is unknown, a factory that does not give a model, weights that do not fit;
    `FileError` for a file that is missing or holds something else.
    """
    if name == DIGITS:
        classifier = _digits(weights)
    elif ":" in name:
        classifier = _made(name, weights)
    else:
        classifier = _of_torchvision(name, weights)
    classifier = _adapted(classifier, size, mean, std)
    if categories is not None:
        classifier = replace(classifier, categories=_categories(categories))
    return replace(classifier, model=classifier.model.eval())


def _digits(weights: str | None) -> Classifier:
    model = digits.load().model if weights in (None, DEFAULT) else _initialized(digits.DigitsNet)
    if weights not in (None, DEFAULT, RANDOM):
        fill(model, read_state(weights), weights)
    # Ink is 1 and paper 0 for the network, but dark and white on pictures.
    preprocess = Standard(size=8, mean=(1.0,), std=(-1.0,))
    names = tuple(map(str, range(10)))
    return Classifier(DIGITS, model, preprocess, preprocess.mean, preprocess.std, names, weights or DEFAULT)


def _initialized(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with random parameters, the same ones every time; none is zero, as a head that hides everything is."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return model


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
    if len(mean) != len(std) or len(mean) not in (1, 3) or 0 in std:
        raise ModelError(
            "mean and std must both have one number (gray) or three (RGB), and std none that is 0, "
            f"but are {_listed(mean)} and {_listed(std)}."
        )
    changed = replace(standard, mean=mean, std=std)
    if size is not None:  # nothing is cropped that need not be; without a size, resizing and cropping stay as they are
        changed = replace(changed, size=size, resize=size)
    return replace(classifier, preprocess=changed, mean=mean, std=std)


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


# -- torchvision ------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """All names that need no module of the user's own."""
    from torchvision import models

    return [DIGITS, *models.list_models(module=models)]


def _of_torchvision(name: str, weights: str | None) -> Classifier:
    from torchvision import models

    if name not in names():
        raise ModelError(
            f"no model is called '{name}'.{near_misses(name, names())} There are torchvision's classification models, "
            "'digits', and your own as module.path:factory."
        )
    known = models.get_model_weights(name)
    is_named = weights is not None and weights in known.__members__
    entry = known[weights] if is_named else known.DEFAULT
    preprocess = _standard(entry.transforms())
    if weights is None or is_named:
        model = _downloaded(name, entry)
    elif weights == RANDOM:
        model = _initialized(lambda: _empty(name))
    else:
        model = _from_file(name, weights, list(known.__members__))
    # A fine-tuned head has other classes than those that the names are of.
    is_tuned = weights is not None and not is_named and _outputs(model) not in (None, len(entry.meta["categories"]))
    categories = () if is_tuned else tuple(entry.meta["categories"])
    return Classifier(name, model, preprocess, preprocess.mean, preprocess.std, categories, weights or DEFAULT)


def _standard(preset: Any) -> Standard:
    return Standard(
        preset.crop_size[0], tuple(preset.mean), tuple(preset.std), preset.resize_size[0], preset.interpolation.value
    )


def _downloaded(name: str, entry: Any) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(name, weights=entry)
    except OSError as error:  # urllib's errors are among them
        raise ModelError(
            f"cannot download the weights {entry} from {entry.url} ({error}). Give a file with --weights FILE, "
            "or --weights random to try things out without."
        ) from error


def _empty(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    if name in ("googlenet", "inception_v3"):  # they warn that their own initialization is slow
        options = {"init_weights": False, "aux_logits": False, **options}
    return models.get_model(name, weights=None, **options)


def _from_file(name: str, weights: str, known: list[str]) -> nn.Module:
    """A torchvision model with the parameters of a file, and as many classes as they have."""
    if not Path(weights).exists() and "." not in weights:
        raise ModelError(f"{name} has no weights '{weights}': there are {', '.join(known)}, random, or a file.")
    state = read_state(weights)
    if name in ("googlenet", "inception_v3"):
        raise ModelError(
            f"a file does not say whether {name} scales its inputs itself (transform_input): "
            "give your model as module.path:factory."
        )
    with torch.device("meta"):
        expected = _empty(name).state_dict()
    state = stripped(state, expected)
    heads = {
        len(state[key])
        for key, tensor in expected.items()
        if key in state and tensor.dim() and state[key].dim() == tensor.dim() and len(state[key]) != len(tensor) == 1000
    }
    model = _empty(name, num_classes=heads.pop()) if len(heads) == 1 else _empty(name)
    return fill(model, state, weights)


def _outputs(model: nn.Module) -> int | None:
    """How many classes a model has, by its last layer."""
    sizes = [
        m.out_features if isinstance(m, nn.Linear) else m.out_channels
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    ]
    return sizes[-1] if sizes else None


# -- the user's own ----------------------------------------------------------------------------------------------------


def named_object(path: str, what: str) -> Any:
    """The object `module.path:name`; modules may be in the working directory too. Errors: `ModelError`."""
    module_name, _, name = path.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", path):
        raise ModelError(f"{what} is given as module.path:name, but '{path}' is not.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(f"importing '{module_name}' failed: {error}.") from error
        raise ModelError(f"there is no module '{module_name}', neither installed nor below {Path.cwd()}.") from error
    except Exception as error:  # the user's own code may raise anything
        raise ModelError(f"importing '{module_name}' failed: {type(error).__name__}: {error}.") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ModelError(f"'{module_name}' has no '{name}'.{near_misses(part, dir(found))}")
        found = getattr(found, part)
    return found


def _made(name: str, weights: str | None) -> Classifier:
    factory = named_object(name, "a model of your own")
    try:
        made = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except LrpError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise ModelError(f"calling {name}() failed: {type(error).__name__}: {error}.") from error
    if isinstance(made, nn.Module):
        made = Classifier(name, made, Standard(), IMAGENET_MEAN, IMAGENET_STD)
    if not isinstance(made, Classifier):
        raise ModelError(
            f"{name} must give an nn.Module or a lrpfunc.pictures.classifiers.Classifier, "
            f"but gives {type(made).__name__}."
        )
    if weights is None:
        return replace(made, name=name)
    if weights in (DEFAULT, RANDOM):
        raise ModelError(f"weights of {name} are what it gives, or a file: '{weights}' is for torchvision's models.")
    return replace(made, name=name, model=fill(made.model, read_state(weights), weights), weights=weights)


# -- names of classes -------------------------------------------------------------------------------------------------


def _categories(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark before the first name
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read class names from {path} ({error}).") from error
    if path.suffix.lower() == ".json":
        return _json_categories(path, text)
    listed = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not listed:
        raise FileError(f"{path} must hold a class name per line, but has none.")
    return listed


def _json_categories(path: Path, text: str) -> tuple[str, ...]:
    try:
        listed = json.loads(text)
    except ValueError as error:
        raise FileError(f"{path} is no JSON ({error}).") from error
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise FileError(f"{path} must hold a JSON list of class names.")
    return tuple(listed)
