"""The rule of normalizations."""

from __future__ import annotations

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import Form, Operation
from lrpfunc.rules.flows import Flow
from lrpfunc.rules.products import gate
from lrpfunc.rules.rule import Rule
from lrpfunc.rules.stabilizers import StabilizerLike, stabilizer

aten = torch.ops.aten


def normalization(stabilizer: StabilizerLike = 1e-6) -> Rule:
    """Layer, group, instance, RMS and batch norms with the denominator as a constant: y = w (x - mean x) / d + b.

    c_x = u - mean u with u = w c / d, and c_x = w c / d where no mean of x's own is taken off. Biases and a batch
    norm's mean keep their share, so totals match only without them. Written out, as a product with what comes from a
    reciprocal, root or norm, or as a division of two values, the denominator is a gate.
    Errors: `RuleError` for an equation that is no normalization.
    Source: Ali et al. 2022, arXiv:2202.07304; Achtibat et al. 2024, arXiv:2402.05602, proposition 3.4.
    """
    stabilize = _stabilizer(stabilizer)
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
        form = operation.row.form
        c = flow.carried(output, stabilize)
        return Flow(coefficient=form.adjoint(operation, c, scale).to(operation.dtypes[0]))

    def stops(operation):
        return written_out.stops(operation) if operation.row.is_multilinear else []

    return Rule("normalization", forward, backward, stops=stops)


def _form(operation: Operation, inputs: tuple[Tensor, ...]) -> Form:
    if operation.row.form is None or len(inputs) != 1:
        raise RuleError(f"{operation.description} is no normalization of one value, but the rule needs one.")
    return operation.row.form


_stabilizer = stabilizer  # the rule's own argument has the same name
