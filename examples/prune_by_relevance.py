"""Which parts of a network can go? Pruned by relevance, by magnitude, by Taylor's expansion, and at random.

    python examples/prune_by_relevance.py                  # the digits network, half a minute of one core
    python examples/prune_by_relevance.py --photos         # and EfficientNet-Lite0, on photos: some minutes more

A criterion gives each unit a number, and those with the smallest go first, in all layers alike: whole filters (outputs
of a convolution, with their biases) or single weights. Nothing is trained again. The criteria are sums over a reference
batch that is not the one that accuracy is measured on:

    relevance   |R| of each sample, by `lrpfunc.parameter_relevance` of the labels' logits under a composite
    taylor      |w * dL/dw| of each sample, L its cross entropy; for a filter, of the sum over its weights
    magnitude   |w|; for a filter, the root mean square of its weights
    random      ten orders (three for photos), with their standard error in the picture

For filters, magnitude and Taylor are divided by their norm over each layer, as their authors do (Molchanov et al. 2017,
arXiv:1611.06440). Relevance is not, as it is one account for all layers (Yeom et al. 2021,
doi:10.1016/j.patcog.2021.107899); "/ layer" says where it is, for comparison.
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
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import lrpfunc
from lrpfunc import composites, digits, heatmaps
from lrpfunc.pictures import classifiers
from lrpfunc.pictures.demo.photographs import PHOTOS, photograph
from lrpfunc.program import Program

SPARSITIES = tuple(i / 10 for i in range(10))
LOW = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of a network that bears less
FILTERS, WEIGHTS = "filters", "weights"
COMPOSITES = {
    "relevance, epsilon_plus": composites.epsilon_plus(),
    "relevance, alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "relevance, epsilon": composites.epsilon(),
}
LAYERED = ("relevance, epsilon_plus", "relevance, epsilon")  # of filters, also divided by layers' norms

Tensors = Mapping[str, Tensor]


class Subject(NamedTuple):
    """A network with its batch norms folded, which of its parameters are pruned, and what its criteria are taken on."""

    name: str
    fmodel: Program
    params: dict[str, Tensor]
    weights: tuple[str, ...]  # the names of those, the last one a dense layer, whose outputs stay
    reference: Tensor
    labels: Tensor
    sparsities: tuple[float, ...]


class Tested(NamedTuple):
    """Inputs, and what is right for them."""

    name: str
    x: Tensor
    labels: Tensor


# -- criteria ---------------------------------------------------------------------------------------------------------


def of_filters(found: Tensors, name: str) -> Tensor:
    """The sum over the weights of each output, and its bias."""
    total, bias = found[name].flatten(1).sum(1), _bias(name)
    return total + found[bias] if bias in found else total


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def relevance(subject: Subject, composite, unit: str) -> dict[str, Tensor]:
    """|R| of each weight or filter, summed over samples."""

    def one(x: Tensor, label: Tensor) -> Tensors:
        return lrpfunc.parameter_relevance(subject.fmodel, subject.params, x, composite, label)

    return _summed(subject, one, unit)


def taylor(subject: Subject, unit: str) -> dict[str, Tensor]:
    """|w * dL/dw| likewise: what the loss would change by without it, to first order."""

    def one(x: Tensor, label: Tensor) -> Tensors:
        gradients = torch.func.grad(lambda params: F.cross_entropy(subject.fmodel(params, x), label))(subject.params)
        return {name: subject.params[name] * gradient for name, gradient in gradients.items()}

    return _summed(subject, one, unit)


def _summed(subject: Subject, one: Callable[[Tensor, Tensor], Tensors], unit: str) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for x, label in zip(subject.reference.split(1), subject.labels.split(1), strict=True):
        found = one(x, label)
        for name in subject.weights:
            share = (of_filters(found, name) if unit == FILTERS else found[name]).detach().abs()
            total[name] = total[name] + share if name in total else share
    return total


def magnitude(subject: Subject, unit: str) -> dict[str, Tensor]:
    weights = {name: subject.params[name] for name in subject.weights}
    if unit == WEIGHTS:
        return {name: w.abs() for name, w in weights.items()}
    return {name: w.flatten(1).square().mean(1).sqrt() for name, w in weights.items()}


def at_random(subject: Subject, unit: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: subject.params[name].shape for name in subject.weights}
    return {n: torch.rand(s if unit == WEIGHTS else s[:1], generator=generator) for n, s in sizes.items()}


def by_layer(scores: Tensors) -> dict[str, Tensor]:
    """Divided by their norm over each layer."""
    return {name: s / s.norm().clamp(min=1e-12) for name, s in scores.items()}


def criteria(subject: Subject, unit: str) -> dict[str, dict[str, Tensor]]:
    """The scores of all weights or filters, by criterion; those of random orders are not among them."""
    found = {name: relevance(subject, composite, unit) for name, composite in COMPOSITES.items()}
    others = {"taylor": taylor(subject, unit), "magnitude": magnitude(subject, unit)}
    if unit == FILTERS:
        layered = {f"{name} / layer": by_layer(scores) for name, scores in found.items() if name in LAYERED}
        return found | layered | {name: by_layer(scores) for name, scores in others.items()}
    return found | others


# -- pruning ----------------------------------------------------------------------------------------------------------


def pruned(subject: Subject, scores: Tensors, sparsity: float, unit: str) -> dict[str, Tensor]:
    """The parameters without the units whose scores are the lowest; of equal ones, the first go first.

    The classes, which are outputs of the last layer, are no filters that may go.
    """
    names = [name for name in subject.weights if unit == WEIGHTS or name != subject.weights[-1]]
    flat = torch.cat([scores[name].flatten() for name in names])
    kept = torch.ones_like(flat)
    kept[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = 0
    params = dict(subject.params)
    for name, part in zip(names, kept.split([scores[name].numel() for name in names]), strict=True):
        mask = part.reshape(scores[name].shape)
        if unit == FILTERS and _bias(name) in params:
            params[_bias(name)] = params[_bias(name)] * mask
        params[name] = params[name] * mask.reshape(*mask.shape, *[1] * (params[name].dim() - mask.dim()))
    return params


class Row(NamedTuple):
    """Which share of the answers is right at each sparsity; error: the standard error over random orders."""

    unit: str
    tested: str
    criterion: str
    sparsities: tuple[float, ...]
    accuracies: Tensor
    error: Tensor

    @property
    def area(self) -> float:
        """The mean accuracy over all sparsities."""
        return self.accuracies.mean().item()


@torch.no_grad()
def accuracy(subject: Subject, params: Tensors, tested: Tested) -> float:
    outputs = torch.cat([subject.fmodel(params, part) for part in tested.x.split(64)])
    return (outputs.argmax(1) == tested.labels).double().mean().item()


def curves(subject: Subject, scores: Tensors, unit: str, tests: Sequence[Tested]) -> Tensor:
    """The accuracy (tests, sparsities)."""
    found = []
    for sparsity in subject.sparsities:
        params = pruned(subject, scores, sparsity, unit)
        found.append([accuracy(subject, params, tested) for tested in tests])
    return torch.tensor(found).T


def experiment(subject: Subject, tests: Sequence[Tested], unit: str, orders: int, seed: int) -> list[Row]:
    """A row for each criterion and test."""
    found = {name: curves(subject, scores, unit, tests)[None] for name, scores in criteria(subject, unit).items()}
    seeds = range(seed, seed + orders)
    found["random"] = torch.stack([curves(subject, at_random(subject, unit, s), unit, tests) for s in seeds])
    rows = []
    for name, values in found.items():
        error = values.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.zeros_like(values[0])
        for i, tested in enumerate(tests):
            rows.append(Row(unit, tested.name, name, subject.sparsities, values.mean(0)[i], error[i]))
    return rows


# -- the networks -----------------------------------------------------------------------------------------------------


def the_digits(samples: int) -> tuple[Subject, list[Tested]]:
    """The shipped network; criteria from digits that it was trained with, accuracy on those that it was not."""
    data = load_digits()
    images, labels = digits.scaled(torch.from_numpy(data.images)), torch.from_numpy(data.target)
    training, held_out = digits.split(len(labels))
    reference = training[torch.linspace(0, len(training) - 1, samples).long()]
    subject = _subject("digits", digits.load().model, images[reference], labels[reference], SPARSITIES)
    return subject, [Tested("held-out digits", images[held_out], labels[held_out])]


SEEN, UNSEEN = PHOTOS[:4], PHOTOS[4:]


def the_photos(crops: int, seed: int) -> tuple[Subject, list[Tested]]:
    """EfficientNet-Lite0; what is right is what it says itself before it is pruned, as there are no labels.

    Criteria from crops of four photos; agreement on other crops of these, and on crops of three other photos.
    """
    classifier = classifiers.load("efficientnet_lite0")
    generator = torch.Generator().manual_seed(seed)

    def some(names: Sequence[str]) -> Tensor:
        photos = [photograph(name) for name in names for _ in range(crops)]
        return torch.stack([classifier.preprocess(cropped(photo, generator)) for photo in photos])

    reference = some(SEEN)
    subject = _subject("EfficientNet-Lite0", classifier.model, reference, None, LOW)
    tests = []
    for what, names in (("other crops of the same photos", SEEN), ("crops of other photos", UNSEEN)):
        x = some(names)
        with torch.no_grad():
            tests.append(Tested(what, x, subject.fmodel(subject.params, x).argmax(1)))
    return subject, tests


def cropped(photo, generator: torch.Generator):
    """A part of a PIL image, 60 to 100 % of its sides, half of the time mirrored."""
    share, left, top, mirror = torch.rand(4, generator=generator).tolist()
    width, height = ((0.6 + 0.4 * share) * side for side in photo.size)
    x, y = left * (photo.width - width), top * (photo.height - height)
    part = photo.crop((round(x), round(y), round(x + width), round(y + height)))
    return part.transpose(0) if mirror < 0.5 else part  # 0: left and right exchanged


def _subject(name: str, model, x: Tensor, labels: Tensor | None, sparsities: tuple[float, ...]) -> Subject:
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    params = {name: tensor.detach() for name, tensor in params.items()}
    weights = tuple(name for name, tensor in params.items() if tensor.dim() > 1)
    with torch.no_grad():
        labels = fmodel(params, x).argmax(1) if labels is None else labels
    return Subject(name, fmodel, params, weights, x, labels, sparsities)


# -- the table and the picture ----------------------------------------------------------------------------------------


def table(rows: Sequence[Row], title: str) -> Table:
    """The best on average first."""
    shown = Table("criterion", title=title, title_justify="left")
    shown.add_column("mean", justify="right")
    for sparsity in rows[0].sparsities:
        shown.add_column(f"{sparsity:.0%}", justify="right")
    for row in sorted(rows, key=lambda row: -row.area):
        shown.add_row(row.criterion, f"{row.area:.1%}", *(f"{one:.0%}" for one in row.accuracies.tolist()))
    return shown


def picture(found: Mapping[str, Sequence[Row]]):
    """Accuracy over sparsity: a row for each network and what it was tested on, a column for each unit."""
    from matplotlib.figure import Figure

    lines = list(dict.fromkeys((network, row.tested) for network, rows in found.items() for row in rows))
    figure = Figure(figsize=(8.6, 0.4 + 2.5 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), 2, squeeze=False, sharey=True)
    for axes, (network, tested) in zip(grid, lines, strict=True):
        for axis, unit in zip(axes, (FILTERS, WEIGHTS), strict=True):
            for row in found[network]:
                if (row.unit, row.tested) == (unit, tested):
                    _draw(axis, row)
            axis.set_title(f"{network}: {unit} pruned\n{tested}", fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("right answers")
    for axis in grid[-1]:
        axis.set_xlabel("sparsity")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


COLOURS = dict(zip(("epsilon_plus", "alpha2_beta1", "epsilon"), ("C0", "C1", "C2"), strict=True))
OTHERS = {"random": (":", "0.4"), "magnitude": ("--", "0.2"), "taylor": ("--", "C3")}


def _draw(axis, row: Row) -> None:
    composite, layer, _ = row.criterion.removeprefix("relevance, ").partition(" / layer")
    style, colour = OTHERS.get(row.criterion) or ("-." if layer else "-", COLOURS[composite])
    axis.plot(row.sparsities, row.accuracies, style, color=colour, label=row.criterion, linewidth=1.3)
    if row.error.any():
        low, high = row.accuracies - row.error, row.accuracies + row.error
        axis.fill_between(row.sparsities, low, high, color=colour, alpha=0.25, linewidth=0)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Prune, measure, print, write the picture, and return the rows of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="digits that the criteria are taken on")
    parser.add_argument("--random-orders", type=int, default=10)
    parser.add_argument("--photos", action="store_true", help="prune EfficientNet-Lite0, too")
    parser.add_argument("--crops", type=int, default=4, help="of each photo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("prune_by_relevance.png"), help="the picture")
    options = parser.parse_args(arguments)
    heatmaps.check_path(options.out)  # before all the work

    console, start = Console(highlight=False, width=120), time.perf_counter()
    with digits.single_thread():
        networks = [the_digits(options.samples)]
        if options.photos:
            networks.append(the_photos(options.crops, options.seed))
        found = {}
        for subject, tests in networks:
            orders = min(options.random_orders, 3) if subject.sparsities == LOW else options.random_orders
            units = [experiment(subject, tests, unit, orders, options.seed) for unit in (FILTERS, WEIGHTS)]
            found[subject.name] = rows = [row for unit in units for row in unit]
            for unit, tested in dict.fromkeys((row.unit, row.tested) for row in rows):
                chosen = [row for row in rows if (row.unit, row.tested) == (unit, tested)]
                console.print(table(chosen, f"{subject.name}, {unit} pruned: right answers, {tested}"))
    heatmaps.save(picture(found), options.out)
    console.print(f"wrote {options.out} after {time.perf_counter() - start:.0f} s", soft_wrap=True)
    return found


if __name__ == "__main__":
    main()
