"""Regions, candidates and boxes: what enters is the logit where it should; detectors of torchvision and others."""

import pytest
import torch
import torchvision
from torch import nn
from torch.func import vmap
from torchvision.models import detection, segmentation

import lrpfunc
from lrpfunc import attributors, composites, rules, targets
from lrpfunc.errors import TargetError
from tests.helpers import randomize

DOUBLE = torch.float64


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * max(1.0, expected.abs().max().item()))


def logits_of(*shape):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


# -- regions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 5), (2, 4, 3)])
@pytest.mark.parametrize("form", ["tensor", "dict", "tuple", "function"])
def test_a_region_is_its_class_where_the_mask_is(size, form):
    logits = logits_of(2, 3, *size)
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(2)) > 0.5

    def upper(output):
        return output["deep"]["map"][:, 3:]

    output, part, read = {
        "tensor": (logits, None, lambda found: found),
        "dict": ({"aux": 2 * logits, "out": logits, "n": 3}, None, lambda found: found["out"]),
        "tuple": ((logits + 1, logits), 1, lambda found: found[1]),
        "function": ({"deep": {"map": torch.cat([logits, logits], 1)}}, upper, upper),
    }[form]  # fmt: skip
    found = targets.region(1, mask, logits=part)(output)
    expected = torch.zeros_like(logits)
    expected[:, 1] = torch.where(mask, logits[:, 1], 0.0)
    close(read(found), expected)
    if form == "dict":
        assert not found["aux"].any()
        assert found["n"] == 3
    if form == "function":
        assert not found["deep"]["map"][:, :3].any()
    one = targets.region(-2, mask[0], logits=part)(output)
    expected[:, 1] = torch.where(mask[0], logits[:, 1], 0.0)
    close(read(one), expected)


def test_a_region_without_a_mask_is_where_the_class_is_predicted():
    logits = logits_of(2, 3, 4, 5)
    expected = torch.zeros_like(logits)
    expected[:, 2] = torch.where(logits.argmax(1) == 2, logits[:, 2], 0.0)
    close(targets.region(2)(logits), expected)
    alone = logits[:, :1]
    close(targets.region(0)(alone), alone.clamp(min=0))


def test_weights_as_a_mask():
    logits = logits_of(1, 2, 2, 2)
    weights = torch.tensor([[0.5, 0.0], [1.0, 2.0]])
    close(targets.region(0, weights)(logits)[:, 0], logits[:, 0] * weights)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y: targets.region(3)(y), "class 3 is out of range: the output has 3 classes, 0 to 2."),
        (lambda y: targets.region("cat"), "a class must be a number, but is 'cat'."),
        (lambda y: targets.region(0, [[1]]), "a mask must be a tensor, but is list."),
        (lambda y: targets.region(0, torch.ones(8, 8))(y), r"\(4, 5\) or \(2, 4, 5\), .* but is \(8, 8\) .* resize"),
        (lambda y: targets.region(0, torch.full((4, 5), torch.nan))(y), "the mask has values that are not finite"),
        (lambda y: targets.region(0, torch.zeros(4, 5))(y), "the mask is empty, so there is nothing to explain"),
        (lambda y: targets.region(1)(y - 9 * torch.eye(3)[1, :, None, None]), "class 1 is predicted nowhere"),
        (lambda y: targets.region(0)(y[:, :, 0, 0]), r"height, width\), but they are \(2, 3\). The class"),
        (lambda y: targets.region(0)({"masks": y}), "no floating-point tensor 'out' or 'logits', but has 'masks'"),
        (lambda y: targets.region(0, logits="aux")({"out": y}), "has no floating-point tensor 'aux', but has 'out'"),
        (lambda y: targets.region(0, logits=2)((y, y)), "has no floating-point tensor 2, but is a tuple"),
    ],
)  # fmt: skip
def test_regions_that_there_are_not(call, message):
    with pytest.raises(TargetError, match=message):
        call(logits_of(2, 3, 4, 5))


# -- candidates and boxes ---------------------------------------------------------------------------------------------


def candidates(batch=2, number=30, classes=4):
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(batch, number, 2, generator=generator, dtype=DOUBLE) * 40
    sizes = torch.rand(batch, number, 2, generator=generator, dtype=DOUBLE) * 30 + 1
    return {"logits": logits_of(batch, number, classes), "boxes": torch.cat([corners, corners + sizes], 2)}


BOX = torch.tensor([-3.0, -3, -1, -1])  # where nothing is


def by_hand(output, box, overlap, label):
    """(sample, candidate, class) of the best of those that overlap."""
    chosen = []
    for logits, boxes in zip(output["logits"], output["boxes"], strict=True):
        near = torchvision.ops.box_iou(boxes, torch.tensor([box], dtype=DOUBLE))[:, 0] >= overlap
        pairs = [(logits[i, c].item(), i, c) for i in near.nonzero()[:, 0].tolist() for c in label]
        chosen.append(max(pairs)[1:])
    return chosen


@pytest.mark.parametrize("label", [None, 2])
@pytest.mark.parametrize("form", ["xyxy", "cxcywh"])
def test_a_box_is_the_best_candidate_that_overlaps_it(label, form):
    output, box = candidates(), (10.0, 8.0, 40.0, 36.0)
    expected = torch.zeros_like(output["logits"])
    for sample, (index, at) in enumerate(by_hand(output, box, 0.3, range(4) if label is None else [label])):
        expected[sample, index, at] = output["logits"][sample, index, at]
    given, written = dict(output), box
    if form == "cxcywh":
        given["boxes"] = torchvision.ops.box_convert(output["boxes"], "xyxy", "cxcywh")
        written = torchvision.ops.box_convert(torch.tensor(box, dtype=DOUBLE), "xyxy", "cxcywh")
    found = targets.box(label, written, 0.3, form=form)(given)
    close(found["logits"], expected)
    assert not found["boxes"].any()
    raw = torch.cat([given["boxes"], given["logits"]], 2)  # as YOLO has them
    of_raw = targets.box(label, written, 0.3, lambda y: y[..., 4:], lambda y: y[..., :4], form)(raw)
    close(of_raw, torch.cat([torch.zeros_like(expected), expected], 2))


def test_each_sample_has_its_own_box_class_and_candidate():
    output = candidates()
    boxes, labels = output["boxes"][[0, 1], [4, 9]], torch.tensor([1, 3])
    expected = torch.zeros_like(output["logits"])
    for sample, (index, label) in enumerate([(4, 1), (9, 3)]):
        expected[sample, index, label] = output["logits"][sample, index, label]
    for label in (labels, [1, 3], (1, -1)):
        close(targets.box(label, boxes, 1.0)(output)["logits"], expected)
        close(targets.candidate(label, torch.tensor([4, 9]))(output)["logits"], expected)
    close(targets.candidate([1, 3], [4, 9])(output["logits"]), expected)


CHANGING = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda y: y.softmax(-1),
    "twice as large": lambda y: 2 * y,
    "differences": lambda y: y[..., 1:] - y[..., :1],
    "twice as many": lambda y: y.repeat(1, 2, 1),
}


@pytest.mark.parametrize("name", CHANGING)
def test_logits_are_picked_and_not_made(name):
    logits = candidates()["logits"]
    made = targets.candidate(1, 2, logits=lambda y: CHANGING[name](y["logits"]))
    with pytest.raises(
        TargetError, match=r"must pick values of the output as they are, .* not their sigmoid, softmax or"
    ):
        made({"logits": logits})
    rows = torch.tensor([[4, 2], [0, 1]])  # of each sample
    picked = targets.candidate(1, 0, logits=lambda y: y["logits"].flip(2).gather(1, rows[..., None].expand(-1, -1, 4)))
    expected = torch.zeros_like(logits)
    expected[[0, 1], [4, 0], 2] = logits[[0, 1], [4, 0], 2]
    close(picked({"logits": logits})["logits"], expected)
    logits[0, 0, 0] = torch.nan
    assert targets.candidate(1, 2, logits=lambda y: y["logits"])({"logits": logits})["logits"][0, 2, 1] != 0


def test_under_vmap_what_is_not_there_gives_zeros():
    output = candidates()
    target = targets.box(1, (10.0, 8.0, 40.0, 36.0), 0.3)
    mapped = vmap(lambda logits, boxes: target({"logits": logits[None], "boxes": boxes[None]})["logits"][0])
    close(mapped(output["logits"], output["boxes"]), target(output)["logits"])
    far = {"logits": output["logits"], "boxes": output["boxes"] + torch.tensor([0.0, 1e3], dtype=DOUBLE)[:, None, None]}
    found = mapped(far["logits"], far["boxes"])
    close(found[0], target(output)["logits"][0])
    assert not found[1].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: targets.box(0, (1, 2, 3))(o), r"a box must be four numbers, or \(2, 4\), but has shape \(3,\)"),
        (lambda o: targets.box(0, "left")(o), "a box must be four numbers, but is 'left'"),
        (lambda o: targets.box(0, (5, 2, 3, 9))(o), r"must have left < right and top < bottom, but is \(5, 2, 3, 9\)"),
        (lambda o: targets.box(0, (5, 2, float("nan"), 9))(o), "must have left < right"),
        (lambda o: targets.box(0, (5, 2, -3, 9), form="cxcywh")(o), "must have a width and a height above zero"),
        (lambda o: targets.box(0, (500, 500, 520, 520))(o), r"sample 0 touches the box \(500, 500, 520, 520\): all "),
        (lambda o: targets.box(0, (9, 500, 5, 5), form="cxcywh")(o), r"the box \(9, 500, 5, 5\): all .* \(xyxy\)"),
        (lambda o: targets.box(0, (-9, -9, -1, -1))(o), r"within \(.*\) \(xyxy\). Is the box in the picture"),
        (lambda o: targets.box(0, (0, 0, 500, 500))(o), r"overlaps the box \(0, 0, 500, 500\) by 0.5: the best"),
        (lambda o: targets.box(0, torch.stack([o["boxes"][0, 0], BOX]))(o), r"sample 1 touches the box \(-3, -3, -1"),
        (lambda o: targets.box(0, (20, 20, 30, 30), 0.99)(o), r"by 0.99: the best overlap is 0\.\d+, at \(.*Lower"),
        (lambda o: targets.box(0, (1, 2, 3, 4), overlap=0), "overlap must be above 0 and at most 1, but is 0"),
        (lambda o: targets.box(0, (1, 2, 3, 4), form="yxyx"), "must be xyxy or cxcywh, but is 'yxyx'"),
        (lambda o: targets.box(4, (10, 8, 40, 36), 0.3)(o), "class 4 is out of range: there are 4, 0 to 3"),
        (lambda o: targets.box(0, (1, 2, 3, 4))({"logits": o["logits"]}), "no .* tensor 'boxes' or 'pred_boxes'"),
        (lambda o: targets.box(0, (1, 2, 3, 4), boxes=lambda o: o["boxes"][:, :3])(o), "but are .2, 3, 4"),
        (lambda o: targets.candidate(0, 30)(o), "candidate 30 is out of range: there are 30, 0 to 29"),
        (lambda o: targets.candidate(0, [1])(o), "a list as candidate must have one per sample, 2, but has 1"),
        (lambda o: targets.candidate("dog", 1)(o), "class must be an int, or a list or tensor with one per sample"),
        (lambda o: targets.candidate(0, 1)(o["logits"][0]), r"\(batch, candidates, classes\), but they are \(30, 4\)"),
        (lambda o: targets.heads(nn.Linear(2, 2)), "Linear has no backbone nor head nor anchor_gen"),
    ],
)  # fmt: skip
def test_boxes_that_there_are_not(call, message):
    with pytest.raises(TargetError, match=message):
        call(candidates())


# -- models -----------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A convolutional network with a map of logits, and candidates of it as YOLO has them."""

    def __init__(self, classes=3, dimensions=2):
        super().__init__()
        torch.manual_seed(0)
        convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
        self.body = nn.Sequential(
            convolution(1, 6, 3, padding=1, bias=False), nn.ReLU(), convolution(6, classes, 1, bias=False)
        )

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_region_is_attributed_as_the_sum_of_its_logits(dimensions):
    model, size = Tiny(dimensions=dimensions).double(), (4, 6, 5)[:dimensions]
    x = torch.randn(2, 1, *size, dtype=DOUBLE)
    mask = torch.rand(2, *size) > 0.4
    fmodel, params = lrpfunc.functionalize(model, x)
    target = targets.region(1, mask)

    def score(x):
        return (model(x)[:, 1] * mask).sum()

    gradient = torch.func.grad(score)(x)
    close(lrpfunc.attribute(fmodel, params, x, rules.epsilon(0), target), x * gradient)
    close(attributors.gradient(fmodel, params, x, target), gradient)
    whole = lrpfunc.attribute(fmodel, params, x, rules.epsilon(0), targets.region(1, torch.ones(size)))
    parts = lrpfunc.attribute_each(fmodel, params, x, rules.epsilon(0), [target, targets.region(1, ~mask)])
    close(parts.sum(0), whole)


def heads_of(name, **options):
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3, **options)
    return randomize(model).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "name",
    [
        "fcos_resnet50_fpn",
        pytest.param("retinanet_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("ssdlite320_mobilenet_v3_large", marks=pytest.mark.slow),
    ],
)
def test_detectors_of_torchvision(name):
    detector, x = heads_of(name), torch.randn(1, 3, 64, 64)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    fmodel, params = lrpfunc.functionalize(targets.heads(detector), x)
    found = fmodel(params, x)
    features = list(detector.backbone(x).values())
    head = detector.head(features)
    (anchors,) = detector.anchor_generator(detection.image_list.ImageList(x, [(64, 64)]), features)
    coder = detector.box_coder
    decoded = getattr(coder, "decode_single", coder.decode)(head["bbox_regression"][0], anchors)
    torch.testing.assert_close(found["boxes"][0], decoded, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["logits"], head["cls_logits"], rtol=1e-3, atol=1e-3)
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())
    index = int((decoded[:, 2:] - decoded[:, :2]).amin(1).argmax())
    target = targets.box(None, decoded[index].tolist(), 0.99)
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), target, strict=True)
    best = int(found["logits"][0, index].argmax())
    same = lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), targets.candidate(best, index))
    torch.testing.assert_close(relevance, same)
    assert relevance.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_segmentation_of_torchvision(name):
    torch.manual_seed(0)
    model = randomize(getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4)).eval()
    x = torch.randn(2, 3, 64, 64)
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:8, :8] = True
    found = lrpfunc.attribute(
        canonical.fmodel, canonical.params, x, composites.epsilon_plus(), targets.region(2, mask), strict=True
    )
    assert found.abs().sum() > 0


@pytest.mark.slow
def test_a_detector_with_queries():
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[32, 32],
        patch_size=8, num_detection_tokens=5, num_labels=3,
    )  # fmt: skip
    model = randomize(transformers.YolosForObjectDetection(config)).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=DOUBLE)
    fmodel, params = lrpfunc.functionalize(model, pixel_values=x)
    output = fmodel(params, pixel_values=x)
    box = output["pred_boxes"][0, 3].detach()
    best = int(targets.box(1, box, 0.99, form="cxcywh")(output)["logits"][0, :, 1].abs().argmax())
    target = targets.box(1, box, 0.99, form="cxcywh")
    relevance = lrpfunc.attribute(fmodel, params, {"pixel_values": x}, composites.attn_lrp(), target, strict=True)
    other = lrpfunc.attribute(fmodel, params, {"pixel_values": x}, composites.attn_lrp(), targets.candidate(1, best))
    close(relevance["pixel_values"], other["pixel_values"])
