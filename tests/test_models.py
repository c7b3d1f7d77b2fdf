"""Every classification model of torchvision, and some of timm: traced, canonized and attributed in float64.

`python -m tests.test_models [model ...]` checks them all, or those named ("timm/dla34" for timm's), and prints one row
for each.
"""

import sys
import time
import warnings
from collections import Counter
from typing import NamedTuple

import pytest
import torch
import torchvision

import lrpfunc
from lrpfunc import composites
from tests.helpers import randomize, relative_error

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
TIMM = [
    f"timm/{name}"
    for name in (
        "resnetv2_50", "densenet121", "regnety_004", "efficientnet_b0", "convnext_atto", "mobilenetv3_small_100",
        "dla34", "hrnet_w18_small",
    )
]  # fmt: skip

# One small model of each family whose operations differ.
FAST = (
    "alexnet", "squeezenet1_1", "resnet18", "googlenet", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5",
    "efficientnet_b0", "convnext_tiny", "vit_b_32", "swin_v2_t",
)  # fmt: skip

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


def build(name: str, size: int) -> torch.nn.Module:
    """A model with random weights, a quarter of the batch norms' scales negative.

    Without gradients: torch picks another kernel for weights that require them.
    """
    if name.startswith("timm/"):
        import timm

        model = timm.create_model(name.removeprefix("timm/"))
    else:
        arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("vit"):
            arguments = {"image_size": size // 14 * 14 if name == "vit_h_14" else size}
        model = torchvision.models.get_model(name, weights=None, **arguments)
    model = randomize(model).requires_grad_(False)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None and module.weight is not None:
            module.weight[::4] *= -1
    return model


def check(name: str) -> Row:
    """Trace with one sample, evaluate with two and with one, canonize, attribute; collect what is wrong."""
    size = SIZES.get(name, 56 if name == "vit_h_14" else 64)
    torch.manual_seed(0)
    model = build(name, size).double()
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


@pytest.mark.parametrize("name", FAST)
def test_a_small_model_of_each_family(name):
    assert check(name).faults == "ok"


@pytest.mark.dev
@pytest.mark.parametrize("name", TIMM)
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
