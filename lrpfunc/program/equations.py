"""Variables, equations, and templates: arguments in which variables stand for values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lrpfunc.compat import Operator, overload_name, schema_of
from lrpfunc.program.foreign import derivable

# Values that no equation makes: factory functions inside a model follow the call, not the machine it was traced on.
DEVICE, DTYPE = "@device", "@dtype"
SIZES = "@sizes"  # and the open sizes of the call

PARAMETER = "params."  # how the variables of parameter leaves begin


@dataclass(frozen=True, eq=False)
class Variable:
    """One edge of a program. `shape` has a name in place of a size that may differ from call to call."""

    name: str
    shape: tuple[int | str, ...] = ()
    dtype: torch.dtype | None = None  # None: no tensor but a size

    @property
    def is_tensor(self) -> bool:
        return self.dtype is not None

    @property
    def is_floating(self) -> bool:
        return self.dtype is not None and self.dtype.is_floating_point

    @property
    def is_complex(self) -> bool:
        return self.dtype is not None and self.dtype.is_complex

    @property
    def is_differentiable(self) -> bool:
        """Whether it holds real or complex numbers, which have derivatives, and no integers or truth values."""
        return self.is_floating or self.is_complex

    def __str__(self) -> str:
        return "(" + ", ".join(map(str, self.shape)) + ")" if self.is_tensor else "size"


@dataclass(frozen=True, eq=False)
class Equation:
    """`outputs = function(*arguments, **keywords)`, where variables stand for values.

    `calls`: of the modules and layers that are called more than once and that it is of, by their paths, which call.
    `operator` is the name of the function without its overload: `conv2d`, `add`, `frozen_batch_norm`; `reads` holds the
    variables among the arguments. `run` is the function as transforms of torch.func can take it.
    """

    name: str
    function: Callable
    arguments: tuple
    keywords: Mapping[str, Any]
    outputs: tuple[Variable, ...]
    source: str = ""
    calls: Mapping[str, int] = field(default_factory=dict)
    operator: str = field(init=False)
    run: Callable = field(init=False, repr=False)
    reads: tuple[Variable, ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "operator", operator_name(self.function))
        object.__setattr__(self, "run", derivable(self.function))
        object.__setattr__(self, "reads", tuple(variables_in((self.arguments, tuple(self.keywords.values())))))

    def __reduce__(self):
        parts = map(_pickled, (self.function, self.arguments, dict(self.keywords), self.outputs))
        return Equation, (self.name, *parts, self.source, dict(self.calls))

    def renamed(self, variables: Mapping[str, Variable]) -> Equation:
        """The same equation that reads other variables, by the names of the old ones."""
        keywords = {key: rename(value, variables) for key, value in self.keywords.items()}
        return replace(self, arguments=rename(self.arguments, variables), keywords=keywords)

    def evaluate(self, values: Mapping[str, Any]) -> tuple:
        result = self.run(
            *substitute(self.arguments, values), **{k: substitute(v, values) for k, v in self.keywords.items()}
        )
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


# -- templates --------------------------------------------------------------------------------------------------------


def operator_name(function: Callable) -> str:
    """The name of a function without its namespace and overload."""
    packet = getattr(function, "overloadpacket", function)
    name = getattr(packet, "__name__", type(packet).__name__)
    return name.removeprefix("aten.")


def substitute(template, values: Mapping[str, Any]):
    """`template` with each variable replaced by its value."""
    if isinstance(template, Variable):
        return values[template.name]
    if isinstance(template, (list, tuple)):
        return type(template)([substitute(item, values) for item in template])
    return template


def variables_in(template) -> Iterator[Variable]:
    """The variables of nested lists and tuples, in order."""
    if isinstance(template, Variable):
        yield template
    elif isinstance(template, (list, tuple)):
        for item in template:
            yield from variables_in(item)


@dataclass(frozen=True)
class _Pickled:
    """An operation of torch on its way through pickle, which has no name of its own for it."""

    operation: Operator

    def __reduce__(self):
        return _operation, (schema_of(self.operation).name, overload_name(self.operation))


def _operation(name: str, overload: str) -> Operator:
    namespace, _, short = name.partition("::")
    return getattr(getattr(getattr(torch.ops, namespace), short), overload)


def _pickled(template):
    """`template` with the operations of torch in it as what pickles."""
    if isinstance(template, Operator):
        return _Pickled(template)
    if isinstance(template, dict):
        return {key: _pickled(value) for key, value in template.items()}
    return type(template)(map(_pickled, template)) if type(template) in (list, tuple) else template


def rename(template, renamed: Mapping[str, Variable]):
    """`template` with variables exchanged for other variables, by name."""
    return substitute(template, {v.name: renamed.get(v.name, v) for v in variables_in(template)})
