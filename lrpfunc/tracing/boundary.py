"""Between a function of pytrees and one of lists of tensors: names of inputs, and leaves."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lrpfunc.errors import InputError, TraceError
from lrpfunc.program import NAMESPACE, Leaf, Variable, dataclasses_in, flatten, label_inputs, leaf_names
from lrpfunc.tracing.axes import Axes, Opening, split
from lrpfunc.tracing.refusals import check_inputs, check_tensors
from lrpfunc.tracing.twins import clone_of, twin_of


class Inputs(NamedTuple):
    """All inputs with the names that the signature gives them; the first `positional` ones are passed by position."""

    names: tuple[str, ...]
    values: tuple
    positional: int

    @classmethod
    def of(cls, function: Callable, positional: tuple, keywords: Mapping[str, Any]) -> Inputs:
        names = _positional_names(function, positional, keywords)
        return cls((*names, *keywords), (*positional, *keywords.values()), len(positional))

    def without_first(self) -> Inputs:
        return Inputs(self.names[1:], self.values[1:], self.positional - 1)

    def call(self, function: Callable, values: Sequence, *first):
        keywords = dict(zip(self.names[self.positional :], values[self.positional :], strict=True))
        return function(*first, *values[: self.positional], **keywords)


def _positional_names(function: Callable, positional: tuple, keywords: Mapping[str, Any]) -> list[str]:
    try:
        signature = inspect.signature(function)
    except ValueError:  # builtins, such as torch.conv2d, have none
        return [f"input{i}" for i in range(len(positional))]
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        raise InputError(f"the example inputs do not fit the signature {signature}: {error}.") from None
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}{i}" for i in range(len(positional) - len(names))]
        elif len(names) < len(positional):
            names.append(name)
    return names


class Boundary:
    """Between the pytrees of `function(params, *inputs)` and its output, and the lists of tensors that export takes."""

    def __init__(self, function: Callable, params, inputs: Inputs, axes: Sequence[Axes] | None = None):
        self.function, self.params = function, params
        self.param_leaves, self.param_structure = flatten(params)
        self.param_names = _checked_names(params, self.param_leaves)
        check_tensors(dict(zip(self.param_names, self.param_leaves, strict=True)), "leaf of params", TraceError)
        self.is_flat = type(params) is dict and all(isinstance(leaf, Tensor) for leaf in params.values())
        marked, self.structure = flatten(inputs.values)
        self.leaves, asked = split(marked)
        if any(asked):
            inputs = inputs._replace(values=optree.tree_unflatten(self.structure, self.leaves))
        self.inputs = inputs
        self.objects = clone_of([None if isinstance(leaf, Tensor) else leaf for leaf in self.leaves])
        labels = label_inputs(inputs.names, inputs.values)
        check_inputs(dict(zip(inputs.names, inputs.values, strict=True)), zip(labels, self.leaves, strict=True))
        tensors = [label for label, leaf in zip(labels, self.leaves, strict=True) if isinstance(leaf, Tensor)]
        self.opening = Opening(tensors, asked, axes)
        if not tensors:
            others = any(isinstance(leaf, (int, float)) or hasattr(leaf, "__array__") for leaf in self.leaves)
            hint = " Numbers, lists and arrays are made tensors by torch.as_tensor." if others else ""
            raise TraceError(f"there is no tensor among the example inputs: give at least one.{hint}")

    def examples(self) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors to trace with, all of them different: one that is given twice is still two inputs."""
        given = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        return [leaf.detach() for leaf in self.param_leaves], [leaf.detach().clone() for leaf in given]

    def __call__(self, tensors: Sequence[Tensor]) -> list:
        filled = iter(tensors)
        params = optree.tree_unflatten(self.param_structure, [next(filled) for _ in self.param_leaves])
        objects = twin_of(self.objects)  # the function may change them, and is run several times
        values = [next(filled) if isinstance(a, Tensor) else b for a, b in zip(self.leaves, objects, strict=True)]
        result = self.function(params, *optree.tree_unflatten(self.structure, values))
        leaves, self.result_structure = flatten(result)
        self.nodes = tuple(dict.fromkeys(map(type, dataclasses_in((self.params, self.inputs.values, result)))))
        self.results = [leaf if _varies(leaf) or isinstance(leaf, PLAIN) else None for leaf in leaves]
        return [leaf for leaf in self.results if _varies(leaf)]

    def input_leaves(self, variables: Sequence[Variable]) -> tuple[Leaf, ...]:
        filled = iter(variables)
        values = [next(filled) if isinstance(a, Tensor) else b for a, b in zip(self.leaves, self.objects, strict=True)]
        paths = optree.tree_paths(self.inputs.values, namespace=NAMESPACE)  # type: ignore[arg-type]
        return tuple(map(Leaf, paths, label_inputs(self.inputs.names, self.inputs.values), values))

    def output(self, values: Sequence) -> Any:
        filled = iter(values)
        leaves = [next(filled) if _varies(leaf) else leaf for leaf in self.results]
        return optree.tree_unflatten(self.result_structure, leaves)


# What an output may hold besides tensors. Caches and other objects hold tensors of the trace and come back as None.
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def _varies(leaf) -> bool:
    return isinstance(leaf, (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def _checked_names(params, leaves: Sequence) -> list[str]:
    names = leaf_names(params)
    counts = Counter(names)
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TraceError(f"leaf '{name}' of params must be a tensor, but is {type(leaf).__name__}.")
        if counts[name] > 1:
            raise TraceError(f"two leaves of params are called '{name}': a dot also joins nested names. Rename one.")
    return names
