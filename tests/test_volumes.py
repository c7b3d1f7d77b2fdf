"""`heatmaps.slices`: slices and projections by hand, and what is refused."""

import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import colorize, overlay, save, slices

RELEVANCE = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VOLUME = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 700 - 100
END = RELEVANCE.abs().max().item()


def shown(drawn):
    """The pictures by their titles."""
    return {axis.get_title(): np.asarray(axis.images[0].get_array()) for axis in drawn.axes if axis.images}


def signed_largest(values, axis):
    """By sorting, as the code does not."""
    order = values.abs().argsort(axis)
    return values.gather(axis, order).select(axis, -1)


def test_slices_and_projections_are_heatmaps_of_one_scale():
    found = shown(slices(RELEVANCE, count=2))
    names = [f"depth {i}" for i in (1, 4)], [f"height {i}" for i in (1, 3)], [f"width {i}" for i in (1, 3)]
    assert list(found) == [
        n for row, a in zip(names, ("depth", "height", "width"), strict=True) for n in (*row, f"largest along {a}")
    ]
    for axis, (name, row) in enumerate(zip(("depth", "height", "width"), names, strict=True)):
        for one in row:
            expected = colorize(RELEVANCE.select(axis, int(one.split()[1])), limits=(-END, END))
            np.testing.assert_array_equal(found[one], expected)
        expected = colorize(signed_largest(RELEVANCE, axis), limits=(-END, END))
        np.testing.assert_array_equal(found[f"largest along {name}"], expected)


def test_a_volume_is_gray_beneath():
    found = shown(slices(RELEVANCE, VOLUME, axis=1, at=[2], window=(0, 500), opacity=0.5))
    gray = (VOLUME.clamp(0, 500) / 500).float()
    for name, one, under in (
        ("height 2", RELEVANCE[:, 2], gray[:, 2]),
        ("largest along height", signed_largest(RELEVANCE, 1), gray.amax(1)),
    ):
        expected = overlay(under, one, limits=(-END, END), opacity=0.5)
        np.testing.assert_allclose(found[name].astype(int), np.asarray(expected, dtype=int), atol=1)


def test_without_a_window_the_volume_goes_from_black_to_white():
    found = shown(slices(torch.zeros(6, 4, 5), VOLUME, axis=0, count=6))
    pictures = np.stack([found[f"depth {i}"] for i in range(6)])
    assert (pictures.min(), pictures.max()) == (0, 255)
    span = VOLUME.max() - VOLUME.min()
    np.testing.assert_allclose(pictures[..., 0], 255 * (VOLUME - VOLUME.min()) / span, atol=0.51)
    assert (shown(slices(torch.zeros(2, 2, 2), torch.ones(2, 2, 2), axis=0))["depth 0"] == 0).all()


def test_channels_are_summed_and_of_volumes_averaged():
    relevance, volume = torch.stack([RELEVANCE, 2 * RELEVANCE]), torch.stack([VOLUME, VOLUME + 2])
    found, expected = (
        shown(slices(*both, axis=0, count=2)) for both in ((relevance, volume), (3 * RELEVANCE, VOLUME + 1))
    )
    assert found.keys() == expected.keys()
    for name, picture in found.items():
        np.testing.assert_allclose(picture.astype(int), expected[name].astype(int), atol=1)
    np.testing.assert_array_equal(
        shown(slices(relevance, VOLUME))["depth 3"], shown(slices(3 * RELEVANCE, VOLUME))["depth 3"]
    )


def test_slices_are_evenly_spread_and_no_more_than_there_are():
    assert list(shown(slices(RELEVANCE, axis=0, count=3))) == [
        "depth 1",
        "depth 3",
        "depth 5",
        "largest along depth",
    ]
    assert len(shown(slices(RELEVANCE, axis=0, count=50))) == 7
    assert list(shown(slices(RELEVANCE, axis=2, at=range(0, 5, 4)))) == ["width 0", "width 4", "largest along width"]
    uneven = slices(RELEVANCE, count=6)
    assert len(shown(uneven)) == 6 + 4 + 5 + 3


def test_voxels_have_the_sides_they_have():
    drawn = slices(RELEVANCE, spacing=(3.0, 1.0, 0.5), count=1)
    aspects = {axis.get_title(): axis.get_aspect() for axis in drawn.axes}
    assert aspects["depth 3"] == 2.0
    assert aspects["height 2"] == 6.0
    assert aspects["width 2"] == 3.0


def test_the_bar_has_the_scale_and_the_limits():
    for limits, ends in ((None, (-END, END)), ((0, None), (0, RELEVANCE.max().item())), ((-1, 2), (-1, 2))):
        drawn = slices(RELEVANCE, axis=0, count=1, limits=limits, colors="bwr")
        bar = drawn.axes[-1]
        assert bar.get_ylabel() == "relevance"
        assert bar.get_ylim() == pytest.approx(ends)
    zeros = shown(slices(torch.zeros(2, 2, 2), axis=0, limits=(0, 1), colors="bwr"))
    assert all((picture == 255).all() for picture in zeros.values())


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e200, 1.7e308])
def test_slices_do_not_depend_on_the_size_of_numbers(scale, tmp_path):
    signs = RELEVANCE.sign()
    drawn = slices(signs * scale, signs * scale, axis=1, count=2)
    for name, picture in shown(slices(signs, signs, axis=1, count=2)).items():
        np.testing.assert_array_equal(shown(drawn)[name], picture)
    save(drawn, tmp_path / "slices.png")


def test_slices_draw_into_a_given_figure(tmp_path):
    whole = Figure(figsize=(8, 8), layout="constrained")
    upper, _ = whole.subfigures(2, 1)
    assert slices(RELEVANCE, count=1, title="title", figure=upper) is upper
    assert upper.get_suptitle() == "title"
    with Image.open(save(whole, tmp_path / "whole.png")) as written:
        assert written.size == (960, 960)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relevance": torch.zeros(2, 2)}, "(D, H, W) or (C, D, H, W), but got (2, 2). heatmaps.heatmap draws maps."),
        ({"relevance": torch.zeros(1, 1, 2, 2, 2)}, "but got (1, 1, 2, 2, 2). Take one sample of the batch."),
        ({"relevance": RELEVANCE / 0}, "a figure of slices needs finite relevance, but 120 of 120 values are nan or"),
        ({"relevance": torch.zeros(0, 2, 2)}, "needs at least one value, but the relevance has shape (0, 2, 2)."),
        ({"volume": VOLUME[1:]}, "must have the shape of the relevance, (6, 4, 5), or (6, 4, 5), but has (5, 4, 5)."),
        ({"volume": VOLUME / 0}, "the volume must be finite, but has values that are nan or infinite: fill"),
        ({"axis": 3}, "axis must be 0, 1, 2 or None, but is 3."),
        ({"count": 0}, "count must be one or more, but is 0."),
        ({"at": [1]}, "at needs an axis across which the slices are: axis=0, 1 or 2."),
        ({"at": [1, 6], "axis": 0}, "at must name slices from 0 to 5, but has 6."),
        ({"at": [-1], "axis": 0}, "at must name slices from 0 to 5, but has -1."),
        ({"at": [], "axis": 0}, "at must be a list of numbers of slices, but is a list."),
        ({"window": (3, 3)}, "window must rise, (low, high) with low < high, but is (3, 3)."),
        ({"spacing": (1, 1, 0)}, "each of spacing must be a number above zero, but is 0."),
        ({"spacing": (1, 1)}, "spacing must be three numbers, for depth, height and width, but is a tuple."),
        ({"opacity": 2}, "opacity must be from 0 to 1, but is 2."),
    ],
)  # fmt: skip
def test_slices_refuse_what_does_not_fit(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        slices(**{"relevance": RELEVANCE, **arguments})
