"""Parameters by the word for them: random ones, and those of a file, with the number of classes that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lrpfunc.pictures.weights import Checkpoint, Choice, choose, put

DEFAULT, RANDOM = "DEFAULT", "random"
CLASSES = 1000  # of ImageNet


def initialized(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with random parameters, the same ones every time; none is zero, as a head that hides everything is."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        return model


def filled(make: Callable[[int], nn.Module], checkpoint: Checkpoint) -> tuple[nn.Module, Choice]:
    """A model with the parameters of a file, and as many classes as they have: fine-tuned heads have their own number.

    `make`: gives the model with so many classes. Errors: those of `weights.fill`.
    """
    with torch.device("meta"):
        expected = make(CLASSES).state_dict()
    choice = choose(checkpoint, expected, CLASSES)
    model = make(_classes(choice.state, expected))
    return model, put(model, choice)


def _classes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """How many classes a state is for, if all that differs from what is expected of ImageNet's classes agrees on it."""
    heads = {
        len(state[key])
        for key, tensor in expected.items()
        if key in state and tensor.dim() and state[key].dim() == tensor.dim()
        if len(state[key]) != len(tensor) == CLASSES
    }
    return heads.pop() if len(heads) == 1 else CLASSES


def outputs(model: nn.Module) -> int | None:
    """How many classes a model has, by its last layer."""
    sizes = [
        m.out_features if isinstance(m, nn.Linear) else m.out_channels
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    ]
    return sizes[-1] if sizes else None
