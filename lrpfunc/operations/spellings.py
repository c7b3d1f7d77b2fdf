"""Core-ATen spellings: second names of rows whose arguments differ from the row's own.

A model that was decomposed or traced by `torch.jit` has these in place of `conv2d`, `layer_norm` and the like. Each
function here takes the arguments of such an operation, in the order of its schema, and gives the row's function and
arguments, whose result is the first output; None where there is no such row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lrpfunc.program import batch_norm

aten = torch.ops.aten

Spelled = tuple[Callable, tuple] | None


def _convolution(arguments: Sequence) -> Spelled:
    x, weight, bias, stride, padding, dilation, is_transposed, output_padding, groups = arguments[:9]
    dimensions = len(weight.shape) - 2
    if is_transposed:
        packet = getattr(aten, f"conv_transpose{dimensions}d")
        function = packet.default if dimensions == 1 else packet.input
        return function, (x, weight, bias, stride, padding, output_padding, groups, dilation)
    return getattr(aten, f"conv{dimensions}d").default, (x, weight, bias, stride, padding, dilation, groups)


def _batch_norm(arguments: Sequence) -> Spelled:
    x, weight, bias, mean, var, _, eps = arguments[:7]
    return batch_norm, (x, weight, bias, mean, var, eps)


def _batch_norm_of_mode(arguments: Sequence) -> Spelled:
    x, weight, bias, mean, var, is_training, _, eps = arguments[:8]
    return None if is_training else (batch_norm, (x, weight, bias, mean, var, eps))


def _layer_norm(arguments: Sequence) -> Spelled:
    x, shape, weight, bias, eps = arguments
    return aten.layer_norm.default, (x, shape, weight, bias, eps, True)


def _group_norm(arguments: Sequence) -> Spelled:
    x, weight, bias, _, _, _, groups, eps = arguments
    return aten.group_norm.default, (x, groups, weight, bias, eps, True)


def _softmax(arguments: Sequence) -> Spelled:
    x, axis, casts = arguments
    return None if casts else (aten.softmax.int, (x, axis, None))


def _log_softmax(arguments: Sequence) -> Spelled:
    x, axis, casts = arguments
    return None if casts else (aten.log_softmax.int, (x, axis, None))


def _same(function: Callable) -> Callable[[Sequence], Spelled]:
    """Of another name with the same arguments."""

    def spelled(arguments: Sequence) -> Spelled:
        return function, tuple(arguments)

    return spelled


SPELLINGS: Mapping[str, Callable[[Sequence], Spelled]] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit": _batch_norm_of_mode,
    "native_batch_norm": _batch_norm_of_mode,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "_adaptive_avg_pool2d": _same(aten.adaptive_avg_pool2d.default),
    "_adaptive_avg_pool3d": _same(aten.adaptive_avg_pool3d.default),
}
