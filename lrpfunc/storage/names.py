"""What a file may name: operators, functions of programs, and classes of outputs. Nothing else is ever looked up."""

from __future__ import annotations

import importlib
import math
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from types import BuiltinFunctionType, FunctionType, WrapperDescriptorType
from typing import Any

import torch

from lrpfunc.canonizers import Fate, Report
from lrpfunc.compat import Operator, overload_name, schema_of
from lrpfunc.errors import FileError
from lrpfunc.program import Equation, Leaf, Program, functions

NAMED_BY_TORCH = (torch.dtype, torch.layout, torch.memory_format)

# What lrpfunc's own are called in files, wherever they stand in the code.
OWN: dict[str, type] = {kind.__name__: kind for kind in (Program, Equation, Leaf, Report, Fate)}
FUNCTIONS = "lrpfunc"

# What runs when a dataclass is made, and the file of the base of Hugging Face's outputs.
MAKING = ("__new__", "__init__", "__post_init__", "__setattr__")
HUGGING_FACE = os.path.join("transformers", "utils", "generic.py")

# Whose dataclasses and named tuples models return; of other packages they are taken once somebody has imported them.
KNOWN_PACKAGES = {"torchvision", "transformers", "timm"}


def name_of_operator(found: Operator) -> str:
    return f"{schema_of(found).name}.{overload_name(found) or 'default'}"


def operator_named(name: str) -> Callable:
    """An operator by its name, `aten::add.Tensor`. Errors: `FileError`."""
    space, _, rest = name.partition("::")
    packet, _, overload = rest.rpartition(".")
    try:
        found = getattr(getattr(getattr(torch.ops, space), packet), overload)
    except (AttributeError, RuntimeError):
        raise FileError(f"this torch ({torch.__version__}) has no operator '{name}'") from None
    if not isinstance(found, Operator):
        raise FileError(f"'{name}' is no operator")
    taken = {str(argument.type).removeprefix("Optional[") for argument in schema_of(found).arguments}
    if schema_of(found).is_mutable:
        raise FileError(f"'{name}' writes to what it is given, which no equation does")
    if "str" in taken and not any("Tensor" in kind for kind in taken):  # which reads a file, or prints
        raise FileError(f"'{name}' makes something of a text alone, which no model does")
    return found


def name_of_function(found: Callable) -> str:
    module = found.__module__ or ""
    home = FUNCTIONS if module == functions.__name__ else module.lstrip("_")
    return f"{home}:{getattr(found, '__qualname__', '')}"


def function_named(name: str) -> Callable:
    """A function that programs are made of, `module:function`. Errors: `FileError` for any other."""
    module, _, function = name.partition(":")
    home: Any = None
    if module == FUNCTIONS and not function.startswith("_"):
        home = functions
    elif module == "operator" and f"__{function.rstrip('_')}__" in vars(int):  # arithmetic of sizes
        home = operator
    elif module == "math" and f"__{function}__" in vars(float):
        home = math
    elif module == "torch" and function.startswith("sym_"):
        home = torch
    found = getattr(home, function, None)
    if not callable(found) or name_of_function(found) != name:
        raise FileError(f"'{name}' is no function of programs")
    return found


def name_of_class(kind: type) -> str:
    return kind.__name__ if OWN.get(kind.__name__) is kind else f"{kind.__module__}:{kind.__qualname__}"


def class_named(name: str) -> type:
    """A dataclass or named tuple, `module:class`. Errors: `FileError` for any other."""
    if name in OWN:
        return OWN[name]
    module, _, path = name.partition(":")
    if not path:
        raise FileError(f"there is no class '{name}'")
    is_known = module in sys.modules or module.partition(".")[0] in KNOWN_PACKAGES
    try:
        found: Any = importlib.import_module(module) if is_known else None
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        hint = "" if is_known else f". Import {module} first, if you trust it"
        raise FileError(f"there is no class {path} of {module}{hint}") from None
    if not isinstance(found, type) or not (is_dataclass(found) or is_named_tuple(found)):
        raise FileError(f"'{name}' is no dataclass and no named tuple")
    if not (is_named_tuple(found) or _is_plain(found)):
        raise FileError(f"'{name}' runs code of its own when one is made")
    return found


def _is_plain(kind: type) -> bool:
    """Whether a class just takes its fields, or is one of Hugging Face's outputs, which do hardly more."""
    methods = (vars(base).get(name) for base in kind.__mro__ for name in MAKING)
    return all(_is_harmless(method) for method in methods if method is not None)


def _is_harmless(method: Any) -> bool:
    """Whether a method is one that Python or `dataclasses` wrote, or Hugging Face's for all outputs."""
    function = getattr(method, "__func__", method)  # `__new__` is a static method
    if not isinstance(function, FunctionType):
        return isinstance(function, (BuiltinFunctionType, WrapperDescriptorType))
    file = function.__code__.co_filename
    return file == "<string>" or file.endswith(HUGGING_FACE)


def is_named_tuple(kind: type) -> bool:
    """Whether a class is a named tuple as `collections` or `typing` make it, without code of its own."""
    return kind.__bases__ == (tuple,) and hasattr(kind, "_fields") and _is_plain(kind)
