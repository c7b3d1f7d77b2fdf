"""The rules of linear equations: how a layer's relevance is shared among its inputs.

Notation: x input, W weight, b bias, z = W x + b, R relevance of the output, S stabilizer, + and - clamp at 0, and ^T is
the adjoint in x. Rules that multiply by their input hand back coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import CONVOLUTION, DENSE, Flow, Operation
from lrpfunc.rules.rule import Rule, StabilizerLike, as_coefficients, number, share, stabilizer

Parameters = tuple[Tensor, Tensor | None]


def _label(name: str, *values, zero_bias: bool = False) -> str:
    shown = [value if isinstance(value, str) else f"{value:g}" for value in values]
    return f"{name}({', '.join(shown + ['zero_bias'] * zero_bias)})"


def _bias(operation: Operation, zero_bias: bool) -> Tensor | None:
    return None if zero_bias else operation.bias


def _map(function: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else function(tensor)


def epsilon(epsilon: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by contribution: R_j = x_j sum_i w_ij R_i / S(z_i). epsilon = 0 is LRP-0, which is input times gradient.

    The bias keeps its share, so totals match only without biases; `zero_bias` leaves it out of z.
    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 58.
    """
    stabilize = stabilizer(epsilon)
    forward, backward = _proportional(stabilize, zero_bias)
    return Rule(_label("epsilon", stabilize.label, zero_bias=zero_bias), forward, backward)


def norm(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Share by contribution where there are no parameters (sums, average pooling): R_j = x_j A^T (R / S(A x))_j."""
    stabilize = _stabilizer(stabilizer)
    forward, backward = _proportional(stabilize, zero_bias=False)
    return Rule(_label("norm", stabilize.label), forward, backward)


def _proportional(stabilize, zero_bias: bool):
    def forward(operation, *inputs):
        output = operation(*inputs)
        if zero_bias and operation.bias is not None:
            return output, (output, operation.without_bias()(*inputs))
        return output, (output, output)

    def backward(operation, residuals, flow):
        output, z = residuals
        return as_coefficients(operation.adjoint(share(flow, output, z, stabilize)))

    return forward, backward


def zplus(stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by positive contribution only: alpha_beta(1, 0).

    Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.
    """
    return alpha_beta(1, 0, stabilizer, zero_bias)._replace(label=_label("zplus", zero_bias=zero_bias))


def alpha_beta(
    alpha: float = 2.0, beta: float = 1.0, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False
) -> Rule:
    """Share alpha R by positive and -beta R by negative contributions, each over its own terms.

    d_a = W+ x+ + W- x- + b+ and d_b = W- x+ + W+ x- + b-, each of which shares its R / S(d) over its own terms.
    Errors: `RuleError` unless alpha - beta = 1 (up to rounding) and both are >= 0.
    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 60.
    """
    alpha, beta = number("alpha", alpha), number("beta", beta)
    if not math.isclose(alpha - beta, 1.0, abs_tol=1e-9):
        raise RuleError(f"alpha_beta needs alpha - beta = 1 and both >= 0, but got alpha = {alpha:g}, beta = {beta:g}.")
    stabilize = _stabilizer(stabilizer)

    def split(operation) -> tuple[Parameters, Parameters]:
        weight, bias = operation.weight, _bias(operation, zero_bias)
        positive = weight.clamp(min=0), _map(lambda b: b.clamp(min=0), bias)
        return positive, (weight.clamp(max=0), _map(lambda b: b.clamp(max=0), bias))

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        positive, negative = split(operation)
        output = operation(x)
        first = _contributions(operation, x, positive, negative)
        second = _contributions(operation, x, negative, positive) if beta else None
        return output, (x, output, first, second)

    def backward(operation, residuals, flow):
        x, output, first, second = residuals
        positive, negative = split(operation)
        s_first = alpha * share(flow, output, first, stabilize)
        s_second = None if second is None else -beta * share(flow, output, second, stabilize)
        return _signed_adjoint(operation, x, positive[0], negative[0], s_first, s_second)

    return Rule(_label("alpha_beta", alpha, beta, zero_bias=zero_bias), forward, backward)


def gamma(gamma: float = 0.25, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Favour contributions of the output's own sign by gamma (generalized to inputs and outputs of any sign).

    z > 0: share by (W + gamma W+) x+ + (W + gamma W-) x- + b + gamma b+; z < 0: the mirror image; z the true output.
    Errors: `RuleError` for a negative gamma. Source: Andeol et al. 2021, arXiv:2106.13727; Montavon et al. 2019.
    """
    gamma = number("gamma", gamma)
    stabilize = _stabilizer(stabilizer)

    def favour(operation) -> tuple[Parameters, Parameters]:
        weight, bias = operation.weight, _bias(operation, zero_bias)

        def up(p: Tensor) -> Tensor:
            return p + gamma * p.clamp(min=0)

        def down(p: Tensor) -> Tensor:
            return p + gamma * p.clamp(max=0)

        return (up(weight), _map(up, bias)), (down(weight), _map(down, bias))

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        up, down = favour(operation)
        output = operation(x)
        return output, (x, output, _contributions(operation, x, up, down), _contributions(operation, x, down, up))

    def backward(operation, residuals, flow):
        x, output, rising, falling = residuals
        up, down = favour(operation)
        s_up = torch.where(output > 0, share(flow, output, rising, stabilize), 0.0)
        s_down = torch.where(output < 0, share(flow, output, falling, stabilize), 0.0)
        return _signed_adjoint(operation, x, up[0], down[0], s_up, s_down)

    return Rule(_label("gamma", gamma, zero_bias=zero_bias), forward, backward)


def _contributions(operation: Operation, x: Tensor, own: Parameters, other: Parameters) -> Tensor:
    """A denominator over signed terms: own(x+) + other(x-), with own's bias."""
    return operation.linear(*own)(x.clamp(min=0)) + operation.linear(other[0])(x.clamp(max=0))


def _signed_adjoint(operation: Operation, x: Tensor, own: Tensor, other: Tensor, s_own, s_other) -> Flow:
    """The coefficients of x of the shares s_own of own(x+) + other(x-), and s_other of other(x+) + own(x-)."""
    first, second = operation.linear(own), operation.linear(other)
    positive, negative = first.adjoint(s_own), second.adjoint(s_own)
    if s_other is not None:
        positive, negative = positive + second.adjoint(s_other), negative + first.adjoint(s_other)
    return Flow(coefficient=torch.where(x < 0, negative, positive))


def zbox(low: float | Tensor, high: float | Tensor, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """For the first layer, whose inputs lie in a box: z = W x - W+ low - W- high, shared over these terms.

    `low` and `high`, in units of that layer's input, are numbers, or tensors that broadcast to one sample (or to the
    batch, with a batch dimension).
    Errors: `RuleError` for a shape that fits neither. Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.
    """
    stabilize = _stabilizer(stabilizer)
    for name, bound in (("low", low), ("high", high)):
        if not isinstance(bound, (Real, Tensor)):
            raise RuleError(f"'{name}' of zbox must be a number or a tensor, but is {bound!r}.")

    def terms(operation, x):
        weight = operation.weight
        return (
            (operation.linear(weight), x),
            (operation.linear(weight.clamp(min=0)), _bound("low", low, x)),
            (operation.linear(weight.clamp(max=0)), _bound("high", high, x)),
        )

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        (whole, _), (up, lows), (down, highs) = terms(operation, x)
        output = operation(x)
        return output, (x, output, whole(x) - up(lows) - down(highs))

    def backward(operation, residuals, flow):
        x, output, z = residuals
        s = share(flow, output, z, stabilize)
        (whole, _), (up, lows), (down, highs) = terms(operation, x)
        return Flow(relevance=x * whole.adjoint(s) - lows * up.adjoint(s) - highs * down.adjoint(s))

    shown = (f"{bound:g}" if isinstance(bound, (int, float)) else "tensor" for bound in (low, high))
    return Rule(_label("zbox", *shown, zero_bias=zero_bias), forward, backward)


def _bound(name: str, bound: float | Tensor, x: Tensor) -> Tensor:
    """A bound in the shape of x. Only one reading of its shape is allowed, so nothing is broadcast by accident."""
    bound = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
    shaped = bound.unsqueeze(0) if bound.dim() == x.dim() - 1 else bound
    fits = all(size in (1, full) for size, full in zip(shaped.shape, x.shape, strict=False))
    if bound.dim() not in (0, x.dim() - 1, x.dim()) or not fits:
        raise RuleError(
            f"'{name}' of zbox must be a number or have the dimensions of one sample, each of size 1 or as in "
            f"{tuple(x.shape[1:])}, but has shape {tuple(bound.shape)}. Write a size of 1 for each dimension it spans."
        )
    return shaped.expand(x.shape)


def wsquare(stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by squared weights, whatever the input: R_x = (W^2)^T (R / S(W^2 1 + b^2)).

    Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.
    """
    stabilize = _stabilizer(stabilizer)

    def squared(operation) -> Operation:
        return operation.linear(operation.weight.square(), _map(torch.square, _bias(operation, zero_bias)))

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        output = operation(x)
        return output, (output, squared(operation)(torch.ones_like(x)))

    def backward(operation, residuals, flow):
        output, z = residuals
        return Flow(relevance=squared(operation).adjoint(share(flow, output, z, stabilize)))

    return Rule(_label("wsquare", zero_bias=zero_bias), forward, backward)


def flat(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Share evenly among the inputs of each output: R_x = 1^T (R / S(1 1)), with all weights one and no bias.

    Source: Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4.
    """
    stabilize = _stabilizer(stabilizer)

    def even(operation) -> Operation:
        return operation.linear(torch.ones_like(operation.weight)) if operation.is_weighted else operation

    def forward(operation, *inputs):
        if operation.operator.kind in (CONVOLUTION, DENSE):
            _weighted(operation, inputs)
        output = operation(*inputs)
        return output, (output, even(operation)(*map(torch.ones_like, inputs)))

    def backward(operation, residuals, flow):
        output, z = residuals
        moved = even(operation).adjoint(share(flow, output, z, stabilize))
        return tuple(Flow(relevance=r) for r in moved) if isinstance(moved, tuple) else Flow(relevance=moved)

    return Rule("flat", forward, backward)


def _weighted(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
    """The only input of an equation with a weight."""
    if not operation.is_weighted or len(inputs) != 1:
        raise RuleError(f"{operation.description} has no weight, but the rule needs a weighted equation.")
    return inputs[0]


_stabilizer = stabilizer  # the rules' own argument has the same name
