"""A graph of one sample as lists: what its tokens are called, and its strongest edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from lrpfunc.circuits.paths import entries
from lrpfunc.errors import InputError
from lrpfunc.text.tokens import check_tokens

if TYPE_CHECKING:
    from lrpfunc.circuits.graphs import Graph

ROUNDING = 1e-6  # of the largest node: what is left of a row in float32, where nothing should be
GIVE_EACH = 'the tokens of each, by patterns of names: {"*decoder*": answer, "*": question}'
Tokens = Sequence[str] | Mapping[str, Sequence[str]]


class Listed(NamedTuple):
    """The edges of a pair in one sample that are listed.

    Args:
        rows: (edges,), the upper tokens.
        columns: (edges,), the lower tokens.
        values: (edges,), the relevance.
        heads: (edges, heads), what of it went by each head; None where that is not known.
        dropped: (upper tokens,), the sum of what is not listed.
    """

    upper: str
    lower: str
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    heads: np.ndarray | None
    dropped: np.ndarray


class Listing(NamedTuple):
    """A graph of one sample. `edges`: how many edges there are in all, which may be more than are listed."""

    nodes: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]
    pairs: list[Listed]
    edges: int

    def rests(self, upper: str) -> dict[str, np.ndarray]:
        """What of a stream's tokens no lower token is listed to have got: "constants", and "dropped" edges.

        What is no more than rounding is left out.
        """
        below = [pair.dropped for pair in self.pairs if pair.upper == upper]
        rests = {"constants": self.constants[upper], "dropped": sum(below[1:], below[0])} if below else {}
        least = ROUNDING * max(float(np.abs(node).max()) for node in self.nodes.values())
        return {kind: values for kind, values in rests.items() if np.abs(values).max() > least}


def listed(graph: Graph, sample: int, most: int | None) -> Listing:
    """A sample's nodes and, at most, so many edges, the strongest of all; what is left out is in `dropped`.

    Errors: `InputError` for a sample that there is not, a number of edges that is none, relevance that is not finite.
    """
    batch = len(graph.nodes[graph.streams[-1]])
    if type(sample) is not int or not 0 <= sample < batch:
        raise InputError(f"the sample must be a number from 0 to {batch - 1}, but is {sample!r}.")
    if most is not None and (type(most) is not int or most < 1):
        raise InputError(f"edges must be a number of edges >= 1, but is {most!r}.")
    nodes = {name: _array(node[sample], f"'{name}'") for name, node in graph.nodes.items()}
    constants = {name: _array(one[sample], f"'{name}'") for name, one in graph.constants.items()}
    found = [_of_pair(graph, number, sample) for number in range(len(graph.pairs))]
    total = sum(len(one.values) for one in found)
    if most is not None and total > most:
        found = _strongest(found, most)
    return Listing(nodes, constants, found, total)


def _of_pair(graph: Graph, number: int, sample: int) -> Listed:
    pair = graph.pairs[number]
    heads = pair.heads
    if heads is None:
        (samples, rows, columns), values = entries(pair.edges)
        own = samples == sample
        rows, columns, values, by_heads = rows[own], columns[own], values[own], None
    else:
        # An edge of heads that cancel is one, too.
        rows, columns = ((pair.edges[sample] != 0) | (heads[sample] != 0).any(0)).nonzero().T
        values, by_heads = pair.edges[sample][rows, columns], heads[sample][:, rows, columns].T
    where = f"the edges from '{pair.lower}' to '{pair.upper}'"
    return Listed(
        pair.upper,
        pair.lower,
        rows.cpu().numpy(),
        columns.cpu().numpy(),
        _array(values, where),
        None if by_heads is None else _array(by_heads, where),
        _array(pair.dropped[sample], where),
    )


def _array(tensor: Tensor, where: str) -> np.ndarray:
    """In float64. Errors: `InputError` for what is not finite."""
    values = tensor.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"relevance must be finite, but that of {where} is not.")
    return values


def _strongest(pairs: Sequence[Listed], most: int) -> list[Listed]:
    """Only the largest of all, by their own size or that of one of their heads."""
    sizes = np.concatenate([_sizes(pair) for pair in pairs])
    is_kept = np.zeros(len(sizes), bool)
    is_kept[np.argsort(-sizes, kind="stable")[:most]] = True
    found = []
    for pair, kept in zip(pairs, np.split(is_kept, np.cumsum([len(p.values) for p in pairs])[:-1]), strict=True):
        dropped = pair.dropped + np.bincount(pair.rows[~kept], pair.values[~kept], len(pair.dropped))
        heads = None if pair.heads is None else pair.heads[kept]
        left = (pair.rows[kept], pair.columns[kept], pair.values[kept])
        found.append(Listed(pair.upper, pair.lower, *left, heads, dropped))
    return found


def _sizes(pair: Listed) -> np.ndarray:
    sizes = np.abs(pair.values)
    return sizes if pair.heads is None else np.maximum(sizes, np.abs(pair.heads).max(1, initial=0.0))


# -- what tokens are called -------------------------------------------------------------------------------------------


def called(graph: Graph, tokens: Tokens) -> dict[str, list[str]]:
    """The tokens of each stream but the target; streams that are given the same ones share one list.

    Errors: `InputError` for streams without tokens, patterns without streams, another number of tokens, and two
    inputs that share theirs.
    """
    given = tokens if isinstance(tokens, Mapping) else {"*": tokens}
    lists = {id(one): check_tokens(one) for one in given.values()}
    streams, found = graph.streams[:-1], {}
    for name in streams:
        pattern = next((pattern for pattern in given if fnmatchcase(name, pattern)), None)
        if pattern is None:
            raise InputError(f"'{name}' has no tokens: give {GIVE_EACH}.")
        found[name], count = lists[id(given[pattern])], graph.nodes[name].shape[1]
        if len(found[name]) != count:
            raise InputError(
                f"'{name}' has {count} tokens, but {len(found[name])} strings are given for it. Where streams differ "
                f"in their tokens, give {GIVE_EACH}."
            )
    if unknown := [pattern for pattern in given if not any(fnmatchcase(name, pattern) for name in streams)]:
        raise InputError(f"no stream is called '{unknown[0]}': there are {', '.join(map(repr, streams))}.")
    lowest = [name for name in streams if not graph.below(name)]
    for name, other in pairwise(lowest):
        if found[name] is found[other]:
            raise InputError(f"'{name}' and '{other}' are two inputs: give {GIVE_EACH}.")
    return found
