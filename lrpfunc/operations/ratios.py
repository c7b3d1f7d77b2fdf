"""f(x) / x of the activations, with f'(0) at 0."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpfunc.program import is_plain


def tanh_ratio(x: Tensor) -> Tensor:
    is_zero = x == 0
    divisor = torch.where(is_zero, 1.0, x)
    return torch.where(is_zero, 1.0, torch.tanh(divisor) / divisor)


def gelu_ratio(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":  # the normal distribution function, whose own kernel is slow
        scaled = x * math.sqrt(0.5)
        return scaled.erf_().mul_(0.5).add_(0.5) if is_plain(x) else torch.special.ndtr(x)
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def pow_ratio(x: Tensor, exponent=2) -> Tensor:
    if exponent >= 1:
        return x.pow(exponent - 1)
    is_zero = x == 0  # where the root of zero is zero but has no slope
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, x).pow(exponent - 1))


def mish_ratio(x: Tensor) -> Tensor:
    return torch.tanh(F.softplus(x))


def leaky_relu_ratio(x: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, 1.0, x.new_full((), slope))  # of two numbers it would make float32
