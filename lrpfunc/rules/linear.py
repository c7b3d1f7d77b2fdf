"""The rules of linear equations: how a layer's relevance is shared among its inputs.

Notation: x input, W weight, b bias, z = W x + b, R relevance of the output, S stabilizer, + and - clamp at 0, and ^T is
the adjoint in x. Each rule states its branches, which the engine runs; some have closed forms that are faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.rules import closed_forms, engine
from lrpfunc.rules.labels import Label, call
from lrpfunc.rules.rule import COEFFICIENTS, Rule, as_coefficients
from lrpfunc.rules.stabilizers import Stabilizer, StabilizerLike, as_stabilizer, number
from lrpfunc.rules.statements import ALL, NEGATIVE, ONES, POSITIVE, Branch, Make, Term, negative, positive, state, whole


def _unless(zero_bias: bool, make: Make) -> Make | None:
    """What is made of the bias, unless it is left out."""
    return None if zero_bias else make


# -- sharing by contribution ------------------------------------------------------------------------------------------


def epsilon(epsilon: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by contribution: R_j = x_j sum_i w_ij R_i / S(z_i). epsilon = 0 is LRP-0, which is input times gradient.

    The bias keeps its share, so totals match only without biases.

    Args:
        epsilon: S, an epsilon in units of z, a `stabilizer` or a function.
        zero_bias: leave the bias out of z.
    Errors: `RuleError` for a negative epsilon; in use, for an equation that is not linear.
    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 58.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.epsilon(1.0), torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])  # z = (3, 1)
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[3.0, 1.0]]))[0]
    tensor([[1.7500, 1.0000]])
    """
    stabilize = as_stabilizer(epsilon)
    return _proportional(call("epsilon", stabilize, zero_bias=zero_bias), stabilize, zero_bias)


def norm(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Share by contribution where there are no parameters (sums, average pooling): R_j = x_j A^T (R / S(A x))_j.

    Args:
        stabilizer: S, an epsilon in units of A x, a `stabilizer` or a function.
    Errors: `RuleError` in use, for an equation that is not linear.

    >>> import lrpfunc, torch
    >>> a, b = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, a, b: a + b, {}, a, b)
    >>> rules = lrpfunc.composites.by_kind({"sum": lrpfunc.rules.norm(0)})
    >>> lrpfunc.attribute(fmodel, params, (a, b), rules, target=lambda y: torch.full_like(y, 2.0))
    (tensor([[1.5000]]), tensor([[0.5000]]))
    """
    stabilize = as_stabilizer(stabilizer)
    return _proportional(call("norm", stabilizer=stabilize), stabilize, zero_bias=False)


def transform(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """A linear map without parameters that only says the same in other words, as a Fourier transform does: c_x = A^T c.

    A coefficient is moved as it is, so that what is zero in the new words is never divided by; a relevance is divided
    by the stabilized output first. Of complex values R = Re(v conj(c)).

    Args:
        stabilizer: S, an epsilon in units of A x, a `stabilizer` or a function.
    Errors: `RuleError` in use, for an equation that is not linear.
    Source: Vielhaben et al. 2024, arXiv:2303.06365 (DFT-LRP), for the Fourier transform.

    >>> import lrpfunc, torch
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, x: torch.fft.irfft(torch.fft.rfft(x), n=2), {}, x)
    >>> lrpfunc.attribute(fmodel, params, x, lrpfunc.rules.epsilon(0), target=1).round(decimals=4)
    tensor([[0., 2.]])
    """
    stabilize = as_stabilizer(stabilizer)

    def forward(operation, *inputs):
        output = operation(*inputs)
        return output, None if operation.gets_coefficients else output

    def backward(operation, output, flow):
        return as_coefficients(operation.adjoint(flow.coefficient(output, stabilize, as_it_is=True)))

    return Rule(call("transform", stabilizer=stabilize), forward, backward, gives=COEFFICIENTS, any_layout=True)


def _proportional(label: Label, stabilize: Stabilizer, zero_bias: bool) -> Rule:
    branch = Branch((Term(whole, ALL),), _unless(zero_bias, whole))
    return engine.rule(label, state([branch], stabilize, needs_weight=False))


# -- sharing by sign --------------------------------------------------------------------------------------------------


def zplus(stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by positive contribution only: alpha_beta(1, 0).

    Args:
        stabilizer: S, an epsilon in units of z, a `stabilizer` or a function.
        zero_bias: leave the bias out.
    Errors: `RuleError` in use, for an equation without a weight.
    Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.zplus(0), torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])  # W+ x+ = (3, 2)
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[3.0, 2.0]]))[0]
    tensor([[3., 2.]])
    """
    label = call("zplus", stabilizer=as_stabilizer(stabilizer), zero_bias=zero_bias)
    return alpha_beta(1, 0, stabilizer, zero_bias)._replace(label=label)


def alpha_beta(
    alpha: float = 2.0, beta: float = 1.0, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False
) -> Rule:
    """Share alpha R by positive and -beta R by negative contributions, each over its own terms.

    d_a = W+ x+ + W- x- + b+ and d_b = W- x+ + W+ x- + b-, each of which shares its R / S(d) over its own terms.

    Args:
        alpha: the share of positive contributions.
        beta: the share of negative contributions, alpha - 1.
        stabilizer: S, an epsilon in units of z, a `stabilizer` or a function.
        zero_bias: leave the bias out.
    Errors: `RuleError` unless alpha - beta = 1 (up to rounding) and both are >= 0; in use, for an equation without a
        weight.
    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 60.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.alpha_beta(2, 1, 0), torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])  # d_a = (3, 2), d_b = (0, -1)
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[0.0, 2.0]]))[0]
    tensor([[ 4., -2.]])
    """
    alpha, beta = number("alpha", alpha), number("beta", beta)
    if not math.isclose(alpha - beta, 1.0, abs_tol=1e-9):
        raise RuleError(f"alpha_beta needs alpha - beta = 1 and both >= 0, but got alpha = {alpha:g}, beta = {beta:g}.")
    stabilize = as_stabilizer(stabilizer)
    gains = (Term(positive, POSITIVE), Term(negative, NEGATIVE))
    losses = (Term(negative, POSITIVE), Term(positive, NEGATIVE))
    branches = [
        Branch(gains, _unless(zero_bias, positive), share=1 + beta, sign=1),
        Branch(losses, _unless(zero_bias, negative), share=-beta, sign=-1),
    ]
    label = call("alpha_beta", alpha, beta, stabilizer=stabilize, zero_bias=zero_bias)
    rule = engine.rule(label, state(branches if beta else branches[:1], stabilize))
    return rule._replace(recalls=bool(beta) and not zero_bias and stabilize.epsilon is not None)


def gamma(gamma: float = 0.25, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Favour contributions of the output's own sign by gamma (generalized to inputs and outputs of any sign).

    z > 0: share by (W + gamma W+) x+ + (W + gamma W-) x- + b + gamma b+; z < 0: the mirror image; z the true output.

    Args:
        gamma: by how much; 0 is the epsilon rule.
        stabilizer: S, an epsilon in units of z, a `stabilizer` or a function.
        zero_bias: leave the bias out of what is shared by.
    Errors: `RuleError` for a negative gamma; in use, for an equation without a weight.
    Source: Andeol et al. 2021, arXiv:2106.13727; Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.gamma(1.0, 0), torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])  # (W + W+) x = (6, 3)
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[6.0, 3.0]]))[0]
    tensor([[6., 3.]])
    """
    gamma = number("gamma", gamma)
    stabilize = as_stabilizer(stabilizer)

    def up(w: Tensor) -> Tensor:
        return w + gamma * w.clamp(min=0)

    def down(w: Tensor) -> Tensor:
        return w + gamma * w.clamp(max=0)

    branches = [
        Branch((Term(up, POSITIVE), Term(down, NEGATIVE)), _unless(zero_bias, up), where=1),
        Branch((Term(down, POSITIVE), Term(up, NEGATIVE)), _unless(zero_bias, down), where=-1),
    ]
    closed = closed_forms.gamma(gamma, stabilize) if stabilize.epsilon and not zero_bias else None
    label = call("gamma", gamma, stabilizer=stabilize, zero_bias=zero_bias)
    return engine.rule(label, state(branches, stabilize), closed)


# -- sharing whatever the input ---------------------------------------------------------------------------------------


def zbox(low: float | Tensor, high: float | Tensor, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """For the first layer, whose inputs lie in a box: z = W x - W+ low - W- high, shared over these terms.

    Args:
        low: the least that the inputs can be, in their units: a number, or a tensor that broadcasts to one sample (or
            to the batch, with a batch dimension).
        high: the most, likewise.
        stabilizer: S, an epsilon in units of z, a `stabilizer` or a function.
        zero_bias: for other rules' sake; the bias is left out anyway.
    Errors: `RuleError` in use, for a shape that fits neither, and for an equation without a weight.
    Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.zbox(-1, 3, 0), torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])  # z = (5, 4.5)
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[5.0, 4.5]]))[0]
    tensor([[6.0000, 3.5000]])
    """
    stabilize = as_stabilizer(stabilizer)
    for name, bound in (("low", low), ("high", high)):
        if not isinstance(bound, (Real, Tensor)):
            raise RuleError(f"'{name}' of zbox must be a number or a tensor, but is {bound!r}.")

    def above(x: Tensor) -> Tensor:
        return x - _bound("low", low, x.shape, x)

    def below(x: Tensor) -> Tensor:
        return x - _bound("high", high, x.shape, x)

    statement = state([Branch((Term(positive, above), Term(negative, below)))], stabilize)

    def corner(operation, samples: int) -> Tensor:
        """W+ low + W- high + b."""
        shape, weight = (samples, *operation.sample_shape), operation.weight
        lows, highs = _bound("low", low, shape, weight), _bound("high", high, shape, weight)
        ((of_low, of_high),) = operation.hoisted(statement.weights)
        return operation.linear(of_low, operation.bias)(lows) + operation.linear(of_high)(highs)

    def is_batch(operation) -> bool:
        shape = ("batch", *operation.sample_shape)
        shaped = [_shaped(name, torch.as_tensor(b), shape) for name, b in (("low", low), ("high", high))]
        return any(b.dim() > 0 and len(b) != 1 for b in shaped)

    label = call("zbox", low, high, stabilizer=stabilize, zero_bias=zero_bias)
    return engine.rule(label, statement, closed_forms.box(statement, corner, is_batch))


def _bound(name: str, bound: float | Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """A bound that broadcasts to an input of this shape, and that way only: nothing is broadcast by accident."""
    shaped = _shaped(name, torch.as_tensor(bound, dtype=like.dtype, device=like.device), shape)
    return shaped.expand(shaped.shape[:1] + tuple(shape[1:])) if shaped.dim() else shaped.expand(1, *shape[1:])


def _shaped(name: str, bound: Tensor, shape: Sequence[int | str]) -> Tensor:
    """A bound with a batch dimension. Errors: `RuleError` if it surely does not fit an input of this shape."""
    shaped = bound.unsqueeze(0) if bound.dim() == len(shape) - 1 else bound
    fits = all(size in (1, full) or isinstance(full, str) for size, full in zip(shaped.shape, shape, strict=False))
    if bound.dim() not in (0, len(shape) - 1, len(shape)) or not fits:
        raise RuleError(
            f"'{name}' of zbox must be a number or have the dimensions of one sample, each of size 1 or as in "
            f"{tuple(shape[1:])}, but has shape {tuple(bound.shape)}. Write a size of 1 for each dimension it spans."
        )
    return shaped


def wsquare(stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by squared weights, whatever the input: R_x = (W^2)^T (R / S(W^2 1 + b^2)).

    Args:
        stabilizer: S, an epsilon in units of W^2, a `stabilizer` or a function.
        zero_bias: leave the bias out.
    Errors: `RuleError` in use, for an equation without a weight.
    Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.wsquare(0), torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])  # W^2 1 = (2, 4.25)
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[2.0, 4.25]]))[0]
    tensor([[5.0000, 1.2500]])
    """
    stabilize = as_stabilizer(stabilizer)
    statement = state([Branch((Term(torch.square, ONES),), _unless(zero_bias, torch.square))], stabilize)
    label = call("wsquare", stabilizer=stabilize, zero_bias=zero_bias)
    return engine.rule(label, statement, closed_forms.one_sample(statement))


def flat(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Share evenly among the inputs of each output: R_x = 1^T (R / S(1 1)), with all weights one and no bias.

    Args:
        stabilizer: S, an epsilon in units of a count of inputs, a `stabilizer` or a function.
    Errors: `RuleError` in use, for a layer whose weight is no parameter.
    Source: Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.flat(0), torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[2.0, 4.0]]))[0]
    tensor([[3., 3.]])
    """
    stabilize = as_stabilizer(stabilizer)
    statement = state([Branch((Term(torch.ones_like, ONES),))], stabilize, needs_weight=False)
    label = call("flat", stabilizer=stabilize)
    return engine.rule(label, statement, closed_forms.one_channel(statement))
