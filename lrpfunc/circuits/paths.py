"""What a graph of tokens comes down to: its strongest edges, its strongest paths, and the flow between spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrpfunc.circuits.keeping import sparse
from lrpfunc.errors import InputError, near_misses

if TYPE_CHECKING:
    from lrpfunc.circuits.graphs import Graph, Pair

Spans = Mapping[str, Iterable[int] | slice]


class Path(NamedTuple):
    """A way from a token up to the target.

    Args:
        strength: the product of the shares that its edges have of the tokens above them.
        tokens: (stream, token) from the lowest to ("target", 0).

    >>> from lrpfunc import circuits
    >>> circuits.Path(0.5, (("layers.0", 3), ("target", 0))).tokens[-1]
    ('target', 0)
    """

    strength: float
    tokens: tuple[tuple[str, int], ...]


def entries(edges: Tensor) -> tuple[Tensor, Tensor]:
    """The places, (3, edges), and values of edges, dense or sparse, but for zeros."""
    stored = edges if edges.is_sparse else edges.to_sparse()
    return stored.indices(), stored.values()


# -- pruning ----------------------------------------------------------------------------------------------------------


def pruned(graph: Graph, mass: float) -> Graph:
    """See `Graph.prune`."""
    if type(mass) not in (int, float) or not 0 < mass <= 1:
        raise InputError(f"mass must be a share of all relevance, such as 0.9, but is {mass!r}.")
    reached = {stream: torch.zeros_like(node, dtype=torch.bool) for stream, node in graph.nodes.items()}
    top = graph.streams[-1]
    reached[top] = torch.ones_like(graph.nodes[top], dtype=torch.bool)
    pairs: dict[tuple[str, str], Pair] = {}
    for upper in reversed(graph.streams):
        for pair in graph.below(upper):
            places, values = entries(pair.edges)
            is_kept = reached[upper][places[0], places[1]]
            is_kept &= _heaviest(values * is_kept, places[0], mass)
            kept = sparse(places[:, is_kept], values[is_kept], pair.edges.shape)
            batch, _, lower = places[:, is_kept]
            reached[pair.lower][batch, lower] = True
            dropped = pair.dropped + (_sums(pair.edges) - _sums(kept))
            pairs[upper, pair.lower] = replace(pair, edges=kept, dropped=dropped, heads=None)
    return replace(graph, pairs=tuple(pairs[pair.upper, pair.lower] for pair in graph.pairs))


def _heaviest(values: Tensor, samples: Tensor, mass: float) -> Tensor:
    """Which values are, of each sample, the fewest that have a share of the sum of all sizes."""
    sizes = values.abs().double()
    order = sizes.argsort(descending=True, stable=True)
    order = order[samples[order].argsort(stable=True)]  # sample by sample
    sums = sizes[order].cumsum(0)
    totals = torch.zeros(int(samples.max()) + 1 if len(samples) else 0, dtype=sizes.dtype, device=sizes.device)
    totals.index_add_(0, samples, sizes)
    before = (totals.cumsum(0) - totals)[samples[order]]
    own = sizes[order]
    is_needed = (sums - own - before < mass * totals[samples[order]] * (1 - 1e-12)) & (own > 0)
    return torch.zeros_like(is_needed).scatter(0, order, is_needed)


def _sums(edges: Tensor) -> Tensor:
    """(batch, upper tokens)."""
    return torch.sparse.sum(edges, 2).to_dense() if edges.is_sparse else edges.sum(2)


# -- paths ------------------------------------------------------------------------------------------------------------


def strongest_paths(graph: Graph, stream: str, token: int, count: int, sample: int) -> list[Path]:
    """See `Graph.paths`: max-product from the target down, with so many best ways to each token."""
    _check_token(graph, stream, token, count, sample)
    top = graph.streams[-1]
    ways = {top: _Ways(np.ones((1, 1)), np.zeros((1, 1, 3), dtype=np.int64))}
    arriving: dict[str, list[_Candidates]] = {}
    for number, upper in reversed(list(enumerate(graph.streams))):
        if upper != top:
            ways[upper] = _best(arriving.pop(upper, []), graph.nodes[upper].shape[1], count)
        if upper == stream:
            break
        for pair, (rows, columns, shares) in _shares(graph, upper, sample):
            strengths = ways[upper].strengths[rows] * shares[:, None]
            edges, ranks = strengths.nonzero()
            back = np.stack([np.full_like(edges, number), rows[edges], ranks], 1)
            arriving.setdefault(pair.lower, []).append(_Candidates(columns[edges], strengths[edges, ranks], back))
    strengths = ways[stream].strengths[token]
    return [
        Path(float(strength), _followed(graph, ways, stream, token, rank))
        for rank, strength in enumerate(strengths)
        if strength > 0
    ]


class _Ways(NamedTuple):
    """The best ways to each token of a stream: (tokens, ways), and for each the stream, token and way before."""

    strengths: np.ndarray
    back: np.ndarray


class _Candidates(NamedTuple):
    """Ways to tokens, and where each comes from."""

    tokens: np.ndarray
    strengths: np.ndarray
    back: np.ndarray


def _best(candidates: Sequence[_Candidates], tokens: int, count: int) -> _Ways:
    ways = _Ways(np.zeros((tokens, count)), np.zeros((tokens, count, 3), dtype=np.int64))
    if candidates:
        token, strength, back = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
        order = np.lexsort((-strength, token))
        token, strength, back = token[order], strength[order], back[order]
        rank = np.arange(len(token)) - np.searchsorted(token, token)
        is_best = rank < count
        ways.strengths[token[is_best], rank[is_best]] = strength[is_best]
        ways.back[token[is_best], rank[is_best]] = back[is_best]
    return ways


def _shares(graph: Graph, upper: str, sample: int) -> list[tuple[Pair, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Of each pair below a stream the edges of one sample: their sizes, as shares of all that leaves their tokens."""
    pairs = graph.below(upper)
    if not pairs:
        return []
    totals = graph.constants[upper][sample].abs() + sum(pair.dropped[sample].abs() for pair in pairs)
    found = []
    for pair in pairs:
        (batch, rows, columns), values = entries(pair.edges)
        own = batch == sample
        found.append((rows[own], columns[own], values[own].abs()))
        totals = totals.index_add(0, rows[own], values[own].abs())
    return [
        (pair, tuple(part.cpu().numpy() for part in (rows, columns, (sizes / totals[rows]).double())))  # type: ignore[misc]
        for pair, (rows, columns, sizes) in zip(pairs, found, strict=True)
    ]


def _followed(
    graph: Graph, ways: Mapping[str, _Ways], stream: str, token: int, rank: int
) -> tuple[tuple[str, int], ...]:
    tokens = [(stream, token)]
    while stream != graph.streams[-1]:
        number, token, rank = (int(one) for one in ways[stream].back[token, rank])
        stream = graph.streams[number]
        tokens.append((stream, token))
    return tuple(tokens)


def _check_token(graph: Graph, stream: str, token: int, count: int, sample: int) -> None:
    """Errors: `InputError` for tokens that there are not."""
    if stream not in graph.streams:
        raise InputError(f"there is no stream '{stream}'.{near_misses(stream, graph.streams)} print(graph) lists them.")
    batch, tokens = graph.nodes[stream].shape
    for name, number, end in (("token", token, tokens), ("sample", sample, batch)):
        if type(number) is not int or not 0 <= number < end:
            raise InputError(f"the {name} must be a number from 0 to {end - 1}, but is {number!r}.")
    if type(count) is not int or count < 1:
        raise InputError(f"count must be a number of paths >= 1, but is {count!r}.")


# -- spans ------------------------------------------------------------------------------------------------------------


def spanned(graph: Graph, spans: Spans, streams: Sequence[str] | None) -> Graph:
    """See `Graph.spans`."""
    wanted = graph.streams[:-1] if streams is None else tuple(streams)
    if unknown := [name for name in wanted if name not in graph.streams]:
        raise InputError(f"there is no stream '{unknown[0]}'.{near_misses(unknown[0], graph.streams)}")
    if not spans:
        raise InputError('spans are tokens by name, such as {"question": range(3, 9)}, but there are none.')
    places = {}
    for name, node in graph.nodes.items():
        count = node.shape[1]
        places[name] = _span_of(spans, count, name) if name in wanted else torch.arange(count)
        places[name] = places[name].to(node.device)
    sizes = {name: len(spans) + 1 if name in wanted else graph.nodes[name].shape[1] for name in graph.nodes}

    def summed(name: str, tensor: Tensor) -> Tensor:
        return tensor.new_zeros(len(tensor), sizes[name]).index_add(1, places[name], tensor)

    pairs = []
    for pair in graph.pairs:
        (batch, rows, columns), values = entries(pair.edges)
        to = torch.stack([batch, places[pair.upper][rows], places[pair.lower][columns]])
        shape = (pair.edges.shape[0], sizes[pair.upper], sizes[pair.lower])
        edges = values.new_zeros(shape).index_put(tuple(to), values, accumulate=True)
        heads = pair.heads
        if heads is not None:
            shape = (*heads.shape[:2], sizes[pair.upper], heads.shape[3])
            heads = heads.new_zeros(shape).index_add(2, places[pair.upper], heads)
            shape = (*heads.shape[:3], sizes[pair.lower])
            heads = heads.new_zeros(shape).index_add(3, places[pair.lower], heads)
        pairs.append(replace(pair, edges=edges, dropped=summed(pair.upper, pair.dropped), heads=heads))
    nodes = {name: summed(name, node) for name, node in graph.nodes.items()}
    constants = {name: summed(name, one) for name, one in graph.constants.items()}
    branches = {
        upper: {name: summed(upper, one) for name, one in found.items()} for upper, found in graph.branches.items()
    }
    return replace(graph, nodes=nodes, constants=constants, pairs=tuple(pairs), branches=branches)


def _span_of(spans: Spans, count: int, stream: str) -> Tensor:
    """The number of the span that each token is in; those in none are in the last."""
    found = torch.full((count,), len(spans))
    for number, (name, given) in enumerate(spans.items()):
        for token in range(count)[given] if isinstance(given, slice) else given:
            if not 0 <= token < count:
                raise InputError(
                    f"'{name}' has the token {token}, but '{stream}' has {count} tokens: say by streams= which spans "
                    "are of."
                )
            if found[token] < len(spans):
                other = list(spans)[int(found[token])]
                raise InputError(f"token {token} is in '{other}' and in '{name}': spans must not overlap.")
            found[token] = number
    return found
