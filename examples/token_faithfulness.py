"""Which explanation of a transformer finds the tokens that count? Tokens removed by relevance; the truth is known.

    python examples/token_faithfulness.py              # two minutes of one core at most
    python examples/token_faithfulness.py --quick      # a look at it in some seconds

The sequences: evidence of weight -3 to 3 among fillers, and one pair of brackets. The label is the sign of the sum of
all evidence between the brackets; what is outside looks alike and counts nothing. In training tokens go missing, so the
model knows what a removed token means. The explained output is the log odds of the predicted label. Tokens are removed
in the order of their relevance, most relevant first (MoRF) and least relevant first (LeRF); the area between the two
curves is large for an order that knows what the model uses. Source: Samek et al. 2017, arXiv:1509.06321; Achtibat et
al. 2024, arXiv:2402.05602, for the area between them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import lrpfunc
from lrpfunc import composites, digits, heatmaps, rules

LENGTH = 24
MISSING, OPEN, CLOSE = 0, 1, 2
FIRST_FILLER, FIRST_EVIDENCE, VOCABULARY = 3, 11, 23
WEIGHTS = torch.tensor([-3, -2, -1, 1, 2, 3]).repeat(2)  # of each evidence: two synonyms for each weight


# -- data -------------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Sequences (n, LENGTH), their labels 0 or 1 (n,), and which tokens determine these (n, LENGTH)."""

    ids: Tensor
    labels: Tensor
    truth: Tensor


def make_data(n: int, generator: torch.Generator) -> Data:
    """About three quarters of n sequences: those with 2 to 8 pieces of evidence that count, and no tie."""
    fillers = torch.randint(FIRST_FILLER, FIRST_EVIDENCE, (n, LENGTH), generator=generator)
    evidence = torch.randint(len(WEIGHTS), (n, LENGTH), generator=generator)
    is_evidence = torch.rand(n, LENGTH, generator=generator) < 0.5
    brackets = torch.rand(n, LENGTH, generator=generator).argsort(1)[:, :2].sort(1).values
    ids = torch.where(is_evidence, FIRST_EVIDENCE + evidence, fillers)
    ids.scatter_(1, brackets, torch.tensor([OPEN, CLOSE]).expand(n, 2))
    position = torch.arange(LENGTH)
    counts = (position > brackets[:, :1]) & (position < brackets[:, 1:]) & is_evidence
    total = (WEIGHTS[evidence] * counts).sum(1)
    kept = (total != 0) & (counts.sum(1) >= 2) & (counts.sum(1) <= 8)
    return Data(ids[kept], (total > 0).float()[kept], counts.scatter(1, brackets, True)[kept])


def with_missing(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the sequences as they are, the others without a part of their tokens, from none to all."""
    rate = torch.rand(len(ids), 1, generator=generator) * (torch.rand(len(ids), 1, generator=generator) < 0.5)
    return ids.masked_fill(torch.rand(ids.shape, generator=generator) < rate, MISSING)


# -- the transformer --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Token ids (batch, LENGTH) to the log odds of label 1 (batch, 1)."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 2):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def train(steps: int, seed: int) -> Transformer:
    """Every batch is of new sequences. The global random state is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.004, total_steps=steps)
        for _ in range(steps):
            ids, labels, _ = make_data(96, generator)
            loss = F.binary_cross_entropy_with_logits(model(with_missing(ids, generator))[:, 0], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# -- explanations -----------------------------------------------------------------------------------------------------

PLAIN = composites.by_kind({"embedding": rules.embedding(), "*": rules.gradient()})


def explanations(model: nn.Module, ids: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The relevance of each token (n, LENGTH) for the log odds of the predicted label, by method.

    For label 0 the log odds are minus the output, so the seed is the magnitude, and the sign for gradients.
    """
    fmodel, params = lrpfunc.functionalize(model, ids)
    embedded = params["tokens.weight"][ids]

    def lrp(composite) -> Tensor:
        return lrpfunc.attribute(fmodel, params, ids, composite, target=torch.abs)

    _, inner = lrpfunc.attribute(fmodel, params, ids, PLAIN, target=torch.sign, at="tokens")
    gradient = inner["tokens"]
    return {
        "attn_lrp": lrp(composites.attn_lrp()),
        "cp_lrp": lrp(composites.cp_lrp()),
        "input*gradient": (embedded * gradient).sum(-1),
        "gradient norm": gradient.norm(dim=-1),
        "random": torch.rand(ids.shape, generator=generator),
    }


# -- measurements -----------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Of each sequence: log odds (n, LENGTH + 1) as tokens go, most and least relevant first, the area between (n,),
    and the shares of evidence (n,) and brackets (n,) that are found, and of truth (n,) among as many tokens.
    """

    morf: Tensor
    lerf: Tensor
    area: Tensor
    precision: Tensor
    evidence: Tensor
    brackets: Tensor


def measure(predict: Callable[[Tensor], Tensor], data: Data, relevance: Tensor) -> Measured:
    sign = torch.where(predict(data.ids) > 0, 1.0, -1.0)
    order = relevance.argsort(1, descending=True)
    morf, lerf = (removal_curve(predict, data.ids, each) * sign for each in (order, order.flip(1)))
    area = torch.trapezoid(lerf - morf, dx=1 / LENGTH, dim=1)
    # What speaks against a label counts as well: found is what has a large magnitude.
    rank = relevance.abs().argsort(1, descending=True).argsort(1)
    found = rank < data.truth.sum(1, keepdim=True)
    is_bracket = data.ids.unsqueeze(-1).eq(torch.tensor([OPEN, CLOSE])).any(-1)
    shares = (_share(found, truth) for truth in (data.truth, data.truth & ~is_bracket, is_bracket))
    return Measured(morf, lerf, area, *shares)


def removal_curve(predict: Callable[[Tensor], Tensor], ids: Tensor, order: Tensor) -> Tensor:
    """The output (n, LENGTH + 1) with the first k tokens of the order missing, k = 0 to LENGTH."""
    step = order.argsort(1)  # at which each token goes
    gone = step[:, None] < torch.arange(ids.shape[1] + 1)[:, None]
    outputs = predict(ids[:, None].expand(gone.shape).masked_fill(gone, MISSING).flatten(0, 1))
    return outputs.reshape(gone.shape[:2])


def _share(found: Tensor, of: Tensor) -> Tensor:
    return (found & of).sum(1) / of.sum(1)


def experiment(samples: int, steps: int, seed: int) -> tuple[float, dict[str, Measured]]:
    """A new network: its accuracy on new sequences, and what is measured of each method on some of these."""
    generator = torch.Generator().manual_seed(10**6 + seed)
    model = train(steps, seed)

    @torch.no_grad()
    def predict(ids):
        return model(ids)[:, 0:1]

    test = make_data(2000, generator)
    accuracy = ((predict(test.ids)[:, 0] > 0) == (test.labels > 0)).float().mean().item()
    data = Data(*(part[:samples] for part in test))
    found = explanations(model, data.ids, generator)
    return accuracy, {name: measure(predict, data, relevance) for name, relevance in found.items()}


# -- the table and the picture ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One method: means over all sequences, the standard error of the area, and its least and most over networks."""

    method: str
    area: float
    error: float
    least: float
    most: float
    precision: float
    evidence: float
    brackets: float


def summarize(networks: Sequence[dict[str, Measured]]) -> list[Row]:
    """A row for each method, the largest area first."""
    rows = []
    for method in networks[0]:
        measured = [network[method] for network in networks]
        area = torch.cat([each.area for each in measured])
        means = [each.area.mean().item() for each in measured]
        error = area.std().item() / len(area) ** 0.5
        shares = [torch.cat([getattr(each, name) for each in measured]).mean().item() for name in Row._fields[-3:]]
        rows.append(Row(method, area.mean().item(), error, min(means), max(means), *shares))
    return sorted(rows, key=lambda row: -row.area)


def table(rows: Sequence[Row]) -> Table:
    shown = Table("method", title="Tokens removed by relevance", title_justify="left")
    for heading in ("area", "networks", "truth", "evidence", "brackets"):
        shown.add_column(heading, justify="right")
    for row in rows:
        cells = (f"{row.area:.2f} ± {row.error:.2f}", f"{row.least:.2f} .. {row.most:.2f}")
        shown.add_row(row.method, *cells, *(f"{share:.0%}" for share in (row.precision, row.evidence, row.brackets)))
    return shown


def picture(networks: Sequence[dict[str, Measured]]):
    """Mean curves of each method, over the part of the tokens that is gone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    gone = torch.linspace(0, 1, LENGTH + 1)
    for axis, name, title in zip(axes, ("morf", "lerf"), ("most relevant first", "least relevant first"), strict=True):
        for method in networks[0]:
            mean = torch.cat([getattr(network[method], name) for network in networks]).mean(0)
            axis.plot(gone, mean, label=method, linestyle=":" if method == "random" else "-")
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel="part of the tokens removed")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("log odds of the predicted label")
    axes[1].legend(frameon=False, fontsize=8)
    return figure


LEGEND = """\
area: between the curves, LeRF - MoRF, in log odds, mean ± standard error over sequences; networks: the worst and best
mean. truth: share of the k tokens with the largest magnitude that are among the k tokens which determine the label;
evidence, brackets: share of these among them."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, measure, print, write the picture, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300, help="sequences to explain, per network")
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--networks", type=int, default=3, help="to train, from as many seeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one network, trained for less, and 100 sequences")
    parser.add_argument("--out", type=Path, default=Path("token_faithfulness.png"), help="the picture")
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.steps, options.networks = 100, 400, 1
    heatmaps.check_path(options.out)  # before all the work

    console, start = Console(highlight=False), time.perf_counter()
    with digits.single_thread():
        seeds = range(options.seed, options.seed + options.networks)
        accuracies, networks = zip(*(experiment(options.samples, options.steps, seed) for seed in seeds), strict=True)
    rows = summarize(networks)
    console.print(table(rows))
    console.print(LEGEND, style="dim", soft_wrap=True)
    heatmaps.save(picture(networks), options.out)
    accurate = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
    console.print(
        f"accuracy {accurate}; {options.samples} sequences each, {time.perf_counter() - start:.0f} s", soft_wrap=True
    )
    console.print(f"wrote {options.out}", soft_wrap=True)
    return rows


if __name__ == "__main__":
    main()
