"""The edges between two streams in closed form, where nothing but attention mixes tokens: one attention's time.

Upper token j sends what comes to keys and values to others (`attentions`); all else stays at its token. What a token
has for a key or value, b~ = d R / d c_b, is one derivative of the pullback from there to the stream below, which is
linear, whatever rules and layers lie between. In the end the rows are compared, in one random combination, with the
pullback of that combination: where tokens mix elsewhere too, they differ, and there is no closed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.attribution.stretches import Stretch, Stretches
from lrpfunc.circuits.attentions import Mixer, NotClosed, Term, by_heads, gathered, made_of, spread
from lrpfunc.circuits.edges import Pulled, Rows, of_tokens, relevance
from lrpfunc.rules import Flow

ELEMENTS = 2**22  # of one tensor of some rows, by heads
PROBES = 8  # rows by which it is told what a rule makes of the vector-Jacobian product
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
TOLERANCE = 0.05  # in half precision
ROUNDINGS = 8  # of the last digit, of what cancels


class Reader(NamedTuple):
    """A mixer that relevance comes to. `c`: the coefficient of its output, (batch, heads, rows, width); `shares`: by
    what its rule multiplies the vector-Jacobian product, by column; `parts`: b~ by lower stream and column."""

    mixer: Mixer
    c: Tensor
    shares: Mapping[str, float]
    parts: Mapping[str, Mapping[str, Tensor]]

    def edges(self, stretch: Stretch, rows: Tensor) -> dict[str, Tensor]:
        """What rows send to the tokens of lower streams: (batch, heads, rows, tokens)."""
        terms = self.mixer.terms(stretch, self.mixer.step, rows, self.c[:, :, rows])
        sent: dict[str, Tensor] = {}
        for lower, columns in self.parts.items():
            for name, part in columns.items():
                weights, vectors, _ = terms[name]
                edges = self.shares[name] * weights * (vectors @ spread(part, weights.shape[1]).mT)
                sent[lower] = sent[lower] + edges if lower in sent else edges
        return sent


def in_closed_form(
    way: Stretches, stretch: Stretch, mixers: Sequence[Mixer], pulled: Pulled
) -> Iterator[tuple[Rows, ...]]:
    """Rows of edges, as `edges.by_pullbacks` gives them, and by heads. Errors: `NotClosed`, also after the last."""
    if not pulled.flow.tensor.numel():
        raise NotClosed("there are no tokens")
    readers, by_columns = _readers(way, stretch, mixers, pulled)
    own = {lower: of_tokens(pulled.arrived[lower], way.value(lower)) for lower in pulled.lower}
    own = {lower: total - by_columns[lower] if by_columns else total for lower, total in own.items()}
    batch, tokens = way.value(pulled.upper).shape[:2]
    longest = max(one.shape[1] for one in own.values())
    count = max(1, ELEMENTS // (batch * longest * max([reader.c.shape[1] for reader in readers], default=1)))
    check = _Combination(way, pulled)
    for start in range(0, tokens, count):
        rows = torch.arange(start, min(start + count, tokens), device=way.value(pulled.upper).device)
        sent = [(reader.mixer.site, reader.edges(stretch, rows)) for reader in readers]
        found = []
        for lower, stays in own.items():
            heads = _of_heads([(site, one[lower]) for site, one in sent if lower in one])
            edges = stays.new_zeros(batch, len(rows), stays.shape[1]) if heads is None else heads.sum(1)
            if stays.shape[1] == tokens:
                edges[:, rows - start, rows] += stays[:, rows]
            check.add(lower, rows, edges)
            found.append(Rows(edges, heads))
        yield tuple(found)
    check.compare(stretch)


def _of_heads(sent: Sequence[tuple[str, Tensor]]) -> Tensor | None:
    """What was sent by keys and by values of one attention together, one attention after the other."""
    sites: dict[str, Tensor] = {}
    for site, edges in sent:
        sites[site] = sites[site] + edges if site in sites else edges
    return torch.cat(list(sites.values()), 1) if sites else None


class _Combination:
    """One random combination of all rows, which must be the pullback of that combination."""

    def __init__(self, way: Stretches, pulled: Pulled):
        self.way, self.pulled = way, pulled
        values = way.value(pulled.upper)
        generator = torch.Generator().manual_seed(0)
        factors = torch.rand(values.shape[1], generator=generator, dtype=torch.float64) + 0.5
        self.factors = factors.to(values.device)
        self.sums: dict[str, Tensor] = {}
        self.sizes: dict[str, Tensor] = {}

    def add(self, lower: str, rows: Tensor, edges: Tensor) -> None:
        weighted = self.factors[rows, None].to(edges.dtype) * edges
        self.sums[lower] = self.sums.get(lower, 0) + weighted.sum(1)
        self.sizes[lower] = self.sizes.get(lower, 0) + weighted.abs().sum(1)

    def compare(self, stretch: Stretch) -> None:
        """Errors: `NotClosed` where they differ by more than rounding of what is summed up."""
        upper, flow = self.pulled.upper, self.pulled.flow
        mixed = flow.tensor * self.factors[:, None].to(flow.tensor.dtype)
        arrived, _ = stretch.pull({upper: flow.moved(mixed)})
        for lower, sums in self.sums.items():
            value = self.way.value(lower)
            summands = relevance(self.pulled.arrived[lower], value).abs().sum(2)
            size = torch.maximum(self.sizes[lower], summands).max()
            difference = (of_tokens(arrived.get(lower), value) - sums).abs().max()
            if not difference <= TOLERANCES.get(value.dtype, TOLERANCE) * size:
                raise NotClosed("tokens mix in more than attention")


# -- keys and values --------------------------------------------------------------------------------------------------


def _readers(
    way: Stretches, stretch: Stretch, mixers: Sequence[Mixer], pulled: Pulled
) -> tuple[list[Reader], dict[str, Tensor]]:
    """The mixers that relevance comes to, and what comes to streams below by their columns. Errors: `NotClosed`."""
    batch, tokens = way.value(pulled.upper).shape[:2]
    reached = [mixer for mixer in mixers if pulled.inner[mixer.output] is not None]
    given: dict[str, Tensor] = {}
    for mixer in reached:
        for name in (mixer.output, *mixer.columns):
            flow = pulled.inner[name]
            if flow is not None and flow.is_relevance:
                raise NotClosed(f"a relevance and no coefficient arrives at '{mixer.step.equation.name}'")
            if flow is not None and name in mixer.columns:
                given[name] = flow.tensor
    if not given:
        return [], {}
    totals, parts = _parts(way, stretch, given, pulled.lower)
    readers = []
    for mixer in reached:
        c = by_heads(_tensor(pulled.inner[mixer.output]), batch)
        shares = _shares(stretch, mixer, _tensor(pulled.inner[mixer.output]), given, batch)
        of_streams: dict[str, dict[str, Tensor]] = {}
        for name in shares:
            depends_on = made_of(stretch.ruled, name)
            for lower in depends_on.intersection(pulled.lower):
                part = mixer.by_tokens(name, parts[lower][name], batch)
                if part.shape[2] != way.value(lower).shape[1] or c.shape[2] != tokens:
                    raise NotClosed(f"'{mixer.step.equation.name}' attends to something else than tokens")
                of_streams.setdefault(lower, {})[name] = part
        readers.append(Reader(mixer, c, shares, of_streams))
    return readers, totals


def _tensor(flow: Flow | None) -> Tensor:
    assert flow is not None
    return flow.tensor


def _parts(
    way: Stretches, stretch: Stretch, given: Mapping[str, Tensor], lower: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """What comes to streams below by coefficients at columns, and its derivative in each of these."""

    def through(*coefficients: Tensor) -> tuple[Tensor, ...]:
        entering = {name: Flow(coefficient=c) for name, c in zip(given, coefficients, strict=True)}
        arrived, _ = stretch.pull(entering)
        return tuple(of_tokens(arrived.get(name), way.value(name)) for name in lower)

    totals, back, *_ = torch.func.vjp(through, *given.values())
    parts = {}
    for name in lower:
        ones = tuple(torch.full_like(total, float(other == name)) for other, total in zip(lower, totals, strict=True))
        parts[name] = dict(zip(given, back(ones), strict=True))
    return dict(zip(lower, totals, strict=True)), parts


def _shares(
    stretch: Stretch, mixer: Mixer, output: Tensor, given: Mapping[str, Tensor], batch: int
) -> dict[str, float]:
    """By what a rule multiplies the vector-Jacobian product at each column, seen at some rows of random coefficients.

    Errors: `NotClosed` if it does something else.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.linspace(0, output.shape[-2] - 1, PROBES).round().long().unique().to(output.device)
    probe = torch.randn(*output.shape[:-2], len(rows), output.shape[-1], generator=generator, dtype=torch.float64)
    c = torch.zeros_like(output)
    c[..., rows, :] = probe.to(output)
    sent = stretch.moved(mixer.step, Flow(coefficient=c))
    terms = mixer.terms(stretch, mixer.step, rows, by_heads(c, batch)[:, :, rows])
    shares = {}
    for name in mixer.columns:
        if name not in given:
            continue
        moved = mixer.by_tokens(name, _tensor(sent[name]), batch)
        expected = gathered(terms[name].weights.mT @ terms[name].vectors, moved.shape[1])
        share = ((moved * expected).sum() / (expected * expected).sum().clamp(min=1e-300)).item()
        allowed = TOLERANCES.get(output.dtype, TOLERANCE) * moved.abs().max() + _rounding(terms[name], moved, output)
        if not ((moved - share * expected).abs() <= allowed).all():
            raise NotClosed(f"the rule of '{mixer.step.equation.name}' is no multiple of the vector-Jacobian product")
        shares[name] = share
    return shares


def _rounding(term: Term, moved: Tensor, output: Tensor) -> Tensor | float:
    """What errors what moved to each token may have where weights are differences that nearly cancel."""
    if term.sizes is None:
        return 0.0
    sizes = gathered(term.sizes.abs().mT @ term.vectors.abs(), moved.shape[1])
    return ROUNDINGS * torch.finfo(output.dtype).eps * sizes
