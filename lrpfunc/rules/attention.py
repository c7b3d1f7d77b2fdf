"""The rules of attention and of what it is written out with: softmax and the embedding of tokens."""

from __future__ import annotations

from lrpfunc.errors import RuleError
from lrpfunc.operations import ATTENTION, EMBEDDING, SOFTMAX, Operation
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.rule import Rule, as_coefficients
from lrpfunc.rules.stabilizers import StabilizerLike, stabilizer

QUERY, KEY, VALUE, MASK = range(4)


def attention(to: str = "all", stabilizer: StabilizerLike = 1e-6) -> Rule:
    """softmax(scale Q K^T + mask) V as a whole: the vector-Jacobian product, shared among what depends on the input.

    With g the vector-Jacobian product at c: c_Q = g_Q / 4, c_K = g_K / 4, c_V = g_V / 2, as both matrix products halve
    and the softmax has its Jacobian. Where one side of a product is a constant, the other one takes all.
    `to="value"`: query and key count as constants, c_V = g_V, which conserves (CP-LRP).
    Errors: `RuleError` for an equation that is no attention.
    Source: Achtibat et al. 2024, arXiv:2402.05602; for "value" Ali et al. 2022, arXiv:2202.07304.
    """
    if to not in ("all", "value"):
        raise RuleError(f'attention passes relevance to="all" or to="value", but not to {to!r}.')
    stabilize = _stabilizer(stabilizer)

    def forward(operation, *inputs):
        if operation.kind != ATTENTION:
            raise RuleError(f"{operation.description} is no attention, but the rule needs one.")
        output, memory = operation.remembering(*inputs)
        return output, (inputs, memory, None if operation.gets_coefficients else output)

    def backward(operation, residuals, flow):
        inputs, memory, output = residuals
        c = flow.carried(output, stabilize)
        moved = operation.recall(memory, inputs, c)
        moved = moved if isinstance(moved, tuple) else (moved,)
        flows = [Flow(coefficient=g if share == 1 else g * share) if share else None
                 for g, share in zip(moved, _shares(operation, to), strict=True)]  # fmt: skip
        return flows

    def stops(operation):
        return [place for place, share in enumerate(_shares(operation, to)) if not share]

    label = "attention" if to == "all" else f"attention(to={to})"
    return Rule(label, forward, backward, stops=stops)


def _shares(operation: Operation, to: str) -> list[float]:
    """By what the vector-Jacobian product of each input is multiplied."""
    places = operation.slots
    if to == "value" and VALUE in places:
        return [1.0 if place == VALUE else 0.0 for place in places]
    scores = 1.0 if VALUE not in places else 0.5
    both = 0.5 if QUERY in places and KEY in places else 1.0
    has_scores = any(place != VALUE for place in places)
    shares = {QUERY: scores * both, KEY: scores * both, VALUE: 0.5 if has_scores else 1.0, MASK: scores}
    return [shares[place] for place in places]


def softmax(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """The vector-Jacobian product of a coefficient: of y = softmax(x), c_x = y (c - sum y c).

    Source: Achtibat et al. 2024, arXiv:2402.05602, proposition 3.1.
    """
    stabilize = _stabilizer(stabilizer)

    def forward(operation, *inputs):
        if operation.kind != SOFTMAX:
            raise RuleError(f"{operation.description} is no softmax, but the rule needs one.")
        output = operation(*inputs)
        return output, output

    def backward(operation, y, flow):
        c = flow.carried(y, stabilize)
        axis = operation.arguments[1]
        if _is_logarithm(operation):
            moved = c - y.exp() * c.sum(axis, keepdim=True)
        else:
            moved = y * (c - (y * c).sum(axis, keepdim=True))
        return as_coefficients(moved.to(operation.dtypes[0]))

    return Rule("softmax", forward, backward)


def _is_logarithm(operation: Operation) -> bool:
    return operation.operator == "log_softmax"


def embedding() -> Rule:
    """A token has the relevance of its row: R_t = sum_d R_td.

    Errors: `RuleError` for an equation that is no embedding of tokens.
    """

    def forward(operation, *inputs):
        if operation.kind != EMBEDDING or operation.slots != [1]:
            raise RuleError(f"{operation.description} is no embedding of tokens, but the rule needs one.")
        output = operation(*inputs)
        return output, output

    def backward(operation, output, flow):
        return Flow(relevance=flow.relevance(output).sum(-1))

    return Rule("embedding", forward, backward)


_stabilizer = stabilizer  # the rules' own argument has the same name
