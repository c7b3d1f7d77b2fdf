"""The rules of attention and of what it is written out with: softmax and the embedding of tokens."""

from __future__ import annotations

from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import ATTENTION, EMBEDDING, SOFTMAX, Operation, of_all
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.labels import call
from lrpfunc.rules.rule import Rule
from lrpfunc.rules.stabilizers import StabilizerLike, as_stabilizer

QUERY, KEY, VALUE, MASK = range(4)


def attention(to: str = "all", stabilizer: StabilizerLike = 1e-6) -> Rule:
    """softmax(scale Q K^T + mask) V as a whole: the vector-Jacobian product, shared among what depends on the input.

    With g the vector-Jacobian product at c: c_Q = g_Q / 4, c_K = g_K / 4, c_V = g_V / 2, as both matrix products halve
    and the softmax has its Jacobian. Where one side of a product is a constant, the other one takes all.

    Args:
        to: "all"; or "value", where query and key count as constants: c_V = g_V, which conserves (CP-LRP).
        stabilizer: S, by which the output is stabilized where a relevance arrives: an epsilon in units of the output, a
            `stabilizer` or a function.
    Errors: `RuleError` for an equation that is no attention.
    Source: Achtibat et al. 2024, arXiv:2402.05602; for "value" Ali et al. 2022, arXiv:2202.07304.

    >>> import lrpfunc, torch
    >>> query, key, value = torch.randn(3, 1, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    >>> attend = torch.nn.functional.scaled_dot_product_attention
    >>> fmodel, params = lrpfunc.trace(lambda p, q, k, v: attend(q, k, v), {}, query, key, value)
    >>> rules = lrpfunc.composites.by_kind({"attention": lrpfunc.rules.attention("value")})
    >>> of_query, of_key, _ = lrpfunc.attribute(fmodel, params, (query, key, value), rules, target=(0, 0, 0))
    >>> of_query.any() | of_key.any()
    tensor(False)
    """
    if to not in ("all", "value"):
        raise RuleError(f'attention passes relevance to="all" or to="value", but not to {to!r}.')
    stabilize = as_stabilizer(stabilizer)

    def forward(operation, *inputs):
        if operation.kind != ATTENTION:
            raise RuleError(f"{operation.description} is no attention, but the rule needs one.")
        output, memory = operation.remembering(*inputs)
        return output, (inputs, memory, None if operation.gets_coefficients else output)

    def backward(operation, residuals, flow):
        inputs, memory, output = residuals
        c = flow.coefficient(output, stabilize, as_it_is=True)
        moved = operation.recall(memory, inputs, c)
        moved = moved if isinstance(moved, tuple) else (moved,)
        flows = [Flow(coefficient=g if share == 1 else g * share) if share else None
                 for g, share in zip(moved, _shares(operation, to), strict=True)]  # fmt: skip
        return flows

    def stops(operation):
        return [position for position, share in enumerate(_shares(operation, to)) if not share]

    def parameters(operation, inputs, output, flow, opened):
        return _of_parameters(operation, opened, flow.coefficient(output, stabilize, as_it_is=True), to)

    label = call("attention", *([] if to == "all" else [to]), stabilizer=stabilize)
    return Rule(label, forward, backward, stops=stops, any_layout=True, parameters=parameters)


def _shares(operation: Operation, to: str) -> list[float]:
    """By what the vector-Jacobian product of each input is multiplied."""
    active = operation.slots
    if to == "value" and VALUE in active:
        return [1.0 if argument == VALUE else 0.0 for argument in active]
    scores = 1.0 if VALUE not in active else 0.5
    both = 0.5 if QUERY in active and KEY in active else 1.0
    has_scores = any(argument != VALUE for argument in active)
    shares = {QUERY: scores * both, KEY: scores * both, VALUE: 0.5 if has_scores else 1.0, MASK: scores}
    return [shares[argument] for argument in active]


def _of_parameters(operation: Operation, opened: Operation, c: Tensor, to: str) -> list[Flow | None]:
    """What parameters get that are to a product what a weight is to a layer: all that comes to it.

    To the scores comes half where both they and the values are active, or nothing if relevance goes to="value".
    """
    are_both_active = VALUE in operation.slots and len(operation.slots) > 1
    scores = (0.0 if to == "value" else 0.5) if are_both_active else 1.0
    shares = [1.0 if argument == VALUE else scores for argument in opened.slots]
    if not any(shares):
        return [None] * len(shares)
    moved = opened.vjp([operation.arguments[position] for position in opened.slots], c)
    moved = moved if isinstance(moved, tuple) else (moved,)
    return [Flow(coefficient=g * share) for g, share in zip(moved, shares, strict=True)]


def softmax(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """The vector-Jacobian product of a coefficient: of y = softmax(x), c_x = y (c - sum y c).

    Args:
        stabilizer: S, by which y is stabilized where a relevance arrives: an epsilon in units of y, a `stabilizer` or a
            function.
    Errors: `RuleError` for an equation that is no softmax.
    Source: Achtibat et al. 2024, arXiv:2402.05602, proposition 3.1.

    >>> import lrpfunc, torch
    >>> f = lrpfunc.custom_vjp(lrpfunc.rules.softmax(0), torch.softmax)
    >>> x = torch.tensor([[0.0, 0.0]])
    >>> torch.func.vjp(lambda x: f(x, 1), x + 1.0)[1](torch.tensor([[0.5, 0.0]]))[0]  # c = (1, 0), y = (1/2, 1/2)
    tensor([[ 0.2500, -0.2500]])
    """
    stabilize = as_stabilizer(stabilizer)

    def forward(operation, *inputs):
        if operation.kind != SOFTMAX:
            raise RuleError(f"{operation.description} is no softmax, but the rule needs one.")
        output = operation(*inputs)
        return output, output

    def backward(operation, y, flow):
        c = flow.coefficient(y, stabilize, as_it_is=True)
        axis = operation.arguments[1]
        if _is_logarithm(operation):
            moved = c - y.exp() * c.sum(axis, keepdim=True)
        else:
            moved = y * (c - (y * c).sum(axis, keepdim=True))
        # What is subtracted from all scores before they are exponentiated takes nothing.
        return [Flow(coefficient=moved.to(operation.dtypes[0])), *[None] * (len(operation.slots) - 1)]

    def stops(operation):
        return range(1, len(operation.slots))

    return Rule(call("softmax", stabilizer=stabilize), forward, backward, stops=stops, any_layout=True)


def _is_logarithm(operation: Operation) -> bool:
    return operation.row.is_probability and not operation.row.is_gate


def embedding() -> Rule:
    """An id has the relevance of its row: R_t = sum_d R_td. Several that look up one row together have equal shares.

    Errors: `RuleError` for an equation that looks up no rows by ids.

    >>> import lrpfunc, torch
    >>> table, ids = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1, 0, 1]])
    >>> fmodel, params = lrpfunc.trace(lambda p, ids: torch.embedding(p, ids).sum((1, 2)), table, ids)
    >>> rules = lrpfunc.composites.by_kind({"embedding": lrpfunc.rules.embedding()})
    >>> lrpfunc.attribute(fmodel, params, ids, rules, target=lambda y: y)
    tensor([[7.0000, 3.0000, 7.0000]])
    """

    def forward(operation, *inputs):
        if operation.kind != EMBEDDING:
            raise RuleError(f"{operation.description} is no embedding of tokens, but the rule needs one.")
        output = operation(*inputs)
        return output, output

    def backward(operation, output, flow):
        relevance = flow.relevance(output)
        first, count = (operation.row.axes_of_ids or of_all)(operation, relevance.dim())
        others = [axis for axis in range(relevance.dim()) if not first <= axis < first + count]
        of_ids = relevance.sum(others) if others else relevance
        return [Flow(relevance=(of_ids / len(operation.shapes)).sum_to_size(shape)) for shape in operation.shapes]

    return Rule(call("embedding"), forward, backward, any_layout=True)
