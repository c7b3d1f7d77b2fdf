"""Labels of rules: the calls that make them, as one would write them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lrpfunc.rules.stabilizers import Stabilizer, as_stabilizer, literal

DEFAULT = as_stabilizer(1e-6)


@runtime_checkable
class Labelled(Protocol):
    """A stabilizer or a rule."""

    @property
    def label(self) -> str: ...


class Label(str):
    """The text of a call, with the call itself: its `name`, and what is given by position and by name."""

    name: str
    arguments: tuple
    keywords: Mapping[str, Any]

    def __reduce__(self):
        return str, (str(self),)


def remade(name: str, arguments: tuple, keywords: Mapping[str, Any]):
    """The rule that a label's call makes."""
    return getattr(importlib.import_module(__package__), name)(*arguments, **keywords)


def call(
    name: str, *arguments: float | str | Tensor | Labelled, stabilizer: Stabilizer = DEFAULT, zero_bias: bool = False
) -> Label:
    """The call of a constructor: `arguments` always, the others where they are not what they are by default."""
    written, keywords = [_written(argument) for argument in arguments], dict[str, Any]()
    if stabilizer.label != DEFAULT.label:
        written.append(f"stabilizer={stabilizer.label}")
        keywords["stabilizer"] = stabilizer
    if zero_bias:
        written.append("zero_bias=True")
        keywords["zero_bias"] = zero_bias
    label = Label(f"{name}({', '.join(written)})")
    label.name, label.arguments, label.keywords = name, arguments, keywords
    return label


def _written(argument: float | str | Tensor | Labelled) -> str:
    if isinstance(argument, Labelled):
        return argument.label
    if isinstance(argument, str):
        return repr(argument)
    return "tensor" if isinstance(argument, Tensor) else literal(argument)
