"""What a rule is, what a stabilizer is, and the rules that fit every equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import Flow, Operation


class Rule(NamedTuple):
    """One LRP rule: two pure functions and a printable label, in the manner of `jax.custom_vjp`.

    `forward(operation, *inputs) -> (output, residuals)` and `backward(operation, residuals, flow) -> flows`, one flow
    (or None) for each input, a single one unwrapped. Residuals are pytrees of tensors, never closures.
    """

    label: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Operation, Any, Flow], Flow | Sequence[Flow | None] | None]


@dataclass(frozen=True)
class Stabilizer:
    """A function S that keeps a denominator away from zero, with a label. `is_identity`: S(z) = z."""

    label: str
    function: Callable[[Tensor], Tensor]
    is_identity: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)


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
        return Stabilizer(getattr(epsilon, "__name__", type(epsilon).__name__), epsilon)
    size = number("a stabilizer that is not a function", epsilon)

    def function(z: Tensor) -> Tensor:
        info = torch.finfo(z.dtype)
        threshold: float | Tensor = max(size, info.smallest_normal)
        if norm_scale:
            axes = tuple(range(1, z.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
            floor = max(size * info.eps, info.smallest_normal)  # for a z that is zero everywhere
            threshold = (z.square().mean(dim=axes, keepdim=True).sqrt() * size).clamp(min=floor)
        if clip:
            magnitude = z.abs().clamp(min=threshold)
            return torch.where(z < 0, -magnitude, magnitude)
        return torch.where(z < 0, z - threshold, z + threshold)

    extras = [name for name, given in (("clip", clip), ("norm_scale", norm_scale)) if given]
    return Stabilizer(", ".join([f"{epsilon:g}", *extras]), function, is_identity=size == 0)


def number(name: str, value) -> float:
    """A hyperparameter as a finite number >= 0. Errors: `RuleError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise RuleError(f"{name} must be a number >= 0, but is {value!r}.")
    return float(value)


def share(flow: Flow, output: Tensor, denominator: Tensor, stabilize: Stabilizer) -> Tensor:
    """R / S(denominator), where the flow arrives at `output`; no division where both are the same and S(z) = z."""
    if denominator is output:
        return flow.coefficient(output, stabilize)
    return Flow(relevance=flow.relevance(output)).coefficient(denominator, stabilize)


def as_coefficients(moved) -> Flow | tuple[Flow, ...]:
    """The result of an adjoint, one tensor or a tuple of them, as coefficient flows."""
    if isinstance(moved, tuple):
        return tuple(Flow(coefficient=tensor) for tensor in moved)
    return Flow(coefficient=moved)


def gradient() -> Rule:
    """Move whichever form arrives by the vector-Jacobian product: J^T R or J^T c.

    For movements and maximum pooling (winner takes all) the two agree; LRP composites use it there. Assigned to every
    equation it gives the plain gradient of a relevance seed.
    """

    def forward(operation, *inputs):
        return operation(*inputs), None if operation.is_linear else inputs

    def backward(operation, inputs, flow):
        moved = operation.adjoint(flow.tensor) if inputs is None else operation.vjp(inputs, flow.tensor)
        return tuple(map(flow.moved, moved)) if isinstance(moved, tuple) else flow.moved(moved)

    return Rule("gradient", forward, backward)


def input_times_gradient(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """R_x = x * J^T (R / S(y)): the first-order share of each input, for what no rule is known of. It conserves little.

    A coefficient is moved as it is; a relevance is first divided by the output, so that scales do not add up.
    """
    stabilize = _stabilizer(stabilizer)

    def forward(operation, *inputs):
        output = operation(*inputs)
        return output, (inputs, output)

    def backward(operation, residuals, flow):
        inputs, output = residuals
        if isinstance(output, (tuple, list)):  # of several outputs whichever form arrives is moved
            moved = operation.vjp(inputs, flow.tensor)
            return tuple(map(flow.moved, moved)) if isinstance(moved, tuple) else flow.moved(moved)
        coefficient = flow.tensor if not flow.is_relevance else flow.coefficient(output, stabilize)
        return as_coefficients(operation.vjp(inputs, coefficient))

    return Rule(f"input_times_gradient({stabilize.label})", forward, backward)


def pass_through() -> Rule:
    """R_x = R: relevance goes through unchanged, as activations and batch norms let it.

    Errors: `RuleError` for an equation with several inputs or whose output does not have its input's shape.
    """

    def forward(operation, *inputs):
        output = operation(*inputs)
        if len(inputs) != 1 or not _broadcasts(inputs[0].shape, output.shape):
            raise RuleError(
                f"{operation.description} must have one input, of its output's shape, for relevance to pass."
            )
        return output, (inputs[0], output)

    def backward(operation, residuals, flow):
        x, output = residuals
        ratio = operation.operator.ratio
        if not flow.is_relevance and ratio is not None:
            return Flow(coefficient=flow.tensor * ratio(x, *operation.arguments[1:]))
        return Flow(relevance=flow.relevance(output).sum_to_size(x.shape))

    return Rule("pass_through", forward, backward)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, full) for size, full in sizes)


_stabilizer = stabilizer  # rules have an argument of the same name
