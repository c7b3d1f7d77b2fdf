"""Functions of equations that ATen does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrpfunc.compat import is_differentiated
from lrpfunc.errors import InputError
from lrpfunc.program.arithmetic import is_plain


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps) -> Tensor:
    """Batch normalization with given statistics, whose eps may be a tensor: the same kernel, eps added beforehand."""
    variance = var + eps
    if _is_differentiated(mean) or _is_differentiated(variance):  # which the kernel cannot
        return _normalized(x, weight, bias, mean, variance)
    return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, 0.0, torch.backends.cudnn.enabled)


def frozen_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps) -> Tensor:
    """Batch normalization as torchvision's FrozenBatchNorm2d writes it, operation by operation."""
    return _normalized(x, weight, bias, mean, var + eps)


def standardize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Batch normalization by the statistics of x itself, as weight-standardized convolutions have it."""
    return torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)


def _normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, scale = mean.reshape(shape), variance.reshape(shape).rsqrt()
    scale = scale if weight is None else weight.reshape(shape) * scale
    return x * scale + (-mean * scale if bias is None else bias.reshape(shape) - mean * scale)


def _is_differentiated(tensor: Tensor) -> bool:
    """Whether autograd, or a torch.func transform at any level, follows a tensor."""
    if torch.compiler.is_compiling():
        return tensor.requires_grad
    return is_differentiated(tensor)


def threshold_relu(x: Tensor, low: Tensor, high: Tensor, slope: float) -> Tensor:
    """A ReLU (or ReLU6, LeakyReLU, ...) whose bends each channel has for itself: the identity between low and high."""
    inside = torch.clamp(x, low, high)
    return torch.add(inside, x - inside, alpha=slope) if slope else inside


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on a device: itself if it is there. What has no numbers stays without, and takes new memory as a copy would."""
    return torch.empty_like(x) if x.is_meta else x.to(device)


def unpacked(
    packed: Tensor, scale: Tensor, bits: int, shape: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """A weight of a shape from whole numbers of 8 bits, or of 4: a byte has two of these, the first in its lower half.

    `packed`: (rows, bytes); `scale`: (rows, groups), of as many numbers in a row as are in a group. `dtype`: of the
    weight, if it is not that of the scale.
    """
    if bits == 4:
        packed = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).to(torch.int8) - 8
    numbers = packed.to(scale.dtype).unflatten(1, (scale.shape[1], -1))
    return (numbers * scale[..., None]).reshape(shape).to(dtype or scale.dtype)


def looked_up(
    packed: Tensor, scale: Tensor, table: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """A weight of a shape and dtype from places in a table of 16 numbers, two to a byte, the first in its upper half.

    `packed`: bytes; `scale`: one for each `block` numbers, whatever the rows are; the last block may be smaller.
    """
    places = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=-1).flatten()
    filled = torch.nn.functional.pad(places, (0, len(scale) * block - len(places))).long()
    numbers = table[filled].unflatten(0, (len(scale), block)) * scale[:, None]
    return numbers.flatten()[: math.prod(shape)].reshape(shape).to(dtype)


def dequantized(packed: Tensor) -> Tensor:
    """A weight from a tensor that knows itself how it is packed, as those of torchao do."""
    return packed.dequantize()


PACKINGS = (unpacked, looked_up, dequantized)


def part(x: Tensor, position: int, split: Callable, *arguments) -> Tensor:
    """One of the views that `chunk`, `split` or `unbind` give."""
    return split(x, *arguments)[position]


def ones_of(x: Tensor, channels: int) -> Tensor:
    """One sample of ones with the last dimensions of x, on its device; a constant."""
    return x.new_ones((1, channels, *x.shape[2:]))


# Convolutions whose bias is a map (1, channels, ...) with the output's last dimensions. One definition each, because
# torch.compile knows a function by the name that it is defined with.


def conv1d_bias_map(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    """`torch.conv1d` with a map as its bias."""
    return _add_map(torch.conv1d(x, weight, None, *geometry), bias)


def conv2d_bias_map(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    """`torch.conv2d` with a map as its bias."""
    return _add_map(torch.conv2d(x, weight, None, *geometry), bias)


def conv3d_bias_map(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    """`torch.conv3d` with a map as its bias."""
    return _add_map(torch.conv3d(x, weight, None, *geometry), bias)


def conv_transpose1d_bias_map(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    """`torch.conv_transpose1d` with a map as its bias."""
    return _add_map(torch.conv_transpose1d(x, weight, None, *geometry), bias)


def conv_transpose2d_bias_map(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    """`torch.conv_transpose2d` with a map as its bias."""
    return _add_map(torch.conv_transpose2d(x, weight, None, *geometry), bias)


def conv_transpose3d_bias_map(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    """`torch.conv_transpose3d` with a map as its bias."""
    return _add_map(torch.conv_transpose3d(x, weight, None, *geometry), bias)


def _add_map(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias


# By the name of the convolution with a bias per channel.
BIAS_MAPS: dict[str, Callable] = {
    "conv1d": conv1d_bias_map,
    "conv2d": conv2d_bias_map,
    "conv3d": conv3d_bias_map,
    "conv_transpose1d": conv_transpose1d_bias_map,
    "conv_transpose2d": conv_transpose2d_bias_map,
    "conv_transpose3d": conv_transpose3d_bias_map,
}


def linear_with_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, to which a bias of any shape is added."""
    return _add_map(torch.nn.functional.linear(x, weight), bias)


def matmul_with_bias(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.matmul`, to which a bias of any shape is added."""
    return _add_map(torch.matmul(left, right), bias)


def einsum_with_bias(equation: str, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """An einsum of an input and a weight, to which a bias of any shape is added."""
    return _add_map(torch.einsum(equation, left, right), bias)


def overwrite(base: Tensor, value: Tensor, views: Sequence[tuple[Callable, tuple]]) -> Tensor:
    """`base` after `value` was written into a view of it; `views` leads from the base to the view."""
    positions = torch.arange(base.numel(), device=base.device).reshape(base.shape)
    for view, arguments in views:
        positions = view(positions, *arguments)
    written = value.to(base.dtype).expand(positions.shape).reshape(-1)
    return base.reshape(-1).scatter(0, positions.reshape(-1), written).reshape(base.shape)


def einsum(equation: str, left: Tensor, right: Tensor) -> Tensor:
    """An einsum of two operands, of which one may be a weight."""
    return torch.einsum(equation, left, right)


def contract(equation: str, x: Tensor) -> Tensor:
    """An einsum of one operand: axes that are summed over, permuted, or of which the diagonal is taken."""
    return torch.einsum(equation, x)


def pooled_rows(rows: Tensor, offsets: Tensor, how: str, has_end: bool = False) -> Tensor:
    """The sum, mean or maximum ("sum", "mean", "amax") of each bag of rows, zero for an empty one.

    `offsets` says where each bag begins, and where `has_end` its last where the last bag ends.
    """
    starts = offsets[:-1] if has_end else offsets
    bags = (
        torch.searchsorted(starts, torch.arange(rows.shape[0], device=rows.device, dtype=starts.dtype), right=True) - 1
    )
    result = rows.new_zeros((starts.shape[0], *rows.shape[1:]))
    return result.scatter_reduce(0, bags[:, None].expand_as(rows), rows, how, include_self=False)


def exp_over_sum(
    x: Tensor,
    axes: int | list[int],
    shift: Tensor | None = None,
    factor: Tensor | None = None,
    epsilon: float = 0.0,
    is_inverted: bool = False,
) -> Tensor:
    """A softmax that is written out: exp(x - shift) * factor, over its sum and epsilon or times the inverse."""
    powers = torch.exp(x if shift is None else x - shift)
    powers = powers if factor is None else powers * factor
    total = powers.sum(axes, keepdim=True)
    total = total + epsilon if epsilon else total
    return powers * total.reciprocal() if is_inverted else powers / total


def exp_of_log_softmax(x: Tensor, axis: int, norm: Tensor | None = None) -> Tensor:
    """A softmax by its logarithm; `norm` is the logarithm of the sum, where that is written out."""
    return torch.exp(torch.log_softmax(x, axis) if norm is None else x - norm)


def log_of_softmax(x: Tensor, axis: int) -> Tensor:
    """The logarithm of a softmax, taken of the softmax."""
    return torch.softmax(x, axis).log()


def sigmoid_by_exp(x: Tensor) -> Tensor:
    """A sigmoid that is written out: 1 / (1 + exp(-x))."""
    return (torch.exp(-x) + 1).reciprocal()


def smooth_attention(
    query: Tensor, key: Tensor, value: Tensor, mask=None, dropout=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    """softmax(scale Q K^T + mask) V in operations that have derivatives of any order, as its kernels have not."""
    math = torch.ops.aten._scaled_dot_product_attention_math
    if mask is not None and mask.dtype == torch.bool:  # which it would add as zeros and ones
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask.logical_not(), -float("inf"))
    return math(query, key, value, mask, dropout, is_causal, scale=scale, enable_gqa=enable_gqa)[0]


def embedding(weight: Tensor, ids: Tensor, *settings) -> Tensor:
    """Rows of a table. Errors: `InputError` for a row that it does not have, on any device."""
    if is_plain(ids) and ids.numel() and not ids.is_meta:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= len(weight):
            wrong = low if low < 0 else high
            raise InputError(
                f"an embedding of {len(weight)} rows was asked for row {wrong}: either a token id is outside the "
                f"vocabulary, or the sequence is longer than the model's {len(weight)} positions."
            )
    return torch.ops.aten.embedding(weight, ids, *settings)


# -- recurrent layers -------------------------------------------------------------------------------------------------

# The steps of one layer in one direction. `gates` is what the input alone brings to the parts of a cell, side by side,
# one step after another along `axis` (0 or 1), the last one first where `reverse`. `states` are those before the first
# step, each (batch, its width). The result has the states after each step side by side, along the same axis.


def lstm_steps(
    gates: Tensor,
    states: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    axis: int = 0,
    reverse: bool = False,
) -> Tensor:
    """The steps of an LSTM: hidden and cell states. Behind the 4 H rows of its weight are those of the transposed
    projection, where it has one."""
    weight, projection = without_projection(weight, 4)
    if projection is None and _suits_kernel(gates.movedim(axis, 0), (*states, weight, bias)):
        ordered = gates.movedim(axis, 0)
        made = _lstm_by_kernel(ordered.flip(0) if reverse else ordered, states, weight, bias)
        return (made.flip(0) if reverse else made).movedim(0, axis)

    def step(gate: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        z = torch.addmm(gate, h, weight.t())
        i, f, _, o = z.sigmoid().chunk(4, -1)
        c = torch.addcmul(f * c, i, z.chunk(4, -1)[2].tanh())
        h = o * c.tanh()
        return (h if projection is None else torch.nn.functional.linear(h, projection)), c

    return _steps(step, gates if bias is None else gates + bias, states, axis, reverse)


# Multiplications that oneDNN does while Python takes an LSTM's next step.
SPARE = 400_000


def _suits_kernel(gates: Tensor, others: Sequence[Tensor | None]) -> bool:
    """Whether oneDNN's LSTM is faster than Python's steps, though it must be given an input and a weight."""
    tensors = [gates, *(tensor for tensor in others if tensor is not None)]
    is_float = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    if not (is_float and torch.backends.mkldnn.is_available() and is_plain(*tensors) and gates.numel()):
        return False
    steps, batch, width = gates.shape
    return batch * width * min(steps * batch, width) <= SPARE


def _lstm_by_kernel(gates: Tensor, states: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """The steps, one after another along the first axis. The input says which row of the gates a step has, or, if these
    are more than there are gates, the weight is that of the identity."""
    steps, batch, width = gates.shape
    if steps * batch < width:
        x, rows = torch.eye(steps * batch).unflatten(0, (steps, batch)), gates.reshape(steps * batch, width).t()
    else:
        x, rows = gates, torch.eye(width)
    before, c = states
    params = [rows, weight] if bias is None else [rows, weight, torch.zeros_like(bias), bias]
    h = torch.lstm(x, [before[None], c[None]], params, bias is not None, 1, 0.0, False, False, False)[0]
    z = gates + torch.nn.functional.linear(torch.cat([before[None], h[:-1]]), weight, bias)
    i, f, g, _ = z.chunk(4, -1)
    cells = []
    for new, kept in zip((i.sigmoid() * g.tanh()).unbind(), f.sigmoid().unbind(), strict=True):
        c = torch.addcmul(new, kept, c)
        cells.append(c)
    return torch.cat([h, torch.stack(cells)], -1)


def without_projection(weight: Tensor, parts: int) -> tuple[Tensor, Tensor | None]:
    """A weight of so many parts, and that of the projection whose transpose is behind it, if there is one."""
    rows, width = weight.shape
    if rows == parts * width:
        return weight, None
    end = rows // (parts + 1) * parts
    return weight[:end], weight[end:].t()


def gru_steps(
    gates: Tensor,
    states: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    axis: int = 0,
    reverse: bool = False,
) -> Tensor:
    """The steps of a GRU."""

    def step(gate: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        r, z, n = gate.chunk(3, -1)
        of_r, of_z, of_n = torch.nn.functional.linear(h, weight, bias).chunk(3, -1)
        n = torch.addcmul(n, (r + of_r).sigmoid(), of_n).tanh()
        return (torch.addcmul(n, (z + of_z).sigmoid(), h - n),)

    return _steps(step, gates, states, axis, reverse)


def rnn_tanh_steps(
    gates: Tensor,
    states: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    axis: int = 0,
    reverse: bool = False,
) -> Tensor:
    """The steps of an RNN of tanh."""

    def step(gate: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return (torch.addmm(gate, h, weight.t()).tanh(),)

    return _steps(step, gates if bias is None else gates + bias, states, axis, reverse)


def rnn_relu_steps(
    gates: Tensor,
    states: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    axis: int = 0,
    reverse: bool = False,
) -> Tensor:
    """The steps of an RNN of ReLU."""

    def step(gate: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return (torch.addmm(gate, h, weight.t()).relu(),)

    return _steps(step, gates if bias is None else gates + bias, states, axis, reverse)


def _steps(step: Callable, gates: Tensor, states: Sequence[Tensor], axis: int, reverse: bool) -> Tensor:
    if gates.is_meta:  # which has a shape and no values
        return gates.new_empty((*gates.shape[:-1], sum(state.shape[-1] for state in states)))
    if not gates.shape[axis]:
        raise InputError("a recurrent layer needs a sequence of one step or more, but got none.")
    made = []
    for gate in gates.unbind(axis)[:: -1 if reverse else 1]:
        states = step(gate, *states)
        made.append(states)
    parts = [torch.stack(part[:: -1 if reverse else 1], axis) for part in zip(*made, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


# -- sizes ------------------------------------------------------------------------------------------------------------


def size(x: Tensor, dim: int) -> int:
    """The size of a dimension, as a function that an equation can name."""
    return x.shape[dim]
