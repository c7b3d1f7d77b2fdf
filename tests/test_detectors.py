"""Detectors and segmentation networks: what a target picks is the logit picked by hand, and its relevance arrives.

Of each network without biases: the explanation is strict, is that of a one-hot seed at the logit that is read by hand,
and sums to this logit; of one that is piecewise linear, LRP-0 is input times the gradient of that logit.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import anchor_utils, backbone_utils
from torchvision.models.resnet import BasicBlock
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import lrpfunc
from lrpfunc import composites, rules, targets
from lrpfunc.errors import TargetError
from tests.helpers import randomize
from tests.test_examples import load

DOUBLE = torch.float64
SIZE = 64
WIDTH = 64  # of pyramids: two channels a group of FCOS, and no map in which nothing is positive
segmentation = load("segmentation")


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def without_biases(model: nn.Module) -> nn.Module:
    """Random, in float64, and homogeneous: nothing is added anywhere."""
    model = randomize(model).double().requires_grad_(False)
    for module in model.modules():
        for name in ("bias", "in_proj_bias", "running_mean"):
            if getattr(module, name, None) is not None:
                getattr(module, name).zero_()
    return model


def pictures(batch=2, size=SIZE, channels=3):
    return torch.rand(batch, channels, size, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) - 0.3


# -- networks ---------------------------------------------------------------------------------------------------------


def pyramid(stages, **options):
    """Features of a small residual network with a block a stage, as torchvision makes them of ResNets."""

    def stage(stride):
        beside = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, stride, bias=False), nn.BatchNorm2d(WIDTH))
        return BasicBlock(WIDTH, WIDTH, stride, beside)

    stem = nn.Sequential(nn.Conv2d(3, WIDTH, 7, 4, 3, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
    blocks = {name: stage(1 if name == "1" else 2) for name in "1234"}
    return backbone_utils.BackboneWithFPN(
        nn.Sequential(OrderedDict(stem=stem, **blocks)), {name: str(i) for i, name in enumerate(stages)},
        [WIDTH] * len(stages), WIDTH, norm_layer=nn.BatchNorm2d, **options,
    )  # fmt: skip


def of_one_stage(make):
    torch.manual_seed(0)
    model = make(pyramid("234", extra_blocks=LastLevelP6P7(WIDTH, WIDTH)), 3)
    return targets.heads(without_biases(model))


class Maps(nn.Module):
    """Features of two sizes, by name."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.out_channels = (8, 12)

    def forward(self, x):
        fine = self.fine(x)
        return OrderedDict(fine=fine, coarse=self.coarse(fine))


def ssd():
    torch.manual_seed(0)
    model = detection.ssd.SSD(
        Maps(), anchor_utils.DefaultBoxGenerator([[2], [2]]), (SIZE, SIZE), 3,
        head=detection.ssd.SSDHead([8, 12], [4, 4], 3),
    )  # fmt: skip
    return targets.heads(without_biases(model))


PROPOSALS = torch.tensor([[3.0, 5, 30, 40], [10, 20, 30, 44], [0, 0, 64, 64]])


def two_stages():
    torch.manual_seed(0)
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 3, 2, canonical_scale=56)
    head = detection.faster_rcnn.TwoMLPHead(WIDTH * 9, 16)
    predictor = detection.faster_rcnn.FastRCNNPredictor(16, 4)
    model = detection.FasterRCNN(pyramid("1234"), box_roi_pool=pool, box_head=head, box_predictor=predictor)
    return without_biases(model)


class Grid(nn.Module):
    """As YOLO without anchors: at each place of two grids a box and the logits of the classes, (N, 4 + classes, M).

    Boxes are centers and sizes in pixels.
    """

    def __init__(self, classes=3):
        super().__init__()
        self.stem, self.down = (
            nn.Sequential(nn.Conv2d(given, made, 3, 4, 1, bias=False), nn.BatchNorm2d(made), nn.SiLU())
            for given, made in ((3, 8), (8, 12))
        )
        self.heads = nn.ModuleList(nn.Conv2d(given, 4 + classes, 1) for given in (8, 12))

    def forward(self, x):
        fine = self.stem(x)
        found = []
        for head, features in zip(self.heads, (fine, self.down(fine)), strict=True):
            raw = head(features)
            step = x.shape[-1] // raw.shape[-1]
            row, column = (torch.arange(size, device=x.device) + 0.5 for size in raw.shape[-2:])
            centers = torch.stack(torch.meshgrid(column, row, indexing="xy")) * step
            boxes = torch.cat([centers + raw[:, :2].tanh() * step, raw[:, 2:4].exp() * 2 * step], 1)
            found.append(torch.cat([boxes, raw[:, 4:]], 1).flatten(2))
        return torch.cat(found, 2)


class Decoder(nn.Module):
    """A layer of DETR's decoder: queries look at each other, then at what the encoder made of the picture."""

    def __init__(self, width=16):
        super().__init__()
        self.among, self.across = (nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))

    def forward(self, x, memory, queries, places):
        asked = x + queries
        x = self.norms[0](x + self.among(asked, asked, x, need_weights=False)[0])
        x = self.norms[1](x + self.across(x + queries, memory + places, memory, need_weights=False)[0])
        return self.norms[2](x + self.feed(x))


class Queries(nn.Module):
    """As DETR (Carion et al. 2020, arXiv:2005.12872): each query finds a box, or nothing, which is the last class."""

    def __init__(self, classes=3, width=16, number=5):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1, bias=False)
        )
        self.queries = nn.Parameter(torch.randn(number, width))
        self.places = nn.Parameter(torch.randn((SIZE // 8) ** 2, width))
        self.layers = nn.ModuleList(Decoder(width) for _ in range(2))
        self.says, self.where = nn.Linear(width, classes + 1), nn.Linear(width, 4)

    def forward(self, x):
        memory = self.backbone(x).flatten(2).mT
        x = self.queries.expand(len(memory), -1, -1) * 0
        for layer in self.layers:
            x = layer(x, memory, self.queries, self.places)
        return {"pred_logits": self.says(x), "pred_boxes": self.where(x).sigmoid()}


def volumes():
    return torch.rand(2, 1, 8, 12, 16, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) - 0.3


# -- cases ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A network, inputs, a target, what it picks by hand of the output (one number a sample), and rules."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    target: Callable[[Any], Any]
    by_hand: Callable[[Any], Tensor]
    composite: Callable = composites.epsilon_plus
    entries: dict | None = None
    is_piecewise_linear: bool = True


def mask_of(*size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(2)) > 0.6


FLAT, DEEP = mask_of(SIZE, SIZE), mask_of(2, 8, 12, 16)
CASES = {
    "retinanet": Case(
        lambda: of_one_stage(detection.RetinaNet), pictures, targets.candidate(2, [300, 40]),
        lambda y: torch.stack([y["logits"][0, 300, 2], y["logits"][1, 40, 2]]),
    ),
    "fcos": Case(
        lambda: of_one_stage(detection.FCOS), pictures, targets.candidate([0, 1], 70),
        lambda y: y["logits"][[0, 1], 70, [0, 1]], is_piecewise_linear=False,  # group norms
    ),
    "ssd": Case(ssd, pictures, targets.candidate(1, 5), lambda y: y["logits"][:, 5, 1]),
    "faster r-cnn": Case(
        lambda: targets.heads(two_stages(), PROPOSALS), pictures, targets.candidate(3, [1, 2]),
        lambda y: y["logits"][[0, 1], [1, 2], 3], entries={"*roi_align*": rules.norm(1e-12)},
    ),
    "like yolo": Case(
        lambda: without_biases(Grid()), pictures, targets.candidate(1, 260, logits=lambda y: y[:, 4:].mT),
        lambda y: y[:, 5, 260], entries={"exp": rules.pass_through()}, is_piecewise_linear=False,  # SiLU
    ),
    "like detr": Case(
        lambda: without_biases(Queries()), pictures, targets.candidate(1, 3, logits="pred_logits"),
        lambda y: y["pred_logits"][:, 3, 1], composites.cp_lrp, is_piecewise_linear=False,
    ),
    "deeplab": Case(
        lambda: without_biases(segmentation.deeplab()), pictures, targets.region(2, FLAT),
        lambda y: (y["out"][:, 2] * FLAT).sum((1, 2)),
    ),
    "u-net": Case(
        lambda: without_biases(segmentation.UNet()), volumes, targets.region(1, DEEP),
        lambda y: (y[:, 1] * DEEP).sum((1, 2, 3)), entries={"head": rules.epsilon(1e-12)},  # of few channels
    ),
}  # fmt: skip
by_name = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def explained():
    """Each case's model, inputs and canonical program, made once."""
    made = {}

    def get(name):
        if name not in made:
            case = CASES[name]
            model, x = case.make(), case.inputs()
            made[name] = case, model, x, lrpfunc.canonize(*lrpfunc.functionalize(model, x))
        return made[name]

    return get


@by_name
def test_a_target_is_the_logit_picked_by_hand(explained, name):
    case, model, x, (fmodel, params, *_) = explained(name)
    output = fmodel(params, x)
    leaves, structure = torch.utils._pytree.tree_flatten(output)
    picked, pullback = torch.func.vjp(lambda *leaves: case.by_hand(structure.unflatten(leaves)), *leaves)
    one_hot = structure.unflatten(pullback(torch.ones_like(picked)))
    found = case.target(output)
    expected = torch.utils._pytree.tree_map(torch.mul, output, one_hot)
    for got, wanted in zip(*map(torch.utils._pytree.tree_leaves, (found, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    close(picked, case.by_hand(model(x)))
    seeded = lambda y: torch.utils._pytree.tree_map(torch.mul, y, one_hot)  # noqa: E731
    composite = case.composite(entries=case.entries)
    relevance = lrpfunc.attribute(fmodel, params, x, composite, case.target, strict=True)
    close(relevance, lrpfunc.attribute(fmodel, params, x, composite, seeded))
    assert relevance.flatten(1).abs().sum(1).all()


@by_name
def test_all_relevance_arrives(explained, name):
    case, model, x, (fmodel, params, *_) = explained(name)
    options = {} if case.composite is composites.cp_lrp else {"stabilizer": 1e-12}
    composite = case.composite(epsilon=1e-12, entries=case.entries, **options)
    relevance = lrpfunc.attribute(fmodel, params, x, composite, case.target, strict=True)
    torch.testing.assert_close(relevance.flatten(1).sum(1), case.by_hand(model(x)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_piecewise_linear])
def test_lrp_0_is_input_times_the_gradient_of_that_logit(explained, name):
    case, model, x, (fmodel, params, *_) = explained(name)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.by_hand(model(leaf)).sum(), leaf)
    entries = None if name == "u-net" else case.entries
    found = lrpfunc.attribute(fmodel, params, x, composites.epsilon(0, entries=entries), case.target, strict=True)
    close(found, x * gradient, 1e-6)


# -- boxes and proposals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["retinanet", "fcos", "ssd"])
def test_candidates_have_the_boxes_that_torchvision_decodes(explained, name):
    """By its formulas: anchors moved by shares of their size, and distances from their centers (FCOS)."""
    _, heads, x, (fmodel, params, *_) = explained(name)
    output = fmodel(params, x)
    features = list(heads.backbone(x).values())
    regressed = heads.head(features)["bbox_regression"]
    anchors = heads.anchor_generator(detection.image_list.ImageList(x, [(SIZE, SIZE)] * 2), features)[0]
    centers, sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    if name == "fcos":
        expected = torch.cat([centers - regressed[..., :2] * sizes, centers + regressed[..., 2:] * sizes], -1)
    else:
        weights = torch.tensor([10.0, 10, 5, 5] if name == "ssd" else [1.0] * 4)
        shifts = regressed / weights
        middle, half = centers + shifts[..., :2] * sizes, shifts[..., 2:].exp() * sizes / 2
        expected = torch.cat([middle - half, middle + half], -1)
    close(output["boxes"], expected)


@pytest.mark.parametrize(
    ("name", "at", "parts"),
    [
        ("retinanet", 300, {}),
        ("like yolo", 260, {"form": "cxcywh", "logits": lambda y: y[:, 4:].mT, "boxes": lambda y: y[:, :4].mT}),
        ("like detr", 3, {"form": "cxcywh", "logits": lambda y: y["pred_logits"][..., :-1]}),  # but for "nothing"
    ],
)
def test_the_box_of_a_candidate_is_that_candidate(explained, name, at, parts):
    """Or one that has the same box and a larger logit."""
    _, _, x, (fmodel, params, *_) = explained(name)
    output = fmodel(params, x)
    logits = parts.get("logits", lambda y: y["logits"])
    boxes = parts.get("boxes", lambda y: y["pred_boxes"] if "pred_boxes" in y else y["boxes"])(output)
    by_box = logits(targets.box(1, boxes[:, at], 0.999, **parts)(output))
    assert torch.equal(by_box.flatten(1).count_nonzero(1), torch.tensor([1, 1]))
    assert torch.equal(by_box.sum((1, 2)), logits(output)[:, at, 1])
    anything = logits(targets.box(None, boxes[:, at], 0.999, **parts)(output))
    assert torch.equal(anything.sum((1, 2)), logits(output)[:, at].amax(1))


def test_given_proposals_a_second_stage_says_what_it_says_in_the_detector(explained):
    _, _, x, (fmodel, params, *_) = explained("faster r-cnn")
    model, found = two_stages(), []
    model.roi_heads.box_predictor.register_forward_hook(lambda module, inputs, output: found.append(output[0]))
    features = model.backbone(x)
    pooled = model.roi_heads.box_roi_pool(features, [PROPOSALS.double()] * 2, [(SIZE, SIZE)] * 2)
    model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    output = fmodel(params, x)
    close(output["logits"].flatten(0, 1), found[0])
    assert torch.equal(output["boxes"], PROPOSALS.double().expand(2, -1, -1))
    one = fmodel(params, x[1:])
    close(one["logits"], output["logits"][1:])


def test_several_candidates_of_a_second_stage_are_explained_at_once(explained):
    _, _, x, (fmodel, params, *_) = explained("faster r-cnn")
    wanted = [targets.candidate(1, index=0), targets.candidate(2, index=2)]
    found = lrpfunc.attribute_each(fmodel, params, x, composites.epsilon_plus(), wanted)
    expected = [lrpfunc.attribute(fmodel, params, x, composites.epsilon_plus(), one) for one in wanted]
    close(found, torch.stack(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: targets.heads(two_stages()), "FasterRCNN has two stages, .* say which ones the second one is to look"),
        (lambda: targets.heads(two_stages(), [[1, 2, 3]]), r"must be boxes, \(n, 4\) .* but are \[\[1, 2, 3\]\]"),
        (lambda: targets.heads(two_stages(), torch.zeros(0, 4)), r"n of at least 1, but are \(0, 4\)"),
        (lambda: targets.heads(two_stages(), "all"), "must be boxes, .* but are 'all'"),
        (lambda: targets.heads(two_stages(), [[5, 0, 5, 9]]), "proposals must have left < right and top < bottom"),
        (lambda: targets.heads(Maps(), [[0, 0, 5, 9]]), "Maps has one stage, which takes no proposals: leave them out"),
    ],
)
def test_proposals_that_do_not_fit(call, message):
    with pytest.raises(TargetError, match=message):
        call()
