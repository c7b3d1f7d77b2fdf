"""The demo with photos: EfficientNet-Lite0 under several composites, one picture, and what the heatmaps are worth.

`measure` does the work and returns what it found, `tables` prints it with rich.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import lrpfunc
from lrpfunc import composites, heatmaps
from lrpfunc.composites import Composite
from lrpfunc.errors import InputError
from lrpfunc.extras import extra
from lrpfunc.pictures import classifiers
from lrpfunc.pictures.classifiers import LITE, Classifier
from lrpfunc.pictures.demo.flipping import Flipping, area_under, compare, patch_flipping, table
from lrpfunc.pictures.demo.photographs import PHOTOS, photograph, title
from lrpfunc.pictures.explainers import composite_named
from lrpfunc.program import Program

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

ZERO_BIAS = "epsilon_plus, zero_bias"
NAMES = ("epsilon", "epsilon_plus", ZERO_BIAS, "epsilon_plus_flat", "epsilon_gamma_box")
WATCHED = ("epsilon_plus", ZERO_BIAS)  # whose ledgers are shown
DRAWN = 5
STEPS, RANDOM_ORDERS = 10, 3  # of patch flipping; examples/photo_faithfulness.py has more
QUANTILE = 0.995  # of the magnitudes that colours reach to
BLUR = 16.0  # standard deviation in pixels: a patch's side

CAPTION = (
    "Before each row: the class that is explained, its probability and its logit. Below each map: what it sums to;\n"
    "what lies between it and the logit stayed with biases. Every map has its own scale: half a percent of its pixels "
    "have the darkest colour."
)

Progress = Callable[[int, int], None]


class Seen(NamedTuple):
    """What the network says of a photo: the class that is explained, its probability and its logit."""

    photo: str
    category: str
    probability: float
    logit: float


class Maps(NamedTuple):
    """Heatmaps of all photos under a composite, (N, C, H, W)."""

    composite: str
    relevance: Tensor

    @property
    def totals(self) -> list[float]:
        return self.relevance.sum((1, 2, 3), dtype=torch.float64).tolist()


class Kept(NamedTuple):
    """Which parts of the logits reach pixels, stay in depthwise layers, and stay elsewhere; they sum to 1."""

    composite: str
    arrived: float
    depthwise: float
    elsewhere: float


class Result(NamedTuple):
    """What the demo found. `similarity`: the mean cosine of maps under epsilon_plus with and without zero_bias."""

    seen: list[Seen]
    maps: list[Maps]
    kept: list[Kept]
    similarity: float
    flipping: list[Flipping]
    path: Path


class Ready(NamedTuple):
    """The network as a program, the photos as its inputs (N, C, H, W), and the classes that it predicts (N,)."""

    classifier: Classifier
    fmodel: Program
    params: Mapping[str, Tensor]
    x: Tensor
    target: Tensor


def measure(
    out: str | Path, count: int = len(PHOTOS), seed: int = 0, progress: Progress = lambda done, total: None
) -> Result:
    """Explain and flip the first `count` photos under all composites, and write the picture of the first few.

    The class explained is the one that the network predicts. `seed` chooses the random orders.
    Errors: `InputError` for a count beyond the photos; `MissingExtraError`; those of `heatmaps.save`.
    """
    path = heatmaps.check_path(out)
    if not 1 <= count <= len(PHOTOS):
        raise InputError(f"the demo has 1 to {len(PHOTOS)} photos, but {count} were asked for.")
    total = 2 * len(NAMES) + 2 + RANDOM_ORDERS  # maps; orders by them, by two gradients, and at random
    ready, seen = prepared(PHOTOS[:count])
    progress(0, total)
    maps = []
    for name in NAMES:
        rules = rules_named(name, ready.classifier)
        maps.append(Maps(name, lrpfunc.attribute(ready.fmodel, ready.params, ready.x, rules)))
        progress(len(maps), total)
    kept = [_kept(ready, name) for name in WATCHED]
    flipping = []
    orders = {m.composite: m.relevance for m in maps} | gradients(ready)
    for one in compare_orders(ready, orders, seed, STEPS, RANDOM_ORDERS):
        flipping.append(one)
        progress(len(maps) + RANDOM_ORDERS + len(flipping), total)
    heatmaps.save(_picture(ready, seen[:DRAWN], maps), path, dpi=96)
    return Result(seen, maps, kept, _similarity(maps), flipping, path)


def prepared(photos: Sequence[str]) -> tuple[Ready, list[Seen]]:
    """The network folded, the photos as its inputs, and what it sees on them. Errors: `MissingExtraError`."""
    classifier = classifiers.load(LITE)
    x = torch.stack([classifier.preprocess(photograph(name)) for name in photos])
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(classifier.model, x))
    params = {name: tensor.detach() for name, tensor in params.items()}
    logits = fmodel(params, x)
    highest, target = logits.softmax(1).max(1)
    seen = [
        Seen(title(name), classifier.category(index), probability, logits[i, index].item())
        for i, (name, index, probability) in enumerate(zip(photos, target.tolist(), highest.tolist(), strict=True))
    ]
    return Ready(classifier, fmodel, params, x, target), seen


def rules_named(name: str, classifier: Classifier) -> Composite:
    """A composite by the name that the demo has for it."""
    return composites.epsilon_plus(zero_bias=True) if name == ZERO_BIAS else composite_named(name, classifier)


def _similarity(maps: list[Maps]) -> float:
    plain, without = (m.relevance.sum(1).flatten(1) for m in maps if m.composite in ("epsilon_plus", ZERO_BIAS))
    return torch.nn.functional.cosine_similarity(plain, without).mean().item()


def _kept(ready: Ready, name: str) -> Kept:
    """Where the relevance of all photos together stays under a composite, by the ledger."""
    found = lrpfunc.ledger(ready.fmodel, ready.params, ready.x, rules_named(name, ready.classifier))
    depthwise = sum(entry.absorbed for entry in found.entries if _is_depthwise(ready.params, entry.name))
    parts = (found.arrived, depthwise, found.absorbed - depthwise)
    return Kept(name, *(part / found.seed for part in parts))


def _is_depthwise(params: Mapping[str, Tensor], layer: str) -> bool:
    """Whether a layer is a convolution of each channel for itself."""
    weight = params.get(f"{layer}.weight")
    return weight is not None and weight.dim() == 4 and weight.shape[1] == 1


# -- patch flipping ---------------------------------------------------------------------------------------------------


def gradients(ready: Ready) -> dict[str, Tensor]:
    """The size of the gradient of the explained logit, and the gradient times the input."""
    x = ready.x.clone().requires_grad_()
    explained = ready.fmodel(ready.params, x).gather(1, ready.target[:, None])
    (gradient,) = torch.autograd.grad(explained.sum(), x)
    return {"gradient, its size": gradient.abs(), "gradient times input": gradient * ready.x}


def compare_orders(
    ready: Ready, orders: Mapping[str, Tensor], seed: int, steps: int, random_orders: int
) -> Iterator[Flipping]:
    """Patches blurred away by each order, and by random ones: areas in units of the probability before.

    In these units photos count alike, whether the network is sure of them or not.
    A blurred photo keeps its colours, has no edges that patches of one colour would bring, and no object.
    """
    baseline, generator = blurred(ready.x), torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def area(scores: Tensor) -> Tensor:
        curves = patch_flipping(
            lambda x: ready.fmodel(ready.params, x), ready.x, scores, ready.target, baseline, steps=steps
        )
        return area_under(curves / curves[:, :1])

    return compare(area, orders, (torch.rand(ready.x.shape, generator=generator) for _ in range(random_orders)))


def blurred(x: Tensor) -> Tensor:
    """Images (N, C, H, W) without what is smaller than some patches."""
    pictures = extra("torchvision.transforms.functional", "cli", "blurring a photo")
    size = 2 * int(3 * BLUR) + 1
    return pictures.gaussian_blur(x, [size, size], [BLUR, BLUR])


# -- what people see --------------------------------------------------------------------------------------------------


def _picture(ready: Ready, seen: list[Seen], maps: list[Maps]):
    count = len(seen)
    columns = [_inputs(ready, count), *(heatmaps.heatmap(m.relevance[:count], quantile=QUANTILE) for m in maps)]
    figure = heatmaps.figure(
        list(zip(*columns, strict=True)),
        columns=["input", *(_in_lines(m.composite) for m in maps)],
        rows=[f"{_in_lines(s.category)}\n{s.probability:.0%}\nlogit {s.logit:.2f}" for s in seen],
        title="Which pixels speak for the class that EfficientNet-Lite0 predicts?",
        caption=CAPTION,
        scale=("against", "nothing", "for the predicted class"),
    )
    figure.set_size_inches(1.8 * len(columns) + 0.8, 1.9 * count + 1.2)
    for i in range(count):
        for j, one in enumerate(maps, start=1):
            figure.axes[i * len(columns) + j].set_xlabel(f"sum {_number(one.totals[i])}", fontsize=8.5, labelpad=3)
    return figure


def _inputs(ready: Ready, count: int) -> list[Image.Image]:
    from PIL import Image

    pixels = (255 * ready.classifier.pixels(ready.x[:count])).round().to(torch.uint8)
    return [Image.fromarray(one) for one in pixels.movedim(1, -1).numpy()]


def _in_lines(name: str) -> str:
    """A name, broken at underscores and blanks so that it fits above a column."""
    return textwrap.fill(name.replace("_", "_ "), 16).replace("_ ", "_")


def _number(value: float) -> str:
    """Two digits that count, without an exponent."""
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.{max(2, 1 - math.floor(math.log10(abs(value) or 1)))}f}"


def tables(result: Result, console: Console) -> None:
    """Print what the network sees and what each map sums to, where relevance stays, and the patch flipping."""
    _sums(result, console)
    _staying(result, console)
    table(result.flipping, "Patch flipping: area under the curve", console)
    _say(
        console,
        f"Mean over {len(result.seen)} photos of what remains of the predicted class's probability, as patches of 16 x "
        "16 pixels are blurred away, most relevant first; lower is better. below random: how far the area is below "
        f"that of random orders (mean of {RANDOM_ORDERS}), ± its standard error over photos. {len(result.seen)} photos "
        "are few: differences of less than two standard errors say nothing, and how patches are replaced matters too.",
    )


def _sums(result: Result, console: Console) -> None:
    from rich import box
    from rich.table import Table

    shown = result.seen[:DRAWN]
    title = "What the network sees, and what each heatmap sums to"
    sums = Table("", title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    sums.columns[0].no_wrap = True  # the names of classes may take two lines, those of composites not
    for one in shown:
        sums.add_column(one.photo, justify="right")
    sums.add_row("predicted", *(one.category for one in shown))
    sums.add_row("probability", *(f"{one.probability:.0%}" for one in shown))
    sums.add_row("logit", *(f"{one.logit:.2f}" for one in shown), end_section=True)
    for m in result.maps:
        sums.add_row(m.composite, *map(_number, m.totals[:DRAWN]))
    console.print(sums)


def _staying(result: Result, console: Console) -> None:
    from rich.table import Table

    staying = Table("of the logits, in percent", title="Where the relevance stays", title_justify="left")
    for heading in ("reaches pixels", "depthwise layers", "elsewhere"):
        staying.add_column(heading, justify="right")
    for one in result.kept:
        staying.add_row(one.composite, *(f"{100 * part:.2f}" for part in one[1:]))
    console.print(staying)
    plain, without = result.kept
    _say(
        console,
        f"Under epsilon_plus {1 - plain.arrived:.2%} of the logits never reaches a pixel: z+ gives each bias its share "
        "of an output, and biases hold the shifts of the folded batch norms. A depthwise layer sums only 9 or 25 "
        f"products of one channel, so there the bias weighs most: {plain.depthwise:.0%} stays in those layers. "
        f"zero_bias leaves biases out, and {without.arrived:.1%} arrives; the rest stays at outputs that are active "
        f"by their bias alone, which leave nothing to share. The maps differ (cosine {result.similarity:.2f}): choose "
        "before you compare, and read a map as where, not how much.",
    )


def _say(console: Console, text: str) -> None:
    console.print(text + "\n", style="dim", highlight=False, markup=False)
