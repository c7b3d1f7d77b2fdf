"""Finite differences of functions of pytrees, the oracle for derivatives of explanations."""

from collections.abc import Callable

import optree
import torch


def random_like(tree, seed: int = 3):
    """Normal numbers in the structure of a pytree of tensors."""
    generator = torch.Generator().manual_seed(seed)
    return optree.tree_map(lambda p: torch.randn(p.shape, generator=generator, dtype=p.dtype), tree)


def directional(f: Callable, primal, direction, step: float = 1e-6):
    """A central difference of `f` along a direction."""

    def move(sign):
        return optree.tree_map(lambda p, d: p + sign * step * d, primal, direction)

    return (f(move(1)) - f(move(-1))) / (2 * step)


def inner(tree, other) -> torch.Tensor:
    """The inner product of two pytrees of tensors."""
    pairs = zip(*map(optree.tree_leaves, (tree, other)), strict=True)
    return sum((a * b).sum() for a, b in pairs)
