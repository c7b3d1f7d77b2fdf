"""Image classifiers by name: the module, what turns a picture into its input and back, and what its classes are called.

A name is one of torchvision's classification models, `digits` for the shipped network, or `module.path:factory`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrpfunc import digits
from lrpfunc.errors import FileError, LrpError, ModelError, near_misses

if TYPE_CHECKING:
    from PIL import Image

DIGITS, DEFAULT, RANDOM = "digits", "DEFAULT", "random"
IMAGENET_MEAN, IMAGENET_STD, IMAGENET_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts put a model's state


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
        _fill(model, _state(weights), weights)
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
    own = classifier.preprocess
    if not isinstance(own, Standard):
        raise ModelError(f"{classifier.name} brings its own preprocessing, so size, mean and std cannot be changed.")
    if size is not None and size < 1:
        raise ModelError(f"the size of the input must be a number of pixels >= 1, but is {size}.")
    mean, std = mean or own.mean, std or own.std
    if len(mean) != len(std) or len(mean) not in (1, 3) or 0 in std:
        raise ModelError(
            "mean and std must both have one number (gray) or three (RGB), and std none that is 0, "
            f"but are {_listed(mean)} and {_listed(std)}."
        )
    # With a size of one's own nothing is cropped that need not be; without, resizing and cropping stay as they are.
    changed = (
        replace(own, mean=mean, std=std) if size is None else replace(own, size=size, resize=size, mean=mean, std=std)
    )
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
    # Fine-tuned heads have classes of their own.
    own = weights is not None and not is_named and _outputs(model) not in (None, len(entry.meta["categories"]))
    categories = () if own else tuple(entry.meta["categories"])
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
    state = _state(weights)
    if name in ("googlenet", "inception_v3"):
        raise ModelError(
            f"a file does not say whether {name} scales its inputs itself (transform_input): "
            "give your model as module.path:factory."
        )
    with torch.device("meta"):
        expected = _empty(name).state_dict()
    state = _stripped(state, expected)
    heads = {
        len(state[key])
        for key, tensor in expected.items()
        if key in state and tensor.dim() and state[key].dim() == tensor.dim() and len(state[key]) != len(tensor) == 1000
    }
    model = _empty(name, num_classes=heads.pop()) if len(heads) == 1 else _empty(name)
    return _fill(model, state, weights)


def _outputs(model: nn.Module) -> int | None:
    """How many classes a model has, by its last layer."""
    sizes = [
        m.out_features if isinstance(m, nn.Linear) else m.out_channels
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    ]
    return sizes[-1] if sizes else None


# -- one's own --------------------------------------------------------------------------------------------------------


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
    return replace(made, name=name, model=_fill(made.model, _state(weights), weights), weights=weights)


# -- files ------------------------------------------------------------------------------------------------------------


def _state(path: str) -> dict[str, Tensor]:
    """The state dict in a file. Errors: `FileError`."""
    loaded: Any
    if not Path(path).is_file():
        raise FileError(f"there is no file '{path}' to take weights from.")
    try:
        if path.endswith(".safetensors"):
            import safetensors.torch

            loaded = safetensors.torch.load_file(path)
        else:
            loaded = unpickled(Path(path))
    # safetensors, pickle and zip have errors of their own for files that are broken or something else
    except Exception as error:
        raise FileError(
            f"'{path}' holds no weights that can be loaded safely ({first_sentence(error)}). "
            "Write it by torch.save(model.state_dict(), path) or safetensors."
        ) from error
    return _unwrapped(path, loaded)


def unpickled(path: Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote, if it is tensors and plain containers. Errors: nearly any, see `first_sentence`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of TorchScript archives before it refuses them
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def first_sentence(error: Exception) -> str:
    """What an error of another library says, in a line, after its type: some say nothing, or just a number."""
    said = " ".join(str(error).split(". ")[0].split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _unwrapped(path: str, loaded: Any) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(loaded.get(wrapper), Mapping):
                return _unwrapped(path, loaded[wrapper])
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return dict(loaded)
    raise FileError(f"'{path}' must hold a state dict, names with tensors, but holds {type(loaded).__name__}.")


def _stripped(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without what training put before all names ("module.", "_orig_mod.", "model."), if names fit then."""
    stripped = state
    while not any(name in expected for name in stripped):
        if len({name.partition(".")[0] for name in stripped}) != 1 or not all("." in name for name in stripped):
            return state
        stripped = {name.partition(".")[2]: tensor for name, tensor in stripped.items()}
    return stripped


def _fill(model: nn.Module, state: dict[str, Tensor], path: str) -> nn.Module:
    """A model with the parameters of a state dict. Errors: `ModelError` that says which do not fit."""
    expected = model.state_dict()
    state = _stripped(state, expected)
    complaints = {
        "missing": [name for name in expected if name not in state and not name.endswith("num_batches_tracked")],
        "not of this model": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    if any(complaints.values()):
        listed = "; ".join(f"{what}: {_few(found)}" for what, found in complaints.items() if found)
        raise ModelError(f"the weights in '{path}' do not fit the model. {listed}.")
    model.load_state_dict(state, strict=False)
    return model


def _few(found: list[str], most: int = 4) -> str:
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


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
