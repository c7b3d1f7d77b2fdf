"""Whose memory results lie in: what is handed out may be viewed and written to, and nobody else notices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optree
import torch
from torch import Tensor

from lrpfunc.compat import innermost, is_intercepted, memory_of, writes_to
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


def writes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Which tensor each one is, and how many times it was written to. Where a tracer watches, it cannot be told."""
    if torch.compiler.is_compiling() or is_intercepted():
        return {}
    return {name: (id(t), writes_to(t)) for name, t in tensors.items() if isinstance(t, Tensor)}


def written_since(before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]) -> list[str]:
    """The names of the tensors that are the same as before, and were written to."""
    return [n for n, (tensor, count) in now.items() if n in before and before[n][0] == tensor and count > before[n][1]]


def _memory(tensor: Tensor) -> Any:
    """A key of the memory that a tensor shows, under all that transforms wrapped it in."""
    try:
        return memory_of(innermost(tensor))
    except (NotImplementedError, RuntimeError):  # a subclass that has none
        return id(tensor)
