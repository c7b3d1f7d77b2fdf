"""Stabilizers of denominators."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.program import add, divide, is_plain


@dataclass(frozen=True)
class Stabilizer:
    """A function S that keeps a denominator away from zero, with a label: what one would write to have it.

    Args:
        label: the call that makes it.
        function: S, of a tensor.
        epsilon: if not None, S(z) = z + sign(z) epsilon, with sign(0) = +1, which fast paths know how to write.

    >>> import lrpfunc, torch
    >>> lrpfunc.stabilizer(0.5)(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-1.5000,  0.5000,  1.5000])
    """

    label: str
    function: Callable[[Tensor], Tensor]
    epsilon: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)

    def __reduce__(self):
        check_named(f"stabilizer '{self.label}'", self.function)
        return Stabilizer, (self.label, self.function, self.epsilon)

    def __copy__(self) -> Stabilizer:
        return self

    def __deepcopy__(self, memo) -> Stabilizer:
        return self

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
        if self.epsilon is None or value.is_complex():
            return value / self(value)
        if is_nonnegative:
            return divide(value, value + self.threshold(value.dtype))
        return divide(value, add(_away(value, self.threshold(value.dtype)), value))


StabilizerLike = float | Stabilizer | Callable[[Tensor], Tensor]


def as_stabilizer(stabilizer: StabilizerLike) -> Stabilizer:
    """The stabilizer that is meant by an epsilon, by a function of z, or by a stabilizer, which is taken as it is."""
    if isinstance(stabilizer, Stabilizer):
        return stabilizer
    if not callable(stabilizer):
        return _usual(number("a stabilizer that is not a function", stabilizer))
    label = getattr(stabilizer, "__name__", type(stabilizer).__name__)
    return Stabilizer(label, functools.partial(_of_contiguous, stabilizer))


def _of_contiguous(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The value of a user's function, which need not know that z may have its channels last in memory."""
    return function(z.contiguous())


def stabilizer(
    epsilon: StabilizerLike = 1e-6, clip: bool = False, norm_scale: bool = False, dim: int | Sequence[int] | None = None
) -> Stabilizer:
    """A stabilizer of denominators: S(z) = z + sign(z) epsilon, where sign(0) = +1.

    Args:
        epsilon: what |S(z)| is at least, in units of z; 0 for none. In a dtype in which it would vanish it is raised to
            the dtype's smallest normal number. A stabilizer or a function of z is taken as it is.
        clip: S(z) = sign(z) max(|z|, epsilon) instead.
        norm_scale: epsilon is in units of the root mean square of z over `dim`.
        dim: dimensions of z, by default all but the first.
    Errors: `RuleError` for a negative epsilon or one that is no number.

    >>> import lrpfunc, torch
    >>> lrpfunc.stabilizer(1.0)(torch.tensor([-2.0, 0.0, 0.5]))
    tensor([-3.0000,  1.0000,  1.5000])
    >>> lrpfunc.stabilizer(1.0, clip=True)(torch.tensor([-2.0, 0.0, 0.5]))
    tensor([-2.,  1.,  1.])
    """
    if isinstance(epsilon, Stabilizer) or callable(epsilon) or not (clip or norm_scale):
        return as_stabilizer(epsilon)
    size = number("a stabilizer that is not a function", epsilon)
    function = functools.partial(_guarded, size, clip, norm_scale, dim)
    extras = [f"{name}=True" for name, given in (("clip", clip), ("norm_scale", norm_scale)) if given]
    axes = [] if dim is None else [f"dim={dim if isinstance(dim, int) else tuple(dim)}"]
    label = f"stabilizer({', '.join([literal(size), *extras, *axes])})"
    return Stabilizer(label, function, None if size else size)


def _guarded(size: float, clip: bool, norm_scale: bool, dim: int | Sequence[int] | None, z: Tensor) -> Tensor:
    """S(z) of `stabilizer` with `clip` or `norm_scale`."""
    info = torch.finfo(z.dtype)
    threshold: float | Tensor = max(size, info.smallest_normal)
    if norm_scale:
        axes = tuple(range(1, z.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
        floor = max(size * info.eps, info.smallest_normal)  # for a z that is zero everywhere
        threshold = (z.abs().square().mean(dim=axes, keepdim=True).sqrt() * size).clamp(min=floor)
    magnitude = z.abs().clamp(min=threshold) if clip else z.abs() + threshold
    return _direction(z) * magnitude if z.is_complex() else torch.where(z < 0, -magnitude, magnitude)


def _usual(size: float) -> Stabilizer:
    """S(z) = z + sign(z) size."""
    return Stabilizer(literal(size), functools.partial(_shifted, size), size)


def _shifted(size: float, z: Tensor) -> Tensor:
    if z.is_complex():
        return z + _direction(z) * max(size, torch.finfo(z.dtype).smallest_normal)
    # -0.0 + 0.0 is 0.0, whose sign is +
    return add(_away(z + 0.0, max(size, torch.finfo(z.dtype).smallest_normal), is_spare=True), z)


def settings_of(stabilizer: Stabilizer) -> tuple:
    """What `stabilizer` is given to make one. Errors: `RuleError` for a function of somebody's own."""
    function = stabilizer.function
    if isinstance(function, functools.partial) and function.func in (_shifted, _guarded):
        return function.args
    raise RuleError(
        f"stabilizer '{stabilizer.label}' is code of your own, which a file without code cannot hold. Save the program "
        "with its parameters, and prepare it again when it is loaded."
    )


def check_named(who: str, function: Any) -> None:
    """Refuse to pickle a function that its module does not know by name."""
    while isinstance(function, functools.partial):
        function = next((a for a in function.args if isinstance(a, FunctionType)), function.func)
    if not isinstance(function, FunctionType):
        return
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not function:
        raise RuleError(
            f"{who} cannot be pickled: its function '{function.__qualname__}' of {function.__module__} has no name at "
            "module level, where another process could find it. Define its functions at module level."
        )


def number(name: str, value) -> float:
    """A hyperparameter as a finite number >= 0. Errors: `RuleError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise RuleError(f"{name} must be a number >= 0, but is {value!r}.")
    return float(value)


def literal(value: float) -> str:
    """A number as one would write it: as short as it may be without being another one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _direction(z: Tensor) -> Tensor:
    """z / |z|, 1 at zero: the sign of a complex number."""
    return torch.where(z == 0, 1.0, z.sgn())


def _away(z: Tensor, threshold: float, is_spare: bool = False) -> Tensor:
    """sign(z) threshold. `is_spare`: nobody else needs z."""
    size = z.new_full((), threshold)
    return torch.copysign(size, z, out=z) if is_spare and is_plain(z) else torch.copysign(size, z)


def _safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Zero where the denominator is zero, with a derivative that is zero there as well."""
    is_zero = denominator == 0
    return torch.where(is_zero, 0.0, numerator / torch.where(is_zero, 1.0, denominator))
