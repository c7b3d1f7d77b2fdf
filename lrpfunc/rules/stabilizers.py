"""Stabilizers of denominators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.program import add, divide, is_plain


@dataclass(frozen=True)
class Stabilizer:
    """A function S that keeps a denominator away from zero, with a label.

    `epsilon`: if not None, S(z) = z + sign(z) epsilon, with sign(0) = +1, which fast paths know how to write.
    """

    label: str
    function: Callable[[Tensor], Tensor]
    epsilon: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)

    @property
    def is_identity(self) -> bool:
        """S(z) = z."""
        return self.epsilon == 0

    def threshold(self, dtype: torch.dtype) -> float:
        """Its epsilon in a dtype, in which it must not vanish."""
        return max(self.epsilon or 0.0, torch.finfo(dtype).smallest_normal)

    def quotient(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """numerator / S(denominator); without a stabilizer zero where the denominator is zero."""
        if self.is_identity:
            return _safe_divide(numerator, denominator)
        if self.epsilon is None:
            return numerator / self(denominator)
        return divide(numerator, self(denominator))

    def proportion(self, value: Tensor, is_nonnegative: bool = False) -> Tensor:
        """value / S(value), between 0 and 1."""
        if self.epsilon is None:
            return value / self(value)
        if is_nonnegative:
            return divide(value, value + self.threshold(value.dtype))
        return divide(value, add(_away(value, self.threshold(value.dtype)), value))


StabilizerLike = float | Stabilizer | Callable[[Tensor], Tensor]


def stabilizer(
    epsilon: StabilizerLike = 1e-6, clip: bool = False, norm_scale: bool = False, dim: int | Sequence[int] | None = None
) -> Stabilizer:
    """A stabilizer of denominators: S(z) = z + sign(z) epsilon, where sign(0) = +1.

    With `clip`, S(z) = sign(z) max(|z|, epsilon). With `norm_scale`, epsilon is in units of the root mean square of z
    over `dim` (default: all dimensions but the first). A stabilizer or a function of z is taken as it is. In a dtype in
    which epsilon would vanish it is raised to the dtype's smallest normal number.
    Errors: `RuleError` for a negative epsilon or one that is no number.
    """
    if isinstance(epsilon, Stabilizer):
        return epsilon
    if callable(epsilon):
        given = epsilon  # which need not know that z may have its channels last in memory
        return Stabilizer(getattr(given, "__name__", type(given).__name__), lambda z: given(z.contiguous()))
    size = number("a stabilizer that is not a function", epsilon)
    extras = [name for name, given in (("clip", clip), ("norm_scale", norm_scale)) if given]

    def function(z: Tensor) -> Tensor:
        info = torch.finfo(z.dtype)
        smallest = max(size, info.smallest_normal)
        if not extras:
            return add(_away(z + 0.0, smallest, is_spare=True), z)  # -0.0 + 0.0 is 0.0, whose sign is +
        threshold: float | Tensor = smallest
        if norm_scale:
            axes = tuple(range(1, z.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
            floor = max(size * info.eps, info.smallest_normal)  # for a z that is zero everywhere
            threshold = (z.square().mean(dim=axes, keepdim=True).sqrt() * size).clamp(min=floor)
        magnitude = z.abs().clamp(min=threshold) if clip else z.abs() + threshold
        return torch.where(z < 0, -magnitude, magnitude)

    return Stabilizer(", ".join([f"{epsilon:g}", *extras]), function, None if extras and size else size)


def number(name: str, value) -> float:
    """A hyperparameter as a finite number >= 0. Errors: `RuleError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise RuleError(f"{name} must be a number >= 0, but is {value!r}.")
    return float(value)


def _away(z: Tensor, threshold: float, is_spare: bool = False) -> Tensor:
    """sign(z) threshold. `is_spare`: nobody else needs z."""
    size = z.new_full((), threshold)
    return torch.copysign(size, z, out=z) if is_spare and is_plain(z) else torch.copysign(size, z)


def _safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Zero where the denominator is zero, with a derivative that is zero there as well."""
    is_zero = denominator == 0
    return torch.where(is_zero, 0.0, numerator / torch.where(is_zero, 1.0, denominator))
