"""What the passes know of batch norms: y = a x + b with a number a and b for each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from lrpfunc.canonizers.draft import Draft
from lrpfunc.canonizers.folds import Subject
from lrpfunc.errors import CanonizeError
from lrpfunc.operations import Facts, Index, batch_norms
from lrpfunc.program import Equation


def _width(known: Facts, batch_norm: Equation) -> int | str:
    return batch_norm.outputs[0].shape[1]


BATCH_NORMS = Subject("batch norm", "norm", batch_norms, _width)

IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0)  # weight, bias, mean, var and eps of a batch norm that does nothing


def take_away(draft: Draft, batch_norm: Equation, became: str, where: str) -> None:
    """Bypass a batch norm that is folded; the leaves that it leaves behind make it the identity."""
    draft.bypass(batch_norm, became, where, leaves=IDENTITY)


def scale_and_shift(draft: Draft, batch_norm: Equation) -> tuple[Tensor, Tensor]:
    """a and b of a batch norm, in float32 at least: half precision is rounded once, at the end."""
    gamma, beta, mean, var, eps = (at_least_single(draft.value(argument)) for argument in batch_norm.arguments[1:])
    scale = (var + eps).rsqrt()
    scale = scale if gamma is None else scale * gamma
    shift = -scale * mean if beta is None else beta - scale * mean
    _check(batch_norm.name, var + eps, scale, shift)
    return scale, shift


def gather(values: Tensor, channels: Index, rest: float) -> Tensor:
    """values[channels] in the shape of `channels`, `rest` where those are -1."""
    padded = torch.cat([values, values.new_full((1,), rest)])
    return padded[torch.from_numpy(channels.copy()).to(values.device)]


def has_no_negative(scale: Tensor) -> bool:
    """Whether a scale is known to be positive or zero. Where there are no values to see, as in `_check`, it is not."""
    if torch.compiler.is_compiling():
        return False
    try:
        return not (scale < 0).any().item()
    except RuntimeError:
        return False


def at_least_single(value):
    """A tensor in float32 if it has less precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32)) if isinstance(value, Tensor) else value


def _check(name: str, variance: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Refuse what cannot be folded. Inside vmap and torch.compile, and on fake tensors, there are no values to see."""
    if torch.compiler.is_compiling():
        return
    try:
        wrong = (~((variance > 0) & scale.isfinite() & shift.isfinite())).nonzero()[:1].tolist()
    except RuntimeError:
        return
    if wrong:
        channel = wrong[0][0]
        raise CanonizeError(
            f"batch norm '{name}' cannot be folded: its variance + eps must be positive and all finite, but channel "
            f"{channel} has variance + eps {variance[channel].item():g}, scale {scale[channel].item():g} and shift "
            f"{shift[channel].item():g}."
        )
