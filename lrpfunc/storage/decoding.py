"""From JSON and tensors back to values: nothing is run that a file names, nothing made but what it may hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lrpfunc import rules
from lrpfunc.errors import FileError
from lrpfunc.program import Variable
from lrpfunc.rules import Rule, Stabilizer, stabilizer
from lrpfunc.storage.names import NAMED_BY_TORCH, class_named, function_named, is_named_tuple, operator_named


class Decoder:
    """Decodes values. `tensors` and `variables`: what an encoder collected, by name.

    Errors: `FileError` for whatever is not as an encoder writes it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], variables: Mapping[str, Any]):
        self.tensors = tensors
        self.variables = {name: Variable(name, *self.decode(given)) for name, given in variables.items()}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) != 1:
            raise FileError(f"one tag was needed, but there are {', '.join(value) or 'none'}")
        ((tag, content),) = value.items()
        method = getattr(self, f"decode_{tag}", None)
        if method is None:
            raise FileError(f"nothing is known of '{tag}'")
        return method(content)

    def decode_float(self, text: str) -> float:
        return float(text)

    def decode_complex(self, parts: list) -> complex:
        return complex(*self.decode(parts))

    def decode_tuple(self, items: list) -> tuple:
        return tuple(self.decode(item) for item in items)

    def decode_dict(self, items: list) -> dict:
        return {self.decode(key): self.decode(item) for key, item in items}

    def decode_ordered(self, items: list) -> OrderedDict:
        return OrderedDict(self.decode_dict(items))

    def decode_slice(self, ends: list) -> slice:
        return slice(*self.decode(ends))

    def decode_ellipsis(self, content: None) -> Any:
        return Ellipsis

    def decode_device(self, name: str) -> torch.device:
        return torch.device(name)

    def decode_torch(self, name: str) -> Any:
        found = getattr(torch, name, None)
        if not isinstance(found, NAMED_BY_TORCH):
            raise FileError(f"torch has no dtype or layout '{name}'")
        return found

    def decode_tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def decode_complex_tensor(self, name: str) -> Tensor:
        return torch.view_as_complex(self.tensors[name])

    def decode_laid_out(self, content: list) -> Tensor:
        tensor, order = content
        back = sorted(range(len(order)), key=order.__getitem__)
        return self.decode(tensor).permute(order).contiguous().permute(back)

    def decode_variable(self, name: str) -> Variable:
        return self.variables[name]

    def decode_operator(self, name: str) -> Callable:
        return operator_named(name)

    def decode_function(self, name: str) -> Callable:
        return function_named(name)

    def decode_class(self, name: str) -> type:
        return class_named(name)

    def decode_named(self, content: list) -> tuple:
        kind, items = content
        found = self.decode(kind)
        if not is_named_tuple(found):
            raise FileError(f"'{found.__name__}' is no named tuple")
        return found(*map(self.decode, items))

    def decode_dataclass(self, content: list) -> Any:
        kind, given = content
        found = self.decode(kind)
        if not is_dataclass(found) or given.keys() != {field.name for field in fields(found) if field.init}:
            raise FileError(f"'{found.__name__}' is no dataclass with the fields {', '.join(given)}")
        return found(**{name: self.decode(item) for name, item in given.items()})  # type: ignore[operator]

    def decode_rule(self, content: Any) -> Rule:
        name, arguments, keywords = self.decode(content)
        if name not in rules.__all__ or not isinstance(found := getattr(rules, name)(*arguments, **keywords), Rule):
            raise FileError(f"there is no rule '{name}'")
        return found

    def decode_stabilizer(self, content: list) -> Stabilizer:
        return stabilizer(*self.decode(content))
