"""Pytrees of parameters and inputs: their leaves, and what those are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import optree
from torch import Tensor

from lrpfunc.program.equations import Variable

NAMESPACE = "lrpfunc"  # optree's registry of the dataclasses that we met, kept apart from everybody else's


class Leaf(NamedTuple):
    """One leaf of the inputs: its path, also as text for messages, and its variable or the literal of the trace."""

    path: tuple
    label: str
    value: Variable | Any


def leaf_names(tree) -> list[str]:
    """Dotted names of a pytree's leaves in flattening order; for a flat dict these are its keys."""
    return [".".join(map(str, path)) for path in optree.tree_paths(tree, namespace=NAMESPACE)]


def label_inputs(names: Sequence[str], inputs: tuple) -> list[str]:
    """What the leaves of the inputs are called in messages: `x`, `batch['mask']`."""
    accessors = optree.tree_accessors(inputs, namespace=NAMESPACE)
    return [names[a[0].entry] + "".join(entry.codify("") for entry in a[1:]) for a in accessors]


def refilled(tree, tensors: Sequence[Tensor]):
    """A pytree with other tensors in the place of its own."""
    leaves, structure = optree.tree_flatten(tree, namespace=NAMESPACE)
    filled = iter(tensors)  # leaf by leaf: torch.compile goes through a tree_map in another order
    return optree.tree_unflatten(structure, [next(filled) if isinstance(leaf, Tensor) else leaf for leaf in leaves])


# -- dataclasses ------------------------------------------------------------------------------------------------------


def flatten(tree) -> tuple[list, optree.PyTreeSpec]:
    """Flatten a pytree in which dataclasses (Hugging Face's outputs are some) count as nodes."""
    for node in dataclasses_in(tree):
        register(type(node))
    return optree.tree_flatten(tree, namespace=NAMESPACE)


def dataclasses_in(tree) -> Iterator[Any]:
    """The dataclasses of a pytree, from the outside in."""
    for leaf in optree.tree_leaves(tree, is_leaf=_is_dataclass_instance, namespace=NAMESPACE):
        if _is_dataclass_instance(leaf):
            yield leaf
            yield from dataclasses_in([getattr(leaf, f.name) for f in fields(leaf)])


def _is_dataclass_instance(node) -> bool:
    return is_dataclass(node) and not isinstance(node, type)


def register(kind: type) -> None:
    """Make a dataclass a node of pytrees: its fields that are not None, by name."""
    names = tuple(f.name for f in fields(kind) if f.init)

    def flatten(node):
        present = tuple(name for name in names if getattr(node, name) is not None)
        return [getattr(node, name) for name in present], present, present

    def unflatten(present, children):
        return kind(**{**dict.fromkeys(names), **dict(zip(present, children, strict=True))})

    with contextlib.suppress(ValueError):  # registered already
        optree.register_pytree_node(kind, flatten, unflatten, namespace=NAMESPACE)
