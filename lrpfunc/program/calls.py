"""Whether what a program is called with fits what was traced: containers, shapes, dtypes, devices and open sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.errors import InputError, ParameterError, near_misses
from lrpfunc.program.equations import Variable
from lrpfunc.program.pytrees import NAMESPACE, Leaf, label_inputs, leaf_names
from lrpfunc.program.sizes import Ranges


def collect(names: Sequence[str], inputs: Sequence, keywords: Mapping[str, Any]) -> tuple:
    """Positional and keyword inputs as one tuple, in the order of their names."""
    signature = "(params, " + ", ".join(names) + ")"
    if len(inputs) > len(names):
        raise InputError(f"the program takes {signature}, but got {len(inputs)} positional inputs.")
    given = dict(zip(names, inputs, strict=False))
    for name, value in keywords.items():
        if name not in names:
            hint = near_misses(name, names)
            raise InputError(f"no input is called '{name}': the program takes {signature}.{hint}")
        if name in given:
            raise InputError(f"input '{name}' was given twice, by position and by name.")
        given[name] = value
    if missing := [name for name in names if name not in given]:
        raise InputError(f"input '{missing[0]}' is missing: the program takes {signature}.")
    return tuple(given[name] for name in names)


def flatten_params(variables: Mapping[str, Variable], paths: tuple[tuple, ...], params) -> list[Tensor]:
    """The leaves of parameters, checked against their variables and paths."""
    # Paths instead of structures, here and below: torch.compile cannot compare optree's structures.
    leaves = optree.tree_leaves(params, namespace=NAMESPACE)
    if tuple(optree.tree_paths(params, namespace=NAMESPACE)) != paths:
        raise ParameterError(_difference(list(variables), leaf_names(params)))
    for (name, variable), leaf in zip(variables.items(), leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise ParameterError(f"leaf '{name}' of params must be a tensor, but is {type(leaf).__name__}.")
        if tuple(leaf.shape) != variable.shape:
            raise ParameterError(
                f"leaf '{name}' of params must have shape {variable}, but has {tuple(leaf.shape)}. "
                "For several parameter sets stacked along a dimension, use torch.func.vmap over params."
            )
    return leaves


def _difference(expected: list[str], given: list[str]) -> str:
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    if missing:
        return (
            f"params lacks the leaf '{missing[0]}'{_more(missing)}. It needs the leaves that functionalize returned."
            + (near_misses(missing[0], extra))
        )
    if extra:
        return f"params has the leaf '{extra[0]}'{_more(extra)}, which the program never reads. Remove it." + (
            near_misses(extra[0], expected)
        )
    return "params has the right leaves in another kind of container than the one that was traced."


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def flatten_inputs(expected: Sequence[Leaf], names: Sequence[str], inputs: tuple) -> list:
    """The leaves of inputs, of the structure that was traced."""
    leaves = optree.tree_leaves(inputs, namespace=NAMESPACE)
    if [leaf.path for leaf in expected] != optree.tree_paths(inputs, namespace=NAMESPACE):
        given = label_inputs(names, inputs)
        hint = " Lists of numbers are made tensors by torch.as_tensor." if _are_numbers(leaves) else ""
        raise InputError(
            f"the inputs must have the leaves {_some([leaf.label for leaf in expected])} that they were "
            f"traced with, but have {_some(given)}.{hint or ' Trace the model again for another structure.'}"
        )
    for (_, label, traced), value in zip(expected, leaves, strict=True):
        if isinstance(traced, Variable) and not isinstance(value, Tensor):
            raise InputError(f"input '{label}' must be a tensor, but is {type(value).__name__}.")
        if not isinstance(traced, Variable) and not is_same(value, traced):
            raise InputError(
                f"input '{label}' is part of the trace with the value {traced!r}, but is now {value!r}. "
                "Trace the model again for another value."
            )
    return leaves


def _some(labels: Sequence[str]) -> str:
    """Labels in a row, of many the first."""
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + more if labels else "nothing"


def _are_numbers(leaves: Sequence) -> bool:
    return len(leaves) > 0 and all(isinstance(leaf, (int, float)) for leaf in leaves)


def is_same(value: Any, traced: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether two values are equal, or objects (such as caches) with the same attributes. `seen`: where it goes on."""
    if value is traced or id(value) in seen:
        return True
    if isinstance(value, Tensor) or isinstance(traced, Tensor):
        are_tensors = isinstance(value, Tensor) and isinstance(traced, Tensor)
        return are_tensors and value.dtype == traced.dtype and torch.equal(value, traced)
    if type(value) is not type(traced) or not _has_attributes(value):
        return bool(value == traced)
    parts, others = (dict(enumerate(v)) if isinstance(v, (list, tuple)) else v for v in (value, traced))
    parts, others = (v if isinstance(v, dict) else vars(v) for v in (parts, others))
    seen = seen | {id(value)}
    return parts.keys() == others.keys() and all(is_same(parts[key], others[key], seen) for key in parts)


def _has_attributes(value: Any) -> bool:
    is_container = isinstance(value, (list, tuple, dict))
    return is_container or (hasattr(value, "__dict__") and type(value).__eq__ is object.__eq__ and not callable(value))


def check_tensor(label: str, value: Tensor, device: torch.device, dtype: torch.dtype | None, follows: bool) -> None:
    """Refuse an input of another device or dtype than needed; `follows`: because the parameters have that dtype."""
    if value.device != device:
        raise InputError(
            f"input '{label}' is on {value.device}, but the other tensors are on {device}. "
            "Move one to the other: optree.tree_map(lambda p: p.to(device), params)."
        )
    if value.dtype != dtype:
        why = "as the parameters are" if follows else "as in the trace"
        raise InputError(f"input '{label}' must be {dtype} {why}, but is {value.dtype}. Cast one.")


def check_shape(
    label: str, expected: Variable, shape: tuple[int, ...], ranges: Ranges, seen: dict[str, tuple[int, str]]
) -> None:
    """Refuse an input of another shape than traced. `seen`: each open size so far, and whose it was; it is added to."""
    if len(shape) != len(expected.shape):
        raise InputError(f"input '{label}' must have the {len(expected.shape)} dimensions {expected}, but has {shape}.")
    for axis, (size, needed) in enumerate(zip(shape, expected.shape, strict=True)):
        if isinstance(needed, str):
            first, where = seen.setdefault(needed, (size, label))
            if size != first:
                raise InputError(
                    f"inputs '{where}' and '{label}' must agree in '{needed}', but have {first} and {size}."
                )
            _check_range(label, needed, size, *ranges.get(needed, (0, None)))
        elif size != needed:
            remedy = (
                f"The model fixes its batch size at {needed}: trace it with the batch size you need."
                if axis == 0
                else f"Trace the model again for another size, or for any with lrpfunc.varying({label}, {axis})."
            )
            raise InputError(f"input '{label}' must have shape {expected}, but has {shape}. {remedy}")


def _check_range(label: str, needed: str, size: int, low: int, high: int | None) -> None:
    if size < low or (high is not None and size > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        is_long = needed.startswith("length") and size > low
        why = "the model takes no longer sequences. Shorten it" if is_long else "the model decides on it"
        raise InputError(f"'{needed}' of input '{label}' must be {bounds}, but is {size}: {why}.")
