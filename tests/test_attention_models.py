"""torchvision's and timm's models with attention: traced, covered by rules, finite, and conserved by CP-LRP.

`python -m tests.test_attention_models [model ...]` prints a row for each, or for those named ("timm/beit_base_...").
"""

import sys
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor

import lrpfunc
from lrpfunc import composites
from tests.helpers import randomize

TORCHVISION = ("vit_b_32", "swin_t", "swin_v2_t", "maxvit_t")
TIMM = tuple(
    f"timm/{name}"
    for name in (
        "vit_tiny_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224",
        "swinv2_tiny_window8_256", "maxvit_tiny_tf_224", "coatnet_0_rw_224", "mixer_s16_224", "cait_xxs24_224",
        "crossvit_9_240", "levit_128", "xcit_nano_12_p16_224", "pvt_v2_b0", "convnextv2_atto",
    )
)  # fmt: skip
# In the plain run, of one or two blocks each; `pytest -m slow` has them all as they are.
SHALLOW = {
    "timm/vit_tiny_patch16_224": {"depth": 1, "img_size": 32},
    "timm/xcit_nano_12_p16_224": {"depth": 1, "cls_attn_layers": 1, "img_size": 32},
    "timm/pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "timm/convnextv2_atto": {"depths": (1, 1, 1, 1)},
}

# What is added to values whatever the input, besides biases: positions, tokens of the model's own, running means, and
# the shifts that canonization makes of biases. CP-LRP leaves them their share, so it conserves without them.
ADDED = ("bias", "running_mean", "pos_embed", "class_token", "cls_token", "dist_token", "shift")


class Row(NamedTuple):
    """What the sweep shows of one model. `lost`: the share of the logit that CP-LRP loses without biases."""

    model: str
    equations: int
    fallbacks: str
    finite: bool
    attn_sum: float
    lost: float


def examined(name: str, **keywords) -> Row:
    """`keywords`: what a model of timm is made with."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        model = timm.create_model(name.removeprefix("timm/"), **keywords)
        side = keywords.get("img_size")
        size = (3, side, side) if side else model.default_cfg["input_size"]
    else:
        model, size = torchvision.models.get_model(name), (3, 224, 224)
    model, x = randomize(model), torch.randn(1, *size)
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
    fmodel, params = canonical.fmodel, canonical.params
    made = [composites.attn_lrp(), composites.cp_lrp(), composites.epsilon_plus_flat()]
    explanations = [lrpfunc.explain(fmodel, composite) for composite in made]
    fallbacks = sorted({row[3] for explanation in explanations for row in explanation.rows if row[0]})
    relevance = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), target=1)
    logit = fmodel(params, x)[0, 1]
    finite = bool(relevance.isfinite().all() and relevance.any())
    return Row(name, len(fmodel.equations), " ".join(fallbacks), finite, (relevance.sum() / logit).item(),
               lost(fmodel, params, x))  # fmt: skip


def lost(fmodel, params, x: Tensor) -> float:
    """In float64, so that what is lost is not rounded off."""
    bare = {k: (p * 0 if any(word in k for word in ADDED) else p) for k, p in params.items()}
    bare = {k: p.double() if p.is_floating_point() else p for k, p in bare.items()}
    relevance = lrpfunc.attribute(fmodel, bare, x.double(), composites.cp_lrp(), target=1)
    logit = fmodel(bare, x.double())[0, 1]
    return abs(1 - (relevance.sum() / logit).item())


def assert_covered_and_conserved(row: Row) -> None:
    assert row.fallbacks == ""
    assert row.finite
    assert row.lost < 1e-3


@pytest.mark.dev
@pytest.mark.parametrize("name", SHALLOW)
def test_attention_of_a_few_blocks_is_covered_and_conserved(name):
    pytest.importorskip("timm")
    assert_covered_and_conserved(examined(name, **SHALLOW[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_attention_is_covered_and_conserved(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    assert_covered_and_conserved(examined(name))


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print(f"{'model':32} {'equations':>9} {'attn_lrp sum / logit':>20} {'cp_lrp loses':>12}  fallbacks")
    for model in sys.argv[1:] or (*TORCHVISION, *TIMM):
        row = examined(model)
        print(
            f"{row.model:32} {row.equations:9} {row.attn_sum:20.3g} {row.lost:12.1e}  {row.fallbacks or '-'}",
            flush=True,
        )
