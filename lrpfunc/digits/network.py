"""The network: its layers, its trained parameters, and one thread to run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHECKPOINT = "digits.safetensors"


class DigitsNet(nn.Module):
    """Logits (N, 10) of digits (N, 1, 8, 8) between 0, blank paper, and 1, ink.

    Small, but with what makes attribution hard in large networks: batch norms, a residual sum, both kinds of pooling.

    >>> import torch
    >>> from lrpfunc import digits
    >>> digits.DigitsNet()(torch.rand(3, 1, 8, 8)).shape
    torch.Size([3, 10])
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


def trained() -> DigitsNet:
    """The network with the shipped parameters, in evaluation mode."""
    model = DigitsNet()
    model.load_state_dict(read(CHECKPOINT))
    return model.eval()


def read(name: str) -> dict[str, Tensor]:
    """The tensors of a file that the package ships."""
    return safetensors.torch.load(resources.files("lrpfunc.digits").joinpath("data", name).read_bytes())


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch within: images this small are not worth waking others, and times are steadier.

    >>> import torch
    >>> from lrpfunc import digits
    >>> with digits.single_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
