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
VOLUME = (16, 32, 32)

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
    """A volume (1, 16, 32, 32) with balls and rods of one brightness, and where the balls are (16, 32, 32)."""
    where = torch.stack(torch.meshgrid(*[torch.arange(size) + 0.5 for size in VOLUME], indexing="ij"), -1)
    values = 0.15 * torch.randn(VOLUME, generator=generator)
    classes = torch.zeros(VOLUME, dtype=torch.long)
    for index in range(things):
        center = torch.rand(3, generator=generator) * torch.tensor(VOLUME)
        offset, radius = where - center, 2 + torch.rand((), generator=generator)
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

    def __init__(self, width=8):
        super().__init__()
        self.fine, self.middle, self.coarse = (
            block(given, made, dimensions=3)
            for given, made in ((1, width), (width, 2 * width), (2 * width, 4 * width))
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


def trained(model, draw, steps, batch=8):
    """A network that has learned the classes of what `draw` draws."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for step in range(steps):
        inputs, classes = map(torch.stack, zip(*(draw(generator) for _ in range(batch)), strict=True))
        logits = model(inputs)
        loss = F.cross_entropy(logits["out"] if isinstance(logits, dict) else logits, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0: print(step, loss.item(), flush=True)
    return model.eval()
