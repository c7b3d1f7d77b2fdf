"""Twins: what a trace may change in place of the user's modules, functions and objects.

A twin has the same tensors in containers of its own. Whatever forward and `torch.export` assign, append or swap is
done to the twin, so that another thread can go on using the original meanwhile.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import deque
from collections.abc import Callable
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SHARED = (Tensor, type, ModuleType, BuiltinFunctionType, torch.jit.ScriptModule)

# Events, threads, loggers and files are what they are by their identity. These modules define plain bases of classes.
PLAIN = {"abc", "argparse", "builtins", "collections", "types", "typing"}
STANDARD = sys.stdlib_module_names - PLAIN


def twin_of(value: Any) -> Any:
    """A copy of a module, function or object and of all that it leads to, with the same tensors."""
    return _Twins(_usable).of(value)


def _usable(tensor: Tensor) -> Tensor:
    """The tensor itself; of one made under inference_mode, which autograd may not follow, a usual one on its memory."""
    if not tensor.is_inference() or torch.is_inference_mode_enabled() or tensor.layout != torch.strided:
        return tensor
    usual = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    usual.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(usual, requires_grad=False) if isinstance(tensor, nn.Parameter) else usual


def clone_of(value: Any) -> Any:
    """A twin whose tensors are clones."""
    return _Twins(lambda tensor: tensor.detach().clone()).of(value)


class _Twins:
    """Twins by their originals, so that what was one object is one object again. `tensor`: what becomes of tensors."""

    def __init__(self, tensor: Callable[[Tensor], Tensor]):
        self.tensor = tensor
        self.made: dict[int, Any] = {}
        self.originals: list = []  # kept, for their ids to remain theirs

    def of(self, value: Any) -> Any:
        if id(value) not in self.made:
            self._make(value)
        return self.made[id(value)]

    def _note(self, value: Any, made: Any) -> Any:
        self.originals.append(value)
        self.made[id(value)] = made
        return made

    def _make(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._note(value, self.tensor(value))
        elif isinstance(value, tuple):
            self._make_tuple(value)
        elif isinstance(value, MethodType):
            self._note(value, MethodType(value.__func__, self.of(value.__self__)))
        elif isinstance(value, FunctionType):
            self._make_function(value)
        elif isinstance(value, functools.partial):
            keywords = {key: self.of(item) for key, item in value.keywords.items()}
            self._note(value, functools.partial(self.of(value.func), *map(self.of, value.args), **keywords))
        elif isinstance(value, CellType):
            self._make_cell(value)
        elif isinstance(value, (dict, list, set, deque)) or _has_state(value):
            self._make_object(value)
        else:
            self._note(value, value)

    def _make_tuple(self, value: tuple) -> None:
        items = [self.of(item) for item in value]
        if all(item is before for item, before in zip(items, value, strict=True)):
            self._note(value, value)
        else:
            self._note(value, value._make(items) if hasattr(value, "_make") else type(value)(items))

    def _make_function(self, function: FunctionType) -> None:
        if function.__closure__ is None:
            self._note(function, function)
            return
        cells = tuple(map(self.of, function.__closure__))
        made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
        self._note(function, made)
        made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
        vars(made).update({key: self.of(item) for key, item in vars(function).items()})

    def _make_cell(self, cell: CellType) -> None:
        made = self._note(cell, CellType())
        try:
            contents = cell.cell_contents
        except ValueError:  # still empty
            return
        made.cell_contents = self.of(contents)

    def _make_object(self, value: Any) -> None:
        """A module, a container or another object with attributes; itself, if it cannot be copied."""
        try:
            made: Any = object.__new__(type(value)) if isinstance(value, nn.Module) else copy.copy(value)
        except Exception:  # locks, files and the like
            self._note(value, value)
            return
        self._note(value, made)
        if made is value:
            return
        if isinstance(value, dict):
            for key, item in value.items():
                dict.__setitem__(made, key, self.of(item))
        elif isinstance(value, list):
            made[:] = [self.of(item) for item in value]
        if hasattr(value, "__dict__"):
            vars(made).update({key: self.of(item) for key, item in vars(value).items()})


def _has_state(value: Any) -> bool:
    """Whether an object has attributes of its own, which may be changed, and no handle that its end would release."""
    kind = type(value)
    if isinstance(value, SHARED) or not hasattr(value, "__dict__") or hasattr(kind, "__del__"):
        return False
    if getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        return False
    if kind.__module__.partition(".")[0] == "torch" and not isinstance(value, nn.Module):
        return False  # operators, devices' streams, trees: torch's own, not the user's state
    return not any(base.__module__.partition(".")[0] in STANDARD for base in kind.__mro__)
