"""torchvision's detectors up to where boxes are suppressed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lrpfunc.errors import TargetError
from lrpfunc.extras import extra


class Heads(nn.Module):
    """A detector's backbone and head as a module of pictures, with its candidates; `heads` makes it.

    It shares the detector's parameters and leaves it as it is. Pictures (batch, channels, height, width) are normalized
    and resized already: that and the suppression of boxes are left out.

    Args:
        detector: torchvision's RetinaNet or FCOS, or one with the same parts.

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


def heads(detector: nn.Module) -> Heads:
    """What of a detector can be explained: its backbone and head, as a module that gives {"logits", "boxes", ...}.

    What torchvision's detectors return is what is left when boxes are suppressed by their values, which no relevance
    can follow. The pictures that it takes are normalized and resized already. Its boxes tell candidates apart, and are
    constants.

    Args:
        detector: torchvision's RetinaNet or FCOS, in eval mode, or one with `backbone`, `head`, `anchor_generator` and
            `box_coder` that work alike.
    Errors: `TargetError` for a detector without these parts, such as those of two stages.

    >>> import lrpfunc, torch, torchvision
    >>> from lrpfunc import composites, targets
    >>> detector = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    >>> x = torch.rand(1, 3, 64, 64)
    >>> fmodel, params = lrpfunc.functionalize(targets.heads(detector.eval()), x)
    >>> target = targets.candidate(2, index=70)
    >>> lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), target).shape
    torch.Size([1, 3, 64, 64])
    """
    missing = [part for part in ("backbone", "head", "anchor_generator", "box_coder") if not hasattr(detector, part)]
    if missing:
        raise TargetError(
            f"{type(detector).__name__} has no {' nor '.join(missing)}, as torchvision's detectors of one stage have: "
            'write a module that gives its candidates, {"logits": (batch, candidates, classes), "boxes": (batch, '
            "candidates, 4)}."
        )
    return Heads(detector)
