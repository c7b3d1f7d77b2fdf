"""Detection: what made a detector see a thing in this box, explained before boxes are suppressed.

    python examples/detection.py --out detection.png

A small RetinaNet of torchvision's parts is trained here, on discs, squares and triangles of any colour in clutter, so
that what it must look at is known: the thing in the box, and not the strokes and the other things beside it.
`examples/guides/detection.md` explains it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

import lrpfunc
from lrpfunc import attributors, composites, heatmaps, targets

SIZE = 96  # of scenes, in pixels
NAMES = ("disc", "square", "triangle")

# -- scenes -----------------------------------------------------------------------------------------------------------


def coverage(label, x, y, radius):
    """How much of each pixel a thing covers, 0 to 1, for coordinates from its center."""
    distance = (
        torch.hypot(x, y) - radius,
        torch.maximum(x.abs(), y.abs()) - 0.85 * radius,
        torch.maximum(y, 0.866 * x.abs() - 0.5 * y) - 0.5 * radius,
    )[label]
    return (0.5 - distance).clamp(0, 1)


def stroke(x, y, generator):
    """The same for a straight line of some length."""
    start, angle, length = torch.rand(3, generator=generator) * torch.tensor([SIZE, 2 * torch.pi, 30.0])
    other = torch.rand((), generator=generator) * SIZE
    along = (x - start) * angle.cos() + (y - other) * angle.sin()
    across = (y - other) * angle.cos() - (x - start) * angle.sin()
    return (1.2 - torch.maximum(across.abs(), (along - length / 2).abs() - length / 2)).clamp(0, 1)


def scene(generator, things=3, strokes=12):
    """A picture (3, 96, 96) of things in clutter, their boxes (things, 4) and classes (things,)."""
    y, x = torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 2, indexing="ij")
    ground = torch.rand(3, 1, 1, generator=generator)
    picture = ground + 0.05 * torch.randn(3, SIZE, SIZE, generator=generator)

    def paint(cover, contrast=0.0):
        colour = ground
        while (colour - ground).abs().amax() < contrast or colour is ground:
            colour = torch.rand(3, 1, 1, generator=generator)
        return picture + cover * (colour - picture)

    for _ in range(strokes):
        picture = paint(stroke(x, y, generator))
    placed: list[Tensor] = []  # center and radius
    boxes, labels = [], []
    while len(placed) < things:
        one = torch.rand(3, generator=generator) * torch.tensor([SIZE - 36.0, SIZE - 36.0, 6.0]) + torch.tensor(
            [18, 18, 10]
        )
        if any((one - other)[:2].norm() < one[2] + other[2] + 4 for other in placed):
            continue
        label = int(torch.randint(3, (), generator=generator))
        cover = coverage(label, x - one[0], y - one[1], one[2])
        picture = paint(cover, contrast=0.4)
        rows, columns = (cover > 0.5).nonzero().unbind(1)
        placed.append(one)
        labels.append(label)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return picture.clamp(0, 1), torch.tensor(boxes).float(), torch.tensor(labels)


# -- the detector -----------------------------------------------------------------------------------------------------


def detector():
    """A RetinaNet with 432 candidates: three sizes at each of 12 x 12 places."""
    channels = (3, 16, 32, 48, 48)
    layers = []
    for given, made, stride in zip(channels, channels[1:], (2, 2, 2, 1), strict=False):
        layers += [nn.Conv2d(given, made, 3, stride, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = channels[-1]
    anchors = AnchorGenerator(((18, 24, 30),), ((1.0,),))
    options = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "min_size": SIZE, "max_size": SIZE}
    head = RetinaNetHead(backbone.out_channels, 3, len(NAMES), norm_layer=nn.BatchNorm2d)
    return RetinaNet(backbone, len(NAMES), anchor_generator=anchors, head=head, **options)


def trained(steps=400, batch=8):
    """A detector that has learned to find things in scenes."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = detector()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, steps)
    for _ in range(steps):
        scenes = [scene(generator) for _ in range(batch)]
        losses = model([one[0] for one in scenes], [{"boxes": boxes, "labels": labels} for _, boxes, labels in scenes])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# -- what is seen, and the picture ------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A box that a detector found, why, and why by gradient times input: relevance (3, 96, 96)."""

    title: str
    box: Tensor
    relevance: Tensor
    gradient: Tensor


def see(model, pictures, least=0.3):
    """What a detector finds in each picture, with a score of at least `least`, and why."""
    program = lrpfunc.functionalize(targets.heads(model), model.transform(pictures[:1])[0].tensors)
    canonical = lrpfunc.canonize(*program)
    explain = lrpfunc.prepare(canonical.fmodel, canonical.params, composites.epsilon_gamma_box(-2, 2), strict=True)
    return [seen for picture in pictures for seen in see_one(model, canonical, explain, picture, least)]


def see_one(model, canonical, explain, picture, least):
    with torch.no_grad():
        (found,) = model([picture])
    x = model.transform([picture])[0].tensors  # normalized
    for box, label, score in zip(found["boxes"], found["labels"].tolist(), found["scores"].tolist(), strict=True):
        if score >= least:
            target = targets.box(label, box)  # the candidate with the best score there, which suppression leaves
            gradient = attributors.gradient(canonical.fmodel, canonical.params, x, target, times_input=True)
            yield Seen(f"{NAMES[label]} {score:.0%}", box, explain(x, target)[0], gradient[0])


def share(relevance, box):
    """The share of a map's size, whatever its sign, that lies in a box."""
    left, top, right, bottom = (int(edge) for edge in box.round())
    size = relevance.abs().sum(0)
    return (size[top:bottom, left:right].sum() / size.sum()).item()


def beside(box):
    """A box of the same size beside it, on the side where there is more room."""
    step = (box[2] - box[0]) * (1 if box[0] + box[2] < SIZE else -1)
    return box + torch.tensor([step, 0, step, 0])


def shares(one):
    """The shares of its box and of the box beside it: of relevance, then of gradient times input."""
    return [share(values, box) for values in (one.relevance, one.gradient) for box in (one.box, beside(one.box))]


def draw(picture, seen):
    """The scene with its boxes; a column for each box, relevance above gradient times input."""
    figure = heatmaps.new_figure(4.2 + 2.1 * len(seen), 4.8)
    grid = figure.add_gridspec(2, 2 + len(seen))
    scene = figure.add_subplot(grid[:, :2])
    scene.imshow(picture.permute(1, 2, 0).numpy())
    scene.set_title("what it found", fontsize=10)
    for column, one in enumerate(seen, 2):
        frame(scene, one.box, one.title)
        maps = {"": one.relevance, "gradient x input: ": one.gradient}
        for row, (name, values) in enumerate(maps.items()):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(heatmaps.overlay(picture[None], values[None], quantile=0.995)[0])
            frame(axis, one.box)
            label = one.title.split()[0] if name else f"relevance: {one.title.split()[0]}"
            axis.set_title(f"{name}{label}\n{share(values, one.box):.0%} of it in the box", fontsize=9)
    for axis in figure.axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def frame(axis, box, title=""):
    left, top, right, bottom = (box - 0.5).tolist()
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="black", linewidth=1)
    if title:
        axis.text(left, top - 1, title, fontsize=9, va="bottom", bbox={"color": "#ffffffb0", "pad": 1})


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("detection.png"))
    parser.add_argument("--steps", type=int, default=400, help="of training")
    options = parser.parse_args(arguments)
    model = trained(options.steps)
    picture = scene(torch.Generator().manual_seed(1))[0]
    seen = see(model, [picture])
    more = [scene(torch.Generator().manual_seed(seed))[0] for seed in range(100, 110)]
    for title, group in [*((one.title, [one]) for one in seen), ("ten other scenes", see(model, more))]:
        inside, outside, *gradient = torch.tensor([shares(one) for one in group]).mean(0).tolist()
        print(f"{title}: {inside:.0%} of relevance in the box, {outside:.0%} in a box beside it;", end=" ")
        print("gradient x input {:.0%} and {:.0%}".format(*gradient))
    heatmaps.save(draw(picture, seen), options.out, dpi=90)
    print(f"written: {options.out}")
    return seen


if __name__ == "__main__":
    main()
