"""What a rule is, and the rules that fit every equation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch

from lrpfunc.errors import RuleError
from lrpfunc.operations import Operation
from lrpfunc.program import multiply
from lrpfunc.rules.flows import RECALLED, Flow
from lrpfunc.rules.labels import Label, call, remade
from lrpfunc.rules.stabilizers import Stabilizer, StabilizerLike, as_stabilizer, check_named

# What a rule may declare by `gives`.
COEFFICIENTS, SAME, SHIFTED, RECTIFIED = "coefficients", "same", "shifted", "rectified"
RECALLS = 4  # bytes of a number that the sum of two denominators surely does not overflow in


def nothing(operation: Operation) -> Sequence[int]:
    """No input is stopped."""
    return ()


class Rule(NamedTuple):
    """One LRP rule: two pure functions and a label, in the manner of `jax.custom_vjp`. The other fields promise things.

    A rule that `_replace` makes of another one promises what that did, unless it is said anew.

    Args:
        label: the call that makes the rule, for listings and errors.
        forward: `forward(operation, *inputs) -> (output, residuals)`. The output is the operation's value, whatever the
            rule. Residuals are pytrees of tensors, never closures.
        backward: `backward(operation, residuals, flow) -> flows`, one flow (or None) for each input, a single one
            unwrapped.
        hoists: functions of an operation that make something of its parameters only (and of tensors that a constructor
            was given), so that it is fixed: `prepare` calls them once, and so does a loop while these have the same
            numbers. The rule gets it by `operation.hoisted`.
        gives: the form of the flows that backward returns: "coefficients", whatever arrives; "same", the form that
            arrives; "shifted", the same, but any form where constants are added; "rectified", the same, but a
            rectified flow for a coefficient at a ReLU; "", unknown. Layers below keep less in memory where they know.
        stops: `stops(operation)` names the inputs, by their positions among the active ones, that get no flow whatever
            happens, so that nothing is kept for what they were made of.
        any_layout: its functions take tensors in any memory layout, so images may be laid out with their channels last.
        parameters: `parameters(operation, inputs, output, flow, opened)` gives what parameters get, one flow (or None)
            for each input of `opened`, the same operation as a function of its parameters; None in place of them all,
            as without it, stands for value * derivative of what is shared.
        recalls: its residuals tell its output, in single precision or better, so that a ReLU after it need not keep it.
        takes_steps: it moves relevance through all steps of a recurrent layer. One that does not is given to the linear
            part of the steps, as `recurrent(rule)`.

    >>> import lrpfunc, torch
    >>> def forward(operation, x):
    ...     z = operation(x)
    ...     return z, z
    >>> def backward(operation, z, flow):
    ...     return lrpfunc.Flow(coefficient=operation.adjoint(flow.coefficient(z, lrpfunc.stabilizer(0))))
    >>> rule = lrpfunc.Rule("lrp_0()", forward, backward)
    >>> f = lrpfunc.custom_vjp(rule, torch.nn.functional.linear)
    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, -0.5]])
    >>> torch.func.vjp(lambda x: f(x, w), x)[1](torch.tensor([[3.0, 1.0]]))[0]
    tensor([[3., 1.]])
    """

    label: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Operation, Any, Flow], Flow | Sequence[Flow | None] | None]
    hoists: tuple[Callable[[Operation], Any], ...] = ()
    gives: str = ""
    stops: Callable[[Operation], Sequence[int]] = nothing
    any_layout: bool = False
    parameters: Callable[..., Sequence[Flow | None] | None] | None = None
    takes_steps: bool = False
    recalls: bool = False

    def __reduce__(self):
        """A rule that a constructor made is pickled as that call; one of somebody's own by its functions' names."""
        if (call := _call(self)) is not None:
            return remade, call
        for function in (self.forward, self.backward, self.stops, *self.hoists):
            check_named(f"rule '{self.label}'", function)
        return Rule, tuple(self)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo) -> Self:  # nothing in it ever changes
        return self


def _call(rule: Rule) -> tuple[str, tuple, Mapping[str, Any]] | None:
    """The call of a constructor that makes a rule, None for one of somebody's own."""
    if not isinstance(rule.label, Label):
        return None
    call = rule.label.name, rule.label.arguments, rule.label.keywords
    return call if _is_alike(remade(*call), rule) else None


def is_same(one: Rule, other: Rule) -> bool:
    """Whether two rules are surely the same: one object, or made by the same call of a constructor."""
    if one is other:
        return True
    calls = _call(one), _call(other)
    return None not in calls and _are_equal(*calls)


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two calls, or what they were given, are the same. Tensors are where they are one object."""
    if isinstance(one, Rule) and isinstance(other, Rule):
        return is_same(one, other)
    if isinstance(one, Stabilizer) and isinstance(other, Stabilizer):
        return one is other or (one.epsilon is not None and one.epsilon == other.epsilon and one.label == other.label)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    if type(one) is tuple and type(other) is tuple:
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return one is other or (type(one) is type(other) and isinstance(one, (str, int, float)) and one == other)


def called(rule: Rule | None) -> tuple[str, tuple]:
    """The name of the constructor that made a rule, "" for one of somebody's own, and all that it was given."""
    label = None if rule is None else rule.label
    return (label.name, (*label.arguments, *label.keywords.values())) if isinstance(label, Label) else ("", ())


def call_of(rule: Rule) -> tuple[str, tuple, Mapping[str, Any]]:
    """The call that makes a rule: the constructor's name, and what it is given.

    Errors: `RuleError` for a rule of somebody's own.
    """
    call = _call(rule)
    if call is None:
        raise RuleError(
            f"rule '{rule.label}' is code of your own, which a file without code cannot hold. Save the program with "
            "its parameters, and prepare it again when it is loaded."
        )
    return call


def _is_alike(rule: Rule, other: Rule) -> bool:
    """Whether two rules have the same code and say the same of themselves."""
    said = [[*r._replace(label="", hoists=()), *r.hoists] for r in (rule, other)]
    return len(said[0]) == len(said[1]) and all(_code(a) == _code(b) for a, b in zip(*said, strict=True))


def _code(said: Any) -> Any:
    """The code of a function, or of what is called like one; anything else as it is."""
    function = said if hasattr(said, "__code__") else type(said).__call__
    return getattr(function, "__code__", said)


def as_coefficients(moved) -> Flow | tuple[Flow, ...]:
    """The result of an adjoint, one tensor or a tuple of them, as coefficient flows."""
    if isinstance(moved, tuple):
        return tuple(Flow(coefficient=tensor) for tensor in moved)
    return Flow(coefficient=moved)


def gradient() -> Rule:
    """Move whichever form arrives by the vector-Jacobian product: J^T R or J^T c.

    For movements and maximum pooling (winner takes all) the two agree; LRP composites use it there. Assigned to every
    equation it gives the plain gradient of a relevance seed.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.gradient(), torch.relu)
    >>> torch.func.vjp(f, torch.tensor([-1.0, 2.0]))[1](torch.tensor([3.0, 4.0]))[0]
    tensor([0., 4.])
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

    return Rule(call("gradient"), forward, backward, gives=SAME, any_layout=True, takes_steps=True)


def input_times_gradient(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """R_x = x * J^T (R / S(y)): the first-order share of each input, for what no rule is known of. It conserves little.

    A coefficient is moved as it is; a relevance is first divided by the output, so that scales do not add up.

    Args:
        stabilizer: S, an epsilon in units of the output, a `stabilizer` or a function.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.input_times_gradient(0), torch.square)
    >>> torch.func.vjp(f, torch.tensor([1.0, 3.0]))[1](torch.tensor([1.0, 9.0]))[0]
    tensor([ 2., 18.])
    """
    stabilize = as_stabilizer(stabilizer)

    def forward(operation, *inputs):
        output = operation(*inputs)
        return output, (inputs, output)

    def backward(operation, residuals, flow):
        inputs, output = residuals
        if isinstance(output, (tuple, list)):  # of several outputs whichever form arrives is moved
            moved = operation.vjp(inputs, flow.tensor)
            return tuple(map(flow.moved, moved)) if isinstance(moved, tuple) else flow.moved(moved)
        return as_coefficients(operation.vjp(inputs, flow.coefficient(output, stabilize, as_it_is=True)))

    label = call("input_times_gradient", stabilizer=stabilize)
    return Rule(label, forward, backward, any_layout=True, takes_steps=True)


def pass_through() -> Rule:
    """R_x = R: relevance goes through unchanged, as activations and batch norms let it.

    Errors: `RuleError` for an equation with several inputs or whose output does not have its input's shape.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.pass_through(), torch.relu)
    >>> torch.func.vjp(f, torch.tensor([-1.0, 2.0]))[1](torch.tensor([3.0, 4.0]))[0]
    tensor([3., 4.])
    """

    def forward(operation, *inputs):
        output = operation(*inputs)
        if len(inputs) != 1 or not _broadcasts(inputs[0].shape, output.shape):
            raise RuleError(
                f"{operation.description} must have one input, of its output's shape, for relevance to pass."
            )
        if operation.is_recalled and operation.dtypes[0].itemsize >= RECALLS:
            return output, None
        return output, inputs[0] if operation.row.ratio is not None else output

    def backward(operation, residual, flow):
        if flow.is_relevance:
            return Flow(relevance=flow.tensor.sum_to_size(operation.shapes[0]))
        if operation.row.rectifies:
            return Flow(coefficient=flow.tensor, rectified=RECALLED if residual is None else residual)
        if operation.row.ratio is not None:
            ratio = operation.row.ratio(residual, *operation.arguments[1:], **operation.keywords)
            return Flow(coefficient=multiply(ratio, flow.tensor))
        return Flow(relevance=flow.relevance(residual).sum_to_size(operation.shapes[0]))

    return Rule(call("pass_through"), forward, backward, gives=RECTIFIED, any_layout=True)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, full) for size, full in sizes)
