"""A model filled with parameters of a file, or what does not fit, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrpfunc.errors import ModelError
from lrpfunc.pictures.weights.pickles import first_sentence
from lrpfunc.pictures.weights.reading import Checkpoint
from lrpfunc.pictures.weights.sets import COUNTERS, Choice, choose, few


def fill(model: nn.Module, checkpoint: Checkpoint) -> Choice:
    """Fill a model with what fits it best in a file, and say what that was.

    Errors: `ModelError` that says which parameters do not fit; `FileError` if there are none.
    """
    return put(model, choose(checkpoint, model.state_dict()))


def put(model: nn.Module, choice: Choice) -> Choice:
    """Fill a model with what was chosen: the choice, with the names in it that belong to other things.

    Errors: `ModelError` that says which parameters do not fit.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    foreign = [name for name in choice.state if name not in expected and not _is_near(name, expected)]
    complaints = _complaints(model, choice.state, expected)
    if any(complaints.values()):
        complaints["not of this model"] += foreign
        listed = "; ".join(f"{what}: {few(found)}" for what, found in complaints.items() if found)
        where = choice.described.removeprefix(choice.file).removeprefix(", ")
        raise ModelError(f"the weights in '{choice.file}'{f' ({where})' * bool(where)} do not fit the model. {listed}.")
    taken: Mapping[str, Any] = {name: _dense(choice.state[name]) for name in expected if name in choice.state}
    try:
        model.load_state_dict(taken, strict=False)
    except RuntimeError as error:  # of a model's own way of loading
        raise ModelError(f"the weights in '{choice.file}' cannot be loaded: {first_sentence(error)}.") from error
    return choice._replace(ignored=(*choice.ignored, *foreign))


def _complaints(model: nn.Module, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    both = {name: (state[name], tensor) for name, tensor in expected.items() if name in state}
    same_shape = {name: pair for name, pair in both.items() if pair[0].shape == pair[1].shape}
    twins = _shared(model)
    missing = [name for name in expected if not any(twin in state for twin in (name, *twins.get(name, ())))]
    return {
        "missing": [name for name in missing if not name.endswith(COUNTERS)],
        "not of this model": [name for name in state if name not in expected and _is_near(name, expected)],
        "of another shape": [
            f"{name} {tuple(got.shape)} for {tuple(wanted.shape)}"
            for name, (got, wanted) in both.items()
            if name not in same_shape
        ],
        "of another kind": [
            f"{name} {str(got.dtype).removeprefix('torch.')} for {str(wanted.dtype).removeprefix('torch.')}"
            for name, (got, wanted) in same_shape.items()
            if _kind(got) != _kind(wanted)
        ],
        "without numbers (meta)": [name for name, (got, wanted) in same_shape.items() if got.is_meta > wanted.is_meta],
        "with nan": [name for name, (got, _) in same_shape.items() if _has_nan(got)],
    }


def _shared(model: nn.Module) -> dict[str, list[str]]:
    """The other names of parameters that have several; files may hold one of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return {name: [n for n in group if n != name] for group in names.values() if len(group) > 1 for name in group}


def _is_near(name: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether a name that a model lacks seems to be of such a model: another layer, and no loss or metric beside it."""
    first = name.partition(".")[0]
    return first.isdecimal() or _stem(first) in {_stem(known.partition(".")[0]) for known in expected}


def _stem(name: str) -> str:
    return re.sub(r"[_\d]+$", "", name) or name


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "numbers" if tensor.is_floating_point() or tensor.is_quantized else "integers"


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta and bool(torch.isnan(_dense(tensor)).any())


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.to_dense() if tensor.layout != torch.strided else tensor
