"""Classifiers of the user's own: `module.path:factory`."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lrpfunc.errors import LrpError, ModelError, near_misses
from lrpfunc.pictures.classifiers.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier, Standard
from lrpfunc.pictures.classifiers.parameters import DEFAULT, RANDOM
from lrpfunc.pictures.weights import fill, read_state


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


def made(name: str, weights: str | None) -> Classifier:
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
    choice = fill(made.model, read_state(weights))
    return replace(made, name=name, weights=choice.label, notes=(*made.notes, *choice.notes))
