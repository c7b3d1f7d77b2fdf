"""Closed forms of linear rules: faster ways to what the engine makes of their statements.

Each gives what the engine gives, elementwise, which `tests/test_fast_paths.py` checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpfunc.operations import CONVOLUTION, DENSE, GROUPS, Operation
from lrpfunc.program import add, divide, multiply
from lrpfunc.rules import engine
from lrpfunc.rules.engine import ClosedForm
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.stabilizers import Stabilizer
from lrpfunc.rules.statements import NEGATIVE, POSITIVE, Branch, Statement, Term, state

# -- two adjoints for gamma -------------------------------------------------------------------------------------------


def gamma(gamma: float, stabilize: Stabilizer) -> ClosedForm:
    """Two adjoints, one if only z > 0 has relevance and no input is negative.

    With P = W+ x+ + W- x- + b+, d = z + gamma P for z > 0 and z + gamma (z - P) for z < 0, so that for both
    |d| = |z| + gamma relu(-z) + gamma P. With s = R / S(d), and since W+ - W- = |W|, the coefficients are
    (1 + gamma / 2) W^T s + sign(x) (gamma / 2) |W|^T (sign(z) s).
    """

    def rise(w: Tensor) -> Tensor:
        return gamma * w.clamp(min=0)

    def fall(w: Tensor) -> Tensor:
        return gamma * w.clamp(max=0)

    favour = state([Branch((Term(rise, POSITIVE), Term(fall, NEGATIVE)), rise, sign=1)], stabilize)

    def risen(operation) -> Tensor:
        return operation.weight + rise(operation.weight)

    def even_and_odd(operation) -> tuple[Tensor, Tensor]:
        return (1 + gamma / 2) * operation.weight, (gamma / 2) * operation.weight.abs()

    def forward(operation, x):
        (favoured,) = engine.denominators(favour, operation, (x,))
        output = operation(x)
        if engine.gets_coefficients(operation):
            return output, (x, None, divide(output, _magnitude(output, favoured, gamma)))
        return output, (x, engine.kept_output(operation, output, stabilize), favoured)

    def backward(operation, residuals, flow):
        x, z, kept = residuals
        if engine.gets_coefficients(operation):
            s = multiply(kept.abs(), flow.tensor)
            return _coefficients(operation, even_and_odd, x, s, engine.times(operation, kept, flow))
        if flow.rectified is not None:  # relevance only where z > 0, where z = relu(z)
            size = (add if operation.is_final else torch.add)(kept, flow.rectified)
            s = engine.over(flow, size, None, is_spare=True)
            if engine.never_negative(operation):
                return Flow(coefficient=operation.linear(operation.hoisted(risen)).adjoint(s))
            return _coefficients(operation, even_and_odd, x, s, s)
        if flow.is_relevance:
            sign = z.sign()
            s = multiply(flow.tensor / _magnitude(z, kept, gamma), sign)
            return _coefficients(operation, even_and_odd, x, s, multiply(sign, s))
        s = multiply(divide(z.abs(), _magnitude(z, kept, gamma)), flow.tensor)
        return _coefficients(operation, even_and_odd, x, s, multiply(z.sign(), s))

    return ClosedForm(lambda operation: True, forward, backward, (favour.weights, favour.biases, risen, even_and_odd))


def _coefficients(operation: Operation, even_and_odd: Callable, x: Tensor, s: Tensor, signed: Tensor) -> Flow:
    """Those of x, from s and sign(z) s."""
    both = zip(operation.hoisted(even_and_odd), (s, signed), strict=True)
    even, odd = (operation.linear(weight).adjoint(part) for weight, part in both)
    if not engine.never_negative(operation):
        odd = multiply(odd, torch.copysign(x.new_ones(()), x))
    return Flow(coefficient=add(even, odd))


def _magnitude(z: Tensor, favoured: Tensor, gamma: float) -> Tensor:
    """|S(d)|."""
    return add(F.leaky_relu(z, -(1 + gamma)), favoured)


# -- one sample for all -----------------------------------------------------------------------------------------------


def box(
    statement: Statement, corner: Callable[[Operation, int], Tensor], is_batch: Callable[[Operation], bool]
) -> ClosedForm:
    """zbox with W+ low + W- high + b of one sample: S(d) = S(z - that).

    Args:
        corner: makes that of an operation, for a number of samples.
        is_batch: whether a bound has another value for each sample.
    """
    stabilize = statement.stabilize

    def shift(operation: Operation) -> Tensor | None:
        return None if is_batch(operation) or not _has_samples(operation) else corner(operation, 1)

    def forward(operation, x):
        output = operation(x)
        z = output - (corner(operation, len(x)) if is_batch(operation) else _of_one_sample(operation, shift))
        stable = z if stabilize.is_identity else stabilize(z)
        return output, engine.keep(statement, operation, (x,), output, (stable,))

    def backward(operation, residuals, flow):
        return engine.move(statement, operation, residuals, flow)

    return ClosedForm(_has_samples, forward, backward, (statement.weights, shift))


def one_sample(statement: Statement) -> ClosedForm:
    """A denominator that does not depend on the input, of one sample."""

    def fits(operation: Operation) -> bool:
        return _stands_for_all(operation, statement.stabilize)

    def stables(operation: Operation) -> tuple | None:
        if not fits(operation):
            return None
        one = operation.weight.new_ones((1, *operation.sample_shape))
        return engine.denominators(statement, operation, (one,))

    def forward(operation, x):
        output = operation(x)
        shared = _of_one_sample(operation, stables)
        return output, engine.keep(statement, operation, (x,), output, shared, is_spare=False)

    def backward(operation, residuals, flow):
        return engine.move(statement, operation, residuals, flow, is_spare=False)

    return ClosedForm(fits, forward, backward, (statement.weights, statement.biases, stables))


def _stands_for_all(operation: Operation, stabilize: Stabilizer) -> bool:
    """Whether a stabilized denominator that does not depend on the input is that of one sample."""
    return stabilize.epsilon is not None and _has_samples(operation)


def _has_samples(operation: Operation) -> bool:
    """Whether it treats samples alike, and their shape is known."""
    is_alike = operation.is_weighted and operation.has_samples
    return is_alike and all(isinstance(n, int) for n in operation.sample_shape)


def _of_one_sample(operation: Operation, make: Callable[[Operation], Any]) -> Any:
    """What parameters and a sample's shape make, which was None if the shape was not known beforehand."""
    made = operation.hoisted(make)
    return make(operation) if made is None else made


# -- one channel for all ----------------------------------------------------------------------------------------------


def one_channel(statement: Statement) -> ClosedForm:
    """flat: the relevance of the input is the same for all channels of a group, of which there need be but one."""
    stabilize = statement.stabilize

    def fits(operation: Operation) -> bool:
        return operation.kind in (CONVOLUTION, DENSE) and _stands_for_all(operation, stabilize)

    def counts(operation: Operation) -> Tensor | None:
        """How many inputs each output has, of one sample and channel."""
        if not fits(operation):
            return None
        shape = operation.sample_shape
        if operation.kind == DENSE:
            return operation.weight.new_full((1,), shape[-1])
        in_group = shape[0] // operation.arguments[GROUPS]
        return in_group * _one_channel(operation)(operation.weight.new_ones((1, 1, *shape[1:])))

    def forward(operation, x):
        output = operation(x)
        return output, None if engine.is_rectified(operation) else output

    def backward(operation, output, flow):
        relevance, inputs = flow.relevance(output), _of_one_sample(operation, counts)
        (shape,) = operation.shapes
        if operation.kind == DENSE:
            s = stabilize.quotient(relevance.sum(-1, keepdim=True), inputs)
            return Flow(relevance=s.expand(shape), by_value=False)
        groups = operation.arguments[GROUPS]
        total = relevance.unflatten(1, (groups, -1)).sum(2)
        s = stabilize.quotient(total, inputs).flatten(0, 1).unsqueeze(1)
        one = _one_channel(operation).copy(shapes=[torch.Size((len(s), 1, *shape[2:]))])
        moved = one.adjoint(s).reshape(shape[0], groups, 1, *shape[2:])
        return Flow(relevance=moved.expand(-1, -1, shape[1] // groups, *shape[2:]).reshape(shape), by_value=False)

    return ClosedForm(fits, forward, backward, (counts,))


def _one_channel(operation: Operation) -> Operation:
    """A convolution of one channel with all weights one: what every channel of the flat rule is."""
    weight = operation.weight
    arguments = list(operation.linear(weight.new_ones((1, 1, *weight.shape[2:]))).arguments)
    arguments[GROUPS] = 1
    return operation.copy(arguments=arguments)
