"""torchvision's detectors up to where boxes are suppressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrpfunc.errors import TargetError
from lrpfunc.extras import extra


class Heads(nn.Module):
    """A detector's backbone and head as a module of pictures, with its candidates; `heads` makes it.

    It shares the detector's parameters and leaves it as it is. Pictures (batch, channels, height, width) are normalized
    and resized already: that and the suppression of boxes are left out.

    Args:
        detector: torchvision's RetinaNet, FCOS or SSD, or one with the same parts.

    >>> import torch, torchvision
    >>> from lrpfunc import targets
    >>> detector = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    >>> output = targets.Heads(detector.eval())(torch.zeros(1, 3, 64, 64))
    >>> output["logits"].shape, output["boxes"].shape
    (torch.Size([1, 86, 3]), torch.Size([1, 86, 4]))
    """

    def __init__(self, detector: Any):
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.head: nn.Module = detector.head
        self.anchor_generator: nn.Module = detector.anchor_generator
        self._coder = detector.box_coder

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """`logits` (batch, candidates, classes), `boxes` (batch, candidates, 4) in pixels, and other results."""
        lists = extra("torchvision.models.detection.image_list", "cli", "a detector of torchvision")
        features = self.backbone(pictures)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        found = dict(self.head(features))
        height, width = pictures.shape[-2:]
        (anchors,) = self.anchor_generator(lists.ImageList(pictures[:1], [(height, width)]), features)
        boxes = self._boxes(found.pop("bbox_regression").detach(), anchors)
        return {"logits": found.pop("cls_logits"), "boxes": boxes, **found}

    def _boxes(self, codes: Tensor, anchors: Tensor) -> Tensor:
        repeated = anchors.expand(codes.shape[0], -1, -1)
        decode = getattr(self._coder, "decode_single", None) or self._coder.decode
        return decode(codes.reshape(-1, 4), repeated.reshape(-1, 4)).reshape(codes.shape)


class BoxHead(nn.Module):
    """The second stage of a detector as a module of pictures: what its box head says of given proposals.

    It shares the detector's parameters and leaves it as it is. Pictures (batch, channels, height, width) are normalized
    and resized already. `heads` makes it.

    Args:
        detector: torchvision's Faster R-CNN, Mask R-CNN or Keypoint R-CNN.
        proposals: boxes (n, 4) in pixels of such pictures, left, top, right, bottom.

    >>> import torch, torchvision
    >>> from lrpfunc import targets
    >>> make = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    >>> detector = make(weights=None, weights_backbone=None, num_classes=3).eval()
    >>> output = targets.BoxHead(detector, [[4, 4, 40, 50], [0, 0, 64, 64]])(torch.zeros(1, 3, 64, 64))
    >>> output["logits"].shape, output["boxes"].tolist()
    (torch.Size([1, 2, 3]), [[[4.0, 4.0, 40.0, 50.0], [0.0, 0.0, 64.0, 64.0]]])
    """

    def __init__(self, detector: Any, proposals: Sequence[Sequence[float]] | Tensor):
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.box_head: nn.Module = detector.roi_heads.box_head
        self.box_predictor: nn.Module = detector.roi_heads.box_predictor
        self._pool = detector.roi_heads.box_roi_pool
        self._proposals = _as_proposals(proposals)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """`logits` (batch, proposals, classes), of which class 0 is the background, and the proposals as `boxes`."""
        features = self.backbone(pictures)
        maps = [features[name] for name in self._pool.featmap_names if name in features]
        steps = [round(math.log2(pictures.shape[-2] / one.shape[-2])) for one in maps]
        levels = [self._level(box, steps) for box in self._proposals]
        order, pooled = [], []
        for level, (one, step) in enumerate(zip(maps, steps, strict=True)):
            chosen = [place for place, at in enumerate(levels) if at == level]
            if chosen:
                pooled.append(self._pooled(one, [self._proposals[place] for place in chosen], 2.0**-step))
                order += chosen
        joined = torch.cat(pooled, 1)[:, [order.index(place) for place in range(len(order))]]
        logits, _ = self.box_predictor(self.box_head(joined.flatten(0, 1)))
        boxes = pictures.new_tensor(self._proposals).expand(pictures.shape[0], -1, -1)
        return {"logits": logits.unflatten(0, joined.shape[:2]), "boxes": boxes}

    def _level(self, box: Sequence[float], steps: Sequence[int]) -> int:
        """Which map of features a box is looked at: Lin et al. 2017, arXiv:1612.03144, eq. 1."""
        size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        step = math.floor(self._pool.canonical_level + math.log2(size / self._pool.canonical_scale) + 1e-6)
        return min(max(step, steps[0]), steps[-1]) - steps[0]

    def _pooled(self, features: Tensor, boxes: Sequence[Sequence[float]], scale: float) -> Tensor:
        """(batch, boxes, channels, height, width) of the pooled size."""
        ops, batch = extra("torchvision.ops", "cli", "a detector of torchvision"), features.shape[0]
        which = torch.arange(batch, device=features.device, dtype=features.dtype)[:, None, None]
        windows = torch.cat([which.expand(-1, len(boxes), 1), features.new_tensor(boxes).expand(batch, -1, 4)], 2)
        pooled = ops.roi_align(
            features, windows.flatten(0, 1), self._pool.output_size, scale, self._pool.sampling_ratio
        )
        return pooled.unflatten(0, (batch, len(boxes)))


def heads(detector: nn.Module, proposals: Sequence[Sequence[float]] | Tensor | None = None) -> Heads | BoxHead:
    """What of a detector can be explained: its backbone and head, as a module that gives {"logits", "boxes", ...}.

    What torchvision's detectors return is what is left when boxes are suppressed by their values, which no relevance
    can follow. The pictures that it takes are normalized and resized already (`detector.transform` does so). Its boxes
    tell candidates apart, and are constants.

    Args:
        detector: torchvision's RetinaNet, FCOS or SSD, in eval mode, or one with `backbone`, `head`, `anchor_generator`
            and `box_coder` that work alike; or one of two stages, such as Faster R-CNN.
        proposals: of a detector of two stages, the boxes (n, 4) that its second stage looks at, in pixels of such
            pictures: left, top, right, bottom. The first stage would choose them by their values.
    Errors: `TargetError` for a detector without these parts, for two stages without proposals, and for proposals that
        are no boxes.

    >>> import lrpfunc, torch, torchvision
    >>> from lrpfunc import composites, targets
    >>> detector = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    >>> x = torch.rand(1, 3, 64, 64)
    >>> fmodel, params = lrpfunc.functionalize(targets.heads(detector.eval()), x)
    >>> target = targets.candidate(2, index=70)
    >>> lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), target).shape
    torch.Size([1, 3, 64, 64])
    """
    if hasattr(detector, "roi_heads"):
        if proposals is None:
            raise TargetError(
                f"{type(detector).__name__} has two stages, of which the first one chooses boxes by their values: say "
                "which ones the second one is to look at, heads(detector, proposals), such as those that it found."
            )
        return BoxHead(detector, proposals)
    if proposals is not None:
        raise TargetError(f"{type(detector).__name__} has one stage, which takes no proposals: leave them out.")
    missing = [part for part in ("backbone", "head", "anchor_generator", "box_coder") if not hasattr(detector, part)]
    if missing:
        raise TargetError(
            f"{type(detector).__name__} has no {' nor '.join(missing)}, as torchvision's detectors of one stage have: "
            'write a module that gives its candidates, {"logits": (batch, candidates, classes), "boxes": (batch, '
            "candidates, 4)}."
        )
    return Heads(detector)


def _as_proposals(given: Sequence[Sequence[float]] | Tensor) -> list[list[float]]:
    """Boxes as numbers, so that no value decides how they are pooled. Errors: `TargetError`."""
    try:
        boxes = torch.as_tensor(given, dtype=torch.float64)
    except (RuntimeError, TypeError, ValueError):
        boxes = torch.empty(0)
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not len(boxes):
        shape = tuple(given.shape) if isinstance(given, Tensor) else given
        raise TargetError(f"proposals must be boxes, (n, 4) with n of at least 1, but are {shape!r}.")
    if not bool((boxes[:, 2:] > boxes[:, :2]).all() and boxes.isfinite().all()):
        raise TargetError("proposals must have left < right and top < bottom.")
    return boxes.tolist()
