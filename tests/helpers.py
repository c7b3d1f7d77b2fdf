"""Networks and comparisons that several test modules share."""

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters and batch norm statistics: fresh ones hide every batch norm bug, zero heads everything."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 1.5)
                if module.weight is not None:
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.bias, -0.3, 0.3)
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.any() or name == "bias":
                    uniform(parameter, -0.1, 0.1)
    return model.eval()


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest elementwise difference in units of the largest expected magnitude."""
    got, expected = got.double(), expected.double()
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


class Branches(nn.Module):
    """Convolutions with residual sums, concatenation, a layer called twice, both poolings: what real networks do."""

    def __init__(self, bias: bool = False, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.block = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.side = nn.Conv2d(4, 3, 1, bias=bias)
        self.pool = nn.MaxPool2d(2)
        self.narrow = nn.Conv2d(7, 6, 3, stride=2, padding=1, bias=bias)
        self.head = nn.Linear(6, classes, bias=bias)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.block(x).relu() + x
        x = self.block(x).relu() + x
        x = self.pool(torch.cat([x, self.side(x).relu()], dim=1))
        return self.head(self.narrow(x).relu().mean((2, 3)))


def branches(bias: bool = False, seed: int = 0, dtype=torch.float64) -> tuple[nn.Module, torch.Tensor]:
    """The network in float64 and three samples of both signs."""
    torch.manual_seed(seed)
    return randomize(Branches(bias), seed).to(dtype), torch.randn(3, 3, 8, 8, dtype=dtype)
