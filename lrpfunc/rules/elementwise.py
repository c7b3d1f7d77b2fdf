"""The rules of equations with one input that work element by element: activations, scales and shifts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.program import minimum
from lrpfunc.rules.flows import Flow, rectify
from lrpfunc.rules.labels import call
from lrpfunc.rules.rule import SAME, SHIFTED, Rule
from lrpfunc.rules.stabilizers import StabilizerLike, as_stabilizer, number

SINGLE = 4  # bytes


def relu_deconvnet() -> Rule:
    """Keep what is positive on its way back, whatever the input was: R_x = R+.

    Source: Zeiler and Fergus 2014, doi:10.1007/978-3-319-10590-1_53.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.relu_deconvnet(), torch.relu)
    >>> torch.func.vjp(f, torch.tensor([-1.0, 2.0, 3.0]))[1](torch.tensor([1.0, 3.0, -4.0]))[0]
    tensor([1., 3., 0.])
    """
    return _of_input(call("relu_deconvnet"), lambda operation, x, relevance: relevance.clamp(min=0))


def relu_guided_backprop() -> Rule:
    """The gradient where R is positive: R_x = f'(x) R where R > 0, else 0.

    Source: Springenberg et al. 2015, arXiv:1412.6806.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.relu_guided_backprop(), torch.relu)
    >>> torch.func.vjp(f, torch.tensor([-1.0, 2.0, 3.0]))[1](torch.tensor([1.0, 3.0, -4.0]))[0]
    tensor([0., 3., 0.])
    """
    return _of_input(
        call("relu_guided_backprop"),
        lambda operation, x, relevance: torch.where(relevance > 0, operation.vjp([x], relevance), 0.0),
    )


def relu_beta_smooth(beta: float = 10.0) -> Rule:
    """The gradient of a softplus in a ReLU's place: R_x = sigmoid(beta x) R.

    Args:
        beta: how sharply the softplus bends, in units of 1 / x; the larger, the more it is a ReLU.
    Errors: `RuleError` for a negative beta.
    Source: Dombrowski et al. 2019, arXiv:1906.07983.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.relu_beta_smooth(0), torch.relu)
    >>> torch.func.vjp(f, torch.tensor([-1.0, 2.0, 3.0]))[1](torch.tensor([1.0, 3.0, -4.0]))[0]
    tensor([ 0.5000,  1.5000, -2.0000])
    """
    beta = number("beta", beta)
    return _of_input(
        call("relu_beta_smooth", beta), lambda operation, x, relevance: torch.sigmoid(beta * x) * relevance
    )


def _of_input(label: str, move) -> Rule:
    """A rule R_x = move(operation, x, R) of an equation with one input and an output of the same shape."""

    def forward(operation, *inputs):
        output = operation(*inputs)
        if len(inputs) != 1 or output.shape != inputs[0].shape:
            raise RuleError(f"{operation.description} must have one input, of its output's shape.")
        return output, (inputs[0], output)

    def backward(operation, residuals, flow):
        x, output = residuals
        return Flow(relevance=move(operation, x, flow.relevance(output)))

    return Rule(label, forward, backward, any_layout=True)


def affine(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Scaled or shifted by constants: a factor takes no share, a shift keeps its share as a bias does.

    Of y = a x + b a coefficient is moved by the adjoint, c_x = a c, so that what is shifted and cancels to zero
    (attention scores under a mask, say) is never divided by. A relevance passes a factor unchanged, R_x = R, and at a
    shift it is shared by contribution, R_x = a x R / S(y), unless it was shared whatever the value is (flat, zbox).

    Args:
        stabilizer: S, an epsilon in units of y, a `stabilizer` or a function.
    Errors: `RuleError` for an equation with several inputs.

    >>> import lrpfunc, torch
    >>> fmodel, params = lrpfunc.trace(lambda p, x: x * 3 + 2, {}, torch.ones(1, 2))
    >>> rules = lrpfunc.composites.by_kind({"affine": lrpfunc.rules.affine(0)})
    >>> lrpfunc.attribute(fmodel, params, torch.ones(1, 2), rules, target=0)
    tensor([[3., 0.]])
    """
    stabilize = as_stabilizer(stabilizer)

    def forward(operation, *inputs):
        if len(inputs) != 1:
            raise RuleError(f"{operation.description} must have one input that is scaled or shifted by constants.")
        output = operation(*inputs)
        needs_output = operation.row.shifts and not operation.gets_coefficients
        return output, (None if operation.is_linear else inputs, output if needs_output else None)

    def backward(operation, residuals, flow):
        inputs, output = residuals
        if flow.is_relevance and not (operation.row.shifts and flow.by_value):
            return flow.moved(flow.tensor.sum_to_size(operation.shapes[0]))
        c = flow.coefficient(output, stabilize, as_it_is=True)
        return Flow(coefficient=operation.adjoint(c) if operation.is_linear else operation.vjp(inputs, c))

    return Rule(call("affine", stabilizer=stabilize), forward, backward, gives=SHIFTED, any_layout=True)


def clamp(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """A piecewise linear activation, of which what it cuts off is a constant and keeps its share, as a bias does.

    Of y = min(max(x, low), high) R_x = R where y = x, else 0; with a slope beyond the bends, as LeakyReLU has,
    R_x = slope x R / S(y) there. It is the default of threshold ReLUs, so that LRP-0 is input times gradient.

    Args:
        stabilizer: S, an epsilon in units of y, a `stabilizer` or a function; used with a slope alone.
    Errors: `RuleError` for an equation that is no ReLU, ReLU6, hardtanh, LeakyReLU or clamp by numbers.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.clamp(), torch.relu)
    >>> torch.func.vjp(f, torch.tensor([-1.0, 2.0]))[1](torch.tensor([3.0, 4.0]))[0]
    tensor([0., 4.])
    """
    stabilize = as_stabilizer(stabilizer)

    def forward(operation, x, *others):
        bounds = None if others or operation.row.bounds is None else operation.row.bounds(operation)
        if bounds is None:
            raise RuleError(f"{operation.description} must be a ReLU of some kind, or a clamp by numbers.")
        y = operation(x)
        return y, (bounds, x if bounds.slope else None, y)

    def backward(operation, residuals, flow):
        (low, high, slope), x, y = residuals
        if flow.is_relevance and not flow.by_value:
            return flow
        if not slope:
            return flow.moved(_between(flow.tensor, y, low, high))
        from_bend = minimum(y - low, high - y)
        beyond = x * stabilize.quotient(flow.tensor, y) if flow.is_relevance else flow.tensor
        return flow.moved(torch.where(from_bend > 0, flow.tensor, slope * beyond))

    return Rule(call("clamp", stabilizer=stabilize), forward, backward, gives=SAME, any_layout=True)


def _between(tensor: Tensor, y: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """`tensor` where low < y < high, else 0."""
    if isinstance(low, Tensor) or low > -math.inf:
        if margin := _margin(y.dtype, low):
            tensor = torch.where(y.float() > low + margin, tensor, 0.0)
        else:
            tensor = rectify(tensor, y if isinstance(low, float) and low == 0 else y - low)
    if isinstance(high, Tensor) or high < math.inf:
        if margin := _margin(y.dtype, high):
            return torch.where(y.float() < high - margin, tensor, 0.0)
        return rectify(tensor, high - y)
    return tensor


def _margin(dtype: torch.dtype, bound: float | Tensor) -> float:
    """How far from a bound what was clamped there may be, if half precision has no such number.

    A kernel may compare in single precision what is rounded by then, or is not yet.
    """
    if isinstance(bound, Tensor) or dtype.itemsize >= SINGLE:
        return 0.0
    info = torch.finfo(dtype)
    spacing = max(2.0 ** (math.frexp(bound)[1] - 1), info.smallest_normal) * info.eps
    return spacing / 2 if bound % spacing else 0.0
