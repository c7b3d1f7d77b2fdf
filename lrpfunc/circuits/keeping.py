"""Which edges of a graph are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import InputError

Keep = int | float | None


class Edges(NamedTuple):
    """Edges of one pair, (batch, upper tokens, lower tokens), sparse where not all are stored; the sums of all edges of
    each upper token; the sums of those that are not stored; and all by heads, where that was asked for and is known."""

    stored: Tensor
    sums: Tensor
    dropped: Tensor
    heads: Tensor | None


def check_keep(keep: Keep) -> None:
    """Errors: `InputError` for what says of no edge whether it is stored."""
    is_count = type(keep) is int and keep > 0
    is_share = type(keep) is float and 0 < keep < 1
    if keep is not None and not is_count and not is_share:
        raise InputError(
            "keep must be a number of edges for each token, such as 32, or the least share of what is explained that "
            f"an edge must have, such as 1e-4, but is {keep!r}."
        )


class Store:
    """The edges of one pair, to which rows are added, `count` in all. `explained`: (batch,), of which `keep` may be a
    share."""

    def __init__(self, keep: Keep, explained: Tensor, count: int):
        self.keep, self.explained, self.count = keep, explained.abs(), count
        self.whole: Tensor | None = None  # all edges, or of each token the strongest, of which no second copy is made
        self.lower: Tensor | None = None  # where those go
        self.heads: Tensor | None = None
        self.stored: list[Tensor] = []
        self.places: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.dropped: list[Tensor] = []

    def add(self, edges: Tensor, heads: Tensor | None = None) -> None:
        """Add some rows, (batch, rows, tokens), and what of them went by each head, (batch, heads, rows, tokens)."""
        sums, start = edges.sum(2), sum(one.shape[1] for one in self.sums)
        if heads is not None:
            self.heads = self._written(self.heads, heads, start)
        self.dropped.append(sums - self._kept(edges, start) if self.keep is not None else torch.zeros_like(sums))
        if self.keep is None:
            self.whole = self._written(self.whole, edges, start)
        self.sums.append(sums)
        self.tokens = edges.shape[2]

    def _kept(self, edges: Tensor, start: int) -> Tensor:
        """Store those of some rows that are kept, and give their sums."""
        if isinstance(self.keep, float):
            is_kept = edges.abs() >= self.keep * self.explained[:, None, None]
            places = is_kept.nonzero().T
            self.places.append(places + places.new_tensor([[0], [start], [0]]))
            self.stored.append(edges[is_kept])
            return (edges * is_kept).sum(2)
        assert self.keep is not None
        lower = edges.abs().topk(min(self.keep, edges.shape[2]), 2).indices
        strongest = edges.gather(2, lower)
        self.lower, self.whole = self._written(self.lower, lower, start), self._written(self.whole, strongest, start)
        return strongest.sum(2)

    def _written(self, whole: Tensor | None, rows: Tensor, start: int) -> Tensor:
        if whole is None:
            whole = rows.new_empty(*rows.shape[:-2], self.count, rows.shape[-1])
        whole[..., start : start + rows.shape[-2], :] = rows
        return whole

    def edges(self) -> Edges:
        """All that was added."""
        sums, dropped = torch.cat(self.sums, 1), torch.cat(self.dropped, 1)
        if self.keep is None:
            assert self.whole is not None
            return Edges(self.whole, sums, dropped, self.heads)
        if self.whole is None:
            places, values = torch.cat(self.places, 1), torch.cat(self.stored)
        else:
            assert self.lower is not None
            samples, upper, position = self.whole.nonzero(as_tuple=True)
            places = torch.stack([samples, upper, self.lower[samples, upper, position]])
            values = self.whole[samples, upper, position]
        return Edges(sparse(places, values, (*sums.shape, self.tokens)), sums, dropped, None)


def sparse(places: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Edges by their places, (3, edges), of which each is there once."""
    return torch.sparse_coo_tensor(places, values, tuple(shape), check_invariants=True).coalesce()
