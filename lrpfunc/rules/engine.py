"""The engine of the linear rules: a rule states its branches, the engine runs them.

A branch shares R / S(d) among the terms of its denominator d, each of which is a weight made of W times a part of x.
With s = R / S(d) a term of x itself gets the coefficient (its weight)^T s, one of another function of x that function
times it. The engine sees to what has nothing to do with a rule's formula, all of it fast paths: where an input is never
below zero its negative part is left out; as little is kept as the flow that will come back needs; what depends on
parameters only is made by one function, which `prepare` calls once; epsilon is added by the bias where it can be; and
temporaries are written over.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import CONVOLUTION, DENSE, Operation
from lrpfunc.operations.pullbacks import pull_back
from lrpfunc.program import add, divide, fast_paths, multiply
from lrpfunc.rules.flows import Flow, factors, rectify
from lrpfunc.rules.labels import Label, remade
from lrpfunc.rules.rule import COEFFICIENTS, RECALLS, Rule, as_coefficients
from lrpfunc.rules.stabilizers import Stabilizer, as_stabilizer
from lrpfunc.rules.statements import ALL, NEGATIVE, ONES, POSITIVE, Branch, Make, SharedBias, Statement

EXACT = as_stabilizer(0)


class ClosedForm(NamedTuple):
    """A faster way to what the engine does: functions as a rule has them, for the operations that it `fits`."""

    fits: Callable[[Operation], bool]
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Operation, Any, Flow], Any]
    hoists: tuple[Callable[[Operation], Any], ...] = ()


def rule(label: Label, statement: Statement, closed: ClosedForm | None = None) -> Rule:
    """The rule that runs a statement, or its closed form where that fits."""

    def is_closed(operation: Operation) -> bool:
        return fast_paths.taken and closed is not None and closed.fits(operation)

    def forward(operation, *inputs):
        is_layer = operation.kind in (CONVOLUTION, DENSE)
        if not statement.is_whole and (statement.needs_weight or is_layer):
            _check_weighted(operation, inputs)
        if is_closed(operation):
            return closed.forward(operation, *inputs)
        return run(statement, operation, inputs)

    def backward(operation, residuals, flow):
        if is_closed(operation):
            return closed.backward(operation, residuals, flow)
        return move(statement, operation, residuals, flow)

    gives = COEFFICIENTS if statement.gives_coefficients else ""
    hoists = (statement.weights, statement.biases) if closed is None else closed.hoists
    return Rule(label, forward, backward, hoists, gives, any_layout=True, parameters=Shares(label, statement))


def _check_weighted(operation: Operation, inputs: Sequence[Tensor]) -> None:
    """Errors: `RuleError` but for an equation with a weight and one input."""
    if not operation.is_weighted or len(inputs) != 1:
        raise RuleError(f"{operation.description} has no weight, but the rule needs a weighted equation.")
    if operation.is_complex(operation.weight):
        raise RuleError(f"{operation.description} has complex values, which have no signs: give it the epsilon rule.")
    if any(operation.keywords.get(factor, 1) < 0 for factor in ("alpha", "beta")):
        raise RuleError(
            f"{operation.description} multiplies its weight or bias by a negative number, so that their signs say "
            "nothing of its contributions. Write the number into them."
        )


def _with_weight(operation: Operation, weight: Tensor | None, bias: Tensor | None = None) -> Operation:
    return operation if weight is None else operation.linear(weight, bias)


# -- forwards ---------------------------------------------------------------------------------------------------------


class Residuals(NamedTuple):
    """What `move` needs. `ratios`: S(d) of each branch, but output / S(d) where a coefficient is known to come back."""

    inputs: tuple[Tensor, ...]
    output: Tensor | None
    ratios: tuple[Tensor | None, ...]


def never_negative(operation: Operation) -> bool:
    """Whether its inputs are known to have no negative part."""
    return fast_paths.taken and operation.is_nonnegative


def gets_coefficients(operation: Operation) -> bool:
    """Whether what comes back is known to be a coefficient of its output."""
    return fast_paths.taken and operation.gets_coefficients


def is_rectified(operation: Operation) -> bool:
    """Whether what comes back is known to be a rectified flow, which brings relu(output)."""
    return fast_paths.taken and operation.is_rectified


def run(statement: Statement, operation: Operation, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Residuals]:
    """The output and residuals of a statement's branches."""
    if _shares_output(statement, operation):
        output = operation(*inputs)
        return output, Residuals((), kept_output(operation, output, statement.stabilize), ())
    stables = denominators(statement, operation, inputs)
    output = stables[0] + stables[1] if _adds_up(statement, operation) else operation(*inputs)
    return output, keep(statement, operation, inputs, output, stables)


def denominators(statement: Statement, operation: Operation, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """S(d) of each branch, d itself where S(d) = d; None if no relevance can come to the branch."""
    weights, biases = operation.hoisted(statement.weights), operation.hoisted(statement.biases)
    stables: list[Any] = []
    for branch, of_terms, bias in zip(statement.branches, weights, biases, strict=True):
        if branch.where < 0 and is_rectified(operation):
            stables.append(None)
        else:
            d = _denominator(operation, branch, of_terms, bias, inputs)
            is_stable = bias.holds_epsilon or statement.stabilize.is_identity
            stables.append(d if is_stable else statement.stabilize(d))
    return tuple(stables)


def _denominator(operation: Operation, branch: Branch, weights: Sequence, bias: SharedBias, inputs) -> Any:
    """d, with epsilon where the bias or its rest holds it."""
    d: Any = None
    for term, weight in zip(branch.terms, weights, strict=True):
        if isinstance(term.x, str) and term.x == NEGATIVE and never_negative(operation):
            continue
        parts = [_part(operation, x, term.x) for x in inputs]
        if d is None:
            d = _with_weight(operation, weight, bias.bias)(*parts)
        else:
            d = add(d, _with_weight(operation, weight)(*parts))
    return d + bias.rest if bias.rest else d


def _part(operation: Operation, x: Tensor, part: str | Make) -> Tensor:
    if not isinstance(part, str):
        return part(x)
    if part == ALL or (part == POSITIVE and never_negative(operation)):
        return x
    if part == ONES:
        return torch.ones_like(x)
    return x.clamp(min=0) if part == POSITIVE else x.clamp(max=0)


def keep(
    statement: Statement, operation: Operation, inputs: tuple[Tensor, ...], output, stables, is_spare: bool = True
) -> Residuals:
    """Residuals: as little as the flow that will come back needs. `is_spare`: nobody else needs the denominators."""
    needs_sign = statement.is_signed and not never_negative(operation)
    kept = inputs if needs_sign or statement.is_shifted else ()
    if gets_coefficients(operation):
        ratios = [_ratio(output, stable, statement.stabilize, is_spare) for stable in stables]
        both = zip(statement.branches, ratios, strict=True)
        return Residuals(kept, None, tuple([_where(branch, output, ratio) for branch, ratio in both]))
    return Residuals(kept, None if is_rectified(operation) else output, stables)


def kept_output(operation: Operation, output: Tensor, stabilize: Stabilizer) -> Tensor | None:
    """The output as a residual of what is divided by it, None where the flow will bring relu(output), which is all that
    is needed of it, or a coefficient that is not stabilized, which needs nothing."""
    if is_rectified(operation) and stabilize.epsilon is not None:
        return None
    return None if gets_coefficients(operation) and stabilize.is_identity else output


def proportions(statement: Statement, operation: Operation, residuals: Residuals) -> tuple[Tensor | None, ...]:
    """output / S(d) of each branch where it shares, None for one, of an operation that `gets_coefficients`."""
    if not _shares_output(statement, operation):
        return residuals.ratios
    return (None if residuals.output is None else statement.stabilize.proportion(residuals.output),)


def _shares_output(statement: Statement, operation: Operation) -> bool:
    """Whether the only denominator is the output."""
    return statement.is_whole and (statement.branches[0].bias is not None or operation.bias is None)


def _adds_up(statement: Statement, operation: Operation) -> bool:
    """Whether the denominators of both signs, of which epsilon is added to one and subtracted of the other, are all
    that there is of the output. In half precision they may overflow where it does not."""
    signs = [branch.sign for branch in statement.branches]
    has_biases = operation.bias is None or all(branch.bias is not None for branch in statement.branches)
    is_exact = statement.stabilize.epsilon is not None and has_biases and operation.dtypes[0].itemsize >= RECALLS
    return fast_paths.taken and signs == [1, -1] and is_exact


def _ratio(output: Tensor, stable: Tensor, stabilize: Stabilizer, is_spare: bool) -> Tensor:
    """output / S(d), all that is needed of both for a coefficient that comes back."""
    if stabilize.is_identity:
        return stabilize.quotient(output, stable)
    return divide(output, stable) if is_spare and stabilize.epsilon is not None else output / stable


# -- backwards --------------------------------------------------------------------------------------------------------


def move(statement: Statement, operation: Operation, residuals: Residuals, flow: Flow, is_spare: bool = True):
    """What the branches send to the inputs. `is_spare`: nobody else needs the denominators."""
    inputs, output, ratios = residuals
    if is_rectified(operation) and _adds_up(statement, operation):
        gains, losses = ratios
        assert gains is not None
        assert losses is not None
        flow = flow.recalled(gains + losses)
    if _shares_output(statement, operation):
        return as_coefficients(operation.adjoint(flow.coefficient(output, statement.stabilize)))
    sent = []
    for branch, weights, kept in zip(statement.branches, operation.hoisted(statement.weights), ratios, strict=True):
        if kept is not None:
            s = _shared(statement, operation, branch, kept, output, flow, is_spare)
            sent.append((branch, weights, s))
    if not statement.gives_coefficients:
        return _as_relevances(_combined([(b, _values(operation, b, weights, s, inputs)) for b, weights, s in sent]))
    moved = _side(operation, sent, POSITIVE)
    if not statement.is_signed or never_negative(operation):
        return as_coefficients(moved)
    return as_coefficients(_by_sign(inputs[0], moved, _side(operation, sent, NEGATIVE)))


def _shared(statement: Statement, operation: Operation, branch: Branch, kept, output, flow: Flow, is_spare: bool):
    """R / S(d)."""
    if gets_coefficients(operation):
        return times(operation, kept, flow)
    return _over_stable(statement, branch, kept, output, flow, is_spare and operation.is_final)


def _over_stable(statement: Statement, branch: Branch, stable, output, flow: Flow, is_spare: bool = False) -> Tensor:
    """R / S(d), where the branch shares."""
    stabilize = statement.stabilize
    if output is not None and output.is_complex():
        return _over_complex(stable, output, flow)
    if stabilize.is_identity:
        return _where(branch, output, stabilize.quotient(flow.relevance(output), stable))
    is_spare = is_spare and stabilize.epsilon is not None  # what a user's function returns may be kept there
    return _where(branch, output, over(flow, stable, output, is_spare))


def _over_complex(stable: Tensor, output: Tensor, flow: Flow) -> Tensor:
    """R / S(conj(d)), or c z / S(d), as a relevance does not know the phase of a coefficient."""
    if flow.is_relevance:
        return EXACT.quotient(flow.tensor.to(stable.dtype), stable.conj())
    return EXACT.quotient(output, stable) * flow.tensor


def _where(branch: Branch, output: Tensor | None, s: Tensor) -> Tensor:
    """Only at outputs of the branch's sign. Where none is kept the flow is rectified, so that only s > 0 is left."""
    if not branch.where or output is None:
        return s
    return rectify(s, output if branch.where > 0 else -output)


def over(flow: Flow, stable: Tensor, value: Tensor | None, is_spare: bool = False) -> Tensor:
    """R / d, where d is a stabilized denominator. `is_spare`: nobody else needs it."""
    ratio = divide if is_spare else torch.div
    if flow.is_relevance:
        return ratio(flow.tensor, stable)
    factor, c = factors(flow, value)
    return multiply(ratio(factor, stable), c)


def times(operation: Operation, ratio: Tensor, flow: Flow) -> Tensor:
    """A ratio that was kept times the coefficient that came back."""
    return multiply(ratio, flow.tensor) if operation.is_final else ratio * flow.tensor


def _side(operation: Operation, sent: list[tuple[Branch, tuple, Tensor]], part: str) -> Any:
    """The coefficients of x where it has a sign: from the terms of that part of it, or of all."""
    moved = []
    for branch, weights, s in sent:
        of_part = [w for term, w in zip(branch.terms, weights, strict=True) if term.x in (ALL, part)]
        moved.append((branch, _sum([_with_weight(operation, weight).adjoint(s) for weight in of_part])))
    return _combined(moved)


def _values(operation: Operation, branch: Branch, weights: tuple, s: Tensor, inputs: tuple[Tensor, ...]) -> Any:
    """The relevance of terms that are no part of x: the part times its coefficient."""
    moved = []
    for term, weight in zip(branch.terms, weights, strict=True):
        c = _with_weight(operation, weight).adjoint(s)
        moved.append(c if isinstance(term.x, str) else multiply(c, term.x(inputs[0])))
    return _sum(moved)


def _combined(moved: list[tuple[Branch, Any]]) -> Any:
    """The sum of what the branches send, by their shares; one pass where these are (1 + beta, -beta)."""
    shares = [branch.share for branch, _ in moved]
    if len(moved) == 2 and math.isclose(sum(shares), 1.0):
        return torch.lerp(moved[0][1], moved[1][1], shares[1])
    return _sum([m if branch.share == 1 else m * branch.share for branch, m in moved])


def _sum(tensors: Sequence) -> Any:
    """Of temporaries, written over the first; of one, which may be a tuple for several inputs, itself."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = add(total, tensor)
    return total


def _by_sign(x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """`negative` where x < 0, else `positive`."""
    return add(rectify(positive, x, keeps_zero=True), rectify(negative, -x))


def _as_relevances(moved) -> Flow | tuple[Flow, ...]:
    if isinstance(moved, tuple):
        return tuple(Flow(relevance=tensor, by_value=False) for tensor in moved)
    return Flow(relevance=moved, by_value=False)


# -- parameters -------------------------------------------------------------------------------------------------------


class Shares:
    """What a statement gives a layer's parameters; pickled as the call of the rule that states it."""

    def __init__(self, label: Label, statement: Statement):
        self.label, self.statement = label, statement

    def __call__(
        self, operation: Operation, inputs: tuple[Tensor, ...], output: Tensor, flow: Flow, opened: Operation
    ) -> list[Flow | None] | None:
        """The flows of weight and bias, None if the operation is no layer."""
        if not operation.is_weighted:
            return None
        of_weight, of_bias = of_parameters(self.statement, operation, inputs, output, flow)
        flows = {operation.weight_position: of_weight, operation.positions.bias: of_bias}
        return [flows.get(position) for position in opened.slots]

    def __reduce__(self):
        return _shares_of, (self.label.name, self.label.arguments, self.label.keywords)


def _shares_of(name: str, arguments: tuple, keywords: Mapping[str, Any]) -> Any:
    return remade(name, arguments, keywords).parameters


def of_parameters(
    statement: Statement, operation: Operation, inputs: tuple[Tensor, ...], output: Tensor, flow: Flow
) -> tuple[Flow | None, Flow | None]:
    """What weight and bias get: each term of a denominator d has its part of R / S(d), as weights' part of x.

    With s = R / S(d) a weight w made of W gets w (s x^T), and the bias, of which b is made, b sum(s). Of W itself s x^T
    is the coefficient, so that what W was made of is had without a division by it.
    """
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for branch, made, s in _shared_by_branches(statement, operation, inputs, output, flow):
        for term, weight in zip(branch.terms, made, strict=True):
            parts = [_part(operation, x, term.x) for x in inputs]
            c = pull_back(functools.partial(_by_weight, operation, parts), (weight,), s)[0]
            weights.append(c if statement.is_whole else weight * c)
        if branch.bias is not None and operation.bias is not None:
            bias = branch.bias(operation.bias)
            c = pull_back(functools.partial(_by_bias, operation, inputs), (bias,), s)[0]
            biases.append(c if statement.is_whole else bias * c)
    return _as_flow(statement, weights), _as_flow(statement, biases)


def _shared_by_branches(statement: Statement, operation: Operation, inputs, output: Tensor, flow: Flow):
    """The branches that relevance comes to, with their weights and shares of R / S(d)."""
    weights = statement.weights(operation)
    if _shares_output(statement, operation):
        return [(statement.branches[0], weights[0], flow.coefficient(output, statement.stabilize))]
    shared = []
    for branch, made, d in zip(statement.branches, weights, denominators(statement, operation, inputs), strict=True):
        if d is not None:
            s = _over_stable(statement, branch, d, output, flow)
            shared.append((branch, made, s if branch.share == 1 else branch.share * s))
    return shared


def _as_flow(statement: Statement, parts: list[Tensor]) -> Flow | None:
    if not parts:
        return None
    return Flow(coefficient=_sum(parts)) if statement.is_whole else Flow(relevance=_sum(parts))


def _by_weight(operation: Operation, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    return operation.linear(weight)(*inputs)


def _by_bias(operation: Operation, inputs: Sequence[Tensor], bias: Tensor) -> Tensor:
    return operation.linear(torch.zeros_like(operation.weight), bias)(*inputs)
