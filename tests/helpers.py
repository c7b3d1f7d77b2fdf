"""Networks and comparisons that several test modules share."""

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters, batch norm statistics included: fresh ones hide every batch norm bug, zero heads everything."""
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
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()
