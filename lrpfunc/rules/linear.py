"""The rules of linear equations: how a layer's relevance is shared among its inputs.

Notation: x input, W weight, b bias, z = W x + b, R relevance of the output, S stabilizer, + and - clamp at 0, and ^T is
the adjoint in x. Rules that multiply by their input hand back coefficients. What depends on parameters only is made by
functions of its own, which `prepare` calls once. Where an input is never below zero its negative part is left out, and
where the output goes to a ReLU alone, the flow that comes back brings relu(z), so that z itself is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import CONVOLUTION, DENSE, GROUPS, Operation
from lrpfunc.program import add, divide, multiply
from lrpfunc.rules.flows import Flow, given
from lrpfunc.rules.rule import COEFFICIENTS, Rule, as_coefficients
from lrpfunc.rules.stabilizers import Stabilizer, StabilizerLike, number, stabilizer


def _label(name: str, *values, zero_bias: bool = False) -> str:
    shown = [value if isinstance(value, str) else f"{value:g}" for value in values]
    return f"{name}({', '.join(shown + ['zero_bias'] * zero_bias)})"


def _bias(operation: Operation, zero_bias: bool) -> Tensor | None:
    return None if zero_bias else operation.bias


def _map(function: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else function(tensor)


def _weighted(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
    """The only input of an equation with a weight."""
    if not operation.is_weighted or len(inputs) != 1:
        raise RuleError(f"{operation.description} has no weight, but the rule needs a weighted equation.")
    if any(operation.keywords.get(factor, 1) < 0 for factor in ("alpha", "beta")):
        raise RuleError(
            f"{operation.description} multiplies its weight or bias by a negative number, so that their signs say "
            "nothing of its contributions. Write the number into them."
        )
    return inputs[0]


# -- sharing by contribution ------------------------------------------------------------------------------------------


def epsilon(epsilon: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by contribution: R_j = x_j sum_i w_ij R_i / S(z_i). epsilon = 0 is LRP-0, which is input times gradient.

    The bias keeps its share, so totals match only without biases; `zero_bias` leaves it out of z.
    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 58.
    """
    stabilize = stabilizer(epsilon)
    forward, backward = _proportional(stabilize, zero_bias)
    label = _label("epsilon", stabilize.label, zero_bias=zero_bias)
    return Rule(label, forward, backward, gives=COEFFICIENTS)


def norm(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Share by contribution where there are no parameters (sums, average pooling): R_j = x_j A^T (R / S(A x))_j."""
    stabilize = _stabilizer(stabilizer)
    forward, backward = _proportional(stabilize, zero_bias=False)
    return Rule(_label("norm", stabilize.label), forward, backward, gives=COEFFICIENTS)


def _proportional(stabilize: Stabilizer, zero_bias: bool):
    def forward(operation, *inputs):
        output = operation(*inputs)
        if zero_bias and operation.bias is not None:
            return output, (output, operation.without_bias()(*inputs))
        return output, (_kept(operation, output, stabilize), None)

    def backward(operation, residuals, flow):
        output, without_bias = residuals
        if without_bias is not None:
            return as_coefficients(operation.adjoint(stabilize.quotient(flow.relevance(output), without_bias)))
        return as_coefficients(operation.adjoint(flow.coefficient(output, stabilize)))

    return forward, backward


def _kept(operation: Operation, output: Tensor, stabilize: Stabilizer) -> Tensor | None:
    """The output as a residual, None where the flow will bring relu(output), which is all that is needed of it, or a
    coefficient that is not stabilized, which needs nothing."""
    if operation.is_rectified and stabilize.epsilon is not None:
        return None
    return None if operation.gets_coefficients and stabilize.is_identity else output


# -- sharing by sign --------------------------------------------------------------------------------------------------


class _Terms(NamedTuple):
    """Parameters of a stabilized denominator. `rest`: what is left to add, where there is no bias to hold epsilon."""

    weight: Tensor
    bias: Tensor | None
    rest: float


def _terms(operation: Operation, weight: Tensor, bias: Tensor | None, stabilize: Stabilizer, sign: int = 1) -> _Terms:
    """Parameters of S(d), where d has the given sign: S(d) = d + sign epsilon, which the bias can hold."""
    if stabilize.epsilon is None or stabilize.is_identity:
        return _Terms(weight, bias, 0.0)
    size = sign * stabilize.threshold(weight.dtype)
    shifted = operation.offset(bias, size)
    return _Terms(weight, bias, size) if shifted is None else _Terms(weight, shifted, 0.0)


def _denominator(operation: Operation, x: Tensor, own: _Terms, other: Tensor, stabilize: Stabilizer) -> Tensor:
    """S(own(x+) + other(x-)), with own's bias; d itself where S(d) = d."""
    first = operation.linear(own.weight, own.bias)
    positive = first(x if operation.is_nonnegative else x.clamp(min=0))
    d = positive if operation.is_nonnegative else add(positive, operation.linear(other)(x.clamp(max=0)))
    if own.rest:
        d = d + own.rest
    return stabilize(d) if stabilize.epsilon is None else d


def _share(operation: Operation, flow: Flow, output: Tensor | None, stable: Tensor, stabilize: Stabilizer) -> Tensor:
    """R / S(d)."""
    if stabilize.is_identity:
        return stabilize.quotient(flow.relevance(output), stable)
    is_own = stabilize.epsilon is not None  # what a function of the user's own returns may be kept there
    return flow.over(stable, output, is_spare=is_own and operation.is_final)


def _ratio(output: Tensor, stable: Tensor, stabilize: Stabilizer) -> Tensor:
    """output / S(d), all that is needed of both for a coefficient that comes back."""
    if stabilize.is_identity:
        return stabilize.quotient(output, stable)
    return output / stable if stabilize.epsilon is None else divide(output, stable)


def _times(operation: Operation, ratio: Tensor, flow: Flow) -> Tensor:
    """A coefficient times a ratio that was kept."""
    return multiply(ratio, flow.own) if operation.is_final else ratio * flow.own


def _by_sign(x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """`negative` where x < 0, else `positive`; torch.where takes several times as long on a CPU."""
    return torch.lerp(positive, negative, (x < 0).to(positive.dtype))


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

    def terms(operation) -> tuple[_Terms, _Terms]:
        weight, bias = operation.weight, _bias(operation, zero_bias)
        positive = weight.clamp(min=0), _map(lambda b: b.clamp(min=0), bias)
        negative = weight.clamp(max=0), _map(lambda b: b.clamp(max=0), bias)
        return _terms(operation, *positive, stabilize), _terms(operation, *negative, stabilize, sign=-1)

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        positive, negative = operation.hoisted(terms)
        first = _denominator(operation, x, positive, negative.weight, stabilize)
        second = _denominator(operation, x, negative, positive.weight, stabilize) if beta else None
        has_all_terms = stabilize.epsilon is not None and not (zero_bias and operation.bias is not None)
        has_all_terms = has_all_terms and torch.finfo(first.dtype).bits >= 32  # in half precision the parts overflow
        output = first + second if second is not None and has_all_terms else operation(x)
        if operation.gets_coefficients:
            ratios = [None if d is None else _ratio(output, d, stabilize) for d in (first, second)]
            return output, (x, None, *ratios)
        return output, (x, None if operation.is_rectified else output, first, second)

    def backward(operation, residuals, flow):
        x, output, first, second = residuals
        positive, negative = (operation.linear(side.weight) for side in operation.hoisted(terms))
        if operation.gets_coefficients:
            s_first, s_second = (None if ratio is None else _times(operation, ratio, flow) for ratio in (first, second))
        else:
            s_first = _share(operation, flow, output, first, stabilize)
            s_second = None if second is None else _share(operation, flow, output, second, stabilize)
        moved = _combined(positive, negative, s_first, s_second, beta)
        if operation.is_nonnegative:
            return Flow(coefficient=moved)
        return Flow(coefficient=_by_sign(x, moved, _combined(negative, positive, s_first, s_second, beta)))

    label = _label("alpha_beta", alpha, beta, zero_bias=zero_bias)
    return Rule(label, forward, backward, (terms,), gives=COEFFICIENTS)


def _combined(own: Operation, other: Operation, s_own: Tensor, s_other: Tensor | None, beta: float) -> Tensor:
    """alpha own^T s_own - beta other^T s_other, with alpha = 1 + beta."""
    moved = own.adjoint(s_own)
    return moved if s_other is None else torch.lerp(moved, other.adjoint(s_other), -beta)


def gamma(gamma: float = 0.25, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Favour contributions of the output's own sign by gamma (generalized to inputs and outputs of any sign).

    z > 0: share by (W + gamma W+) x+ + (W + gamma W-) x- + b + gamma b+; z < 0: the mirror image; z the true output.
    Errors: `RuleError` for a negative gamma. Source: Andeol et al. 2021, arXiv:2106.13727; Montavon et al. 2019.
    """
    gamma = number("gamma", gamma)
    stabilize = _stabilizer(stabilizer)
    label = _label("gamma", gamma, zero_bias=zero_bias)
    has_closed_form = stabilize.epsilon and not zero_bias
    functions = _favoured(gamma, stabilize) if has_closed_form else _mirrored(gamma, stabilize, zero_bias)
    forward, backward, hoists = functions
    return Rule(label, forward, backward, hoists, gives=COEFFICIENTS)


def _favoured(gamma: float, stabilize: Stabilizer):
    """gamma in closed form: two adjoints, one if only z > 0 has relevance and no input is negative.

    With P = W+ x+ + W- x- + b+, d = z + gamma P for z > 0 and z + gamma (z - P) for z < 0, so that for both
    |d| = |z| + gamma relu(-z) + gamma P. With s = R / S(d), and since W+ - W- = |W|, the coefficients are
    (1 + gamma / 2) W^T s + sign(x) (gamma / 2) |W|^T (sign(z) s).
    """

    def favoured(operation) -> tuple[_Terms, Tensor]:
        weight, bias = operation.weight, _map(lambda b: gamma * b.clamp(min=0), operation.bias)
        return _terms(operation, gamma * weight.clamp(min=0), bias, stabilize), gamma * weight.clamp(max=0)

    def risen(operation) -> Tensor:
        return operation.weight + gamma * operation.weight.clamp(min=0)

    def even_and_odd(operation) -> tuple[Tensor, Tensor]:
        return (1 + gamma / 2) * operation.weight, (gamma / 2) * operation.weight.abs()

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        favour = _denominator(operation, x, *operation.hoisted(favoured), stabilize)
        output = operation(x)
        if operation.gets_coefficients:
            return output, (x, None, divide(output, magnitude(output, favour)))
        return output, (x, _kept(operation, output, stabilize), favour)

    def magnitude(z: Tensor, favour: Tensor) -> Tensor:
        """|S(d)|."""
        return add(F.leaky_relu(z, -(1 + gamma)), favour)

    def backward(operation, residuals, flow):
        x, z, favour = residuals
        if operation.gets_coefficients:
            s = multiply(favour.abs(), flow.own)
            return coefficients(operation, x, s, _times(operation, favour, flow))
        if flow.rectified is not None:  # relevance only where z > 0, where z = relu(z)
            size = (add if operation.is_final else torch.add)(favour, flow.rectified)
            s = flow.over(size, None, is_spare=True)
            if operation.is_nonnegative:
                return Flow(coefficient=operation.linear(operation.hoisted(risen)).adjoint(s))
            return coefficients(operation, x, s, s)
        z = given(z)
        if flow.is_relevance:
            sign = z.sign()
            s = multiply(flow.tensor / magnitude(z, favour), sign)
            return coefficients(operation, x, s, multiply(sign, s))
        s = multiply(divide(z.abs(), magnitude(z, favour)), flow.tensor)
        return coefficients(operation, x, s, multiply(z.sign(), s))

    def coefficients(operation, x, s: Tensor, signed: Tensor) -> Flow:
        """Those of x, from s and sign(z) s."""
        both = zip(operation.hoisted(even_and_odd), (s, signed), strict=True)
        even, odd = (operation.linear(weight).adjoint(part) for weight, part in both)
        if not operation.is_nonnegative:
            odd = multiply(odd, torch.copysign(x.new_ones(()), x))
        return Flow(coefficient=add(even, odd))

    return forward, backward, (favoured, risen, even_and_odd)


def _mirrored(gamma: float, stabilize: Stabilizer, zero_bias: bool):
    """gamma as it is written, for denominators that the closed form does not have."""

    def mirrored(operation):
        weight, bias = operation.weight, _bias(operation, zero_bias)

        def up(p: Tensor) -> Tensor:
            return p + gamma * p.clamp(min=0)

        def down(p: Tensor) -> Tensor:
            return p + gamma * p.clamp(max=0)

        return (up(weight), _map(up, bias)), (down(weight), _map(down, bias))

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        up, down = operation.hoisted(mirrored)
        x_up, x_down = x.clamp(min=0), x.clamp(max=0)
        rising = operation.linear(*up)(x_up) + operation.linear(down[0])(x_down)
        falling = operation.linear(*down)(x_up) + operation.linear(up[0])(x_down)
        output = operation(x)
        return output, (x, output, rising, falling)

    def backward(operation, residuals, flow):
        x, output, rising, falling = residuals
        (up, _), (down, _) = operation.hoisted(mirrored)
        first, second, relevance = operation.linear(up), operation.linear(down), flow.relevance(output)
        s_up = torch.where(output > 0, stabilize.quotient(relevance, rising), 0.0)
        s_down = torch.where(output < 0, stabilize.quotient(relevance, falling), 0.0)
        positive = first.adjoint(s_up) + second.adjoint(s_down)
        return Flow(coefficient=_by_sign(x, positive, second.adjoint(s_up) + first.adjoint(s_down)))

    return forward, backward, (mirrored,)


# -- sharing whatever the input ---------------------------------------------------------------------------------------


def zbox(low: float | Tensor, high: float | Tensor, stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """For the first layer, whose inputs lie in a box: z = W x - W+ low - W- high, shared over these terms.

    `low` and `high`, in units of that layer's input, are numbers, or tensors that broadcast to one sample (or to the
    batch, with a batch dimension).
    Errors: `RuleError` for a shape that fits neither. Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.
    """
    stabilize = _stabilizer(stabilizer)
    bounds = (("low", low), ("high", high))
    for name, bound in bounds:
        if not isinstance(bound, (Real, Tensor)):
            raise RuleError(f"'{name}' of zbox must be a number or a tensor, but is {bound!r}.")

    def signed(operation) -> tuple[Tensor, Tensor]:
        return operation.weight.clamp(min=0), operation.weight.clamp(max=0)

    def box(operation) -> Tensor | None:
        """W+ low + W- high + b of one sample, None where a sample does not stand for all."""
        shape = (1, *operation.sample_shape)
        if not _stands_for_all(operation, stabilize):
            return None
        if any(isinstance(b, Tensor) and b.dim() == len(shape) and b.shape[0] != 1 for b in (low, high)):
            return None  # a bound for each sample of a batch
        return corner(operation, *(_bound(name, bound, shape, operation.weight) for name, bound in bounds))

    def corner(operation, lows: Tensor, highs: Tensor) -> Tensor:
        positive, negative = operation.hoisted(signed)
        return operation.linear(positive, operation.bias)(lows) + operation.linear(negative)(highs)

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        shift = operation.hoisted(box)
        if shift is None:
            shift = corner(operation, *(_bound(name, bound, x.shape, x).expand(x.shape) for name, bound in bounds))
        output = operation(x)
        z = output - shift
        return output, (x, output, z if stabilize.is_identity else stabilize(z))

    def backward(operation, residuals, flow):
        x, output, stable = residuals
        s = _share(operation, flow, output, stable, stabilize)
        above, below = (x - _bound(name, bound, x.shape, x) for name, bound in bounds)
        up, down = (operation.linear(weight).adjoint(s) for weight in operation.hoisted(signed))
        return Flow(relevance=above * up + below * down)

    shown = (f"{bound:g}" if isinstance(bound, (int, float)) else "tensor" for bound in (low, high))
    return Rule(_label("zbox", *shown, zero_bias=zero_bias), forward, backward, (signed, box))


def _bound(name: str, bound: float | Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """A bound that broadcasts to an input of this shape, and that way only: nothing is broadcast by accident."""
    bound = torch.as_tensor(bound, dtype=like.dtype, device=like.device)
    shaped = bound.unsqueeze(0) if bound.dim() == len(shape) - 1 else bound
    fits = all(size in (1, full) for size, full in zip(shaped.shape, shape, strict=False))
    if bound.dim() not in (0, len(shape) - 1, len(shape)) or not fits:
        raise RuleError(
            f"'{name}' of zbox must be a number or have the dimensions of one sample, each of size 1 or as in "
            f"{tuple(shape[1:])}, but has shape {tuple(bound.shape)}. Write a size of 1 for each dimension it spans."
        )
    return shaped.expand(shaped.shape[:1] + tuple(shape[1:])) if shaped.dim() else shaped.expand(1, *shape[1:])


def wsquare(stabilizer: StabilizerLike = 1e-6, zero_bias: bool = False) -> Rule:
    """Share by squared weights, whatever the input: R_x = (W^2)^T (R / S(W^2 1 + b^2)).

    Source: Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008.
    """
    stabilize = _stabilizer(stabilizer)

    def squared(operation) -> Tensor:
        return operation.weight.square()

    def denominator(operation) -> Tensor | None:
        """That of one sample, None where a sample does not stand for all."""
        if not _stands_for_all(operation, stabilize):
            return None
        return even(operation, operation.weight.new_ones((1, *operation.sample_shape)))

    def even(operation, ones: Tensor) -> Tensor:
        return operation.linear(operation.hoisted(squared), _map(torch.square, _bias(operation, zero_bias)))(ones)

    def forward(operation, *inputs):
        x = _weighted(operation, inputs)
        output, z = operation(x), operation.hoisted(denominator)
        return output, (output, even(operation, torch.ones_like(x)) if z is None else z)

    def backward(operation, residuals, flow):
        output, z = residuals
        s = stabilize.quotient(flow.relevance(output), z)
        return Flow(relevance=operation.linear(operation.hoisted(squared)).adjoint(s))

    return Rule(_label("wsquare", zero_bias=zero_bias), forward, backward, (squared, denominator))


def flat(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Share evenly among the inputs of each output: R_x = 1^T (R / S(1 1)), with all weights one and no bias.

    Source: Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4.
    """
    stabilize = _stabilizer(stabilizer)

    def even(operation) -> Operation:
        return operation.linear(torch.ones_like(operation.weight)) if operation.is_weighted else operation

    def counts(operation) -> Tensor | None:
        """How many inputs each output has, of one sample and channel; None where these do not stand for all."""
        shape = operation.sample_shape
        if not operation.is_weighted or not _stands_for_all(operation, stabilize):
            return None
        if operation.kind == DENSE:
            return operation.weight.new_full((1,), shape[-1])
        one = _one_channel(operation)
        in_group = shape[0] // operation.arguments[GROUPS]
        return in_group * one(operation.weight.new_ones((1, 1, *shape[1:])))

    def forward(operation, *inputs):
        if operation.kind in (CONVOLUTION, DENSE):
            _weighted(operation, inputs)
        output = operation(*inputs)
        is_closed = operation.hoisted(counts) is not None
        return output, (output, None if is_closed else even(operation)(*map(torch.ones_like, inputs)))

    def backward(operation, residuals, flow):
        output, z = residuals
        relevance = flow.relevance(output)
        if z is None:
            return Flow(relevance=_spread(operation, relevance, operation.hoisted(counts), stabilize))
        moved = even(operation).adjoint(stabilize.quotient(relevance, z))
        return tuple(Flow(relevance=r) for r in moved) if isinstance(moved, tuple) else Flow(relevance=moved)

    return Rule("flat", forward, backward, (counts,))


def _stands_for_all(operation: Operation, stabilize: Stabilizer) -> bool:
    """Whether a denominator that does not depend on the input is that of one sample, whose shape is known."""
    has_shape = operation.has_samples and all(isinstance(n, int) for n in operation.sample_shape)
    return has_shape and stabilize.epsilon is not None


def _one_channel(operation: Operation) -> Operation:
    """A convolution of one channel with all weights one: what every channel of the flat rule is."""
    weight = operation.weight
    arguments = list(operation.linear(weight.new_ones((1, 1, *weight.shape[2:]))).arguments)
    arguments[GROUPS] = 1
    return operation.copy(arguments=arguments)


def _spread(operation: Operation, relevance: Tensor, counts: Tensor, stabilize: Stabilizer) -> Tensor:
    """The flat rule's relevance of the input: the same for all channels of a group, of which there need be but one."""
    (shape,) = operation.shapes
    if operation.kind == DENSE:
        return stabilize.quotient(relevance.sum(-1, keepdim=True), counts).expand(shape)
    groups = operation.arguments[GROUPS]
    total = relevance.unflatten(1, (groups, -1)).sum(2)
    s = stabilize.quotient(total, counts).flatten(0, 1).unsqueeze(1)
    one = _one_channel(operation).copy(shapes=[torch.Size((len(s), 1, *shape[2:]))])
    moved = one.adjoint(s).reshape(shape[0], groups, 1, *shape[2:])
    return moved.expand(-1, -1, shape[1] // groups, *shape[2:]).reshape(shape)


_stabilizer = stabilizer  # the rules' own argument has the same name
