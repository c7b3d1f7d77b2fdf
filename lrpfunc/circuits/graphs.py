"""The graph of tokens through layers: how much relevance each token of a residual stream sends to each one below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lrpfunc.circuits.paths import Path, Spans, pruned, spanned, strongest_paths
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
        heads: (batch, heads, upper tokens, lower tokens): the edges by heads of the attention between, with split=True;
            what is left of the edges stayed at its token. None where it was not asked for or is not known.

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
    heads: Tensor | None = None


@dataclass(frozen=True)
class Graph:
    """Tokens in residual streams as nodes with their relevance, and edges between neighbouring streams.

    Rows add up: nodes[upper] is constants[upper] and, of all pairs with that upper stream, the edges' sum over lower
    tokens and dropped. So do columns: nodes[lower] is the edges' sum over upper tokens. It is a pytree of tensors.

    Args:
        streams: the names of the streams from the embedding upwards, and last "target".
        nodes: the relevance of tokens by stream: (batch, tokens); of "target" (batch, 1), all that is explained.
        pairs: the edges, from the embedding upwards.
        constants: by upper stream, (batch, tokens): what of a token's relevance no lower token got, but biases,
            positions and what else counts as a constant.
        inputs: the relevance of the inputs, as `attribute` gives it.
        branches: by upper stream, with split=True, the relevance of what attention, MLP and other branches of a block
            added, f(x) in x + f(x): (batch, tokens), by the name of the equation that makes f(x).

    >>> import lrpfunc, torch
    >>> from lrpfunc import circuits
    >>> f = lambda p, x: (x + x.mean(1, keepdim=True) @ p) @ p
    >>> x = torch.ones(1, 3, 2)
    >>> graph = circuits.graph(*lrpfunc.trace(f, torch.eye(2), x), x, (2, 0), layers=["x", "add"])
    >>> graph.pairs[0].edges[0]
    tensor([[0.0000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.0000],
            [0.3333, 0.3333, 1.3333]])
    >>> graph.paths("x", 0)
    [Path(strength=0.1666..., tokens=(('x', 0), ('add', 2), ('target', 0)))]
    >>> graph.prune(0.6).pair("add", "x").edges.to_dense()[0, 2]
    tensor([0.0000, 0.0000, 1.3333])
    >>> graph.spans({"first": [0, 1], "last": [2]}).pair("add", "x").edges[0]
    tensor([[0.0000, 0.0000, 0.0000],
            [0.6667, 1.3333, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    streams: tuple[str, ...]
    nodes: Mapping[str, Tensor]
    pairs: tuple[Pair, ...]
    constants: Mapping[str, Tensor]
    inputs: Any
    branches: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

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

    def prune(self, mass: float = 0.9) -> Graph:
        """The graph of its strongest edges, from the target down.

        Of each pair and sample: the fewest edges of tokens that were reached so far that have this share of all the
        relevance there, by its size. What is left out is in `dropped`; nodes stay what they were.

        Args:
            mass: the share, above 0 and at most 1.

        Errors: `InputError` for what is no share.
        """
        return pruned(self, mass)

    def paths(self, stream: str, token: int, count: int = 5, sample: int = 0) -> list[Path]:
        """The strongest paths from a token to the target, the strongest first.

        The strength of a path is the product of its edges' shares, |edge| of all that leaves the token above it, edges
        and constants by their size. They are found by dynamic programming over streams.

        Args:
            stream: where the token is, by its name.
            token: its position.
            count: how many paths at most.
            sample: of the batch.

        Errors: `InputError` for a stream, token or sample that there is not.
        """
        return strongest_paths(self, stream, token, count, sample)

    def spans(self, spans: Spans, streams: Sequence[str] | None = None) -> Graph:
        """The graph in which spans are the tokens: who sent how much to whom between instruction, context and answer.

        Args:
            spans: positions of tokens by name, {"context": range(5, 90), "question": slice(90, 99)}, in the order of
                which they are tokens now. Those in no span are the last one.
            streams: whose tokens they are; None: of all but the target. The others stay what they were.

        Errors: `InputError` for spans that overlap, and positions and streams that there are not.
        """
        return spanned(self, spans, streams)

    def __str__(self) -> str:
        rows = [
            (p.lower, p.upper, str(tuple(p.edges.shape)), f"{p.method}: {p.why}" if p.why else p.method)
            for p in self.pairs
        ]
        return format_table(("from", "to", "edges", "found by"), rows)


def _taken_apart(graph: Graph) -> tuple[list, Any]:
    edges = [(p.edges, p.dropped) if p.heads is None else (p.edges, p.dropped, p.heads) for p in graph.pairs]
    tensors = [graph.nodes, graph.constants, edges, graph.inputs, graph.branches]
    return tensors, (graph.streams, tuple((pair.upper, pair.lower, pair.method, pair.why) for pair in graph.pairs))


def _put_together(tensors, names: Any) -> Graph:
    nodes, constants, found, inputs, branches = tensors
    pairs = []
    for (upper, lower, method, why), (edges, dropped, *heads) in zip(names[1], found, strict=True):
        pairs.append(Pair(upper, lower, edges, dropped, method, why, *heads))
    return Graph(names[0], nodes, tuple(pairs), constants, inputs, branches)


register_pytree(Graph, _taken_apart, _put_together)
