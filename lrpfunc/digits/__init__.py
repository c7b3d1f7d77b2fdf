"""A small convolutional network for scikit-learn's handwritten digits, with its checkpoint and some digits to explain.

`examples/train_digits.py` trains it and writes both files; the package ships them, so nothing here needs scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrpfunc.errors import FileError

CHECKPOINT, SAMPLES = "digits.safetensors", "digits-samples.safetensors"
INK = 16  # scikit-learn's digits are integers from 0, blank paper, to 16


class DigitsNet(nn.Module):
    """Logits (N, 10) of digits (N, 1, 8, 8) between 0, blank paper, and 1, ink.

    Small, but with what makes attribution hard in large networks: batch norms, a residual sum, both kinds of pooling.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(1, 16)
        self.residual = nn.Sequential(_convolution(16, 16), nn.ReLU(), _convolution(16, 16))
        self.widen = _convolution(16, 32)
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.residual(x))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.widen(x))
        x = F.avg_pool2d(x, 2)
        return self.head(x.flatten(1))


def _convolution(channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class Digits(NamedTuple):
    """The trained network in evaluation mode, held-out images (N, 1, 8, 8) in [0, 1] and their classes (N,)."""

    model: DigitsNet
    images: Tensor
    labels: Tensor


def load() -> Digits:
    """The shipped network and sample digits, unseen in training. They come in runs of ten, one per class."""
    model = DigitsNet()
    model.load_state_dict(_read(CHECKPOINT))
    samples = _read(SAMPLES)
    return Digits(model.eval(), scaled(samples["images"]), samples["labels"])


def write_images(folder: str | Path) -> int:
    """Write the sample digits as images, `folder/class/number.png`, and return how many: dark ink on white paper.

    Errors: `FileError` if the folder exists.
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
    """Digits as scikit-learn has them, (N, 8, 8) from 0 to 16, as the network takes them: (N, 1, 8, 8) from 0 to 1."""
    return images.unsqueeze(1).float() / INK


def split(count: int) -> tuple[Tensor, Tensor]:
    """Indices for training and held-out indices among scikit-learn's digits: every third is held out.

    No random numbers, hence the same split everywhere. Three, because the digits are stored in runs of 0 to 9: it has
    no factor in common with ten, so all classes are held out alike. The same people wrote both parts.
    """
    held_out = torch.arange(count) % 3 == 0
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch within: images this small are not worth waking others, and times are steadier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(name: str) -> dict[str, Tensor]:
    return safetensors.torch.load(resources.files("lrpfunc.digits").joinpath("data", name).read_bytes())
