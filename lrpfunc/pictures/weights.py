"""Parameters in files, as training scripts leave them, and a model filled with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrpfunc.errors import FileError, ModelError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts put a model's state


def read_state(path: str) -> dict[str, Tensor]:
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


def stripped(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without what training put before all names ("module.", "_orig_mod.", "model."), if names fit then."""
    stripped = state
    while not any(name in expected for name in stripped):
        if len({name.partition(".")[0] for name in stripped}) != 1 or not all("." in name for name in stripped):
            return state
        stripped = {name.partition(".")[2]: tensor for name, tensor in stripped.items()}
    return stripped


def fill(model: nn.Module, state: dict[str, Tensor], path: str) -> nn.Module:
    """A model with the parameters of a state dict. Errors: `ModelError` that says which do not fit."""
    expected = model.state_dict()
    state = stripped(state, expected)
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
