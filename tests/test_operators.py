"""Operations of torch and torchvision: none is silently wrong. `python -m tests.test_operators [name]`: a table."""

import sys
from collections.abc import Iterator
from itertools import chain

import pytest

pytest.importorskip("expecttest")

from tests.operator_sweep import (
    BY_RULE,
    CONSTANT,
    FAULTS,
    GRADIENT,
    MARKED,
    REFUSED,
    SAME,
    SKIPPED,
    Row,
    rows_of_torch,
    verdicts,
)
from tests.vision_operators import rows_of_torchvision

# A few of each kind, and what they must be.
FEW = {
    "addmm": BY_RULE,
    "cat": GRADIENT,
    "complex": GRADIENT,
    "cumsum": GRADIENT,
    "diff": GRADIENT,
    "exp": MARKED,
    "expand_as": GRADIENT,
    "fft.irfft": GRADIENT,
    "fft.rfft": GRADIENT,
    "floor": CONSTANT,
    "gather": GRADIENT,
    "index_put": GRADIENT,
    "kron": GRADIENT,
    "lerp": GRADIENT,
    "linalg.svdvals": MARKED,
    "masked_fill": GRADIENT,
    "nn.functional.avg_pool2d": GRADIENT,
    "nn.functional.conv2d": GRADIENT,
    "nn.functional.glu": BY_RULE,
    "nn.functional.grid_sample": GRADIENT,
    "nn.functional.layer_norm": BY_RULE,
    "nn.functional.linear": GRADIENT,
    "outer": BY_RULE,
    "randn_like": REFUSED,
    "scatter_reduce.sum": GRADIENT,
    "sign": CONSTANT,
    "sort": GRADIENT,
    "stft": GRADIENT,
    "trace": GRADIENT,
    "view_as_complex": GRADIENT,
    "where": GRADIENT,
    # in place, and into a given tensor
    "add_": SAME,
    "clamp_": SAME,
    "eq_": CONSTANT,
    "index_put_": SAME,
    "lerp_": SAME,
    "masked_fill_": SAME,
    "nn.functional.silu_": SAME,
    "polygamma_.polygamma_n_0": REFUSED,
    "add(out=)": SAME,
    "addmm(out=)": SAME,
    "bernoulli(out=)": REFUSED,
    "matmul(out=)": SAME,
    "max(out=).reduction_with_dim": SAME,
    # torchvision's
    "ops.box_iou": BY_RULE,
    "ops.masks_to_boxes": CONSTANT,
    "ops.nms": GRADIENT,
    "ops.roi_align": GRADIENT,
    "layers.Conv2dNormActivation": BY_RULE,
    "layers.MLP": GRADIENT,
    "transforms.normalize.inplace": GRADIENT,
    "transforms.perspective": REFUSED,
    "transforms.resize": GRADIENT,
    "transforms.rotate": GRADIENT,
}


def all_rows() -> Iterator[Row]:
    return chain(rows_of_torch(), rows_of_torchvision())


@pytest.mark.parametrize("name", FEW)
def test_a_few_of_each_kind(name):
    words = {verdict.word: verdict.detail for verdict in verdicts(all_rows(), lambda other: other == name, samples=1)}
    assert FEW[name] in words, words
    assert not words.keys() & FAULTS, words


@pytest.mark.slow
def test_no_operation_is_silently_wrong():
    faults = [verdict for verdict in verdicts(all_rows(), lambda name: True) if verdict.word in FAULTS]
    assert faults == []


def main(names: str = "") -> None:
    """A table by verdict: names, and what there is to say of those that are not simply right."""
    found: dict[str, list] = {}
    for verdict in verdicts(all_rows(), lambda name: names in name):
        found.setdefault(verdict.word, []).append(verdict)
    for word in (GRADIENT, BY_RULE, CONSTANT, SAME, MARKED, REFUSED, SKIPPED, *FAULTS):
        rows = found.get(word, [])
        print(f"{word}: {len(rows)}")
        if word in (REFUSED, *FAULTS):
            print(*(f"  {row.name}: {row.detail[:150]}" for row in rows), sep="\n")
        else:
            print("  " + ", ".join(row.name for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
