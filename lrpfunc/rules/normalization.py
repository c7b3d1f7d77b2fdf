"""The rule of normalizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lrpfunc.errors import RuleError
from lrpfunc.operations import PRODUCT, Operation
from lrpfunc.program import is_plain, multiply, operator_name
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
        if operation.operator.joint == PRODUCT:
            return written_out.forward(operation, *inputs)
        output, scale = _form(operation, inputs).statistics(operation, *inputs)
        return output, (scale, None if operation.gets_coefficients else output)

    def backward(operation, residuals, flow):
        if operation.operator.joint == PRODUCT:
            return written_out.backward(operation, residuals, flow)
        scale, output = residuals
        form = FORMS[operator_name(operation.function)]
        c = flow.coefficient(output, stabilize, as_it_is=True)
        return Flow(coefficient=form.adjoint(operation, c, scale).to(operation.dtypes[0]))

    def stops(operation):
        return written_out.stops(operation) if operation.operator.joint == PRODUCT else []

    return Rule(call("normalization", stabilizer=stabilize), forward, backward, stops=stops, any_layout=True)


class _Form(NamedTuple):
    """How an operation normalizes. `statistics`: its output and 1 / d; `adjoint`: from c and 1 / d to c_x."""

    statistics: Callable[[Operation, Tensor], tuple[Tensor, Tensor]]
    adjoint: Callable[[Operation, Tensor, Tensor], Tensor]


def _form(operation: Operation, inputs: tuple[Tensor, ...]) -> _Form:
    form = FORMS.get(operator_name(operation.function))
    if form is None or len(inputs) != 1:
        raise RuleError(f"{operation.description} is no normalization of one value, but the rule needs one.")
    return form


# -- over the last dimensions -----------------------------------------------------------------------------------------


def _layer_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    _, shape, weight, bias, eps = operation.arguments[:5]
    if is_plain(x):
        output, _, scale = aten.native_layer_norm(x, shape, weight, bias, eps)
        return output, scale
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # the kernel's own scale has no derivative
    return operation(x), wide.var(_last(operation), correction=0, keepdim=True).add(eps).rsqrt()


def _layer_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    axes = _last(operation)
    u = _weighted(c, operation.arguments[2])
    u = u - u.mean(axes, keepdim=True)
    return multiply(u, scale)


def _rms_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    eps = operation.arguments[3] if len(operation.arguments) > 3 else None
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return operation(x), wide.square().mean(_last(operation), keepdim=True).add(eps).rsqrt()


def _rms_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    return _weighted(c, operation.arguments[2] if len(operation.arguments) > 2 else None) * scale


def _last(operation: Operation) -> list[int]:
    return list(range(-len(operation.arguments[1]), 0))


def _weighted(c: Tensor, weight: Tensor | None) -> Tensor:
    return c if weight is None else c * weight


# -- over groups of channels and all that follows ---------------------------------------------------------------------


def _group_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    return operation(x), _reciprocal_deviation(x, operation.arguments[1], operation.arguments[4])


def _group_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    return _centered(_per_channel(c, operation.arguments[2]), scale, operation.arguments[1])


def _instance_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    _, _, _, _, variance, uses_input, _, eps = operation.arguments[:8]
    if not uses_input:
        return operation(x), (variance + eps).rsqrt()
    return operation(x), _reciprocal_deviation(x, x.shape[1], eps)


def _instance_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    u = _per_channel(c, operation.arguments[1])
    return _centered(u, scale, c.shape[1]) if operation.arguments[5] else _per_channel(u, scale)


def _reciprocal_deviation(x: Tensor, groups: int, eps: float) -> Tensor:
    """One number per sample and group."""
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1)).flatten(2)
    return grouped.var(-1, correction=0, keepdim=True).add(eps).rsqrt()


def _centered(u: Tensor, scale: Tensor, groups: int) -> Tensor:
    grouped = u.unflatten(1, (groups, -1)).flatten(2)
    return ((grouped - grouped.mean(-1, keepdim=True)) * scale).reshape(u.shape)


def _per_channel(c: Tensor, weight: Tensor | None) -> Tensor:
    return c if weight is None else c * weight.reshape(-1, *[1] * (c.dim() - 2))


# -- over the batch that a model was trained with ---------------------------------------------------------------------


def _batch_statistics(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    variance, eps = operation.arguments[4:6]
    return operation(x), (variance + eps).rsqrt().to(x.dtype)


def _batch_adjoint(operation: Operation, c: Tensor, scale: Tensor) -> Tensor:
    weight = operation.arguments[1]
    return _per_channel(c, scale if weight is None else weight * scale)


FORMS = {
    "layer_norm": _Form(_layer_statistics, _layer_adjoint),
    "rms_norm": _Form(_rms_statistics, _rms_adjoint),
    "group_norm": _Form(_group_statistics, _group_adjoint),
    "instance_norm": _Form(_instance_statistics, _instance_adjoint),
    "batch_norm": _Form(_batch_statistics, _batch_adjoint),
    "frozen_batch_norm": _Form(_batch_statistics, _batch_adjoint),
}
