"""How well does relevance foretell activation patching? Every node of a small transformer, patched and estimated.

    python examples/relevance_patching.py              # a minute or two of one core
    python examples/relevance_patching.py --quick      # a look at it in some seconds; the network has learned little

The task is a dictionary: pairs of key and value, then a key, "a 3 b 1 c 2 ... b", and the value is the answer, "1". The
transformer has two layers of four heads and learns it by an induction circuit. A corrupted run has another answer: the
last key is another one of the pairs (query), or the values of two pairs are exchanged (values). The explained number is
the logit of the clean answer less that of the corrupted one. Activation patching puts a node's clean value into the
corrupted run and looks; that is the truth, one forward pass a node. The estimates need two forward passes and one
pullback for all nodes. Sources: Nanda 2023 (attribution patching); Hanna et al. 2024, arXiv:2403.17806 (integrated
gradients over inputs); Jafari et al. 2025, arXiv:2508.21258 (relevance patching).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import lrpfunc
from lrpfunc import circuits, composites, digits, heatmaps, rules

PAIRS, KEYS, VALUES = 4, 16, 16
VOCABULARY = KEYS + VALUES  # values come behind the keys
LENGTH = 2 * PAIRS + 1
LAYERS, HEADS, WIDTH = 2, 4, 32


# -- the task ---------------------------------------------------------------------------------------------------------


def dictionaries(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n times PAIRS different keys, and a value for each; values of one dictionary differ, too."""
    keys = torch.rand(n, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = KEYS + torch.rand(n, VALUES, generator=generator).argsort(1)[:, :PAIRS]
    return keys, values


def in_turn(keys: Tensor, values: Tensor) -> Tensor:
    """key value key value ..., (n, 2 * PAIRS)."""
    return torch.stack([keys, values], -1).flatten(1)


def make_lessons(n: int, generator: torch.Generator) -> Tensor:
    """Dictionaries, and then as many pairs drawn from them (n, 4 * PAIRS), where each key foretells its value."""
    keys, values = dictionaries(n, generator)
    order = torch.randint(PAIRS, (n, PAIRS), generator=generator)
    return torch.cat([in_turn(keys, values), in_turn(keys.gather(1, order), values.gather(1, order))], 1)


class Runs(NamedTuple):
    """Clean and corrupted token ids (n, LENGTH) and the answers (n,) to both."""

    clean: Tensor
    corrupted: Tensor
    answer: Tensor
    other: Tensor


def make_runs(kind: str, n: int, generator: torch.Generator) -> Runs:
    """Runs that differ in their "query", the last key, or in the "values" of two pairs."""
    keys, values = dictionaries(n, generator)
    asked, foil = torch.rand(n, PAIRS, generator=generator).argsort(1)[:, :2, None].unbind(1)
    answer, other = values.gather(1, asked), values.gather(1, foil)
    clean = torch.cat([in_turn(keys, values), keys.gather(1, asked)], 1)
    if kind == "query":
        corrupted = torch.cat([clean[:, :-1], keys.gather(1, foil)], 1)
    else:
        exchanged = values.scatter(1, asked, other).scatter(1, foil, answer)
        corrupted = torch.cat([in_turn(keys, exchanged), clean[:, -1:]], 1)
    return Runs(clean, corrupted, answer[:, 0], other[:, 0])


# -- the transformer --------------------------------------------------------------------------------------------------


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(4 * PAIRS, WIDTH))

    def forward(self, ids):
        return self.tokens(ids) + self.positions[: ids.shape[1]]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Token ids (batch, length) to the logits of the next token (batch, length, VOCABULARY)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train(steps: int, seed: int) -> Transformer:
    """Every batch is of new dictionaries. The global random state is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.004, total_steps=steps)
    for _ in range(steps):
        ids = make_lessons(64, generator)
        asked = slice(2 * PAIRS, None, 2)
        logits = model(ids[:, :-1])[:, asked]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:][:, asked].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# -- nodes ------------------------------------------------------------------------------------------------------------


class Nodes(NamedTuple):
    """Layers, and along which dimension of theirs the nodes lie; None: each layer is one node."""

    at: Sequence[str]
    dim: int | None

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all that makes a node: (n, nodes)."""
        if self.dim is None:
            return tensor.flatten(1).sum(1, keepdim=True)
        return tensor.movedim(self.dim, 1).flatten(2).sum(2)

    def masks(self, value: Tensor) -> Tensor:
        """Which part of a layer's value each node is, (nodes, 1, ...)."""
        if self.dim is None:
            return torch.ones(1, *[1] * value.dim(), dtype=torch.bool)
        count = value.shape[self.dim]
        shape = [count, *[1] * value.dim()]
        shape[self.dim + 1] = count
        return torch.eye(count, dtype=torch.bool).reshape(shape)


BLOCKS = [f"blocks.{i}" for i in range(LAYERS)]
NODES = {
    "heads": Nodes([f"{block}.attention:heads" for block in BLOCKS], 1),
    "MLPs": Nodes([f"{block}.mlp" for block in BLOCKS], None),
    "residuals": Nodes(["embedding", *(f"{block}:residual" for block in BLOCKS)], 1),  # at each position
    "neurons": Nodes([f"{block}.mlp:neurons" for block in BLOCKS], 2),
}
AT = [name for nodes in NODES.values() for name in nodes.at]


def at_nodes(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What (clean - corrupted) * coefficient at layers says of each node: (n, nodes), by kind."""
    return {kind: torch.cat([nodes.sum(found[name]) for name in nodes.at], 1) for kind, nodes in NODES.items()}


# -- the truth and the estimates --------------------------------------------------------------------------------------

EVERY_GRADIENT = composites.by_kind({"*": rules.gradient()})
METHODS = {
    "gradient": EVERY_GRADIENT,
    "attn_lrp": composites.attn_lrp(),
    "cp_lrp": composites.cp_lrp(),
    "epsilon": composites.epsilon(),
    # What attn_lrp's normalizations do alone.
    "gradient, constant norms": composites.by_kind({"normalization": rules.normalization(), "*": rules.gradient()}),
}
INTEGRATED = "integrated gradients"


def margin(runs: Runs) -> Callable[[Tensor], Tensor]:
    """What is explained, as a function output -> cotangent: the clean answer's logit less the other's, at the end."""

    def cotangent(output: Tensor) -> Tensor:
        ends = F.one_hot(runs.answer, VOCABULARY) - F.one_hot(runs.other, VOCABULARY)
        return F.pad(ends.to(output.dtype)[:, None], (0, 0, output.shape[1] - 1, 0))

    return cotangent


@torch.no_grad()
def truth(fmodel, params, runs: Runs) -> dict[str, Tensor]:
    """Activation patching: what each node's clean value, put into the corrupted run, adds to the margin."""
    clean, bad = (lrpfunc.record(fmodel, params, ids, EVERY_GRADIENT, at=AT) for ids in runs[:2])
    values, others, output = clean.values, bad.values, bad.output
    chosen = margin(runs)(output)
    before = (output * chosen).sum((1, 2))

    def effects(name: str, nodes: Nodes) -> Tensor:
        def one(mask: Tensor) -> Tensor:
            value = torch.where(mask, values[name], others[name])
            output = circuits.patched(fmodel, params, runs.corrupted, {name: value})
            return (output * chosen).sum((1, 2)) - before

        return torch.stack([one(mask) for mask in nodes.masks(others[name])], 1)

    return {kind: torch.cat([effects(name, nodes) for name in nodes.at], 1) for kind, nodes in NODES.items()}


def estimates(fmodel, params, runs: Runs, steps: int = 10) -> dict[str, dict[str, Tensor]]:
    """What each method says of all nodes, by method and kind."""
    margins = margin(runs)

    def explained(output: Tensor) -> Tensor:
        return output * margins(output)

    found = {
        method: circuits.patching(fmodel, params, runs.clean, runs.corrupted, explained, composite, at=AT)
        for method, composite in METHODS.items()
    }
    found[INTEGRATED] = integrated(fmodel, params, runs, steps)
    order = ("gradient", INTEGRATED, *list(METHODS)[1:])
    return {method: {k: v.detach() for k, v in at_nodes(found[method]).items()} for method in order}


def integrated(fmodel, params, runs: Runs, steps: int) -> dict[str, Tensor]:
    """(clean - corrupted) * the mean gradient of each layer, over runs whose embeddings lie between both runs'.

    What is above the embeddings is a program of its own, which takes embeddings between both as its input.
    """
    lower, upper = fmodel.cut("embedding")
    clean, bad = lower(params, runs.clean), lower(params, runs.corrupted)
    above = [name for name in AT if name != "embedding"]

    def at(share: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trail = lrpfunc.record(upper, params, bad + share * (clean - bad), EVERY_GRADIENT, at=above)
        start = lrpfunc.Flow(coefficient=margin(runs)(trail.output))
        below, inner = trail.pull(start, form="coefficient")
        return trail.values, inner | {"embedding": below}

    first, last = at(0.0)[0] | {"embedding": bad}, at(1.0)[0] | {"embedding": clean}
    gradients = [at((step + 0.5) / steps)[1] for step in range(steps)]
    return {name: (last[name] - first[name]) * sum(g[name] for g in gradients) / steps for name in AT}


# -- measurements -----------------------------------------------------------------------------------------------------

COUNTS = 0.05  # the sign is asked of nodes whose effect is as much of the whole margin's change


class Row(NamedTuple):
    """How a method agrees with activation patching, over all pairs of runs and nodes of a kind.

    correlation: Pearson's. sign: the share of nodes that count whose sign is right. error: of the estimate, its norm
    over that of the truth; an estimate of zero everywhere has 1.
    """

    corruption: str
    kind: str
    method: str
    correlation: float
    sign: float
    error: float


def compare(estimate: Tensor, true: Tensor, least: float) -> tuple[float, float, float]:
    """Correlation, agreement of signs where |true| > least, and relative error."""
    both = torch.stack([estimate.flatten(), true.flatten()]).double()
    correlation = torch.corrcoef(both)[0, 1].item()
    counts = both[1].abs() > least
    sign = (both[0].sign() == both[1].sign())[counts].double().mean().item()
    return correlation, sign, ((both[0] - both[1]).norm() / both[1].norm()).item()


class Measured(NamedTuple):
    """The effects (n, nodes) of a corruption: true ones by kind, estimates by method and kind.

    margins: of clean and of corrupted runs, (2, n). accuracy: of the answers to both.
    """

    true: dict[str, Tensor]
    found: dict[str, dict[str, Tensor]]
    margins: Tensor
    accuracy: float


def measure(model: nn.Module, corruption: str, samples: int, seed: int) -> Measured:
    runs = make_runs(corruption, samples, torch.Generator().manual_seed(10**6 + seed))
    fmodel, params = lrpfunc.functionalize(model, runs.clean)
    params = {name: tensor.detach() for name, tensor in params.items()}
    outputs = [fmodel(params, ids) for ids in runs[:2]]
    margins = torch.stack([(output * margin(runs)(output)).sum((1, 2)) for output in outputs])
    answers = [output[:, -1].argmax(1) for output in outputs]
    right = torch.stack([answers[0] == runs.answer, answers[1] == runs.other]).double().mean().item()
    return Measured(truth(fmodel, params, runs), estimates(fmodel, params, runs), margins, right)


def pooled(networks: Sequence[Measured]) -> Measured:
    """The effects in several networks as those of one."""
    true = {kind: torch.cat([each.true[kind] for each in networks]) for kind in NODES}
    found = {
        method: {kind: torch.cat([each.found[method][kind] for each in networks]) for kind in NODES}
        for method in networks[0].found
    }
    accuracy = sum(each.accuracy for each in networks) / len(networks)
    return Measured(true, found, torch.cat([each.margins for each in networks], 1), accuracy)


def summarize(measured: Mapping[str, Measured]) -> list[Row]:
    rows = []
    for corruption, each in measured.items():
        clean, bad = each.margins.mean(1).tolist()
        for kind in NODES:
            for method, estimate in each.found.items():
                compared = compare(estimate[kind], each.true[kind], COUNTS * abs(clean - bad))
                rows.append(Row(corruption, kind, method, *compared))
    return rows


# -- the table and the picture ----------------------------------------------------------------------------------------


def table(rows: Sequence[Row], corruption: str) -> Table:
    shown = Table("method", title=f"Corrupted: {corruption}", title_justify="left")
    for kind in NODES:
        shown.add_column(kind, justify="right")
    for method in dict.fromkeys(row.method for row in rows):
        chosen = {row.kind: row for row in rows if (row.method, row.corruption) == (method, corruption)}
        cells = (chosen[kind] for kind in NODES)
        shown.add_row(method, *(f"{row.correlation:.2f} / {row.sign:.0%} / {row.error:.2f}" for row in cells))
    return shown


def picture(measured: Mapping[str, Measured]):
    """Estimates over the truth: a row for each corruption, a column for each method."""
    from matplotlib.figure import Figure

    methods = [name for name in next(iter(measured.values())).found if name != "epsilon"]  # which looks like cp_lrp
    figure = Figure(figsize=(2.3 * len(methods), 2.5 * len(measured)), layout="constrained")
    grid = figure.subplots(len(measured), len(methods), sharex=True, sharey=True, squeeze=False)
    effects = torch.cat([part.flatten() for each in measured.values() for part in each.true.values()])
    low, high = (1.1 * end(effects).item() for end in (torch.min, torch.max))
    for axes, (corruption, each) in zip(grid, measured.items(), strict=True):
        for axis, method in zip(axes, methods, strict=True):
            axis.plot([low, high], [low, high], color="0.8", linewidth=0.8, zorder=0)
            for kind in ("residuals", "heads", "MLPs", "neurons"):
                x, y = (part[kind].flatten() for part in (each.true, each.found[method]))
                shown = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:1500]
                axis.scatter(x[shown], y[shown], s=3, alpha=0.5, linewidths=0, label=kind)
            axis.set(xlim=(low, high), ylim=(low, high))
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(f"estimate ({corruption})")
    for method, top, bottom in zip(methods, grid[0], grid[-1], strict=True):
        top.set_title(method, fontsize=10)
        bottom.set_xlabel("true effect in logits")
    grid[0][0].legend(frameon=False, fontsize=7, markerscale=3, loc="upper left")
    return figure


LEGEND = f"""\
Pearson's correlation / share of right signs, where the true effect is more than {COUNTS:.0%} of the whole change /
relative error (zero everywhere would have 1), over all pairs of runs and nodes. heads, MLPs and their neurons: each at
all positions; residuals: behind the embedding and each block, at each position."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, measure, print, write the picture, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="pairs of runs for each corruption and network")
    parser.add_argument("--networks", type=int, default=3, help="to train, from as many seeds")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a network trained for less, and 10 pairs of runs")
    parser.add_argument("--out", type=Path, default=Path("relevance_patching.png"), help="the picture")
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.steps, options.networks = 10, 60, 1
    heatmaps.check_path(options.out)  # before all the work

    console, start = Console(highlight=False, width=120), time.perf_counter()
    seeds = range(options.seed, options.seed + options.networks)
    with digits.single_thread():
        models = [train(options.steps, seed) for seed in seeds]
        trained = time.perf_counter() - start
        measured = {
            kind: pooled(
                [measure(model, kind, options.samples, seed) for model, seed in zip(models, seeds, strict=True)]
            )
            for kind in ("query", "values")
        }
    rows = summarize(measured)
    for corruption, each in measured.items():
        console.print(table(rows, corruption))
        clean, bad = each.margins.mean(1).tolist()
        console.print(f"margin {clean:.1f} in clean runs, {bad:.1f} in corrupted ones; right: {each.accuracy:.1%}")
    console.print(LEGEND, style="dim", soft_wrap=True)
    heatmaps.save(picture(measured), options.out)
    console.print(f"trained in {trained:.0f} s, measured in {time.perf_counter() - start - trained:.0f} s")
    console.print(f"wrote {options.out}", soft_wrap=True)
    return rows


if __name__ == "__main__":
    main()
