"""What cannot be traced, in words: who, what was needed, what came, and the way out."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence

from lrpfunc.compat import hooks_before
from lrpfunc.errors import InputError, TraceError
from lrpfunc.tracing.source_lines import INTERNAL, source_line

PACKED = (
    "is a packed sequence, whose sizes depend on its values: give the padded tensor, and take each sample's last step "
    "by its index"
)
DETECTION = ("torchvision/ops/boxes.py", "torchvision/models/detection/")


# -- before tracing ---------------------------------------------------------------------------------------------------


def check_surroundings() -> None:
    """Errors: `TraceError` under autocast."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise TraceError(
                f"a model is traced in the precision of its parameters, but autocast is on for {device}. Trace outside "
                "of it; for another precision cast the model and its inputs: model.to(torch.bfloat16)."
            )


def check_model(model: nn.Module) -> None:
    """Errors: `TraceError` for what a module is made of that cannot be traced, by the name of the layer."""
    for name, module in model.named_modules():
        if reason := _reason_against(module):
            raise TraceError(f"layer '{name}' ({type(module).__name__}) {reason}" if name else f"the model {reason}")
    check_tensors(dict([*model.named_parameters(), *model.named_buffers()]), "parameter or buffer", TraceError)


def _reason_against(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule) and not isinstance(module, torch.jit.TracedModule):
        return "was compiled by torch.jit.script, which hides its operations. Give the module that it was made of."
    if ".quantized" in type(module).__module__:
        return "is quantized, and has no derivative. Give the model as it was before, in floating point."
    is_spectral = type(module).__name__ == "_SpectralNorm" or any(
        type(hook).__name__ == "SpectralNorm" for hook in hooks_before(module)
    )
    if is_spectral and module.training:
        return "is spectrally normalized in training mode, which changes it at every call. Call model.eval() first."
    return ""


def check_inputs(inputs: Mapping[str, Any], leaves: Iterable[tuple[str, Any]]) -> None:
    """Errors: `InputError` for example inputs, by their names, or leaves of them, by their labels."""
    for name, value in inputs.items():
        if isinstance(value, PackedSequence):
            raise InputError(f"input '{name}' {PACKED}.")
    check_tensors({label: leaf for label, leaf in leaves if isinstance(leaf, Tensor)}, "input", InputError)


def check_tensors(tensors: Mapping[str, Tensor], what: str, error: type[Exception]) -> None:
    """Errors of a type for tensors that are more than numbers in a dense array."""
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise error(f"{what} '{name}' has no shape yet. Call the model once on real inputs, and then trace it.")
        if reason := _not_dense(tensor):
            raise error(f"{what} '{name}' must be a dense tensor, but is {reason}.")


def _not_dense(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "quantized. Call dequantize() on it"
    if tensor.is_nested:
        return "nested. Pad it: tensor.to_padded_tensor(0.0)"
    layout = str(tensor.layout).removeprefix("torch.")
    return "" if tensor.layout == torch.strided else f"sparse ({layout}). Call to_dense() on it"


# -- while tracing ----------------------------------------------------------------------------------------------------


def failure(error: Exception, modules: Iterable[tuple[str, nn.Module]]) -> str:
    """Why a model could not be exported: the layer and line, torch's own first line, and the way out, if known."""
    frames = list(traceback.walk_tb(error.__traceback__))
    users = [(f, line) for f, line in frames if not f.f_code.co_filename.startswith(INTERNAL)]
    where = f" at {source_line(users[-1][0].f_code.co_filename, users[-1][1])}" if users else ""
    names = {id(module): name.removeprefix("model").removeprefix(".") for name, module in modules}
    inside = [names.get(id(frame.f_locals.get("self")), "") for frame, _ in frames]
    layer = next((f" in layer '{name}'" for name in reversed(inside) if name), "")
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if match := re.search(r"argument of type: <class '[\w.]*\.(\w+)'>", first):  # as torch before 2.13 says it
        return object_message(match[1])
    first = first if len(first) <= 200 else f"{first[:200]}..."
    hint = _hint(str(error), where, [frame for frame, _ in frames])
    stop = "." if hint and not first.endswith((".", "!", "?")) else ""
    return f"the model cannot be exported{layer}{where}: {type(error).__name__}: {first}{stop}{hint}"


def _hint(text: str, where: str, frames: list[FrameType]) -> str:
    if any(isinstance(value, PackedSequence) for frame in frames for value in frame.f_locals.values()):
        return f" What a recurrent layer is given {PACKED}."
    files = [frame.f_code.co_filename.replace("\\", "/") for frame in frames]
    if any(place in file for file in files for place in DETECTION):
        return (
            " Detection models choose boxes by their values: explain the backbone and the head alone, "
            "without postprocessing, as lrpfunc.targets.heads(model) gives them of torchvision's."
        )
    if "functorch" in text or any("_functorch" in file for file in files):
        return " Transforms of torch.func inside forward are not followed: write them out."
    if "numpy()" in text:
        return " What leaves torch for numpy cannot be followed: write it with torch."
    if "data-dependent" not in text:
        return ""
    if "expert" in where:
        return (
            " The experts are called one by one, as tokens choose them: make the model with "
            'experts_implementation="batched_mm", which configurations and from_pretrained of transformers 5 take.'
        )
    return " The model decides by a value that is only known when it runs: write it with torch.where."


def object_message(kind: str) -> str:
    """Why a function that makes or reads what is no tensor is refused, and the way out."""
    return (
        f"forward makes or reads an object of class {kind}, which is no tensor. Make random numbers and whatever else "
        "it gives beforehand, and make them an input."
    )


def no_memory_message(value: Tensor, source: str) -> str:
    """Why a value without memory of its own cannot be followed, and the way out."""
    if value.layout != torch.strided:
        return f"a sparse tensor is made at {source}, which lrpfunc cannot follow: make it dense, by to_dense()."
    return (
        f"a transform of torch.func (vmap, grad) is used at {source}, which lrpfunc cannot follow inside forward: "
        "write it for the whole batch."
    )
