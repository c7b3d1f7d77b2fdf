"""Segmentation: what made a network name the pixels of a thing, or the voxels of a ball, as it did.

    python examples/segmentation.py --out segmentation.png

Two networks are trained here. One has torchvision's parts of DeepLabv3 and colours a scene: discs, squares and
triangles. The other is a U-Net of volumes, which finds balls among rods that are as bright. Explained is a mask: the
sum of the logits of its class there. `examples/guides/detection.md` explains it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import DeepLabV3
from torchvision.models.segmentation.deeplabv3 import ASPP

import lrpfunc
from lrpfunc import attributors, composites, heatmaps, targets

NAMES = ("ground", "disc", "square", "triangle")
COLOURS = torch.tensor([[0.9, 0.9, 0.9], [0.9, 0.6, 0.0], [0.0, 0.6, 0.5], [0.8, 0.5, 0.7]])
SIZE = 64  # of pictures, in pixels
VOLUME = (12, 32, 32)

# -- pictures and volumes ---------------------------------------------------------------------------------------------


def coverage(label, x, y, radius):
    """How much of each pixel a thing covers, 0 to 1, for coordinates from its center."""
    distance = (
        torch.hypot(x, y) - radius,
        torch.maximum(x.abs(), y.abs()) - 0.85 * radius,
        torch.maximum(y, 0.866 * x.abs() - 0.5 * y) - 0.5 * radius,
    )[label - 1]
    return (0.5 - distance).clamp(0, 1)


def scene(generator):
    """A picture (3, 64, 64) with three things of one colour, and its classes (64, 64)."""
    y, x = torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 2, indexing="ij")
    ground, colour = torch.rand(2, 3, 1, 1, generator=generator)
    colour = colour if (colour - ground).abs().amax() > 0.4 else 1 - ground.round()
    picture = ground + 0.05 * torch.randn(3, SIZE, SIZE, generator=generator)
    classes = torch.zeros(SIZE, SIZE, dtype=torch.long)
    for corner in torch.randperm(4, generator=generator)[:3].tolist():
        label = int(torch.randint(1, 4, (), generator=generator))
        shift = 6 * torch.rand(2, generator=generator) - 3
        column, row = 16 + 32 * (corner % 2) + shift[0], 16 + 32 * (corner // 2) + shift[1]
        cover = coverage(label, x - column, y - row, 9 + 4 * torch.rand((), generator=generator))
        picture = picture + cover * (colour - picture)
        classes[cover > 0.5] = label
    return picture.clamp(0, 1), classes


def volume(generator, things=5):
    """A volume (1, 12, 32, 32) with balls and rods of one brightness, and where the balls are (12, 32, 32)."""
    where = torch.stack(torch.meshgrid(*[torch.arange(size) + 0.5 for size in VOLUME], indexing="ij"), -1)
    values = 0.15 * torch.randn(VOLUME, generator=generator)
    classes = torch.zeros(VOLUME, dtype=torch.long)
    for index in range(things):
        center = torch.rand(3, generator=generator) * torch.tensor(VOLUME)
        offset, radius = where - center, 2.5 + torch.rand((), generator=generator)
        if index % 2:  # a rod: as wide as a ball, through the whole volume
            direction = F.normalize(torch.randn(3, generator=generator), dim=0)
            offset = offset - (offset @ direction)[..., None] * direction
        cover = (0.5 + radius - offset.norm(dim=-1)).clamp(0, 1)
        values = torch.maximum(values, cover)
        classes[cover > 0.5] = 1 - index % 2
    return values[None], classes


# -- networks ---------------------------------------------------------------------------------------------------------


def block(given, made, stride=1, dimensions=2):
    convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dimensions - 2]
    return nn.Sequential(convolution(given, made, 3, stride, padding=1, bias=False), norm(made), nn.ReLU())


class Backbone(nn.Sequential):
    """Pictures to features of an eighth of their size, by the name that torchvision gives them."""

    def __init__(self):
        super().__init__(block(3, 16, 2), block(16, 32, 2), block(32, 32), block(32, 32, 2))

    def forward(self, x):
        return {"out": super().forward(x)}


def deeplab():
    pyramid = ASPP(32, (2, 3), out_channels=32)
    pyramid.project[3] = nn.Identity()  # dropout
    return DeepLabV3(Backbone(), nn.Sequential(pyramid, block(32, 32), nn.Conv2d(32, len(NAMES), 1)))


class UNet(nn.Module):
    """A U-Net of volumes (N, 1, depth, height, width), with two steps down and up: logits of ground and ball."""

    def __init__(self, width=6):
        super().__init__()
        self.fine, self.middle, self.coarse = (
            block(given, made, dimensions=3) for given, made in ((1, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.joined = block(6 * width, 2 * width, dimensions=3)
        self.last = block(3 * width, width, dimensions=3)
        self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        self.head = nn.Conv3d(width, 2, 1)

    def forward(self, x):
        fine = self.fine(x)
        middle = self.middle(F.max_pool3d(fine, 2))
        coarse = self.coarse(F.max_pool3d(middle, 2))
        middle = self.joined(torch.cat([self.up(coarse), middle], 1))
        return self.head(self.last(torch.cat([self.up(middle), fine], 1)))


def trained(model, draw, steps, batch):
    """A network that has learned the classes of what `draw` draws."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        inputs, classes = map(torch.stack, zip(*(draw(generator) for _ in range(batch)), strict=True))
        logits = model(inputs)
        logits = logits["out"] if isinstance(logits, dict) else logits
        weight = torch.tensor([0.3] + [1.0] * (logits.shape[1] - 1))  # most is ground
        loss = F.cross_entropy(logits, classes, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# -- what is seen, and the picture ------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A thing that a network found: its input, its classes and its mask, why, and why by gradient times input."""

    title: str
    x: Tensor
    classes: Tensor
    mask: Tensor
    relevance: Tensor
    gradient: Tensor


def see(model, inputs):
    """Why a network gave its class to the thing that it is surest of, in each of some pictures or volumes."""
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, inputs[0][None]))
    return [see_one(canonical.fmodel, canonical.params, x[None]) for x in inputs]


def see_one(fmodel, params, x):
    output = fmodel(params, x)
    (logits,) = output["out"] if isinstance(output, dict) else output
    classes = logits.argmax(0)
    surest = (logits.amax(0) * (classes > 0)).argmax()
    label = int(classes.flatten()[surest])
    mask = hanging_together(classes == label, surest)
    target = targets.region(label, mask)
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), target, strict=True)
    gradient = attributors.gradient(fmodel, params, x, target, times_input=True)
    title = NAMES[label] if mask.dim() == 2 else "ball"
    return Seen(title, x[0], classes, mask, relevance[0], gradient[0])


def hanging_together(region, start):
    """The part of a region that hangs together with a pixel or voxel, given as an index of the flat region."""
    mask = torch.zeros_like(region)
    mask.view(-1)[start] = True
    while (more := grown(mask) & region).sum() > mask.sum():
        mask = more
    return mask


def grown(mask, by=1):
    """A mask and what is near it."""
    pool = F.max_pool2d if mask.dim() == 2 else F.max_pool3d
    return pool(mask[None].float(), 2 * by + 1, 1, by)[0] > 0


def share(relevance, mask):
    """The share of a map's size, whatever its sign, that lies in a mask and two pixels around it."""
    size = relevance.abs().sum(0)
    return (size[grown(mask, 2)].sum() / size.sum()).item()


def beside(mask):
    """A mask of the same form in the other half of the picture."""
    return mask.roll(mask.shape[-1] // 2, -1)


def shares(one):
    """The shares of its mask and of the one beside it: of relevance, then of gradient times input."""
    return [share(values, mask) for values in (one.relevance, one.gradient) for mask in (one.mask, beside(one.mask))]


def draw(seen):
    """A row for each thing: what the network saw, what it said, and why. Of volumes the slice with most of the mask."""
    figure = heatmaps.new_figure(10, 2.8 * len(seen))
    axes = figure.subplots(len(seen), 4, squeeze=False)
    for row, one in zip(axes, seen, strict=True):
        flat = one.mask.dim() == 2
        at = ... if flat else int(one.mask.sum((1, 2)).argmax())
        x, relevance, gradient = ((t if flat else t[:, at]) for t in (one.x, one.relevance, one.gradient))
        row[0].imshow(x.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy())
        row[1].imshow(COLOURS[one.classes[at]].numpy())
        for axis, values in zip(row[2:], (relevance, gradient), strict=True):
            axis.imshow(heatmaps.overlay(x[None], values[None], quantile=0.995)[0])
        titles = (
            "a picture" if flat else f"slice {at} of a volume",
            "what the network says",
            "relevance",
            "gradient x input",
        )
        for axis, title, values in zip(row, titles, (None, None, one.relevance, one.gradient), strict=True):
            text = title if values is None else f"{title}: {share(values, one.mask):.0%} at the {one.title}"
            axis.set_title(text, fontsize=10)
            axis.contour(one.mask[at].float().numpy(), [0.5], colors="black", linewidths=1)
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("segmentation.png"))
    parser.add_argument("--steps", type=int, nargs=2, default=(600, 200), help="of training, of each network")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    flat = trained(deeplab(), scene, options.steps[0], batch=8)
    deep = trained(UNet(), volume, options.steps[1], batch=4)
    seen = []
    for name, model, made, first in (("things", flat, scene, 103), ("balls", deep, volume, 100)):
        explained = see(model, [made(torch.Generator().manual_seed(seed))[0] for seed in range(first, first + 10)])
        inside, outside, *gradient = torch.tensor([shares(one) for one in explained]).mean(0).tolist()
        print(f"ten {name}: {inside:.0%} of relevance there, {outside:.0%} beside it;", end=" ")
        print("gradient x input {:.0%} and {:.0%}".format(*gradient))
        seen.append(explained[0])
    heatmaps.save(draw(seen), options.out, dpi=90)
    print(f"written: {options.out}")
    return seen


if __name__ == "__main__":
    main()
