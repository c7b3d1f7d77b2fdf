"""Which edges of a graph are stored, and whether they fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import InputError

MEMINFO = Path("/proc/meminfo")
GIGABYTE = 1e9
PLACE = 3 * 8  # bytes that say where an edge is that is stored by itself

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
    """The edges of one pair, to which rows are added. `explained`: (batch,), of which `keep` may be a share."""

    def __init__(self, keep: Keep, explained: Tensor):
        self.keep, self.explained = keep, explained.abs()
        self.heads: list[Tensor] = []
        self.stored: list[Tensor] = []
        self.places: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.dropped: list[Tensor] = []

    def add(self, edges: Tensor) -> None:
        """Add some rows, (batch, rows, tokens)."""
        sums = edges.sum(2)
        if self.keep is None:
            self.stored.append(edges)
            self.dropped.append(torch.zeros_like(sums))
        else:
            is_kept = self._strongest(edges)
            self.dropped.append(sums - (edges * is_kept).sum(2))
            start = sum(one.shape[1] for one in self.sums)
            places = is_kept.nonzero().T
            self.places.append(places + places.new_tensor([[0], [start], [0]]))
            self.stored.append(edges[is_kept])
        self.sums.append(sums)
        self.tokens = edges.shape[2]

    def _strongest(self, edges: Tensor) -> Tensor:
        if isinstance(self.keep, float):
            return edges.abs() >= self.keep * self.explained[:, None, None]
        assert self.keep is not None
        strongest = edges.abs().topk(min(self.keep, edges.shape[2]), 2).indices
        return torch.zeros_like(edges, dtype=torch.bool).scatter(2, strongest, True) & (edges != 0)

    def edges(self) -> Edges:
        """All that was added."""
        sums, dropped = torch.cat(self.sums, 1), torch.cat(self.dropped, 1)
        if self.keep is None:
            return Edges(torch.cat(self.stored, 1), sums, dropped, torch.cat(self.heads, 2) if self.heads else None)
        places, values = torch.cat(self.places, 1), torch.cat(self.stored)
        return Edges(sparse(places, values, (*sums.shape, self.tokens)), sums, dropped, None)


def sparse(places: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Edges by their places, (3, edges), of which each is there once."""
    return torch.sparse_coo_tensor(places, values, tuple(shape), check_invariants=True).coalesce()


# -- memory -----------------------------------------------------------------------------------------------------------


def check_memory(shapes: Sequence[tuple[int, int, int]], keep: Keep, dtype: torch.dtype, device: torch.device) -> None:
    """Errors: `InputError` where edges of pairs of these shapes would not fit. A share says nothing of how many."""
    free = free_memory(device)
    if free is None or isinstance(keep, float):
        return
    size = torch.promote_types(dtype, torch.float32).itemsize
    kept = [n if keep is None else min(keep, n) for _, _, n in shapes]
    each = size if keep is None else size + PLACE
    needed = sum(batch * rows * n * each for (batch, rows, _), n in zip(shapes, kept, strict=True))
    if needed > free:
        longest = max(rows for _, rows, _ in shapes)
        lower = "keep=32 stores the strongest edges of each token, and" if keep is None else "A lower keep,"
        raise InputError(
            f"the edges of {len(shapes)} pairs of streams of up to {longest} tokens take {needed / GIGABYTE:.3g} GB, "
            f"but {free / GIGABYTE:.3g} GB are free. {lower} fewer streams (layers=) or a shorter input take less."
        )


def free_memory(device: torch.device) -> int | None:
    """The bytes that are free on a device, None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
