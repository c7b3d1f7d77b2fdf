"""The graph of tokens through layers: how much relevance each token of a residual stream sends to each one below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrpfunc.circuits import exports, pages
from lrpfunc.circuits.listing import Tokens
from lrpfunc.circuits.paths import Path, Spans, pruned, spanned, strongest_paths
from lrpfunc.compat import register_pytree
from lrpfunc.errors import InputError
from lrpfunc.program import format_table
from lrpfunc.text.rows import Relevance

if TYPE_CHECKING:
    import networkx

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

    def html(
        self,
        tokens: Tokens,
        path: str | FilePath | None = None,
        answer: str = "",
        sample: int = 0,
        title: str = "",
        edges: int | None = 20_000,
        matrix: Relevance | None = None,
    ) -> str:
        """A page of tokens through layers, to look through in a browser: mouse, keyboard or touch, without a network.

        A token that is chosen shows on which it rests, below, and for which it counts, above; with split=True heads
        are switched on and off.

        Args:
            tokens: the strings of the tokens, or of each stream by patterns of their names, {"*decoder*": answer, "*":
                question}. `text.words` makes strings of a tokenizer's pieces.
            path: where to write it, too.
            answer: what is explained, in words.
            sample: of the batch.
            title: the page's.
            edges: how many edges at most, the strongest; of the others it has the sums. None: all.
            matrix: (answer, tokens), shown below: what every token of an answer rests on, as `text.matrix` takes it.

        Errors: `InputError` for another number of tokens, a sample that there is not, relevance that is not finite,
        and what is too much for a page.
        """
        return pages.html(self, tokens, path, answer, sample, title, edges, matrix)

    def networkx(self, tokens: Tokens, answer: str = "", sample: int = 0, edges: int | None = None) -> networkx.DiGraph:
        """The graph for networkx: nodes (stream, position), with edges from lower tokens to those that rest on them.

        Nodes have `layer`, `token` and `relevance`, edges `relevance` and, with split=True, `heads`. Nodes
        ("constants", stream) and ("dropped", stream) have what no lower token is listed to have got.

        Args:
            tokens: as in `html`.
            answer: what is explained, in words.
            sample: of the batch.
            edges: how many at most, the strongest. None: all.

        Errors: those of `html`; `MissingExtraError` without the extra `graphs`.
        """
        return exports.to_networkx(self, tokens, answer, sample, edges)

    def parquet(
        self, folder: str | FilePath, tokens: Tokens, answer: str = "", sample: int = 0
    ) -> tuple[FilePath, FilePath]:
        """Write nodes.parquet and edges.parquet into a folder, and return their paths.

        Nodes: stream, layer, position, token, relevance, constants, dropped. Edges: upper, upper_position, lower,
        lower_position, relevance and, with split=True, heads, a list.

        Args:
            folder: where to; files that are there are replaced.
            tokens: as in `html`.
            answer: what is explained, in words.
            sample: of the batch.

        Errors: those of `html`; `InputError` for a folder that there is not; `MissingExtraError` without the extra
        `graphs`.
        """
        return exports.to_parquet(self, folder, tokens, answer, sample)

    def circuit_tracer(
        self,
        tokens: Tokens,
        path: str | FilePath | None = None,
        answer: str = "",
        probability: float = 0.0,
        sample: int = 0,
        edges: int | None = 20_000,
        name: str = "lrpfunc",
    ) -> dict[str, Any]:
        """The graph as the JSON of circuit-tracer, which its viewer and those who read its files know.

        Lowest streams are embeddings, the target is a logit, all others have the type "residual stream"; activation
        and weights are relevance, influence is the share that a node and all larger ones have of all relevance.
        Constants, and what is not listed, are nodes of their own, so that what comes to a node adds up to it.

        Args:
            tokens: as in `html`.
            path: where to write it, too.
            answer: what is explained, in words.
            probability: what the model gives it, from 0 to 1.
            sample: of the batch.
            edges: how many at most, the strongest. None: all.
            name: of the graph, its slug.

        Errors: those of `html`; `InputError` for what is no probability.
        """
        found = exports.to_circuit_tracer(self, tokens, answer, probability, sample, edges, name)
        if path is not None:
            exports.written(path, found)
        return found

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
