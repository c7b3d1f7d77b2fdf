"""Every classification model of torchvision: traced, canonized and attributed.

`python -m tests.test_torchvision [model ...]` checks all 80 models, or those named, and prints one row for each.
"""

import sys
import time
import warnings
from typing import NamedTuple

import pytest
import torch
import torchvision

import lrpfunc
from lrpfunc import composites, operations
from tests.helpers import randomize, relative_error

MODELS = torchvision.models.list_models(module=torchvision.models)

# One small model of each family whose operations differ, at sizes that keep the whole subset under a minute.
FAST = {
    "alexnet": 64,
    "squeezenet1_1": 64,
    "resnet18": 64,
    "googlenet": 64,
    "densenet121": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "vit_b_32": 64,
    "swin_v2_t": 64,
}

SIZES = {"inception_v3": 299}
NEW_RULES = {"attention", "softmax", "normalization", "bilinear"}  # kinds whose rules come with the transformers


class Row(NamedTuple):
    """What the sweep shows of one model."""

    model: str
    trace: str
    equations: int
    merged: int
    left: int
    fallbacks: str
    share: str
    faults: str


def build(name: str, size: int) -> torch.nn.Module:
    """A model with random weights, without gradients: torch picks another kernel for weights that require them."""
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        arguments = {"image_size": size}
    return randomize(torchvision.models.get_model(name, weights=None, **arguments)).requires_grad_(False)


def check(name: str, size: int, dtype: torch.dtype, tolerance: float) -> Row:
    """Trace with one sample, evaluate with three and with one, canonize, attribute; collect what is wrong."""
    torch.manual_seed(0)
    model = build(name, size).to(dtype)
    x = torch.randn(3, 3, size, size, dtype=dtype)
    start = time.perf_counter()
    fmodel, params = lrpfunc.functionalize(model, x[:1])
    trace = time.perf_counter() - start
    canonical = lrpfunc.canonize(fmodel, params)
    faults = []
    with torch.no_grad():
        expected = model(x)
        if not torch.equal(fmodel(params, x), expected) or not torch.equal(fmodel(params, x[:1]), model(x[:1])):
            faults.append("output")
        if relative_error(canonical.fmodel(canonical.params, x), expected) > tolerance:
            faults.append("canonical output")
        rules = composites.epsilon_plus_flat()
        relevance = lrpfunc.attribute(canonical.fmodel, canonical.params, x[:1], rules)
    if not relevance.isfinite().all() or not relevance.any():
        faults.append("relevance")
    kinds = {operations.kind(canonical.fmodel, e) for e in operations.active_equations(canonical.fmodel)}
    if operations.OTHER in kinds:
        faults.append("other: " + ", ".join(sorted(unknown_operators(canonical.fmodel))))
    fates = list(canonical.report.fates.values())
    merged = sum(fate.startswith("merged") for fate in fates)
    explanation = composites.explain(canonical.fmodel, rules)
    fallbacks = sorted({row[2] for row in explanation.rows if row[0]})
    if not NEW_RULES.issuperset(fallbacks):
        faults.append("fallback")
    return Row(
        name, f"{trace:.1f}", len(fmodel.equations), merged, len(fates) - merged, " ".join(fallbacks) or "-",
        f"{(relevance.sum() / expected[0].max()).item():.3g}", "; ".join(faults) or "ok",
    )  # fmt: skip


def unknown_operators(program) -> set[str]:
    return {
        equation.operator
        for equation in operations.active_equations(program)
        if operations.kind(program, equation) == operations.OTHER
    }


@pytest.fixture(autouse=True)
def plain_attention():
    """nn.MultiheadAttention without its fused kernel for evaluation, which torch.export does not capture."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.parametrize("name", FAST)
def test_a_small_model_of_each_family_in_float64(name):
    assert check(name, FAST[name], torch.float64, 1e-10).faults == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_float32(name):
    assert check(name, SIZES.get(name, 224), torch.float32, 1e-4).faults == "ok"


def test_there_are_eighty_models():
    assert len(MODELS) == 80


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    torch.backends.mha.set_fastpath_enabled(False)
    widths = (20, 7, 10, 7, 5, 36, 10, 0)
    header = ("model", "trace s", "equations", "merged", "left", "moved by the gradient", "R / logit", "result")
    print("  ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)))
    failed = 0
    for name in names:
        try:
            row = check(name, SIZES.get(name, 224), torch.float32, 1e-4)
        except Exception as error:
            row = Row(name, "-", 0, 0, 0, "-", "-", f"{type(error).__name__}: {error}".splitlines()[0])
        failed += row.faults != "ok"
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)), flush=True)
    print(f"{len(names) - failed} of {len(names)} ok")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or MODELS))
