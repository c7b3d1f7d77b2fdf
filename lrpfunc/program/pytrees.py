"""Pytrees of parameters and inputs: their leaves, and what those are called."""

from __future__ import annotations

from collections.abc import Sequence
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
    filled = iter(tensors)
    return optree.tree_map(lambda leaf: next(filled) if isinstance(leaf, Tensor) else leaf, tree, namespace=NAMESPACE)
