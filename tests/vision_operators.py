"""torchvision's operations, as rows of the sweep: those on boxes and windows, its layers, its transforms of tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torchvision import ops
from torchvision.transforms.v2 import functional as transforms

from tests.operator_sweep import DOUBLE, Call, Row


def rows_of_torchvision() -> Iterator[Row]:
    for name, function, arguments in (*_operations(), *_layers(), *_transforms()):
        yield Row(name, partial(_one_call, function, arguments))


def _one_call(function: Callable, arguments: tuple) -> list[Call]:
    return [Call(function, arguments, {})]


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def _boxes(seed: int = 0, size: float = 6.0) -> Tensor:
    """Three boxes (left, top, right, bottom) that overlap, in a picture of 8 x 8 pixels."""
    corner = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return torch.cat([corner, corner * 2 + size], dim=1)


def _operations() -> Iterator[tuple[str, Callable, tuple]]:
    maps = _numbers(1, 8, 8, 8)
    windows = torch.cat([torch.zeros(3, 1, dtype=DOUBLE), _boxes()], dim=1)
    yield "ops.roi_align", partial(ops.roi_align, output_size=2), (maps, windows)
    yield "ops.roi_align.list", lambda x, boxes: ops.roi_align(x, [boxes], 2, aligned=True), (maps, _boxes())
    yield "ops.roi_pool", partial(ops.roi_pool, output_size=2), (maps, windows)
    yield "ops.ps_roi_align", partial(ops.ps_roi_align, output_size=2), (maps, windows)
    yield "ops.ps_roi_pool", partial(ops.ps_roi_pool, output_size=2), (maps, windows)
    deform = _numbers(1, 2, 5, 5), _numbers(1, 18, 3, 3, seed=1), _numbers(4, 2, 3, 3, seed=2), _numbers(4, seed=3)
    yield "ops.deform_conv2d", ops.deform_conv2d, deform
    modulated = (_numbers(1, 2, 5, 5), _numbers(1, 18, 3, 3, seed=1), _numbers(4, 2, 3, 3, seed=2))
    mask = _numbers(1, 9, 3, 3, seed=4)
    yield "ops.deform_conv2d.mask", lambda *given: ops.deform_conv2d(*given[:3], mask=given[3]), (*modulated, mask)
    yield "ops.stochastic_depth", lambda x: ops.stochastic_depth(x, 0.5, "row", training=False), (maps,)
    yield "ops.drop_block2d", lambda x: ops.drop_block2d(x, 0.5, 3, training=False), (maps,)
    yield "ops.drop_block3d", lambda x: ops.drop_block3d(x, 0.5, 3, training=False), (_numbers(1, 2, 4, 4, 4),)
    for given, wanted in (("xyxy", "xywh"), ("xyxy", "cxcywh"), ("cxcywh", "xyxy"), ("xywh", "xyxy")):
        yield f"ops.box_convert.{given}_{wanted}", partial(ops.box_convert, in_fmt=given, out_fmt=wanted), (_boxes(),)
    turned = partial(ops.box_convert, in_fmt="xywhr", out_fmt="xyxyxyxy")
    yield "ops.box_convert.xywhr_xyxyxyxy", turned, (_numbers(3, 5),)
    yield "ops.box_area", ops.box_area, (_boxes(),)
    yield "ops.clip_boxes_to_image", partial(ops.clip_boxes_to_image, size=(7, 7)), (_boxes(),)
    pair = (_boxes(), _boxes(1, 5.0))
    for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        yield f"ops.{name}", getattr(ops, name), pair
    for name in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
        yield f"ops.{name}", getattr(ops, name), pair
    targets = (_numbers(3, 4, seed=1) > 0).to(DOUBLE)
    yield "ops.sigmoid_focal_loss", lambda x: ops.sigmoid_focal_loss(x, targets, reduction="mean"), (_numbers(3, 4),)
    scores = _numbers(3)
    yield "ops.nms", lambda boxes: boxes * ops.nms(boxes, scores, 0.9).sum(), (_boxes(),)
    yield "ops.batched_nms", lambda boxes: boxes * ops.batched_nms(boxes, scores, scores.long(), 0.9).sum(), (_boxes(),)
    yield "ops.remove_small_boxes", lambda boxes: boxes[ops.remove_small_boxes(boxes, 1.0)], (_boxes(),)
    yield "ops.masks_to_boxes", lambda x: ops.masks_to_boxes(x > 0).to(DOUBLE), (_numbers(2, 4, 4),)


def _layers() -> Iterator[tuple[str, Callable, tuple]]:
    picture = _numbers(2, 4, 8, 8)
    yield "layers.FrozenBatchNorm2d", _layer(ops.FrozenBatchNorm2d, 4), (picture,)
    yield "layers.SqueezeExcitation", _layer(ops.SqueezeExcitation, 4, 2), (picture,)
    yield "layers.Conv2dNormActivation", _layer(ops.Conv2dNormActivation, 4, 3), (picture,)
    yield "layers.Conv3dNormActivation", _layer(ops.Conv3dNormActivation, 4, 3), (_numbers(1, 4, 3, 3, 3),)
    yield "layers.MLP", _layer(ops.MLP, 5, [4, 3], inplace=True, dropout=0.5), (_numbers(2, 5),)
    yield "layers.Permute", _layer(ops.Permute, [0, 2, 3, 1]), (picture,)
    yield "layers.StochasticDepth", _layer(ops.StochasticDepth, 0.5, "row"), (picture,)
    yield "layers.DropBlock2d", _layer(ops.DropBlock2d, 0.5, 3, inplace=True), (picture,)
    offsets = _numbers(1, 18, 3, 3, seed=1)
    yield "layers.DeformConv2d", _layer(ops.DeformConv2d, 2, 4, 3), (_numbers(1, 2, 5, 5), offsets)
    levels = (picture, _numbers(2, 4, 4, 4, seed=1))
    pyramid = _layer(ops.FeaturePyramidNetwork, [4, 4], 3)
    yield "layers.FeaturePyramidNetwork", lambda *levels: dict(pyramid(_named(levels))), levels
    pooler = ops.MultiScaleRoIAlign(["0", "1"], 2, 2)
    boxes = [_boxes(), _boxes(1)]
    yield "layers.MultiScaleRoIAlign", lambda *levels: pooler(_named(levels), boxes, [(8, 8)] * 2), levels


def _layer(make: Callable[..., nn.Module], *args, **keywords) -> nn.Module:
    """A layer in evaluation, whose numbers are random: batch norms and biases do something."""
    layer = make(*args, **keywords).to(DOUBLE).eval()
    for n, tensor in enumerate([*layer.parameters(), *layer.buffers()]):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(n), dtype=DOUBLE) + 0.1
    return layer


def _named(levels: tuple[Tensor, ...]) -> OrderedDict[str, Tensor]:
    return OrderedDict((str(n), level) for n, level in enumerate(levels))


def _transforms() -> Iterator[tuple[str, Callable, tuple]]:
    from torchvision.transforms import InterpolationMode as Mode

    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    corners = [[0, 0], [7, 0], [7, 7], [0, 7]], [[1, 0], [6, 1], [7, 7], [0, 6]]
    tilt = [0.9, 0.1, 0.5, 0.05, 1.1, -0.3, 0.01, 0.02]
    field = _numbers(1, 8, 8, 2) * 0.1
    rows: dict[str, Callable] = {
        "resize": lambda x: transforms.resize(x, [5, 6]),
        "resize.nearest": lambda x: transforms.resize(x, [5, 6], Mode.NEAREST),
        "resize.nearest_exact": lambda x: transforms.resize(x, [5, 6], Mode.NEAREST_EXACT),
        "resize.bicubic": lambda x: transforms.resize(x, [5, 6], Mode.BICUBIC),
        "resize.without_antialias": lambda x: transforms.resize(x, [11, 12], antialias=False),
        "normalize": lambda x: transforms.normalize(x, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
        "normalize.inplace": lambda x: transforms.normalize(x * 1, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], inplace=True),
        "gaussian_blur": lambda x: transforms.gaussian_blur(x, [3, 3]),
        "pad": lambda x: transforms.pad(x, [1, 2, 3, 1], fill=0.5),
        "pad.reflect": lambda x: transforms.pad(x, [1, 2], padding_mode="reflect"),
        "pad.edge": lambda x: transforms.pad(x, [1, 2], padding_mode="edge"),
        "pad.symmetric": lambda x: transforms.pad(x, [1, 2], padding_mode="symmetric"),
        "pad.per_channel": lambda x: transforms.pad(x, [1], fill=[0.1, 0.2, 0.3]),
        "crop": lambda x: transforms.crop(x, 1, 2, 4, 5),
        "crop.beyond": lambda x: transforms.crop(x, -1, 2, 4, 9),
        "center_crop": lambda x: transforms.center_crop(x, [4, 6]),
        "resized_crop": lambda x: transforms.resized_crop(x, 1, 2, 4, 5, [6, 6]),
        "five_crop": lambda x: transforms.five_crop(x, [4, 4]),
        "ten_crop": lambda x: transforms.ten_crop(x, [4, 4]),
        "horizontal_flip": transforms.horizontal_flip,
        "vertical_flip": transforms.vertical_flip,
        "rotate": lambda x: transforms.rotate(x, 30.0, Mode.BILINEAR),
        "rotate.nearest": lambda x: transforms.rotate(x, 30.0, fill=0.5),
        "rotate.expand": lambda x: transforms.rotate(x, 30.0, expand=True),
        "affine": lambda x: transforms.affine(x, 20.0, [1, 2], 1.1, [5.0, 3.0], Mode.BILINEAR),
        "perspective": lambda x: transforms.perspective(x, *corners),
        "perspective.coefficients": lambda x: transforms.perspective(x, None, None, coefficients=tilt),
        "elastic": lambda x: transforms.elastic(x, field),
        "rgb_to_grayscale": lambda x: transforms.rgb_to_grayscale(x, 3),
        "grayscale_to_rgb": lambda x: transforms.grayscale_to_rgb(x[:, :1]),
        "adjust_brightness": lambda x: transforms.adjust_brightness(x, 1.3),
        "adjust_contrast": lambda x: transforms.adjust_contrast(x, 1.3),
        "adjust_saturation": lambda x: transforms.adjust_saturation(x, 1.3),
        "adjust_hue": lambda x: transforms.adjust_hue(x, 0.1),
        "adjust_sharpness": lambda x: transforms.adjust_sharpness(x, 1.3),
        "adjust_gamma": lambda x: transforms.adjust_gamma(x, 2.0),
        "solarize": lambda x: transforms.solarize(x, 0.5),
        "posterize": lambda x: transforms.posterize(x, 4),
        "equalize": transforms.equalize,
        "autocontrast": transforms.autocontrast,
        "invert": transforms.invert,
        "permute_channels": lambda x: transforms.permute_channels(x, [2, 0, 1]),
        "erase": lambda x: transforms.erase(x, 1, 2, 3, 3, torch.zeros(1, dtype=DOUBLE)),
        "erase.inplace": lambda x: transforms.erase(x * 1, 1, 2, 3, 3, torch.ones(3, 3, 3, dtype=DOUBLE), inplace=True),
        "to_dtype": lambda x: transforms.to_dtype(x, torch.float32, scale=True),
    }
    for name, function in rows.items():
        yield f"transforms.{name}", function, (picture,)
