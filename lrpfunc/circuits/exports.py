"""A graph for other programs: a graph of networkx, tables in parquet, the JSON of circuit-tracer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrpfunc.circuits.listing import Listed, Listing, Tokens, called, listed
from lrpfunc.errors import InputError
from lrpfunc.extras import extra
from lrpfunc.text.tokens import visible

if TYPE_CHECKING:
    from types import ModuleType

    import networkx

    from lrpfunc.circuits.graphs import Graph

EXTRA = "graphs"
KINDS = {"constants": "constant", "dropped": "not listed (error)"}  # their viewer knows errors by that word


class _Sample(NamedTuple):
    """What all forms need. `tokens`: by stream, of "target" what is explained."""

    graph: Graph
    listing: Listing
    tokens: dict[str, list[str]]


def _sample(graph: Graph, tokens: Tokens, answer: str, sample: int, edges: int | None) -> _Sample:
    names = called(graph, tokens)
    return _Sample(graph, listed(graph, sample, edges), {**names, graph.streams[-1]: [answer or graph.streams[-1]]})


# -- networkx ---------------------------------------------------------------------------------------------------------


def to_networkx(graph: Graph, tokens: Tokens, answer: str, sample: int, edges: int | None) -> networkx.DiGraph:
    """See `Graph.networkx`."""
    found = _sample(graph, tokens, answer, sample, edges)
    made = extra("networkx", EXTRA, "a graph for networkx").DiGraph()
    for layer, stream in enumerate(graph.streams):
        for position, relevance in enumerate(found.listing.nodes[stream].tolist()):
            token = found.tokens[stream][position]
            made.add_node((stream, position), layer=layer, token=token, relevance=relevance)
    for pair in found.listing.pairs:
        by_heads = [{}] * len(pair.values) if pair.heads is None else [{"heads": one} for one in pair.heads.tolist()]
        for row, column, value, heads in zip(*_lists(pair), by_heads, strict=True):
            made.add_edge((pair.lower, column), (pair.upper, row), relevance=value, **heads)
    for upper in graph.streams:
        for kind, values in found.listing.rests(upper).items():
            for position in np.flatnonzero(values).tolist():
                made.add_node((kind, upper), layer=graph.streams.index(upper), token=kind)
                made.add_edge((kind, upper), (upper, position), relevance=float(values[position]))
    return made


def _lists(pair: Listed) -> tuple[list, list, list]:
    return pair.rows.tolist(), pair.columns.tolist(), pair.values.tolist()


# -- parquet ----------------------------------------------------------------------------------------------------------


def to_parquet(graph: Graph, folder: str | Path, tokens: Tokens, answer: str, sample: int) -> tuple[Path, Path]:
    """See `Graph.parquet`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: make it first, nodes.parquet and edges.parquet go there.")
    found = _sample(graph, tokens, answer, sample, None)
    arrow = extra("pyarrow", EXTRA, "writing parquet")
    parquet = extra("pyarrow.parquet", EXTRA, "writing parquet")
    paths = folder / "nodes.parquet", folder / "edges.parquet"
    for path, columns in zip(paths, (_nodes(found), _edges(found, arrow)), strict=True):
        parquet.write_table(arrow.table(columns), path)
    return paths


def _nodes(found: _Sample) -> dict[str, Any]:
    """A row for each token of each stream."""
    graph, listing = found.graph, found.listing
    counts = [len(listing.nodes[stream]) for stream in graph.streams]
    rests = [(listing.rests(stream), np.zeros(count)) for stream, count in zip(graph.streams, counts, strict=True)]
    return {
        "stream": np.repeat(graph.streams, counts),
        "layer": np.repeat(np.arange(len(counts)), counts),
        "position": np.concatenate([np.arange(count) for count in counts]),
        "token": [token for stream in graph.streams for token in found.tokens[stream]],
        "relevance": np.concatenate([listing.nodes[stream] for stream in graph.streams]),
        **{kind: np.concatenate([rest.get(kind, none) for rest, none in rests]) for kind in ("constants", "dropped")},
    }


def _edges(found: _Sample, arrow: ModuleType) -> dict[str, Any]:
    """A row for each edge that is not zero."""
    pairs = found.listing.pairs
    counts = [len(pair.values) for pair in pairs]
    columns: dict[str, Any] = {}
    for name, kind in (("upper", "rows"), ("lower", "columns")):
        columns[name] = np.repeat([getattr(pair, name) for pair in pairs], counts)
        columns[f"{name}_position"] = np.concatenate([getattr(pair, kind) for pair in pairs])
    columns["relevance"] = np.concatenate([pair.values for pair in pairs])
    if any(pair.heads is not None for pair in pairs):
        heads = [[None] * len(p.values) if p.heads is None else p.heads.tolist() for p in pairs]
        columns["heads"] = arrow.array([one for each in heads for one in each], arrow.list_(arrow.float64()))
    return columns


# -- circuit-tracer ---------------------------------------------------------------------------------------------------


def to_circuit_tracer(
    graph: Graph, tokens: Tokens, answer: str, probability: float, sample: int, edges: int | None, name: str
) -> dict[str, Any]:
    """See `Graph.circuit_tracer`."""
    if not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise InputError(f"the probability must be a number from 0 to 1, but is {probability!r}.")
    return _Traced(_sample(graph, tokens, answer, sample, edges), float(probability)).as_json(name)


class _Traced:
    """Nodes and links by the schema of circuit-tracer.

    Source: https://github.com/decoderesearch/circuit-tracer, circuit_tracer/frontend/graph_models.py, version 0.5
    """

    def __init__(self, found: _Sample, probability: float):
        self.found, self.probability = found, probability
        self.graph, self.listing = found.graph, found.listing
        *streams, self.target = self.graph.streams
        sides = {id(found.tokens[stream]): found.tokens[stream] for stream in streams}
        starts = np.cumsum([0, *map(len, sides.values())]).tolist()
        self.prompt = [token for side in sides.values() for token in side]
        start_of = dict(zip(sides, starts[:-1], strict=True))
        self.starts = {stream: start_of[id(found.tokens[stream])] for stream in streams}
        self.lowest = [s for s in streams if not self.graph.below(s)]
        self.layers = {stream: number for number, stream in enumerate(s for s in streams if s not in self.lowest)}
        self.links: list[dict[str, Any]] = []
        self.rests: list[dict[str, Any]] = []

    def as_json(self, name: str) -> dict[str, Any]:
        for pair in self.listing.pairs:
            for row, column, value in zip(*_lists(pair), strict=True):
                self._link(self._id(pair.lower, column), self._id(pair.upper, row), value)
        for upper in self.graph.streams:
            for kind, values in self.listing.rests(upper).items():
                self._rest(upper, values, KINDS[kind])
        return {
            "metadata": {
                "slug": name,
                "scan": "lrpfunc",
                "transcoder_list": [],
                "prompt_tokens": list(map(visible, self.prompt)),
                "prompt": "".join(self.prompt),
                "node_threshold": None,
                "schema_version": 1,
            },
            "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
            "nodes": [*self._nodes(), *self.rests],
            "links": self.links,
        }

    def _link(self, source: str, target: str, weight: float) -> None:
        self.links.append({"source": source, "target": target, "weight": weight})

    def _place(self, stream: str, token: int) -> tuple[str, int]:
        """The layer and the position of a token; that of the target is the last one."""
        if stream == self.target:
            return str(len(self.layers)), len(self.prompt) - 1
        return "E" if stream in self.lowest else str(self.layers[stream]), self.starts[stream] + token

    def _id(self, stream: str, token: int) -> str:
        layer, position = self._place(stream, token)
        return f"{layer}_0_{position}" if layer != "E" else f"E_{position}_{position}"

    def _nodes(self) -> list[dict[str, Any]]:
        made = []
        for stream in self.graph.streams:
            for token, relevance in enumerate(self.listing.nodes[stream].tolist()):
                layer, position = self._place(stream, token)
                kind = {"E": "embedding"}.get(layer, "residual stream") if stream != self.target else "logit"
                word = visible(self.found.tokens[stream][token])
                label = f'Output "{word}" (p={self.probability:.3f})' if kind == "logit" else f'{stream} "{word}"'
                made.append(_node(self._id(stream, token), layer, position, kind, label, relevance))
                if kind == "logit":
                    made[-1] |= {"token_prob": self.probability, "is_target_logit": True}
        inner = [node for node in made if node["feature_type"] == "residual stream"]
        total = math.fsum(abs(node["activation"]) for node in inner) or 1.0
        share = 0.0
        for node in sorted(inner, key=lambda node: -abs(node["activation"])):
            share += abs(node["activation"]) / total
            node["influence"] = min(share, 1.0)
        return made

    def _rest(self, upper: str, values: np.ndarray, kind: str) -> None:
        """Nodes of what a token got from none of those below, one layer down."""
        for token in np.flatnonzero(values).tolist():
            layer, position = self._place(upper, token)
            number = str(max(int(layer) - 1, 0))
            name = f"{kind.split()[0]}_{layer}_{position}"
            self.rests.append(_node(name, number, position, kind, f"{kind} of {upper}", float(values[token])))
            self._link(name, self._id(upper, token), float(values[token]))


def _node(name: str, layer: str, position: int, kind: str, label: str, relevance: float) -> dict[str, Any]:
    """A node by their fields. Their viewer reads layer and number from `feature`, by Cantor's pairing."""
    feature = position if layer == "E" else -1 if kind == KINDS["dropped"] else int(layer) * (int(layer) + 1) // 2
    return {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": name,
        "clerp": label,
        "influence": None,
        "activation": relevance,
    }


def written(path: str | Path, content: dict[str, Any]) -> Path:
    """Write JSON, and return the path."""
    path = Path(path)
    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return path
