"""What to explain of a detector, before boxes are suppressed: the class of one of its candidates, or of a box.

A detector has many candidates (anchors, places, queries), each with logits of the classes and a box. What comes behind
(thresholds, suppression of boxes that overlap) chooses among them and has no relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrpfunc.attribution import known_any, mark, per_sample
from lrpfunc.errors import TargetError
from lrpfunc.targets.parts import Part, picked, placed

Numbers = int | Sequence[int] | Tensor
LOGITS, BOXES = ("logits", "cls_logits"), ("boxes", "pred_boxes")
CORNERS, CENTERS = "xyxy", "cxcywh"


def candidate(label: Numbers, index: Numbers, logits: Part = None) -> Callable[[Any], Any]:
    """The logit of a class of one candidate: R_out = logit there, and zero everywhere else.

    Args:
        label: the class; a list or tensor has one per sample.
        index: which candidate; a list or tensor has one per sample.
        logits: where the logits (batch, candidates, classes) are: a name, an index or a function of the output; None:
            the output itself, or its `logits` or `cls_logits`.
    Errors: `TargetError` for a class, a candidate or logits that there are not.

    >>> import lrpfunc, torch
    >>> from lrpfunc import targets
    >>> output = {"logits": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), "boxes": torch.zeros(1, 2, 4)}
    >>> targets.candidate(1, index=0)(output)["logits"].tolist()
    [[[0.0, 2.0], [0.0, 0.0]]]
    """

    def explained(logits: Tensor) -> Tensor:
        _check_logits(logits)
        indices = _in_range("candidate", index, logits, logits.shape[1])
        return logits * mark(logits, [indices, _in_range("class", label, logits, logits.shape[2])])

    return lambda output: placed(output, logits, LOGITS, explained)


def box(
    label: Numbers | None,
    box: Sequence[float] | Tensor,
    overlap: float = 0.5,
    logits: Part = None,
    boxes: Part = None,
    form: str = CORNERS,
) -> Callable[[Any], Any]:
    """The class of a box: the logit of the candidate that says the class most of those that overlap the box enough.

    Overlap is the intersection over the union (IoU).

    Args:
        label: the class; a list or tensor has one per sample; None: the class that such a candidate says most, be it
            the background (class 0 of SSD, the last one of DETR), which `logits` can leave out.
        box: four numbers, or (batch, 4), in the units of the candidates' boxes and of the same form.
        overlap: how much of it a candidate's box must overlap, above 0 and at most 1.
        logits: where the logits (batch, candidates, classes) are: a name, an index or a function of the output; None:
            its `logits` or `cls_logits`.
        boxes: where the candidates' boxes (batch, candidates, 4) are; None: its `boxes` or `pred_boxes`.
        form: "xyxy": left, top, right, bottom; "cxcywh": center, width and height, as DETR has them.
    Errors: `TargetError` for what there is not, a box without a size, and one that no candidate overlaps enough. Where
    values are not known (under vmap or torch.compile) such a sample gives zeros instead.

    >>> import lrpfunc, torch
    >>> from lrpfunc import targets
    >>> boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]]])
    >>> output = {"logits": torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), "boxes": boxes}
    >>> targets.box(1, (0, 0, 10, 10))(output)["logits"].tolist()
    [[[0.0, 0.0], [0.0, 4.0], [0.0, 0.0]]]
    """
    if form not in (CORNERS, CENTERS):
        raise TargetError(f"the form of a box must be {CORNERS} or {CENTERS}, but is {form!r}.")
    if not (isinstance(overlap, (int, float)) and 0 < overlap <= 1):
        raise TargetError(f"overlap must be above 0 and at most 1, but is {overlap!r}.")

    def target(output: Any) -> Any:
        places = picked(output, boxes, BOXES).detach()

        def explained(logits: Tensor) -> Tensor:
            _check_logits(logits)
            given = _as_box(box, places)
            shares = _overlaps(places, _checked_corners(given, form), form, logits)
            _check_near(shares, overlap, given, places, form)
            return logits * _best(logits.detach(), shares >= overlap, label)

        return placed(output, logits, LOGITS, explained)

    return target


def _best(logits: Tensor, is_near: Tensor, label: Numbers | None) -> Tensor:
    """True at the largest logit of a sample's candidates that are near, of a class if one is wanted."""
    allowed = is_near[..., None].expand(logits.shape)
    if label is not None:
        allowed = allowed & mark(logits[:, 0], [_in_range("class", label, logits, logits.shape[2])])[:, None]
    best = logits.masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
    is_best = torch.arange(logits[0].numel(), device=logits.device) == best[:, None]
    return is_best.reshape(logits.shape) & allowed


# -- boxes ------------------------------------------------------------------------------------------------------------


def _as_box(given: Sequence[float] | Tensor, boxes: Tensor) -> Tensor:
    """(batch or 1, 4). Errors: `TargetError`."""
    try:
        one = torch.as_tensor(given, dtype=boxes.dtype, device=boxes.device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TargetError(f"a box must be four numbers, but is {given!r}.") from error
    if tuple(one.shape) not in ((4,), (len(boxes), 4)):
        raise TargetError(f"a box must be four numbers, or ({len(boxes)}, 4), but has shape {tuple(one.shape)}.")
    return one.reshape(-1, 4)


def _checked_corners(given: Tensor, form: str) -> Tensor:
    """Errors: `TargetError` for a box without a size."""
    corners = _corners(given, form)
    has_none = (corners[:, 2:] <= corners[:, :2]) | ~corners.isfinite().reshape(-1, 2, 2).all(1)
    if known_any(has_none, unknown=False):
        order = "left < right and top < bottom" if form == CORNERS else "a width and a height above zero"
        raise TargetError(f"a box must have {order}, but is {_numbers(given)} ({form}).")
    return corners


def _corners(boxes: Tensor, form: str) -> Tensor:
    if form == CORNERS:
        return boxes
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def _overlaps(boxes: Tensor, one: Tensor, form: str, logits: Tensor) -> Tensor:
    """The intersection over the union of each candidate's box with one, (batch, candidates)."""
    if boxes.shape != (*logits.shape[:2], 4):
        raise TargetError(
            f"the candidates' boxes must be {(*logits.shape[:2], 4)}, as their logits are {tuple(logits.shape)}, "
            f"but are {tuple(boxes.shape)}."
        )
    boxes, one = _corners(boxes, form), one[:, None]
    inside = torch.minimum(boxes[..., 2:], one[..., 2:]) - torch.maximum(boxes[..., :2], one[..., :2])
    common = inside.clamp(min=0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).clamp(min=0).prod(-1) for each in (boxes, one)]
    return common / (areas[0] + areas[1] - common)


def _check_near(overlaps: Tensor, overlap: float, box: Tensor, boxes: Tensor, form: str) -> None:
    """Errors: `TargetError` for samples of which no candidate is near enough, as far as that is known."""
    is_alone = ~(overlaps >= overlap).any(1)
    if not known_any(is_alone, unknown=False):
        return
    sample = int(is_alone.nonzero()[0])
    best = int(overlaps[sample].argmax())
    given = _numbers(box.expand(len(boxes), 4)[sample])
    if overlaps[sample, best] > 0:
        raise TargetError(
            f"no candidate of sample {sample} overlaps the box {given} by {overlap:g}: the best overlap is "
            f"{overlaps[sample, best]:.2g}, at {_numbers(boxes[sample, best])}. Lower `overlap`, or give a nearer box."
        )
    corners = _corners(boxes[sample], form)
    whole = torch.cat([corners[:, :2].amin(0), corners[:, 2:].amax(0)])
    raise TargetError(
        f"no candidate of sample {sample} touches the box {given}: all lie within {_numbers(whole)} ({CORNERS}). Is "
        "the box in the picture, and in the units of the candidates' boxes?"
    )


def _numbers(box: Tensor) -> str:
    rows = [f"({', '.join(f'{float(number):.4g}' for number in row)})" for row in box.reshape(-1, 4)]
    return ", ".join(rows)


# -- candidates -------------------------------------------------------------------------------------------------------


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 3:
        raise TargetError(
            f"candidates are explained at logits of shape (batch, candidates, classes), but they are "
            f"{tuple(logits.shape)}: say where they are by `logits`, a name or a function of the output."
        )


def _in_range(name: str, index: Numbers, logits: Tensor, size: int) -> Tensor:
    def check(number: int) -> None:
        if not -size <= number < size:
            raise TargetError(f"{name} {number} is out of range: there are {size}, 0 to {size - 1}.")

    return per_sample(name, index, logits, check)
