"""Every classification model of torchvision, and some of timm: traced, canonized and attributed in float64.

`python -m tests.test_models [model ...]` checks them all, or those named ("timm/dla34" for timm's), and prints one row
for each.
"""

import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

import lrpfunc
from lrpfunc import composites
from tests.helpers import randomize, relative_error

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
TIMM = [
    f"timm/{name}"
    for name in (
        "convnext_atto", "dla34", "resnetv2_50", "densenet121", "regnety_004", "efficientnet_b0",
        "mobilenetv3_small_100", "hrnet_w18_small",
    )
]  # fmt: skip

# A small network of each family whose operations differ, by the library's own constructors: of width and depth that
# take little time, with all that the big ones are made of.
SMALL: dict[str, Callable[[], nn.Module]] = {
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=10),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "googlenet": lambda: torchvision.models.googlenet(init_weights=False, num_classes=10),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=10),
    "mobilenet_v3": lambda: MobileNetV3(
        [
            InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, 1),
            InvertedResidualConfig(8, 5, 24, 16, True, "HS", 2, 1, 1),
            InvertedResidualConfig(16, 5, 32, 16, True, "HS", 1, 1, 1),
        ],
        32,
        num_classes=10,
    ),
    "shufflenet_v2": lambda: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 16, 16, 32], num_classes=10),
    "efficientnet": lambda: torchvision.models.EfficientNet(
        [MBConvConfig(1, 3, 1, 8, 8, 1, 1, 1), MBConvConfig(4, 5, 2, 8, 16, 2, 1, 1)], 0.0, num_classes=10
    ),
    "regnet": lambda: torchvision.models.RegNet(BlockParams([1, 2], [8, 16], [4, 8], [2, 2], [1, 1]), num_classes=10),
    "convnext": lambda: torchvision.models.ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10
    ),
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 1, 2, 8, 16, num_classes=10),
    "swin_v2": lambda: torchvision.models.SwinTransformer(
        [4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=10,
        block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    ),
}  # fmt: skip

SIZES = {"inception_v3": 96, "maxvit_t": 224}  # of the images, else 64; these models take no smaller ones


class Row(NamedTuple):
    """What the sweep shows of one model: seconds, counts of equations and batch norms, errors."""

    model: str
    trace: str = "-"
    canonize: str = "-"
    equations: int = 0
    merged: int = 0
    right: int = 0
    threshold: int = 0
    left: int = 0
    error: str = "-"
    fallbacks: str = "-"
    share: str = "-"
    faults: str = "ok"


def build(name: str, size: int) -> nn.Module:
    """A model of torchvision or timm, as `lively` leaves it."""
    if name.startswith("timm/"):
        import timm

        model = timm.create_model(name.removeprefix("timm/"))
    else:
        arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("vit"):
            arguments = {"image_size": size // 14 * 14 if name == "vit_h_14" else size}
        model = torchvision.models.get_model(name, weights=None, **arguments)
    return lively(model)


def lively(model: nn.Module) -> nn.Module:
    """The model with random weights, a quarter of the batch norms' scales negative.

    Without gradients: torch picks another kernel for weights that require them.
    """
    model = randomize(model).requires_grad_(False)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None and module.weight is not None:
            module.weight[::4] *= -1
    return model


def check(name: str, small: bool = False) -> Row:
    """Trace with one sample, evaluate with two and with one, canonize, attribute; collect what is wrong."""
    size = SIZES.get(name, 56 if name == "vit_h_14" else 64)
    torch.manual_seed(0)
    model = (lively(SMALL[name]()) if small else build(name, size)).double()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    start = time.perf_counter()
    fmodel, params = lrpfunc.functionalize(model, x[:1])
    traced = time.perf_counter()
    canonical = lrpfunc.canonize(fmodel, params)
    canonized = time.perf_counter()
    faults = []
    with torch.no_grad():
        expected = model(x)
        if not torch.equal(fmodel(params, x), expected) or not torch.equal(fmodel(params, x[:1]), model(x[:1])):
            faults.append("output")
        error = relative_error(canonical.fmodel(canonical.params, x), expected)
        if not error <= 1e-10:
            faults.append("canonical output")
        rules = composites.epsilon_plus_flat()
        relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x[:1], rules)
    if not relevance.isfinite().all() or not relevance.any():
        faults.append("relevance")
    if canonical.report.left:
        faults.append("batch norms left")
    explanation = composites.explain(canonical.fmodel, rules)
    fallbacks = sorted({row[3] for row in explanation.rows if row[0]})
    if fallbacks:
        faults.append("fallback")
    became = Counter(fate.became for fate in canonical.report.fates.values())
    counts = (became[key] for key in ("merged", "merged right", "threshold", "left"))
    share = f"{(relevance.sum() / expected[0].max()).item():.3g}"
    return Row(
        name, f"{traced - start:.1f}", f"{canonized - traced:.2f}", len(fmodel.equations), *counts, f"{error:.0e}",
        " ".join(fallbacks) or "-", share, "; ".join(faults) or "ok",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def plain_attention():
    """nn.MultiheadAttention without its fused kernel for evaluation, which torch.export does not capture."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.filterwarnings("ignore:The default weight initialization of:FutureWarning")  # of GoogLeNet
@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_of_each_family(name):
    assert check(name, small=True).faults == "ok"


@pytest.mark.dev
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in TIMM[:2] else pytest.mark.slow) for n in TIMM])
def test_models_of_timm(name):
    pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own
        assert check(name).faults == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_model(name):
    assert check(name).faults == "ok"


def test_there_are_eighty_models():
    assert len(TORCHVISION) == 80


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    torch.backends.mha.set_fastpath_enabled(False)
    widths = (26, 7, 10, 9, 6, 5, 9, 4, 7, 38, 9, 0)
    header = (
        "model", "trace s", "canonize s", "equations", "merged", "right", "threshold", "left", "error",
        "moved by the gradient", "R / logit", "result",
    )  # fmt: skip
    print("  ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)))
    failed = 0
    for name in names:
        try:
            row = check(name)
        except Exception as error:
            row = Row(name, faults=f"{type(error).__name__}: {error}".splitlines()[0])
        failed += row.faults != "ok"
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)), flush=True)
    print(f"{len(names) - failed} of {len(names)} ok")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [*TORCHVISION, *TIMM]))
