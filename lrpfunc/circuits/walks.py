"""From a target down through residual streams: the nodes and edges of a graph of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.attribution import Target
from lrpfunc.attribution.checks import BROADER
from lrpfunc.attribution.records import check_chunk_size
from lrpfunc.attribution.stretches import Stretch, Stretches
from lrpfunc.circuits import memory
from lrpfunc.circuits.attentions import Mixer, NotClosed, branches, mixers, names
from lrpfunc.circuits.closed import in_closed_form
from lrpfunc.circuits.edges import Pulled, Rows, by_pullbacks, of_tokens, relevance
from lrpfunc.circuits.graphs import TARGET, Graph, Pair
from lrpfunc.circuits.keeping import Edges, Keep, Store, check_keep
from lrpfunc.circuits.streams import streams
from lrpfunc.composites import Entries, attn_lrp
from lrpfunc.errors import InputError, RuleError
from lrpfunc.operations import facts
from lrpfunc.program import Program
from lrpfunc.rules import Flow

ATTN_LRP = attn_lrp()
CLOSED, PULLBACKS, ONE = "closed", "pullbacks", "one pullback"


def graph(
    fmodel: Program,
    params,
    x,
    target: Target = None,
    rules: Entries = ATTN_LRP,
    layers: str | Sequence[str] | None = None,
    method: str | None = None,
    keep: Keep = None,
    split: bool = False,
    chunk_size: int = 32,
) -> Graph:
    """Who sent how much relevance to whom, token by token, between neighbouring residual streams.

    An edge is what arrives at a lower token if the relevance of an upper one, alone, is pulled back. Where between two
    streams only attention mixes tokens, all edges take the time of one attention; else n pullbacks through one block,
    in batches. Two forward passes; one block's record is in memory at a time.

    Args:
        fmodel: a program whose residual streams are (batch, tokens, width).
        params: its parameters.
        x: inputs, as `attribute` takes them.
        target: what is explained, as `attribute` takes it: (position, token), say.
        rules: a composite, a mapping or a rule, which is for layers: what is no layer keeps its usual rule.
        layers: the names of the streams, from the embedding upwards, as `at` of `record` or of inputs; None finds them:
            what numbered modules ("layers.0") hand on, and what the first one is given.
        method: "closed" or "pullbacks"; None takes the closed form wherever there is one.
        keep: which edges are stored, as sparse tensors: a number, the strongest of each upper token; or a share, those
            of at least that much of what is explained. None stores all.
        split: whether to tell heads of attention apart (`Pair.heads`), and what each branch of a block gets
            (`Graph.branches`).
        chunk_size: how many tokens to pull back at once, to save memory.

    Errors: those of `attribute`; `InputError` for streams that are not found, relevance that is not finite, and edges
    that would not fit into memory; `RuleError` where a closed form was asked for and there is none.

    >>> import lrpfunc, torch
    >>> from lrpfunc import circuits
    >>> f = lambda p, x: (x + x.mean(1, keepdim=True) @ p) @ p
    >>> x = torch.ones(1, 3, 2)
    >>> graph = circuits.graph(*lrpfunc.trace(f, torch.eye(2), x), x, (2, 0), layers=["x", "add"])
    >>> print(graph)
    from  to      edges      found by
    x     add     (1, 3, 3)  pullbacks: tokens mix in more than attention
    add   target  (1, 1, 3)  one pullback
    """
    how = _How(method, keep, split, chunk_size).checked()
    found = streams(fmodel, layers)
    return _Walk(Stretches(fmodel, params, x, rules, tuple(found.values())), found, how).graph(target)


class _How(NamedTuple):
    """How edges are found and which are stored."""

    method: str | None
    keep: Keep
    split: bool
    chunk_size: int

    def checked(self) -> _How:
        """Errors: `RuleError`, `InputError`, `TargetError`."""
        if self.method not in (None, CLOSED, PULLBACKS):
            raise RuleError(f"method must be None, '{CLOSED}' or '{PULLBACKS}', but is {self.method!r}.")
        check_keep(self.keep)
        if self.split and self.keep is not None:
            raise RuleError("split=True stores the edges of all heads, which keep= would not: leave one of them out.")
        check_chunk_size(self.chunk_size)
        return self


class _Walk:
    """`names`: of streams by their variables, in the order in which they are made; `flows`: what has arrived at them,
    and at inputs, of what was walked so far."""

    def __init__(self, way: Stretches, found: Mapping[str, str], how: _How):
        self.names = {variable: name for name, variable in found.items()}
        self.way, self.how, self.sizes = way, how, memory.Sizes(way)
        self.nodes: dict[str, Tensor] = {}
        self.flows: dict[str, Flow] = {}
        self.constants: dict[str, Tensor] = {}
        self.branches: dict[str, dict[str, Tensor]] = {}
        self.pairs: list[Pair] = []

    def graph(self, target: Target) -> Graph:
        """From the target down to the inputs."""
        self._refuse_too_many()
        self._begin(target)
        for upper in reversed(self.names):
            self._descend(upper)
        found = (*self.names.values(), TARGET)
        nodes = {name: self.nodes[name] for name in found}
        pairs = tuple(reversed(self.pairs))
        return Graph(found, nodes, pairs, self.constants, self.way.inputs(self.flows), self.branches)

    def _refuse_too_many(self) -> None:
        """Errors: `InputError` for a graph that does not fit into memory."""
        pairs = []
        for upper in self.names:
            below = self.way.below(upper)
            heads = self._heads(upper) if below and self.how.split else 0
            (batch, tokens), others = self.way.value(upper).shape[:2], [self.way.value(lower) for lower in below]
            pairs += [memory.Edges(batch, tokens, other.shape[1], heads) for other in others]
        memory.check_memory(self.way, self.sizes, pairs, self.how.keep)

    def _heads(self, upper: str) -> int:
        """How many heads attend below a stream, as far as they are told apart."""
        found, _ = self._mixers(self.way.stretch(upper))
        shapes = {mixer.site: self.sizes.shape(mixer.step.equation.outputs[0]) for mixer in found}
        return sum(math.prod(shape[1:-2]) for shape in shapes.values())

    def _begin(self, target: Target) -> None:
        """From the target to the streams right below it: one pullback."""
        way, entering = self.way, self.way.entering(target)
        stretch = way.stretch()
        stretch.record(entering)
        batch = len(way.value(next(iter(self.names))))
        found = [relevance(flow, stretch.value(name)) for name, flow in entering.items()]
        total = [one.reshape(batch, one.numel() // max(batch, 1)).sum(1) for one in found]
        self.nodes[TARGET] = torch.stack(total).sum(0)[:, None]
        arrived, _ = stretch.pull(entering)
        way.add(self.flows, arrived)
        for lower in self.names:
            if lower in arrived:
                store = Store(None, self.nodes[TARGET][:, 0], count=1)
                store.add(of_tokens(arrived[lower], way.value(lower))[:, None])
                self._add(TARGET, lower, store.edges(), ONE, "")

    def _descend(self, upper: str) -> None:
        """From a stream, at which all has arrived by now, to those below it."""
        way, name = self.way, self.names[upper]
        stretch = way.stretch(upper)
        flow = self.flows.pop(upper, None) if stretch.steps else self.flows.get(upper)
        self.nodes[name] = _finite(of_tokens(flow, way.value(upper)), name, way.value(upper).dtype)
        if flow is None or not stretch.steps:
            return
        found, why = self._mixers(stretch)
        added = branches(facts(way.plan.program), stretch.ruled, upper) if self.how.split else {}
        stretch.record(dict.fromkeys([*names(found), *added.values()]))
        arrived, inner = stretch.pull({upper: flow})
        if added:
            self.branches[name] = {one: of_tokens(inner[place], stretch.value(place)) for one, place in added.items()}
        way.add(self.flows, arrived)
        reached = [lower for lower in self.names if lower in arrived]
        if reached:
            pulled = Pulled(upper, flow, reached, arrived, inner)
            edges, method, why = self._edges(stretch, pulled, None if why else found, why)
            for lower, one in zip(reached, edges, strict=True):
                self._add(name, lower, one, method, why)

    def _mixers(self, stretch: Stretch) -> tuple[list[Mixer], str]:
        """Where attention mixes tokens, or why there is no closed form of it."""
        if self.how.method == PULLBACKS:
            return [], "asked for"
        try:
            return mixers(facts(self.way.plan.program), stretch.steps), ""
        except NotClosed as reason:
            return [], str(reason)

    def _edges(
        self, stretch: Stretch, pulled: Pulled, found: Sequence[Mixer] | None, why: str
    ) -> tuple[list[Edges], str, str]:
        """The edges of a stretch, by which method, and why not in closed form. Errors: `RuleError` if that was asked
        for."""
        if found is not None:
            try:
                return self._stored(in_closed_form(self.way, stretch, found, pulled), pulled), CLOSED, ""
            except NotClosed as reason:
                why = str(reason)
        if self.how.method == CLOSED:
            raise RuleError(
                f"the edges below '{self.names[pulled.upper]}' have no closed form: {why}. With method=None they are "
                "found by pullbacks."
            )
        memory.check_pullbacks(self.way, self.sizes, pulled.upper, self.names[pulled.upper], self.how.chunk_size)
        return self._stored(by_pullbacks(self.way, stretch, pulled, self.how.chunk_size), pulled), PULLBACKS, why

    def _stored(self, rows: Iterator[tuple[Rows, ...]], pulled: Pulled) -> list[Edges]:
        """Rows of edges as those that are kept of each lower stream."""
        count = self.way.value(pulled.upper).shape[1]
        stores = [Store(self.how.keep, self.nodes[TARGET][:, 0], count) for _ in pulled.lower]
        for chunk in rows:
            for store, part in zip(stores, chunk, strict=True):
                store.add(part.edges, part.heads if self.how.split else None)
        return [store.edges() for store in stores]

    def _add(self, upper: str, lower: str, edges: Edges, method: str, why: str) -> None:
        memory.check_stored(edges.stored, len(self.names) - len(self.nodes), self.how.keep)
        self.pairs.append(Pair(upper, self.names[lower], edges.stored, edges.dropped, method, why, edges.heads))
        self.constants[upper] = self.constants.get(upper, self.nodes[upper]) - edges.sums


def _finite(node: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Errors: `InputError` for relevance that overflowed."""
    if not node.isfinite().all():
        remedy = (
            f"float16 ends at 65504. {BROADER}"
            if dtype == torch.float16
            else "a rule above it divides by zero, or what it is given is not finite. Give its rules a stabilizer."
        )
        raise InputError(f"the relevance at '{name}' is not finite: {remedy}")
    return node
