"""Values as JSON, with the tensors among them apart; what JSON does not know is an object of one item, a tag."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lrpfunc.compat import Operator
from lrpfunc.errors import FileError
from lrpfunc.program import Variable
from lrpfunc.rules import Rule, Stabilizer, call_of, settings_of
from lrpfunc.storage.names import (
    NAMED_BY_TORCH,
    class_named,
    function_named,
    name_of_class,
    name_of_function,
    name_of_operator,
)


class Encoder:
    """Encodes values, and collects their tensors by name and their variables.

    `names`: of tensors, by their ids; others are numbered.
    """

    def __init__(self, names: Mapping[int, str]):
        self.names = dict(names)
        self.tensors: dict[str, Tensor] = {}
        self.variables: dict[str, Any] = {}

    def encode(self, value: Any) -> Any:
        """A value as JSON. Errors: `FileError` for what no file can hold, `RuleError` for rules of one's own."""
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case complex():
                return {"complex": self.encode([value.real, value.imag])}
            case Tensor():
                return self._tensor(value)
            case Variable():
                return self._variable(value)
            case Operator():
                return {"operator": name_of_operator(value)}
            case Rule():
                return {"rule": self.encode(call_of(value))}
            case Stabilizer():
                return {"stabilizer": self.encode(settings_of(value))}
            case torch.device():
                return {"device": str(value)}
            case slice():
                return {"slice": self.encode([value.start, value.stop, value.step])}
            case type():
                return {"class": self._named(value, name_of_class(value), class_named)}
        return self._other(value)

    def _other(self, value: Any) -> Any:
        if isinstance(value, NAMED_BY_TORCH):
            return {"torch": str(value).removeprefix("torch.")}
        if value is Ellipsis:
            return {"ellipsis": None}
        if isinstance(value, Mapping) and not is_dataclass(value):
            items = [[self.encode(key), self.encode(item)] for key, item in value.items()]
            return {"ordered" if isinstance(value, OrderedDict) else "dict": items}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"named": [self.encode(type(value)), [self.encode(item) for item in value]]}
        if isinstance(value, tuple):
            return {"tuple": [self.encode(item) for item in value]}
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        if is_dataclass(value):
            given = {field.name: self.encode(getattr(value, field.name)) for field in fields(value) if field.init}
            return {"dataclass": [self.encode(type(value)), given]}
        if callable(value) and hasattr(value, "__module__"):
            return {"function": self._named(value, name_of_function(value), function_named)}
        raise FileError(f"a file cannot hold {value!r}, of class {type(value).__name__}.")

    def _named(self, value: Any, name: str, lookup: Callable[[str], Any]) -> str:
        """A name by which it will be found again."""
        if lookup(name) is not value:
            raise FileError(f"a file cannot hold '{name}', which is another one by that name.")
        return name

    def _variable(self, variable: Variable) -> Any:
        if variable.name not in self.variables:
            self.variables[variable.name] = self.encode([variable.shape, variable.dtype])
        return {"variable": variable.name}

    def _tensor(self, tensor: Tensor) -> Any:
        """Tensors that are one object are one in the file as well."""
        if id(tensor) not in self.names:
            taken = set(self.names.values())
            numbered = (f"tensor.{number}" for number in itertools.count(len(taken)))
            self.names[id(tensor)] = next(name for name in numbered if name not in taken)
        name = self.names[id(tensor)]
        if name not in self.tensors:
            self.tensors[name] = _plain(tensor)
        found = {"complex_tensor" if tensor.is_complex() else "tensor": name}
        return found if tensor.is_contiguous() else {"laid_out": [found, _order(tensor)]}


def _order(tensor: Tensor) -> list[int]:
    """The dimensions in the order in which they lie in memory, on which kernels' rounding depends."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def _plain(tensor: Tensor) -> Tensor:
    """Numbers in memory of their own. Errors: `FileError` for tensors without values."""
    if tensor.is_meta or tensor.layout != torch.strided:
        raise FileError(f"a file holds dense tensors with values, but one is {tensor.layout} on {tensor.device}.")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.clone(memory_format=torch.contiguous_format)
