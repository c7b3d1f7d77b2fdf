"""Whose memory results lie in: what is handed out may be viewed and written to, and nobody else notices."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.compat import innermost, is_counted, is_intercepted, memory_of, writes_to
from lrpfunc.program import NAMESPACE


def contiguous(tree: Any) -> Any:
    """Tensors in the usual layout, whatever layout they had in here."""

    def lay(leaf):
        return leaf.contiguous() if isinstance(leaf, Tensor) else leaf

    return optree.tree_map(lay, tree, namespace=NAMESPACE)


def own(tree: Any) -> Any:
    """Copies of all tensors."""

    def copied(leaf):
        return leaf.clone(memory_format=torch.contiguous_format) if isinstance(leaf, Tensor) else leaf

    return optree.tree_map(copied, tree, namespace=NAMESPACE)


def apart(tree: Any, taken: Any) -> Any:
    """Tensors of which none shows memory of another one or of a pytree of taken ones: copies of those that did.

    Where a tracer watches, as torch.compile does, memory cannot be told, and they stay as they are.
    """
    if torch.compiler.is_compiling() or is_intercepted():
        return tree
    leaves = optree.tree_leaves(taken, namespace=NAMESPACE)
    seen = {_memory(leaf) for leaf in leaves if isinstance(leaf, Tensor)}

    def moved(leaf):
        if not isinstance(leaf, Tensor):
            return leaf
        memory = _memory(leaf)
        if memory in seen:
            return own(leaf)
        seen.add(memory)
        return leaf

    return optree.tree_map(moved, tree, namespace=NAMESPACE)


class Watch:
    """Tensors of somebody else's that must stay as they are, by name, and how many times each was written to.

    Where a tracer watches, as torch.compile does, that cannot be told.
    """

    def __init__(self, tensors: Mapping[str, Any]):
        is_traced = torch.compiler.is_compiling() or is_intercepted()
        self.tensors = {} if is_traced else {name: t for name, t in tensors.items() if is_counted(t)}
        self.counts = [writes_to(tensor) for tensor in self.tensors.values()]

    def written(self) -> list[str]:
        """The names of the tensors that were written to since."""
        if torch.compiler.is_compiling() or not self.tensors:
            return []
        both = zip(self.tensors.items(), self.counts, strict=True)
        return [name for (name, tensor), count in both if writes_to(tensor) != count]

    def __deepcopy__(self, memo: dict) -> Watch:
        return Watch(copy.deepcopy(self.tensors, memo))  # whose copies are counted anew


def _memory(tensor: Tensor) -> Any:
    """A key of the memory that a tensor shows, under all that transforms wrapped it in."""
    try:
        return memory_of(innermost(tensor))
    except (NotImplementedError, RuntimeError):  # a subclass that has none
        return id(tensor)
