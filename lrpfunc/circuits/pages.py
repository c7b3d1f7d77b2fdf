"""A graph as a page: what of it is shown, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrpfunc.circuits.listing import Listed, Listing, Tokens, called, listed
from lrpfunc.errors import InputError
from lrpfunc.text.grids import check_numbers, floats, matrix_part, page, whole_numbers
from lrpfunc.text.rows import Relevance
from lrpfunc.text.tokens import visible

if TYPE_CHECKING:
    from lrpfunc.circuits.graphs import Graph


def html(
    graph: Graph,
    tokens: Tokens,
    path: str | Path | None,
    answer: str,
    sample: int,
    title: str,
    edges: int | None,
    matrix: Relevance | None,
) -> str:
    """See `Graph.html`."""
    names = called(graph, tokens)
    if matrix is not None and isinstance(tokens, Mapping):
        raise InputError("a matrix is shown beside a graph of one list of tokens. text.matrix makes a page of its own.")
    listing = listed(graph, sample, edges)
    heads = sum(pair.heads.size for pair in listing.pairs if pair.heads is not None)
    numbers = 3 * sum(len(pair.values) for pair in listing.pairs) + heads
    numbers += sum(node.size for node in listing.nodes.values())
    check_numbers(numbers, "A lower edges=, or sums over spans of tokens, graph.spans, take less.")
    part = _part(graph, names, listing, sample, visible(answer) if answer else "")
    beside = None if matrix is None else matrix_part(matrix, names[graph.streams[0]])
    made = page(title, part, beside)
    if path is not None:
        Path(path).write_text(made, encoding="utf-8")
    return made


def _part(graph: Graph, names: Mapping[str, list[str]], listing: Listing, sample: int, answer: str) -> dict[str, Any]:
    *streams, target = graph.streams
    sides = list({id(names[stream]): names[stream] for stream in streams}.values())
    side_of = {stream: [side is names[stream] for side in sides].index(True) for stream in streams}
    streams.sort(key=side_of.__getitem__)  # an encoder below its decoder
    short = _short(streams)
    shown = [
        {
            "name": stream,
            "short": short[stream],
            "side": side_of[stream],
            "values": floats(listing.nodes[stream]),
            **_rests(listing, stream),
            "branches": _branches(graph, stream, sample),
        }
        for stream in streams
    ]
    top = {"name": target, "short": target, "side": None, "values": floats(listing.nodes[target])}
    return {
        "answer": answer or target,
        "sides": [list(map(visible, side)) for side in sides],
        "streams": [*shown, {**top, **_rests(listing, target), "branches": []}],
        "pairs": [_pair([*streams, target], pair) for pair in listing.pairs],
        "ways": [{"upper": p.upper, "lower": p.lower, "method": p.method, "why": p.why} for p in graph.pairs],
        "kept": sum(len(pair.values) for pair in listing.pairs),
        "edges": listing.edges,
    }


def _rests(listing: Listing, stream: str) -> dict[str, dict[str, str]]:
    """What of a stream no lower token got."""
    return {"rests": {kind: floats(values) for kind, values in listing.rests(stream).items()}}


def _branches(graph: Graph, stream: str, sample: int) -> list[dict[str, str]]:
    found = graph.branches.get(stream, {})
    return [
        {"name": name.removeprefix(f"{stream}."), "values": floats(one[sample].double().cpu().numpy())}
        for name, one in found.items()
    ]


def _pair(streams: Sequence[str], pair: Listed) -> dict[str, Any]:
    return {
        "upper": streams.index(pair.upper),
        "lower": streams.index(pair.lower),
        "rows": whole_numbers(pair.rows),
        "columns": whole_numbers(pair.columns),
        "values": floats(pair.values),
        "heads": 0 if pair.heads is None else pair.heads.shape[1],
        "by_heads": "" if pair.heads is None else floats(pair.heads),
    }


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names without the modules that all of them are in."""
    modules = [name.split(".")[:-1] for name in names if "." in name]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))]
    while shared and any(name.removeprefix(_prefix(shared)).isdigit() for name in names):
        shared.pop()  # "layers.0", and not "0"
    return {name: name.removeprefix(_prefix(shared)) for name in names}


def _prefix(modules: Sequence[str]) -> str:
    return "".join(f"{module}." for module in modules)
