"""The edges between neighbouring streams, rows of upper tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.attribution.stretches import Stretch, Stretches
from lrpfunc.rules import Flow


class Pulled(NamedTuple):
    """The relevance of a stream, pulled to those below it. `inner`: the flows at mixers' variables."""

    upper: str
    flow: Flow
    lower: Sequence[str]
    arrived: Mapping[str, Flow]
    inner: Mapping[str, Flow | None]


class Rows(NamedTuple):
    """Edges of some upper tokens, (batch, rows, lower tokens), and where it is known what of these went by attention,
    (batch, heads, rows, lower tokens)."""

    edges: Tensor
    heads: Tensor | None


def relevance(flow: Flow, value: Tensor) -> Tensor:
    """The relevance of a flow, in float32 at least, in which half precision does not overflow."""
    wide = torch.promote_types(value.dtype, torch.float32)
    return flow.moved(flow.tensor.to(wide)).relevance(value.to(wide))


def of_tokens(flow: Flow | None, value: Tensor) -> Tensor:
    """The relevance of the tokens of a stream, (batch, tokens), from what arrived there."""
    if flow is None:
        return torch.zeros(value.shape[:2], dtype=torch.promote_types(value.dtype, torch.float32), device=value.device)
    return relevance(flow, value).sum(2)


def by_pullbacks(way: Stretches, stretch: Stretch, pulled: Pulled, chunk_size: int) -> Iterator[tuple[Rows, ...]]:
    """Rows of edges for each lower stream: a pullback for each upper token."""

    def back(row: Tensor) -> tuple[Tensor, ...]:
        arrived, _ = stretch.pull({pulled.upper: pulled.flow.moved(row)})
        return tuple(of_tokens(arrived.get(name), way.value(name)) for name in pulled.lower)

    tensor = pulled.flow.tensor
    for start in range(0, tensor.shape[1], chunk_size):
        tokens = range(start, min(start + chunk_size, tensor.shape[1]))
        rows = tensor.new_zeros(len(tokens), *tensor.shape)
        for i, token in enumerate(tokens):
            rows[i, :, token] = tensor[:, token]
        yield tuple(Rows(row.movedim(0, 1), None) for row in torch.func.vmap(back)(rows))
