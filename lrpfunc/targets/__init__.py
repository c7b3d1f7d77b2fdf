"""What to explain of pictures beyond a class: a region of a segmentation, a candidate or a box of a detector.

    target = targets.region(CAT, mask)                 # of logits (batch, classes, height, width)
    target = targets.box(DOG, (10, 20, 90, 120))       # of {"logits", "boxes"}, before boxes are suppressed
    lrpfunc.attribute(fmodel, params, x, rules, target)

Each gives a function `output -> R_out`, the form of `target` that `lrpfunc.attribute` takes for any output. For what a
language model says see `lrpfunc.text`.
"""

from lrpfunc.targets.boxes import box, candidate
from lrpfunc.targets.detectors import BoxHead, Heads, heads
from lrpfunc.targets.regions import region

__all__ = ["BoxHead", "Heads", "box", "candidate", "heads", "region"]
