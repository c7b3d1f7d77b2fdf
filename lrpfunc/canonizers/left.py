"""A batch norm folded into the layers before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from lrpfunc.canonizers.batch_norms import BATCH_NORMS, gather, scale_and_shift, take_away
from lrpfunc.canonizers.draft import Draft
from lrpfunc.canonizers.folds import Fold
from lrpfunc.operations import Absorber, is_batch_norm, leftwards, positions
from lrpfunc.program import Equation

MERGED = "merged"


def _layers(absorbers: Sequence[Absorber]) -> list[Equation]:
    return [absorber.layer for absorber in absorbers]


def _merge(draft: Draft, batch_norm: Equation, absorbers: Sequence[Absorber]) -> None:
    scales, shifts = scale_and_shift(draft, batch_norm)
    for layer, channels, share in absorbers:
        scale, shift = gather(scales, channels, rest=1.0), share * gather(shifts, channels, rest=0.0)
        weight_at, bias_at = (1, 2) if is_batch_norm(layer) else (positions(layer).weight, positions(layer).bias)
        weight, bias = layer.arguments[weight_at], layer.arguments[bias_at]
        like = weight or layer.arguments[4]  # a batch norm without a weight has its variance
        arguments = list(layer.arguments)
        scaled = scale_outputs(layer, draft.value(weight), scale)
        arguments[weight_at] = draft.write_leaf(layer, "weight", weight, scaled, like)
        if bias is not None or share:
            moved = shift if bias is None else scale * draft.value(bias) + shift
            arguments[bias_at] = draft.write_leaf(layer, "bias", bias, moved, like)
        draft.exchange(dataclasses.replace(layer, arguments=tuple(arguments)))
    take_away(draft, batch_norm, MERGED, ", ".join(layer.name for layer in _layers(absorbers)))


def scale_outputs(layer: Equation, weight: Tensor | None, scale: Tensor) -> Tensor:
    """The weight with each output channel scaled."""
    if weight is None:
        return scale
    if is_batch_norm(layer):
        return weight * scale
    axis = positions(layer).output_axis
    if axis is not None:
        return weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    groups = layer.arguments[6]
    grouped = weight.unflatten(0, (groups, -1))  # of a transposed convolution, (in, out / groups, ...)
    return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


merge_batch_norm = Fold(
    name="merge_batch_norm",
    about=BATCH_NORMS,
    side="before it",
    find=leftwards,
    touched=_layers,
    merge=_merge,
    doc="""Fold each batch norm into the linear layer before it, if nothing else reads that layer.

    W' = s W, b' = s (b - mean) + beta, s = gamma / sqrt(var + eps). Views and averages may come between; of layers that
    are concatenated each gets its channels, of layers that are added all are scaled and one is shifted. The batch
    norm's equation goes; its leaves, unless another equation still reads them, become the identity: mean 0, var 1,
    weight 1, bias 0, eps 0. A weight that other equations read too, or that is computed from others, is left as it is,
    and the layer gets its own leaf.

    Args:
        program: a program, as `functionalize` and `trace` return it.
        params: its parameters, a flat dict {name: tensor}. Neither is mutated.

    Errors: `CanonizeError` for batch norms whose values cannot be folded, as `canonize`.
    Source: Guillemot et al. 2020, arXiv:2002.11018.

    >>> import lrpfunc, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, eps=3.0)).eval()
    >>> fmodel, params = lrpfunc.functionalize(model, torch.ones(1, 2))
    >>> program, folded = lrpfunc.canonizers.merge_batch_norm(fmodel, params)
    >>> [equation.operator for equation in program.equations]
    ['linear']
    >>> torch.equal(folded["0.weight"], params["0.weight"] / 2)  # 1 / sqrt(1 + 3)
    True
    >>> folded["1.eps"].item()
    0.0
    """,
)
