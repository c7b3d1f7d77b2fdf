"""What to explain of a segmentation: a class where a mask is, or where it is predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrpfunc.attribution import is_int, known_any
from lrpfunc.errors import TargetError
from lrpfunc.targets.parts import Part, placed

NAMES = ("out", "logits")


def region(label: int, mask: Tensor | None = None, logits: Part = None) -> Callable[[Any], Any]:
    """The logits of a class in a region: R_out = logit of the class times the mask, and zero everywhere else.

    The output: logits (batch, classes, height, width), of volumes (batch, classes, depth, height, width), or a dict,
    dataclass or tuple that holds such.

    Args:
        label: the class.
        mask: booleans or weights, (height, width) for all samples or (batch, height, width), of the logits' own size,
            which may be smaller than the picture's; None: where the class is the arg-max, or, of a single class, where
            its logit is positive.
        logits: where the logits are: a name, an index or a function of the output; None: the output itself, or its
            `out` or `logits`.
    Errors: `TargetError` for a class or logits that there are not, and for a mask of another shape, an empty one, or
    one with values that are not finite. In a batch a sample whose region is empty gets zeros.

    >>> import lrpfunc, torch
    >>> from lrpfunc import targets
    >>> logits = torch.tensor([[[[1.0, 5.0]], [[2.0, 4.0]]]])  # (1, 2, 1, 2)
    >>> targets.region(1)(logits).tolist()
    [[[[0.0, 0.0]], [[2.0, 0.0]]]]
    >>> targets.region(1, torch.tensor([[False, True]]))(logits).tolist()
    [[[[0.0, 0.0]], [[0.0, 4.0]]]]
    """
    if not is_int(label):
        raise TargetError(f"a class must be a number, but is {label!r}.")
    if mask is not None and not isinstance(mask, Tensor):
        raise TargetError(f"a mask must be a tensor, but is {type(mask).__name__}.")

    def explained(logits: Tensor) -> Tensor:
        classes = _classes(logits)
        if not -classes <= label < classes:
            raise TargetError(f"class {label} is out of range: the output has {classes} classes, 0 to {classes - 1}.")
        where = _predicted(logits.detach(), label % classes) if mask is None else _fitting(mask, logits)
        if not known_any(where, unknown=True):
            who = f"class {label} is predicted nowhere" if mask is None else "the mask is empty"
            raise TargetError(f"{who}, so there is nothing to explain: give a mask of a region.")
        if known_any(~where.isfinite(), unknown=False):
            raise TargetError("the mask has values that are not finite: give booleans, or weights such as 0 and 1.")
        is_class = torch.arange(classes, device=logits.device) == label % classes
        chosen = is_class.reshape(-1, *[1] * (logits.dim() - 2)) * where.unsqueeze(1)
        return logits * chosen.to(logits.dtype)

    return lambda output: placed(output, logits, NAMES, explained)


def _classes(logits: Tensor) -> int:
    if logits.dim() < 3:
        raise TargetError(
            f"a region is explained at logits of shape (batch, classes, height, width), but they are "
            f"{tuple(logits.shape)}. The class of a classifier is given as it is: target=1."
        )
    return logits.shape[1]


def _predicted(logits: Tensor, label: int) -> Tensor:
    """(batch, ...): where a class is the largest; one class alone, where it is positive."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1) == label


def _fitting(mask: Tensor, logits: Tensor) -> Tensor:
    batch, _, *size = logits.shape
    if list(mask.shape) not in (size, [batch, *size]) or mask.is_complex():
        raise TargetError(
            f"a mask must be {tuple(size)} or {(batch, *size)}, as the logits are, but is {tuple(mask.shape)} in "
            f"{mask.dtype}. Logits may be smaller than the picture: resize the mask to theirs."
        )
    return mask.to(logits.device).expand(batch, *size)
