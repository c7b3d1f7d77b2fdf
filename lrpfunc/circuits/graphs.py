"""The graph of tokens through layers: how much relevance each token of a residual stream sends to each one below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrpfunc.compat import register_pytree
from lrpfunc.errors import InputError
from lrpfunc.program import format_table

TARGET = "target"  # what is explained, as the last of the streams


@dataclass(frozen=True)
class Pair:
    """The edges between two neighbouring streams.

    Args:
        upper: the stream whose relevance is shared, by its name; or "target", which is one token.
        lower: the stream that it is shared among.
        edges: (batch, upper tokens, lower tokens): how much relevance of an upper token went to a lower one; a sparse
            tensor where not all are stored.
        dropped: (batch, upper tokens): the sum of what is not stored.
        method: how they were found: "closed" form; "pullbacks", one for each upper token; "one pullback" of a target.
        why: there are pullbacks and no closed form.

    >>> import lrpfunc, torch
    >>> from lrpfunc import circuits
    >>> f = lambda p, x: (x + x.mean(1, keepdim=True) @ p) @ p
    >>> x = torch.ones(1, 3, 2)
    >>> graph = circuits.graph(*lrpfunc.trace(f, torch.eye(2), x), x, (2, 0), layers=["x", "add"])
    >>> pair = graph.pair("target", "add")
    >>> pair.edges, pair.method
    (tensor([[[0., 0., 2.]]]), 'one pullback')
    """

    upper: str
    lower: str
    edges: Tensor
    dropped: Tensor
    method: str
    why: str = ""


@dataclass(frozen=True)
class Graph:
    """Tokens in residual streams as nodes with their relevance, and edges between neighbouring streams.

    Rows add up: nodes[upper] is constants[upper] and, of all pairs with that upper stream, the edges' sum over lower
    tokens and dropped. So do columns: nodes[lower] is the edges' sum over upper tokens. It is a pytree of tensors.

    Args:
        streams: the names of the streams from the embedding upwards, and last "target".
        nodes: the relevance of tokens by stream: (batch, tokens); of "target" (batch, 1), all that is explained.
        pairs: the edges.
        constants: by upper stream, (batch, tokens): what of a token's relevance no lower token got, but biases,
            positions and what else counts as a constant.
        inputs: the relevance of the inputs, as `attribute` gives it.

    >>> import lrpfunc, torch
    >>> from lrpfunc import circuits
    >>> f = lambda p, x: (x + x.mean(1, keepdim=True) @ p) @ p
    >>> x = torch.ones(1, 3, 2)
    >>> graph = circuits.graph(*lrpfunc.trace(f, torch.eye(2), x), x, (2, 0), layers=["x", "add"])
    >>> graph.pairs[0].edges[0]
    tensor([[0.0000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.0000],
            [0.3333, 0.3333, 1.3333]])
    """

    streams: tuple[str, ...]
    nodes: Mapping[str, Tensor]
    pairs: tuple[Pair, ...]
    constants: Mapping[str, Tensor]
    inputs: Any

    def pair(self, upper: str, lower: str) -> Pair:
        """The edges between two streams. Errors: `InputError` for streams that are no neighbours."""
        for pair in self.pairs:
            if (pair.upper, pair.lower) == (upper, lower):
                return pair
        known = ", ".join(f"'{pair.lower}' to '{pair.upper}'" for pair in self.pairs)
        raise InputError(f"'{lower}' and '{upper}' are no neighbours: there are edges from {known}.")

    def below(self, upper: str) -> tuple[Pair, ...]:
        """The pairs that share a stream's relevance."""
        return tuple(pair for pair in self.pairs if pair.upper == upper)

    def __str__(self) -> str:
        rows = [
            (p.lower, p.upper, str(tuple(p.edges.shape)), f"{p.method}: {p.why}" if p.why else p.method)
            for p in reversed(self.pairs)
        ]
        return format_table(("from", "to", "edges", "found by"), rows)


def _taken_apart(graph: Graph) -> tuple[list, Any]:
    tensors = [graph.nodes, graph.constants, [(pair.edges, pair.dropped) for pair in graph.pairs], graph.inputs]
    return tensors, (graph.streams, tuple((pair.upper, pair.lower, pair.method, pair.why) for pair in graph.pairs))


def _put_together(tensors, names: Any) -> Graph:
    nodes, constants, edges, inputs = tensors
    pairs = tuple(Pair(upper, lower, *e, *how) for (upper, lower, *how), e in zip(names[1], edges, strict=True))
    return Graph(names[0], nodes, pairs, constants, inputs)


register_pytree(Graph, _taken_apart, _put_together)
