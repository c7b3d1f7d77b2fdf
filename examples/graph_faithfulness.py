"""Do graphs of tokens tell the truth? Every edge of small transformers, patched, beside what explanations say of it.

    python examples/graph_faithfulness.py              # some minutes of one core
    python examples/graph_faithfulness.py --quick      # a look at it in some seconds; the networks have learned little

Four tasks with a known mechanism, and a transformer of two layers for each: go on with a sequence that is repeated
(induction), name who is not named twice (indirect object), weigh what lies between brackets, add numbers with a carry.
A corrupted run has another answer. The explained number is the logit of the clean answer less that of the other one.
Path patching: a token of one layer sends its corrupted value to one token of the next layer and its own to all others;
how much is lost? That is the truth of an edge, one forward pass for each. Sources: Wang et al. 2022, arXiv:2211.00593
(indirect object, path patching); Abnar and Zuidema 2020, arXiv:2005.00928 (rollout).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import lrpfunc
from lrpfunc import circuits, composites, digits, rules

LAYERS, HEADS, WIDTH = 2, 4, 64
IGNORED = -100  # no answer is asked for here


# -- the tasks --------------------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """Clean and corrupted token ids (n, length), and the answers (n,) to both, behind the last token."""

    clean: Tensor
    corrupted: Tensor
    answer: Tensor
    other: Tensor


class Task(NamedTuple):
    """`lessons`: token ids (n, length) and what follows each, or IGNORED; `runs`: pairs that are explained."""

    vocabulary: int
    length: int
    steps: int
    lessons: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    runs: Callable[[int, torch.Generator], Runs]


def different(n: int, count: int, of: int, generator: torch.Generator) -> Tensor:
    """n times `count` different numbers below `of`."""
    return torch.rand(n, of, generator=generator).argsort(1)[:, :count]


def asked_at_the_end(runs: Callable[[int, torch.Generator], Runs]):
    """Lessons of clean runs."""

    def lessons(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids, _, answer, _ = runs(n, generator)
        return ids, F.pad(answer[:, None], (ids.shape[1] - 1, 0), value=IGNORED)

    return lessons


SYMBOLS, SAID, AGAIN = 16, 8, 3


def induction(n: int, generator: torch.Generator) -> Runs:
    """a b c d e f g h, c d e -> f; corrupted: another symbol stood where f stands."""
    said = different(n, SAID + 1, SYMBOLS, generator)
    begin = torch.randint(SAID - AGAIN, (n, 1), generator=generator)
    clean = torch.cat([said[:, :SAID], said.gather(1, begin + torch.arange(AGAIN))], 1)
    where, other = begin + AGAIN, said[:, SAID:]
    return Runs(clean, clean.scatter(1, where, other), clean.gather(1, where)[:, 0], other[:, 0])


def induction_lessons(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What follows is asked for wherever a symbol comes again."""
    ids, _, answer, _ = induction(n, generator)
    follow = torch.cat([ids[:, 1:], answer[:, None]], 1)
    return ids, follow.masked_fill(torch.arange(ids.shape[1]) < SAID, IGNORED)


NAMES, WORDS = 12, 8  # words: four places and four objects
BOTH, BY, STOP, GAVE, TO = range(NAMES + WORDS, NAMES + WORDS + 5)


def indirect_object(n: int, generator: torch.Generator) -> Runs:
    """Ann and Bob at school . Bob gave books to -> Ann; corrupted: Ann gave them, to Bob."""
    names = different(n, 2, NAMES, generator)
    (giver, taker), place, thing = different(n, 2, 2, generator).T, *torch.randint(4, (2, n), generator=generator)
    giver, taker = (names.gather(1, each[:, None])[:, 0] for each in (giver, taker))

    def sentence(gives: Tensor) -> Tensor:
        words = (names[:, 0], BOTH, names[:, 1], BY, NAMES + place, STOP, gives, GAVE, NAMES + 4 + thing, TO)
        return torch.stack([torch.as_tensor(word).expand(n) for word in words], 1)

    return Runs(sentence(giver), sentence(taker), taker, giver)


LENGTH = 14
OPEN, CLOSE, FILLER, QUERY, EVIDENCE, NEGATIVE, POSITIVE = 0, 1, 2, 3, 4, 10, 11
WEIGHTS = torch.tensor([-3, -2, -1, 1, 2, 3])


def brackets(n: int, generator: torch.Generator) -> Runs:
    """1 [ 3 . -1 ] -2 ? -> positive, the sign of what lies between; corrupted: the brackets are elsewhere."""
    drawn = 8 * n  # of which those are kept that have two answers
    weights = torch.randint(len(WEIGHTS), (drawn, LENGTH), generator=generator)
    is_evidence = torch.rand(drawn, LENGTH, generator=generator) < 0.6
    ids = torch.where(is_evidence, EVIDENCE + weights, FILLER)

    def bracketed() -> tuple[Tensor, Tensor]:
        places = different(drawn, 2, LENGTH, generator).sort(1).values
        position = torch.arange(LENGTH)
        inside = (position > places[:, :1]) & (position < places[:, 1:]) & is_evidence
        marked = ids.scatter(1, places, torch.tensor([OPEN, CLOSE]).expand(drawn, 2))
        return F.pad(marked, (0, 1), value=QUERY), (WEIGHTS[weights] * inside).sum(1)

    (clean, total), (corrupted, changed) = bracketed(), bracketed()
    kept = (total * changed < 0).nonzero()[:n, 0]
    answers = [torch.where(each[kept] > 0, POSITIVE, NEGATIVE) for each in (total, changed)]
    return Runs(clean[kept], corrupted[kept], *answers)


PLUS, EQUALS = 10, 11


def digits_of(a: Tensor, b: Tensor) -> Tensor:
    """a + b = and the digits of the sum, the ones first: (n, 9)."""
    total = a + b
    signs = [torch.full_like(a, each) for each in (PLUS, EQUALS)]
    return torch.stack(
        [a // 10, a % 10, signs[0], b // 10, b % 10, signs[1], total % 10, total // 10 % 10, total // 100], 1
    )


def addition(n: int, generator: torch.Generator) -> Runs:
    """4 7 + 2 5 = 2 -> 7, as there is a carry; corrupted: there is one where there was none, or none."""
    a, b = torch.randint(100, (2, 8 * n), generator=generator)
    ones = torch.randint(10, (8 * n,), generator=generator)
    changed = a - a % 10 + ones
    kept = ((a % 10 + b % 10 >= 10) != (ones + b % 10 >= 10)).nonzero()[:n, 0]
    clean, corrupted = digits_of(a[kept], b[kept]), digits_of(changed[kept], b[kept])
    return Runs(clean[:, :7], corrupted[:, :7], clean[:, 7], corrupted[:, 7])


def addition_lessons(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids = digits_of(*torch.randint(100, (2, n), generator=generator))
    return ids[:, :-1], ids[:, 1:].masked_fill(torch.arange(8) < 5, IGNORED)


TASKS = {
    "induction": Task(SYMBOLS, SAID + AGAIN, 500, induction_lessons, induction),
    "indirect object": Task(TO + 1, 10, 400, asked_at_the_end(indirect_object), indirect_object),
    "brackets": Task(POSITIVE + 1, LENGTH + 1, 1000, asked_at_the_end(brackets), brackets),
    "addition": Task(EQUALS + 1, 8, 1500, addition_lessons, addition),
}


# -- the transformer --------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Written out, so that its pattern is there to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return self.out((scores.masked_fill(hidden, -1e4).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Token ids (n, length) to the logits of the next token (n, length, vocabulary)."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Parameter(torch.randn(length, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)

    def embed(self, ids):
        return self.tokens(ids) + self.positions[: ids.shape[1]]

    def above(self, x, layer: int):
        """From what a layer is given, 0 for the first one, to the logits."""
        for block in self.blocks[layer:]:
            x = block(x)
        return self.head(self.norm(x))

    def forward(self, ids):
        return self.above(self.embed(ids), 0)


def train(task: Task, steps: int, seed: int) -> Transformer:
    """Every batch is of new sequences. The global random state is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(task.vocabulary, task.length)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.003, total_steps=steps)
    for _ in range(steps):
        ids, follow = task.lessons(128, generator)
        loss = F.cross_entropy(model(ids).flatten(0, 1), follow.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# -- the truth --------------------------------------------------------------------------------------------------------


def margin(logits: Tensor, runs: Runs) -> Tensor:
    """The logit of the clean answer less that of the other one, behind the last token: (n,)."""
    rows = torch.arange(len(runs.answer))
    return logits[rows, -1, runs.answer] - logits[rows, -1, runs.other]


@torch.no_grad()
def streams(model: Transformer, ids: Tensor) -> list[Tensor]:
    """What each layer is given, (n, length, WIDTH)."""
    found = [model.embed(ids)]
    for block in model.blocks[:-1]:
        found.append(block(found[-1]))
    return found


@torch.no_grad()
def truth(model: Transformer, runs: Runs, others: Sequence[Tensor]) -> dict[str, Tensor]:
    """What is lost of the margin: along edges, (n, layers, upper token, lower token), if a token sends one other what
    it has in `others`; of nodes, (n, layers, tokens), if a layer is given that of one token."""
    found = streams(model, runs.clean)
    tokens = range(found[0].shape[1])
    before = margin(model(runs.clean), runs)
    edges = before.new_zeros(len(before), LAYERS, len(tokens), len(tokens))
    nodes = before.new_zeros(len(before), LAYERS, len(tokens))
    for layer, (x, other) in enumerate(zip(found, others, strict=True)):
        above = model.blocks[layer](x)
        for lower in tokens:
            changed = x.index_copy(1, torch.tensor([lower]), other[:, lower : lower + 1])
            nodes[:, layer, lower] = before - margin(model.above(changed, layer), runs)
            sent = model.blocks[layer](changed)
            for upper in tokens[lower:]:
                received = above.index_copy(1, torch.tensor([upper]), sent[:, upper : upper + 1])
                edges[:, layer, upper, lower] = before - margin(model.above(received, layer + 1), runs)
    return {"edges": edges, "nodes": nodes}


# -- what explanations say --------------------------------------------------------------------------------------------

GRADIENT = composites.by_kind({"*": rules.gradient()})
COMPOSITES = {"attn_lrp": composites.attn_lrp(), "cp_lrp": composites.cp_lrp(), "gradient": GRADIENT}
AT = ["add", *(f"blocks.{i}" for i in range(LAYERS))]  # the streams from the embedding upwards
Estimate = Mapping[str, Tensor]


def cotangent(runs: Runs) -> Callable[[Tensor], Tensor]:
    """The derivative of the margin, as a function of the logits."""

    def derivative(logits: Tensor) -> Tensor:
        ends = F.one_hot(runs.answer, logits.shape[-1]) - F.one_hot(runs.other, logits.shape[-1])
        return F.pad(ends.to(logits.dtype)[:, None], (0, 0, logits.shape[1] - 1, 0))

    return derivative


def of_graph(fmodel, params, runs: Runs, composite) -> Estimate:
    """`circuits.graph` of the clean run, which knows nothing of the other one."""
    derivative = cotangent(runs)
    graph = circuits.graph(fmodel, params, runs.clean, lambda y: y * derivative(y), composite, layers=AT)
    pairs = [graph.pair(upper, lower).edges for lower, upper in itertools.pairwise(AT)]
    return {"edges": torch.stack(pairs, 1), "nodes": torch.stack([graph.nodes[name] for name in AT[:-1]], 1)}


def of_differences(fmodel, params, runs: Runs, composite, others: Sequence[Tensor]) -> Estimate:
    """(clean - other) * c, as `circuits.patching` has it of nodes, of what goes along an edge."""
    trail = lrpfunc.record(fmodel, params, runs.clean, composite, at=AT)
    start = lrpfunc.Flow(coefficient=cotangent(runs)(trail.output))
    _, arrived = trail.pull(start, form="coefficient", inputs=False)
    edges, nodes = [], []
    for (lower, upper), other in zip(itertools.pairwise(AT), others, strict=True):
        difference, c = trail.values[lower] - other, arrived[upper]
        alone = torch.eye(c.shape[1])[:, None, :, None] * c  # of each token
        seeds = [{upper: lrpfunc.Flow(coefficient=each)} for each in alone]
        _, inner = trail.pull_each(seeds, form="coefficient", inputs=False)
        edges.append((inner[lower] * difference).sum(-1).transpose(0, 1))
        nodes.append((arrived[lower] * difference).sum(-1))
    return {"edges": torch.stack(edges, 1), "nodes": torch.stack(nodes, 1)}


def of_attention(fmodel, params, runs: Runs) -> dict[str, Estimate]:
    """Patterns alone: averaged over heads, rolled out from the last token, and times their gradients."""
    trail = lrpfunc.record(fmodel, params, runs.clean, GRADIENT, at="blocks.*.attention:pattern")
    start = lrpfunc.Flow(coefficient=cotangent(runs)(trail.output))
    _, gradients = trail.pull(start, form="coefficient", inputs=False)
    patterns = [trail.values[name] for name in trail.values]
    raw = torch.stack([pattern.mean(1) for pattern in patterns], 1)
    times = torch.stack([(trail.values[name] * gradients[name]).sum(1) for name in trail.values], 1)
    mixed = (raw + torch.eye(raw.shape[-1])) / 2
    arrived, edges = F.one_hot(torch.tensor(raw.shape[-1] - 1), raw.shape[-1]).expand(len(raw), -1).to(raw), []
    for layer in reversed(range(LAYERS)):
        edges.insert(0, arrived[..., None] * mixed[:, layer])
        arrived = edges[0].sum(1)
    rolled = torch.stack(edges, 1)
    found = {"rollout": rolled, "attention x gradient": times, "raw attention": raw}
    return {name: {"edges": each, "nodes": each.sum(2)} for name, each in found.items()}


def estimates(fmodel, params, runs: Runs, others: Sequence[Tensor], generator: torch.Generator) -> dict[str, Estimate]:
    """What each method says of edges and nodes."""
    found: dict[str, Estimate] = {}
    for name, composite in COMPOSITES.items():
        found[f"patching, {name}"] = of_differences(fmodel, params, runs, composite, others)
    for name in ("attn_lrp", "cp_lrp"):
        found[f"graph, {name}"] = of_graph(fmodel, params, runs, COMPOSITES[name])
    found |= of_attention(fmodel, params, runs)
    noise = {what: torch.rand(each.shape, generator=generator) for what, each in found["rollout"].items()}
    return found | {"random": noise}


# -- measurements -----------------------------------------------------------------------------------------------------

COUNTS = 0.05  # edges and nodes count whose effect is as much of the largest one of their run


def candidates(differs: Tensor) -> dict[str, Tensor]:
    """Which edges and nodes may have an effect, where tokens of layers send something else than before: (n, layers,
    tokens). Edges are those between different tokens; of those to the last layer the answer is read from one alone."""
    tokens = differs.shape[-1]
    read = torch.ones(LAYERS, tokens, tokens, dtype=torch.bool).tril(-1)
    read[-1, :-1] = False
    return {"edges": differs[:, :, None] & read, "nodes": differs}


def compared(found: Estimate, true: Estimate, chosen: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Rank correlation of magnitudes and area, means over runs, of edges and of nodes."""
    scores = {}
    for what, masks in chosen.items():
        each = [(e[m].abs(), t[m].abs()) for e, t, m in zip(found[what], true[what], masks, strict=True)]
        rho = torch.tensor([spearman(e, t) for e, t in each])
        areas = torch.tensor([area(e, t > COUNTS * t.max()) for e, t in each])
        scores[what] = (rho.nanmean().item(), areas.nanmean().item())
    return scores


def ranks(values: Tensor) -> Tensor:
    """From the smallest, 1; what is equal has the mean."""
    one, other = values[:, None], values[None]
    return ((one > other).sum(1) + (one == other).sum(1) / 2 + 0.5).double()


def spearman(one: Tensor, other: Tensor) -> float:
    """The correlation of ranks."""
    return torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1].item()


def area(found: Tensor, counts: Tensor) -> float:
    """Under the ROC curve: how often what counts is found above what does not. 0.5 by chance; nan if all counts."""
    n = counts.sum()
    above = ranks(found)[counts].sum() - n * (n + 1) / 2
    return (above / (n * (len(counts) - n))).item()


def measure(task: Task, steps: int, samples: int, seed: int) -> tuple[float, dict[str, dict[str, dict]]]:
    """The accuracy of a new network in clean and corrupted runs, and scores by replacement, method and what."""
    model, generator = train(task, steps, seed), torch.Generator().manual_seed(10**6 + seed)
    runs = task.runs(samples, generator)
    fmodel, params = lrpfunc.functionalize(model, runs.clean)
    params = {name: tensor.detach() for name, tensor in params.items()}
    answers = [fmodel(params, ids)[:, -1].argmax(1) for ids in runs[:2]]
    right = torch.stack([answers[0] == runs.answer, answers[1] == runs.other]).double().mean().item()
    means = [x.mean(0, keepdim=True).expand_as(x) for x in streams(model, runs.clean)]
    scores = {}
    for kind, others in {"corrupted": streams(model, runs.corrupted), "mean": means}.items():
        pairs = zip(streams(model, runs.clean), others, strict=True)
        differs = [(x - other).abs().amax(-1) > 1e-4 for x, other in pairs]
        chosen, true = candidates(torch.stack(differs, 1)), truth(model, runs, others)
        found = estimates(fmodel, params, runs, others, generator)
        scores[kind] = {method: compared(each, true, chosen) for method, each in found.items()}
    return right, scores


# -- the tables -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """How a method agrees with the truth in several networks: rank correlation and area, means and standard errors."""

    task: str
    replacement: str
    what: str
    method: str
    correlation: float
    error: float
    area: float
    error_of_area: float


def summarize(measured: Mapping[str, Sequence[dict[str, dict[str, dict]]]]) -> list[Row]:
    rows = []
    for task, networks in measured.items():
        for kind, methods in networks[0].items():
            for method, scores in methods.items():
                for what in scores:
                    each = torch.tensor([network[kind][method][what] for network in networks], dtype=torch.float64)
                    errors = each.std(0, correction=min(1, len(each) - 1)) / len(each) ** 0.5
                    (rho, under), (error, other) = each.mean(0).tolist(), errors.tolist()
                    rows.append(Row(task, kind, what, method, rho, error, under, other))
    return rows


def table(rows: Sequence[Row], what: str, kind: str) -> Table:
    title = f"{what}, replaced by {'the corrupted run' if kind == 'corrupted' else 'the mean over runs'}"
    shown, chosen = Table("method", title=title, title_justify="left"), {}
    for row in rows:
        if (row.what, row.replacement) == (what, kind):
            text = f"{row.correlation:.2f} ± {row.error:.2f} / {row.area:.2f} ± {row.error_of_area:.2f}"
            chosen.setdefault(row.method, {})[row.task] = text
    for task in next(iter(chosen.values())):
        shown.add_column(task, justify="right")
    for method, cells in chosen.items():
        shown.add_row(method, *cells.values())
    return shown


LEGEND = f"""\
Spearman's rank correlation / area under the ROC curve (0.5: chance) for what counts: edges and nodes with more than
{COUNTS:.0%} of the largest true effect of their run. Magnitudes are compared; means over runs, ± standard errors over
networks. edges: between different tokens of neighbouring layers; nodes: tokens that layers are given. Left out is what
cannot have an effect."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=TASKS, help="one of them, instead of all")
    parser.add_argument("--samples", type=int, default=100, help="pairs of runs for each task and network")
    parser.add_argument("--networks", type=int, default=3, help="to train for each task, from as many seeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a network a task, trained for less, and 5 pairs of runs")
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.networks = 5, 1

    console, start, measured = Console(highlight=False, width=140), time.perf_counter(), {}
    with digits.single_thread():
        for name in options.task or TASKS:
            task = TASKS[name]
            steps = 30 if options.quick else task.steps
            seeds = range(options.seed, options.seed + options.networks)
            right, measured[name] = zip(*(measure(task, steps, options.samples, seed) for seed in seeds), strict=True)
            console.print(f"{name}: right in {', '.join(f'{each:.1%}' for each in right)} of all runs")
    rows = summarize(measured)
    for what in ("edges", "nodes"):
        for kind in ("corrupted", "mean"):
            console.print(table(rows, what, kind))
    console.print(LEGEND, style="dim", soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s")
    return rows


if __name__ == "__main__":
    main()
