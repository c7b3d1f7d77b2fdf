"""The rules of products of two values that depend on the input, element by element or of matrices."""

from __future__ import annotations

from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import BILINEAR, Operation
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.labels import call
from lrpfunc.rules.rule import Rule
from lrpfunc.rules.stabilizers import StabilizerLike, as_stabilizer


def gate(to: str | int = "signal", stabilizer: StabilizerLike = 1e-6) -> Rule:
    """In a product the signal takes all, the gate counts as a constant: of y = g x, c_x = g c.

    A relevance that arrives at a matrix product is divided by its stabilized output first.

    Args:
        to: "signal", where the gate is found by data flow (a denominator, what comes from an exponential or is
            the step that one is made of, what comes from a sigmoid, tanh, erf or softmax, else from any other
            activation), or the signal's position, 0 or 1.
        stabilizer: S, an epsilon in units of the product, a `stabilizer` or a function.
    Errors: `RuleError` for an equation that is no product of two values, or in which no factor is a gate.
    Source: Arras et al. 2019, doi:10.1007/978-3-030-28954-6_11.

    >>> import lrpfunc, torch
    >>> a, b = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, a, b: a * torch.sigmoid(b), {}, a, b)
    >>> rules = lrpfunc.composites.by_kind({"product": lrpfunc.rules.gate()})
    >>> lrpfunc.attribute(fmodel, params, (a, b), rules, target=lambda y: torch.full_like(y, 4.0))
    (tensor([[4.]]), tensor([[0.]]))
    """
    stabilize = as_stabilizer(stabilizer)
    if to not in ("signal", 0, 1) or isinstance(to, bool):
        raise RuleError(f'a gate passes relevance to="signal", or to factor 0 or 1, but not to {to!r}.')

    def forward(operation, *inputs):
        output = _product(operation, inputs)
        gate = _gate_of(operation, to)
        needs_output = not operation.row.is_multilinear and not operation.gets_coefficients
        needs_signal = not operation.with_factor(gate, inputs[gate]).is_linear
        return output, (
            inputs[gate],
            inputs[1 - gate] if needs_signal else None,
            output if needs_output else None,
        )

    def backward(operation, residuals, flow):
        factor, signal, output = residuals
        gate = _gate_of(operation, to)
        flows: list[Flow | None] = [None, None]
        fixed = operation.with_factor(gate, factor)
        if flow.is_relevance and operation.row.is_multilinear:
            flows[1 - gate] = Flow(relevance=flow.tensor.sum_to_size(fixed.shapes[0]))
        else:
            c = flow.coefficient(output, stabilize, as_it_is=True)
            flows[1 - gate] = Flow(coefficient=fixed.adjoint(c) if signal is None else fixed.vjp([signal], c))
        return flows

    label = call("gate", *([] if to == "signal" else [to]), stabilizer=stabilize)
    return Rule(label, forward, backward, stops=lambda operation: [_gate_of(operation, to)], any_layout=True)


def _gate_of(operation: Operation, to: str | int) -> int:
    """The factor that is a gate, if relevance goes `to` the signal."""
    if isinstance(to, int):
        return 1 - to
    if operation.constant is None:
        raise RuleError(f"of the factors of {operation.description} none is a gate: give to=0 or to=1, or halve.")
    return operation.constant


def halve(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """In a product of two values each takes half: of y = a b, c_a = b c / 2 and c_b = a c / 2; of n each an nth.

    A relevance that arrives at a matrix product is divided by its stabilized output first.
    Args:
        stabilizer: S, an epsilon in units of the product, a `stabilizer` or a function.
    Errors: `RuleError` for an equation that is no product of two values.
    Source: Achtibat et al. 2024, arXiv:2402.05602 (AttnLRP), proposition 3.3.

    >>> import lrpfunc, torch
    >>> a, b = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    >>> fmodel, params = lrpfunc.trace(lambda p, a, b: a * b, {}, a, b)
    >>> rules = lrpfunc.composites.by_kind({"product": lrpfunc.rules.halve()})
    >>> lrpfunc.attribute(fmodel, params, (a, b), rules, target=lambda y: torch.full_like(y, 4.0))
    (tensor([[2.]]), tensor([[2.]]))
    """
    stabilize = as_stabilizer(stabilizer)

    def forward(operation, *inputs):
        if operation.row.is_fold:
            return operation(*inputs), (inputs, None)
        output = _product(operation, inputs)
        needs_output = not operation.row.is_multilinear and not operation.gets_coefficients
        return output, (inputs, output if needs_output else None)

    def backward(operation, residuals, flow):
        inputs, output = residuals
        if operation.row.is_fold:
            return _folded(operation, inputs[0], flow)
        if flow.is_relevance and operation.row.is_multilinear:
            return [Flow(relevance=(flow.tensor / 2).sum_to_size(x.shape)) for x in inputs]
        moved = operation.vjp(inputs, flow.coefficient(output, stabilize, as_it_is=True) / 2)
        return [Flow(coefficient=c) for c in moved]

    return Rule(call("halve", stabilizer=stabilize), forward, backward, any_layout=True)


def _folded(operation: Operation, x: Tensor, flow: Flow) -> Flow:
    """Of a product of n elements along an axis, or all, each takes an nth."""
    count = x.numel() // max(flow.tensor.numel(), 1)
    if not flow.is_relevance:
        return Flow(coefficient=operation.vjp([x], flow.tensor / count))
    axis, keeps = [*operation.arguments[1:], None, False][:2]
    relevance = flow.tensor if axis is None or keeps else flow.tensor.unsqueeze(axis)
    return Flow(relevance=(relevance / count).expand(x.shape))


def _product(operation: Operation, inputs: tuple[Tensor, ...]) -> Tensor:
    if len(inputs) != 2 or not (operation.row.is_multilinear or operation.kind == BILINEAR):
        raise RuleError(f"{operation.description} is not a product of two values that depend on the input.")
    return operation(*inputs)
