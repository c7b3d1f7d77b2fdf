"""What a rule is, and the rules that fit every equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lrpfunc.errors import RuleError
from lrpfunc.operations import Operation
from lrpfunc.program import multiply
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.stabilizers import StabilizerLike, stabilizer

COEFFICIENTS, SAME, RECTIFIED = "coefficients", "same", "rectified"


def nothing(operation: Operation) -> Sequence[int]:
    return ()


class Rule(NamedTuple):
    """One LRP rule: two pure functions and a printable label, in the manner of `jax.custom_vjp`.

    `forward(operation, *inputs) -> (output, residuals)` and `backward(operation, residuals, flow) -> flows`, one flow
    (or None) for each input, a single one unwrapped. The output is the operation's value, whatever the rule. Residuals
    are pytrees of tensors, never closures.
    Each of `hoists` makes something of an operation's parameters only; the other two get it by `operation.hoisted`.
    `gives` declares the form of the flows that backward returns: `COEFFICIENTS`, whatever arrives; `SAME`, the form
    that arrives; `RECTIFIED`, the same, but a rectified flow for a coefficient at a ReLU; "", unknown. Layers below
    keep less in memory where they know. `stops` names the inputs, by their place among the active ones, that get no
    flow whatever happens, so that nothing is kept for what they were made of.
    """

    label: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Operation, Any, Flow], Flow | Sequence[Flow | None] | None]
    hoists: tuple[Callable[[Operation], Any], ...] = ()
    gives: str = ""
    stops: Callable[[Operation], Sequence[int]] = nothing


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
        if operation.is_linear:
            return operation(*inputs), None
        output, memory = operation.remembering(*inputs)
        return output, (inputs, memory)

    def backward(operation, residuals, flow):
        if residuals is None:
            moved = operation.adjoint(flow.tensor)
        else:
            inputs, memory = residuals
            moved = operation.recall(memory, inputs, flow.tensor)
        return tuple(map(flow.moved, moved)) if isinstance(moved, tuple) else flow.moved(moved)

    return Rule("gradient", forward, backward, gives=SAME)


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
        return as_coefficients(operation.vjp(inputs, flow.carried(output, stabilize)))

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
        return output, inputs[0] if operation.row.ratio is not None else output

    def backward(operation, residual, flow):
        if flow.is_relevance:
            return Flow(relevance=flow.tensor.sum_to_size(operation.shapes[0]))
        if operation.row.rectifies:
            return Flow(coefficient=flow.tensor, rectified=residual)
        if operation.row.ratio is not None:
            ratio = operation.row.ratio(residual, *operation.arguments[1:], **operation.keywords)
            return Flow(coefficient=multiply(ratio, flow.tensor))
        return Flow(relevance=flow.relevance(residual).sum_to_size(operation.shapes[0]))

    return Rule("pass_through", forward, backward, gives=RECTIFIED)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, full) for size, full in sizes)


_stabilizer = stabilizer  # rules have an argument of the same name
