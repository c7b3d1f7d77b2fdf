"""The rule of normalizations."""

from __future__ import annotations

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import Form, Operation
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.labels import call
from lrpfunc.rules.products import gate
from lrpfunc.rules.rule import Rule
from lrpfunc.rules.stabilizers import StabilizerLike, as_stabilizer

aten = torch.ops.aten


def normalization(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Layer, group, instance, RMS and batch norms with the denominator as a constant: y = w (x - mean x) / d + b.

    c_x = u - mean u with u = w c / d, and c_x = w c / d where no mean of x's own is taken off. Biases and a batch
    norm's mean keep their share, so totals match only without them. Written out, as a product with what comes from a
    reciprocal, root or norm, or as a division of two values, the denominator is a gate.
    Args:
        stabilizer: S, by which y is stabilized where a relevance arrives: an epsilon in units of y, a `stabilizer` or a
            function.
    Errors: `RuleError` for an equation that is no normalization.
    Source: Ali et al. 2022, arXiv:2202.07304; Achtibat et al. 2024, arXiv:2402.05602, proposition 3.4.

    >>> import lrpfunc, torch
    >>> norm, x = torch.nn.LayerNorm(4), torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    >>> rules = lrpfunc.composites.by_kind({"normalization": lrpfunc.rules.normalization()})
    >>> relevance = lrpfunc.attribute(*lrpfunc.functionalize(norm, x), x, rules, target=3)
    >>> bool(relevance.sum().isclose(norm(x)[0, 3]))
    True
    """
    stabilize = as_stabilizer(stabilizer)
    written_out = gate()

    def forward(operation, *inputs):
        if operation.row.is_multilinear:
            return written_out.forward(operation, *inputs)
        output, scale = _form(operation, inputs).statistics(operation, *inputs)
        return output, (scale, None if operation.gets_coefficients else output)

    def backward(operation, residuals, flow):
        if operation.row.is_multilinear:
            return written_out.backward(operation, residuals, flow)
        scale, output = residuals
        c = flow.coefficient(output, stabilize, as_it_is=True)
        return Flow(coefficient=operation.row.form.adjoint(operation, c, scale).to(operation.dtypes[0]))

    def stops(operation):
        return written_out.stops(operation) if operation.row.is_multilinear else []

    return Rule(call("normalization", stabilizer=stabilize), forward, backward, stops=stops, any_layout=True)


def _form(operation: Operation, inputs: tuple[Tensor, ...]) -> Form:
    if operation.row.form is None or len(inputs) != 1:
        raise RuleError(f"{operation.description} is no normalization of one value, but the rule needs one.")
    return operation.row.form
