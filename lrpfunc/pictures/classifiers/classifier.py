"""A classifier with what people need to talk to it: its preprocessing, there and back, and the names of its classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lrpfunc.extras import extra
from lrpfunc.pictures.images import Reading
from lrpfunc.pictures.outputs import Meaning

if TYPE_CHECKING:
    from PIL import Image

IMAGENET_MEAN, IMAGENET_STD, IMAGENET_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
REACH = 3  # pixels that Lanczos, the widest of the filters, sees on each side
STRIP = 16  # the longer side in shorter ones, of pictures of which only the middle is resized


@dataclass(frozen=True)
class Standard:
    """The usual preprocessing: resize the shorter side to `resize`, crop the middle to `size`, (pixel - mean) / std.

    Pixels are from 0 to 1; one mean means gray pictures, three RGB. Gives (channels, size, size).
    Of a picture that is a strip, only the middle is resized: its longer side would be as much too long.
    """

    size: int = IMAGENET_SIZE
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> Tensor:
        transforms = extra("torchvision.transforms", "cli", "preparing a picture")
        pictures = transforms.functional
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        if max(image.size) > STRIP * min(image.size):
            image = self._middle(image)
        else:
            interpolation = transforms.InterpolationMode(self.interpolation)
            image = pictures.resize(image, [self.resize or self.size], interpolation)
        image = pictures.center_crop(image, [self.size])
        return pictures.normalize(pictures.to_tensor(image), list(self.mean), list(self.std))

    def _middle(self, image: Image.Image) -> Image.Image:
        """The middle of a resized strip: what is resized and cropped otherwise, to rounding, without the ends."""
        from PIL import Image

        short, long = min(image.size), max(image.size)
        resized = self.resize or self.size
        whole = int(resized * long / short)  # as torchvision rounds
        kept = min(whole, self.size)
        start = round((whole - kept) / 2)
        margin = math.ceil(REACH * max(1, whole / long)) + 1  # since Pillow 13 a filter sees nothing beyond the box
        first, last = max(0, start - margin), min(whole, start + kept + margin)
        is_wide = image.width == long
        ends = first * long / whole, last * long / whole
        box = (ends[0], 0, ends[1], short) if is_wide else (0, ends[0], short, ends[1])
        size = (last - first, resized) if is_wide else (resized, last - first)
        made = image.resize(size, Image.Resampling[self.interpolation.upper()], box)
        begin = start - first
        return made.crop((begin, 0, begin + kept, resized) if is_wide else (0, begin, resized, begin + kept))


@dataclass(frozen=True)
class Classifier:
    """A model that gives a row of numbers for each picture, with what people need to talk to it.

    `preprocess`: an RGB PIL image -> its input (C, H, W). `mean`, `std` (per channel): that input is
    (pixel - mean) / std of pixels from 0 to 1; without them it is taken for pixels. `categories`: a name per class, or
    none. `weights`: where the parameters are from. `packages`: whose code the model is, by name; none where the user's.
    `meaning`: of its outputs, as far as the program does not tell.
    `notes`: what people should know of how it was loaded, in lines. `reading`: how image files are read.
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    categories: Sequence[str] = ()
    weights: str = ""
    packages: tuple[str, ...] = ()
    meaning: Meaning = field(default_factory=Meaning)
    notes: tuple[str, ...] = ()
    reading: Reading = Reading()  # noqa: RUF009 (a constant)

    def pixels(self, x: Tensor) -> Tensor:
        """Inputs (N, C, H, W) as people see them, from 0 to 1."""
        return (x * _per_channel(self.std, x) + _per_channel(self.mean, x)).clamp(0, 1)

    def input_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest input that pixels from 0 to 1 can become, (C, 1, 1)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        ends = torch.stack([(0 - mean) / std, (1 - mean) / std])[..., None, None]
        return ends.amin(0), ends.amax(0)

    def category(self, index: int) -> str:
        """The name of a class, its number if it has none."""
        return self.categories[index] if 0 <= index < len(self.categories) else str(index)


def _per_channel(values: Sequence[float], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None]
