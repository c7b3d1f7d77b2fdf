"""Does canonization make explanations better? Batch norms folded or left, in two small networks for digits, measured.

    python examples/canonization_ablation.py           # four minutes of one core; needs the `dev` extra
    python examples/canonization_ablation.py --samples 20 --networks 1 --without-quantus

Motzkus et al. 2022 (arXiv:2202.06621) measured that it does, on VGG-16 and ResNet18; Pahde et al. 2022
(arXiv:2211.17174) went on to DenseNets. Here on the network of `lrpfunc demo` and on small DenseNets, trained first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet

import lrpfunc
from lrpfunc import composites, digits, rules
from lrpfunc.pictures import demo

NOISES = 10  # perturbations of each digit, of which the worst counts
PART = 500  # images that go through a network at once
WIDTH = 180  # of the tables: in a narrower terminal rich cuts figures off

Explain = Callable[[Tensor, Tensor], Tensor]

COMPOSITES: Mapping[str, Callable[..., composites.Composite]] = {
    "epsilon_plus": composites.epsilon_plus,
    "epsilon_plus_flat": composites.epsilon_plus_flat,
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1,
    "epsilon_gamma_box": partial(composites.epsilon_gamma_box, 0.0, 1.0),
    "epsilon": composites.epsilon,
}


def plain_gradient() -> lrpfunc.Rule:
    """R_x = J^T R: what becomes of a relevance where hooks have no rule, so that autograd carries it on.

    `rules.gradient()` moves whichever form arrives; behind a ReLU that is R / y, and the result input times gradient.
    """

    def forward(operation, x):
        y = operation(x)
        return y, (x, y)

    def backward(operation, residuals, flow):
        x, y = residuals
        return lrpfunc.Flow(relevance=operation.vjp([x], flow.relevance(y)))

    return lrpfunc.Rule("plain_gradient", forward, backward)


def constants_passed_on(program: lrpfunc.Program) -> composites.Assignment:
    """All relevance goes through what folding made of ReLUs, max(x, low), also where that is `low`, as in zennit."""
    return {e.name: rules.pass_through() for e in program.equations if e.operator == "threshold_relu"}


FOLDED, PASSED_ON = "folded", "folded, constants passed on"
LEFT: Mapping[str, lrpfunc.Rule] = {
    "passed through": rules.pass_through(),  # the default, and zennit's
    "plain gradient": plain_gradient(),
    "input times gradient": rules.input_times_gradient(),  # a layer of its own, whose shift takes a bias's share
}


class Change(NamedTuple):
    """Of a difference: the mean over digits, its standard error, and the extremes among networks."""

    mean: float
    error: float
    least: float
    most: float


class Comparison(NamedTuple):
    """A folded network against another treatment: the difference in area, folded - other, and the part of the digits
    that are less sensitive on the folded one (None without Quantus).
    """

    area: Change
    steadier: Change | None


class Row(NamedTuple):
    """One composite on one kind of network, with batch norms folded or left under a rule.

    `area`: of pixel flipping, mean. `totals`: quartiles of relevance sum / logit. `sensitivity`: Max-Sensitivity,
    median; None without Quantus. `against`: how folded networks compare with this row.
    """

    network: str
    composite: str
    batch_norms: str
    area: float
    totals: tuple[float, float, float]
    sensitivity: float | None
    against: Comparison | None


# -- networks ---------------------------------------------------------------------------------------------------------


def densenet() -> DenseNet:
    """torchvision's DenseNet, of two blocks of two layers, with a stem for images of 8 x 8."""
    model = DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, bn_size=2, num_classes=10)
    model.features.conv0 = nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False)
    model.features.pool0 = nn.Identity()
    return model


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """A DenseNet, trained as `train_digits.py` does. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = densenet()
        batches = -(-len(images) // 64)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * batches)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).tensor_split(batches):
                loss = F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


# -- measurements -----------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Of each digit (N,): the area of pixel flipping, relevance sum / logit, and Max-Sensitivity where wanted."""

    area: Tensor
    total: Tensor
    sensitivity: Tensor | None


def measure(model: nn.Module, x: Tensor, seed: int, with_quantus: bool) -> dict[tuple[str, str], Measured]:
    """All composites, with batch norms folded and left, on the digits `x`; the class explained is the predicted one."""
    fmodel, params = lrpfunc.functionalize(model, x)
    folded = lrpfunc.canonize(fmodel, params)
    logits, target = folded.fmodel(folded.params, x).max(1)

    def predict(images: Tensor) -> Tensor:
        """In parts: all steps of all digits at once fill more memory than is quick to get."""
        return torch.cat([folded.fmodel(folded.params, part) for part in images.split(PART)])

    found = {}
    for (composite, batch_norms), explain in _explanations(fmodel, params, folded):
        relevance = explain(x, target)
        curves = demo.pixel_flipping(predict, x, relevance, target)
        found[composite, batch_norms] = Measured(
            demo.area_under(curves),
            relevance.flatten(1).sum(1) / logits,
            max_sensitivity(model, explain, x, target, seed) if with_quantus else None,
        )
    return found


def _explanations(fmodel, params, folded: lrpfunc.Canonical) -> Iterable[tuple[tuple[str, str], Explain]]:
    def explanation(fmodel, params, rules) -> Explain:
        return lambda x, target: lrpfunc.attribute(fmodel, params, x, rules, target)

    for name, composite in COMPOSITES.items():
        yield (name, FOLDED), explanation(folded.fmodel, folded.params, composite())
        if constants_passed_on(folded.fmodel):
            passed_on = composite(entries=constants_passed_on)
            yield (name, PASSED_ON), explanation(folded.fmodel, folded.params, passed_on)
        for batch_norms, rule in LEFT.items():
            entries = composites.by_kind({"batch_norm": rule})
            yield (name, batch_norms), explanation(fmodel, params, composite(entries=entries))


def max_sensitivity(model: nn.Module, explain: Explain, x: Tensor, target: Tensor, seed: int) -> Tensor:
    """By how much noise changes an explanation (N,), in units of its norm, at worst. Quantus's noise: +-0.2, uniform.

    The class explained stays that of the clean digit, and the noise is the same for the same seed.
    Source: Yeh et al. 2019, arXiv:1901.09392.
    """
    import quantus

    def explain_arrays(model, inputs, targets, **_):
        return explain(torch.as_tensor(inputs, dtype=x.dtype), torch.as_tensor(targets)).numpy()

    metric = quantus.MaxSensitivity(nr_samples=NOISES, disable_warnings=True)
    with _numpy_seed(seed):
        arrays = {"x_batch": x.numpy(), "y_batch": target.numpy()}
        scores = metric(model=model, **arrays, explain_func=explain_arrays, batch_size=len(x))
    return torch.tensor(np.array(scores))


@contextmanager
def _numpy_seed(seed: int):
    """NumPy's global random state seeded within: Quantus takes its noise from there."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


# -- the table --------------------------------------------------------------------------------------------------------


def ablation(network: str, models: Sequence[nn.Module], x: Tensor, seed: int, with_quantus: bool) -> list[Row]:
    """The rows of one kind of network: figures over all digits and all trained networks of that kind."""
    measured = [measure(model, x, seed, with_quantus) for model in models]
    figures = {key: _stacked([found[key] for found in measured]) for key in measured[0]}
    rows = []
    for (composite, batch_norms), these in figures.items():
        against = None if batch_norms == FOLDED else _comparison(figures[composite, FOLDED], these)
        totals = tuple(np.quantile(these.total, (0.25, 0.5, 0.75)).tolist())
        sensitivity = None if these.sensitivity is None else these.sensitivity.median().item()
        rows.append(Row(network, composite, batch_norms, these.area.mean().item(), totals, sensitivity, against))
    return rows


def _comparison(folded: Measured, other: Measured) -> Comparison:
    is_measured = folded.sensitivity is not None
    steadier = _change(_less(folded.sensitivity, other.sensitivity)) if is_measured else None
    return Comparison(_change(folded.area - other.area), steadier)


def _stacked(measured: list[Measured]) -> Measured:
    """Each figure (networks, N)."""
    return Measured(*(None if values[0] is None else torch.stack(values) for values in zip(*measured, strict=True)))


def _less(a: Tensor, b: Tensor) -> Tensor:
    """1 where a is less than b, else 0; one half where they are equal to a percent: some treatments agree in theory."""
    return torch.where(torch.isclose(a, b, rtol=0.01), 0.5, (a < b).double())


def _change(differences: Tensor) -> Change:
    """Of paired differences (networks, N). The error is that over digits, for these networks."""
    per_digit, per_network = differences.mean(0), differences.mean(1)
    error = per_digit.std().item() / len(per_digit) ** 0.5
    return Change(per_digit.mean().item(), error, per_network.min().item(), per_network.max().item())


def figures(network: str, rows: Sequence[Row]) -> Table:
    """The figures of one kind of network, for people."""
    shown = Table("composite", "batch norms", title=network, title_justify="left")
    for heading in ("area", "sum / logit", "sensitivity"):
        shown.add_column(heading, justify="right")
    for row in rows:
        low, median, high = row.totals
        shown.add_row(
            row.composite if row.batch_norms == FOLDED else "",
            row.batch_norms,
            f"{row.area:.3f}",
            f"{median:.3g} ({low:.3g} .. {high:.3g})",
            "" if row.sensitivity is None else f"{row.sensitivity:.3g}",
            end_section=row.batch_norms == list(LEFT)[-1],
        )
    return shown


def comparisons(network: str, rows: Sequence[Row]) -> Table:
    """How folded networks compare with the others, digit by digit, for people."""
    shown = Table("composite", "against", title=f"{network}, folded minus other", title_justify="left")
    shown.add_column("area", justify="right")
    shown.add_column("less sensitive", justify="right")
    for row in rows:
        if row.against is not None:
            cells = _shown(row.against.area, "+.3f", ".3f"), _shown(row.against.steadier, ".0%", ".0%")
            shown.add_row(row.composite, row.batch_norms, *cells, end_section=row.batch_norms == list(LEFT)[-1])
    return shown


def _shown(change: Change | None, of_value: str, of_error: str) -> str:
    if change is None:
        return ""
    spread = "" if change.least == change.most else f" [{change.least:{of_value}}, {change.most:{of_value}}]"
    return f"{change.mean:{of_value}} ± {change.error:{of_error}}{spread}"


def summary(rows: Sequence[Row]) -> list[str]:
    """One line for each other treatment: for how many composites folding is better, and worse."""
    lines = []
    for batch_norms in dict.fromkeys(row.batch_norms for row in rows if row.against is not None):
        found = {row.composite: row.against for row in rows if row.batch_norms == batch_norms and row.against}
        counts = _verdict("area", {name: _beyond(each.area, 0.0) for name, each in found.items()})
        if all(each.steadier for each in found.values()):
            signs = {name: -_beyond(each.steadier, 0.5) for name, each in found.items()}
            counts += "; " + _verdict("sensitivity", signs)
        lines.append(f"{rows[0].network}, folded against {batch_norms}: {counts}.")
    return lines


def _beyond(change: Change, of: float) -> int:
    """Whether a change is more (1) or less (-1) than `of` beyond two standard errors, and in every network."""
    margin = 2 * change.error
    is_more, is_less = change.mean > of + margin, change.mean < of - margin
    return int(is_more and change.least > of) - int(is_less and change.most < of)


def _verdict(figure: str, signs: Mapping[str, int]) -> str:
    better, worse = ([name for name, found in signs.items() if found == sign] for sign in (-1, 1))
    named = f" ({', '.join(worse)})" if worse else ""
    return f"{figure} better for {len(better)} of {len(signs)} composites, worse for {len(worse)}{named}"


LEGEND = f"""\
area: under the pixel-flipping curve to blank paper, mean; lower is better. sum / logit: median (quartiles).
sensitivity: Max-Sensitivity, worst of {NOISES} noises, median; lower is better. less sensitive: which part of the
digits, ties half. ±: standard error over digits. [...]: extremes of the networks. Better and worse: beyond two standard
errors and in every network alike."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="held-out digits to explain")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--networks", type=int, default=5, help="DenseNets to train, from as many seeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-quantus", action="store_true", help="leave out the sensitivity")
    options = parser.parse_args(arguments)

    data = load_digits()
    images, labels = digits.scaled(torch.from_numpy(data.images)), torch.from_numpy(data.target)
    training, held_out = digits.split(len(labels))
    chosen = held_out[torch.linspace(0, len(held_out) - 1, options.samples).long()]
    console, start = Console(highlight=False, markup=False, width=WIDTH), time.perf_counter()
    rows = []
    with digits.single_thread():
        seeds = range(options.seed, options.seed + options.networks)
        dense = [train(images[training], labels[training], options.epochs, seed) for seed in seeds]
        for network, models in {"DigitsNet": [digits.load().model], "DenseNet": dense}.items():
            found = ablation(network, models, images[chosen], options.seed, not options.without_quantus)
            rows += found
            console.print(figures(network, found), comparisons(network, found))
            console.print(_about(models, images, labels, held_out, chosen))
            console.print("\n".join(summary(found)), end="\n\n", soft_wrap=True)
    console.print(LEGEND, style="dim")
    console.print(f"{options.samples} digits, {time.perf_counter() - start:.0f} s", style="dim")
    return rows


def _about(models: Sequence[nn.Module], images: Tensor, labels: Tensor, held_out: Tensor, chosen: Tensor) -> str:
    """How good the networks are, and what an order of pixels by ink alone reaches."""
    x = images[chosen]
    with torch.no_grad():
        right = [(model(images[held_out]).argmax(1) == labels[held_out]).float().mean().item() for model in models]
        curves = [demo.pixel_flipping(model, x, x, model(x).argmax(1)) for model in models]
    area = torch.stack([demo.area_under(curve).mean() for curve in curves]).mean()
    return f"held-out accuracy {', '.join(f'{n:.1%}' for n in right)}; area of the order by ink alone {area:.3f}"


if __name__ == "__main__":
    main()
