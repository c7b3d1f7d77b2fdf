"""What a file may name: operators, functions of programs, and classes of outputs. Nothing else is ever looked up."""

from __future__ import annotations

import importlib
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
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

# Whose dataclasses and named tuples models return; of other packages they are taken once somebody has imported them.
KNOWN_PACKAGES = {"torch", "torchvision", "transformers", "timm"}


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
    if any(argument.name == "filename" for argument in schema_of(found).arguments):
        raise FileError(f"'{name}' reads a file, which no model does")
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
    elif module == "operator" and hasattr(torch.SymInt, f"__{function}__"):  # arithmetic of sizes
        home = operator
    elif module == "math" and hasattr(torch.SymFloat, f"__{function}__"):
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
    return found


def is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
