"""Digits to explain: the shipped ones, as tensors and as image files, and which of scikit-learn's are held out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.digits.network import DigitsNet, read, trained
from lrpfunc.errors import FileError

SAMPLES = "digits-samples.safetensors"
INK = 16  # scikit-learn's digits are integers from 0, blank paper, to 16


class Digits(NamedTuple):
    """The trained network in evaluation mode, held-out images (N, 1, 8, 8) in [0, 1] and their classes (N,)."""

    model: DigitsNet
    images: Tensor
    labels: Tensor


def load() -> Digits:
    """The shipped network and sample digits, unseen in training. They come ten by ten, one per class.

    >>> from lrpfunc import digits
    >>> model, images, labels = digits.load()
    >>> images.shape, labels[:10].tolist()
    (torch.Size([40, 1, 8, 8]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    >>> (model(images).argmax(1) == labels).float().mean() > 0.9
    tensor(True)
    """
    samples = read(SAMPLES)
    return Digits(trained(), scaled(samples["images"]), samples["labels"])


def write_images(folder: str | Path) -> int:
    """Write the sample digits as images, `folder/class/number.png`, and return how many: dark ink on white paper.

    Args:
        folder: is made, with a folder in it for each class.
    Errors: `FileError` if the folder exists.

    >>> import tempfile
    >>> from lrpfunc import digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digits.write_images(f"{folder}/digits")
    40
    """
    from PIL import Image

    folder = Path(folder)
    if folder.exists():
        raise FileError(f"{folder} exists: choose a folder that does not.")
    _, images, labels = load()
    paper = ((1 - images) * 255).round().to(torch.uint8)
    for number, (image, label) in enumerate(zip(paper, labels.tolist(), strict=True)):
        path = folder / str(label) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return len(images)


def scaled(images: Tensor) -> Tensor:
    """Digits as scikit-learn has them as the network takes them.

    Args:
        images: (N, 8, 8) from 0, paper, to 16, ink; gives (N, 1, 8, 8) from 0 to 1.

    >>> import torch
    >>> from lrpfunc import digits
    >>> digits.scaled(torch.full((2, 8, 8), 4)).unique()
    tensor([0.2500])
    """
    return images.unsqueeze(1).float() / INK


def split(count: int) -> tuple[Tensor, Tensor]:
    """Indices for training and held-out indices among scikit-learn's digits: every third is held out.

    No random numbers, hence the same split everywhere. Three, because the digits are stored in the order 0 to 9, over
    and over: it has no factor in common with ten, so all classes are held out alike. The same people wrote both parts.

    Args:
        count: how many digits there are.

    >>> from lrpfunc import digits
    >>> digits.split(7)
    (tensor([1, 2, 4, 5]), tensor([0, 3, 6]))
    """
    held_out = torch.arange(count) % 3 == 0
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
