"""Zero is neutral whatever the limits, no size of numbers is lost, and shapes that mean something else are refused."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from PIL import Image

from lrpfunc import text
from lrpfunc.errors import InputError
from lrpfunc.heatmaps import colorize, colormap, heatmap, overlay, show
from lrpfunc.heatmaps.colours import ZENNIT, is_diverging

# As matplotlib's gallery has them under "Diverging", and zennit's with a neutral middle.
DIVERGING = {
    *("PiYG", "PRGn", "BrBG", "PuOr", "RdGy", "RdBu", "RdYlBu", "RdYlGn", "Spectral", "coolwarm", "bwr", "seismic"),
    *("berlin", "managua", "vanimo", "coldnhot", "france", "coolio", "coleus", "zennit:seismic"),
}
QUALITATIVE = {"Accent", "Dark2", "Paired", "Pastel1", "Pastel2", "Set1", "Set2", "Set3", "okabe_ito"}
LIMITS = [None, (0, None), (None, 0), (-1, 3), (-3, 1), (0, 2), (-5, 0.001), (-1e300, 1e-300), (1, 2), (-2, -1)]


@pytest.mark.parametrize("name", [*ZENNIT, *(n for n in colormaps if not n.startswith("tab"))])
def test_diverging_maps_are_told_from_others(name):
    plain = name.removesuffix("_r")
    if plain not in QUALITATIVE:
        assert is_diverging(name) == (plain in DIVERGING)


def test_a_map_of_the_users_is_told_by_its_colours():
    assert is_diverging(LinearSegmentedColormap.from_list("mine", ["green", "white", "black"]))
    assert not is_diverging(ListedColormap(["white", "orange", "red"]))


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", ["seismic", "bwr_r", "coldnhot", "RdYlBu"])
def test_zero_is_neutral_whatever_the_limits(name, limits):
    relevance = torch.tensor([[-8.0, -0.0, 0.0, 4.0]])
    neutral = colormap(name)(0.5, bytes=True)[:3]
    if limits not in [(1, 2), (-2, -1)]:  # these do not show zero
        assert colorize(relevance, name, limits)[0, 1:3].tolist() == [list(neutral)] * 2
        drawn = show(relevance, colors=name, limits=limits).axes[0].images[0]
        assert drawn.to_rgba(drawn.get_array(), bytes=True)[0, 1:3, :3].tolist() == [list(neutral)] * 2
    over = np.asarray(overlay(Image.new("L", (4, 1), 99), relevance, name, limits))
    if limits not in [(1, 2), (-2, -1)]:
        assert over[0, 1:3].tolist() == [[99] * 3] * 2


@pytest.mark.parametrize("limits", LIMITS)
def test_show_has_the_colours_of_colorize_and_a_bar_of_the_limits(limits):
    relevance = torch.tensor([[-8.0, -1.0, 0.0, 0.25, 1.0, 4.0]], dtype=torch.float64)
    for name in ("seismic", "viridis"):
        axis, bar = show(relevance, colors=name, limits=limits).axes
        (drawn,) = axis.images
        colors = drawn.to_rgba(drawn.get_array(), bytes=True)[..., :3].astype(int)
        np.testing.assert_allclose(colors, colorize(relevance, name, limits).astype(int), atol=3)
        low, high = bar.get_ylim()
        assert low < high
        clipped = np.asarray(drawn.get_array())
        assert clipped.min() >= low
        assert clipped.max() <= high


def test_equal_magnitudes_are_equally_far_from_neutral():
    """bwr is white, less two bytes for each hundredth of its half, in green on both sides."""
    image = colorize(torch.tensor([[-9.0, -1.0, -0.5, 0.5, 1.0, 3.0]]), "bwr", limits=(-1, 3)).astype(float)
    np.testing.assert_allclose(image[0, :, 1], 255 * (1 - np.array([1, 1, 0.5, 0.5, 1, 3]) / 3), atol=1)


@pytest.mark.parametrize("name", ["gray", "viridis", "hot", "wred"])
def test_limits_are_the_first_and_the_last_colour_of_a_map_that_does_not_diverge(name):
    image = colorize(torch.tensor([[-1.0, 0.0, 2.0, 9.0]]), name, limits=(0, 2))
    ends = [list(colormap(name)(end, bytes=True)[:3]) for end in (0.0, 0.0, 1.0, 1.0)]
    assert image[0].tolist() == ends


# -- sizes of numbers -------------------------------------------------------------------------------------------------

SIZES = [5e-324, 1e-310, 1e-200, 1e-50, 1e50, 1e200, 1.7e308]


def arithmetic(scale: float) -> np.ndarray:
    """-2, -1, 0, 1, 2 times the scale or, next to zero and to infinity, as much of it as there is."""
    values = np.array([[-1.0, -0.5, 0.0, 0.5, 1.0]])
    return np.sign(values) * scale if scale < 1e-300 else values * scale


@pytest.mark.parametrize("scale", SIZES)
def test_heatmaps_do_not_depend_on_the_size_of_relevance(scale):
    relevance = arithmetic(scale)
    expected = colorize(relevance / scale, "bwr")
    for limits in (None, (-scale, scale), (None, scale)):
        np.testing.assert_array_equal(colorize(relevance, "bwr", limits), expected)
    np.testing.assert_array_equal(
        colorize(relevance, "viridis", (-scale, scale)), colorize(relevance / scale, "viridis", (-1, 1))
    )
    np.testing.assert_array_equal(colorize(relevance, quantile=0.9).shape, expected.shape)


@pytest.mark.parametrize("scale", SIZES)
def test_show_does_not_depend_on_the_size_of_relevance(scale):
    axis, bar = show(arithmetic(scale), colors="bwr").axes
    (drawn,) = axis.images
    colors = drawn.to_rgba(drawn.get_array(), bytes=True)[..., :3]
    np.testing.assert_array_equal(colors, colorize(arithmetic(scale), "bwr"))
    label = bar.get_ylabel()
    unit = float(label.removeprefix("relevance in ")) if " in " in label else 1.0
    assert bar.get_ylim()[1] * unit == pytest.approx(scale, rel=1e-9, abs=0)
    assert axis.figure._repr_png_()  # and is drawn without a warning


@pytest.mark.parametrize("scale", SIZES)
def test_overlays_of_another_size_do_not_depend_on_the_size_of_relevance(scale):
    relevance = np.sign(np.arange(6).reshape(2, 3) - 2.0)
    under = Image.new("RGB", (30, 20), "gray")
    got = np.asarray(overlay(under, relevance * scale), dtype=int)
    expected = np.asarray(overlay(under, relevance), dtype=int)
    if scale > 1e-300:
        np.testing.assert_allclose(got, expected, atol=1)
    assert got[0, 0].tolist() == expected[0, 0].tolist()


def test_small_relevance_beside_an_outlier_is_not_lost_in_an_overlay_of_another_size():
    relevance = np.array([[1.0, 1.0, 1.0, 1e300]])
    got = np.asarray(overlay(Image.new("RGB", (40, 10), "gray"), relevance, "bwr", limits=(-1, 1)))
    assert (got == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(30, 20), (6, 4), (99, 66)])
def test_maps_are_resized_as_pil_does_it(size):
    relevance = np.random.default_rng(0).normal(size=(10, 15)).astype(np.float32)
    under = Image.new("L", size, 255)
    limits = (-4.0, 4.0)
    expected = np.asarray(Image.fromarray(relevance).resize(size, Image.Resampling.BILINEAR))
    got = np.asarray(overlay(under, relevance, "bwr", limits), dtype=int)
    np.testing.assert_allclose(got, np.asarray(overlay(under, expected, "bwr", limits), dtype=int), atol=2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float16, torch.bfloat16])
def test_whole_numbers_and_halves_are_relevance_too(dtype):
    extreme = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    image = colorize(torch.tensor([[0, 1, extreme]], dtype=dtype), "bwr")
    assert image[0, [0, 2]].tolist() == [[255, 255, 255], [255, 0, 0]]
    both = colorize(torch.full((2, 1, 1), extreme, dtype=dtype), "bwr")  # the sum is beyond the dtype, not float64
    assert both.tolist() == [[[255, 0, 0]]]


def test_a_sum_over_channels_beyond_float64_is_an_error():
    with pytest.raises(InputError, match="sum over channels is beyond float64: divide the relevance by its largest"):
        heatmap(np.full((2, 1, 1), 1.7e308))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    st.sampled_from(["seismic", "hot"]),
    st.floats(0.01, 1),
)
def test_any_finite_map_has_colours_without_a_warning(values, name, quantile):
    image = colorize(np.array([values]), name, quantile=quantile)
    if name == "seismic":
        neutral = (image == 255).all(axis=-1)[0]
        assert all(neutral[i] for i, value in enumerate(values) if value == 0)
    overlay(Image.new("RGB", (4 * len(values), 4)), np.array([values]), name, quantile=quantile)


# -- values that are not finite ---------------------------------------------------------------------------------------


def test_a_few_that_are_not_finite_are_blamed_on_denominators_and_all_on_weights():
    few, all_of_them = torch.ones(4, 5), torch.full((4, 5), torch.nan)
    few[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"1 of 20 values are nan or infinite\. A larger stabilizer, or float32"):
        heatmap(few)
    with pytest.raises(InputError, match=r"20 of 20 .*Nearly all are nan: weights or inputs may be nan themselves"):
        heatmap(all_of_them)
    with pytest.raises(InputError, match=r"20 of 20 values are nan or infinite\. A larger stabilizer"):
        heatmap(torch.full((4, 5), torch.inf))
    with pytest.raises(InputError, match="Nearly all are nan: weights or inputs may be nan themselves"):
        text.html(["a", "b"], torch.full((2,), torch.nan))


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(224, 224, 3), (5, 5, 1), (64, 7, 4), (2, 32, 32, 3), (1, 8, 8, 1)])
def test_channels_in_the_last_axis_are_an_error_with_both_ways_out(shape):
    for draw in (heatmap, colorize, show, lambda relevance: overlay(Image.new("L", (8, 8)), relevance)):
        with pytest.raises(InputError, match=re.escape(f"relevance of shape {shape} may have its channels last")):
            draw(torch.randn(shape))
    relevance = torch.randn(shape)
    heatmap(relevance.movedim(-1, -3))
    narrow = relevance.sum(-3, keepdim=True)
    assert heatmap(narrow[None] if len(shape) == 3 else narrow)[0].size == shape[:-3:-1]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 3, 3), (512, 7, 7), (64, 4, 3), (2, 3, 5, 4)])
def test_channels_first_are_drawn(shape):
    heatmap(torch.randn(shape))


@pytest.mark.parametrize("shape", [(1, 187), (12, 5000), (2, 100), (5000, 12), (1, 12, 5000), (8, 3, 1000), (6, 64)])
def test_series_are_no_pictures_unless_one_insists(shape):
    for draw in (heatmap, colorize, show, lambda relevance: overlay(torch.zeros(shape[-2:]), relevance)):
        with pytest.raises(InputError, match=rf"like a series of {max(shape)} steps: heatmaps\.lines draws"):
            draw(torch.randn(shape))
    relevance = torch.randn(shape)
    batch = relevance[None, None] if len(shape) == 2 else relevance[None]
    assert [image.size for image in heatmap(batch)] == [shape[:-3:-1]]


@pytest.mark.parametrize(
    "shape", [(64, 1000), (80, 3000), (9, 64), (32, 800), (1, 63), (12, 12), (24, 200), (3, 40, 300)]
)
def test_long_pictures_are_drawn(shape):
    assert heatmap(torch.randn(shape)).size == shape[:-3:-1]


@pytest.mark.parametrize(
    ("shape", "hint"), [((9,), "lines draws series"), ((1, 1, 2, 2, 2), "slices draws the volumes")]
)
def test_other_ranks_are_told_who_draws_them(shape, hint):
    with pytest.raises(InputError, match=rf"but got .*\. heatmaps\.{hint}.* Sum, index or reshape it first\."):
        heatmap(torch.zeros(shape))


# -- channels ---------------------------------------------------------------------------------------------------------


def test_each_channel_is_a_picture_of_its_own():
    relevance = torch.randn(2, 3, 4, 5)
    images = heatmap(relevance, channels="each", joint=True)
    assert len(images) == 6
    np.testing.assert_array_equal(np.stack(images), colorize(relevance.reshape(6, 1, 4, 5), joint=True))
    assert colorize(relevance, channels="each").shape == (2, 3, 4, 5, 3)
    assert len(heatmap(relevance[0], channels="each")) == 3
    np.testing.assert_array_equal(heatmap(relevance[0, 0], channels="each"), heatmap(relevance[0, 0]))


def test_each_channel_is_laid_over_its_sample():
    relevance, under = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    images = overlay(under, relevance, channels="each")
    expected = [overlay(under[i], relevance[i, j]) for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(np.stack(images), np.stack(expected))
    assert len(overlay(under[0], relevance, channels="each")) == 6
    assert len(overlay(under[0], relevance[0], channels="each")) == 3
