"""Heatmaps by hand, against zennit's colours, and what they refuse."""

import io
import pickle

import numpy as np
import pytest
import torch
import zennit.image
from matplotlib import colormaps, pyplot
from matplotlib.figure import Figure
from PIL import Image

import lrpfunc
from lrpfunc import composites, digits, rules
from lrpfunc.attribution.ledgers import Entry, Ledger, ledger
from lrpfunc.errors import InputError, LrpError
from lrpfunc.heatmaps import (
    colorize,
    colormap,
    figure,
    flow,
    grid,
    heatmap,
    overlay,
    save,
    show,
)
from lrpfunc.heatmaps.flows import draw
from tests.helpers import branches

# The ends of bwr are pure blue and pure red, its middle pure white.
BLUE, WHITE, RED = (0, 0, 255), (255, 255, 255), (255, 0, 0)


def test_the_extremes_and_zero_have_the_colours_of_the_ends_and_the_middle():
    image = colorize(torch.tensor([[-2.0, 0.0, 2.0]]), colors="bwr")
    assert image.dtype == np.uint8
    assert image.tolist() == [[list(BLUE), list(WHITE), list(RED)]]


def test_the_scale_is_symmetric_even_if_the_relevance_is_not():
    # Of -4 .. 4, the value 2 lies three quarters up: bwr is (1, 0.5, 0.5) there.
    image = colorize(torch.tensor([[0.0, 2.0, 4.0]]), colors="bwr")
    assert tuple(image[0, 0]) == WHITE
    assert tuple(image[0, 2]) == RED
    np.testing.assert_allclose(image[0, 1], (255, 127.5, 127.5), atol=1)


def test_the_default_colours_are_seismic_with_white_for_zero():
    image = colorize(torch.tensor([[-1.0, 0.0, 1.0]]))
    assert tuple(image[0, 1]) == WHITE
    assert tuple(image[0, 0]) == tuple(colormaps["seismic"](0.0, bytes=True)[:3])
    assert tuple(image[0, 2]) == tuple(colormaps["seismic"](1.0, bytes=True)[:3])


def test_relevance_that_is_zero_everywhere_is_the_middle_colour():
    assert (colorize(torch.zeros(2, 3), colors="bwr") == 255).all()


def test_channels_are_summed_before_the_colours():
    relevance = torch.tensor([[[1.0, 3.0]], [[-1.0, 1.0]]])  # sums to (0, 4)
    assert colorize(relevance, colors="bwr").tolist() == [[list(WHITE), list(RED)]]


def test_the_maps_of_a_batch_are_scaled_one_by_one():
    batch = torch.tensor([[[[1.0, 0.0]]], [[[-100.0, 0.0]]]])
    images = colorize(batch, colors="bwr")
    assert images.shape == (2, 1, 2, 3)
    assert images[:, 0, 0].tolist() == [list(RED), list(BLUE)]
    for one, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(colorize(one, colors="bwr"), image)


def test_limits_set_the_scale_and_clip_to_it():
    image = colorize(torch.tensor([[-1.0, 0.0, 0.5, 1.0, 9.0]]), colors="bwr", limits=(0.0, 1.0))
    assert image[0, :, 0].tolist() == [255] * 5
    np.testing.assert_allclose(image[0, :, 1], [255, 255, 127.5, 0, 0], atol=1)
    image = colorize(torch.tensor([[-1.0, 0.0, 0.5, 1.0, 9.0]]), colors="gray", limits=(0.0, 1.0))
    np.testing.assert_allclose(image[0, :, 1], [0, 0, 127.5, 255, 255], atol=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_gradients_and_arrays_are_fine(dtype):
    relevance = torch.tensor([[-1.0, 1.0]], dtype=dtype, requires_grad=True)
    expected = colorize(np.array([[-1.0, 1.0]]))
    np.testing.assert_array_equal(colorize(relevance), expected)


def test_the_relevance_is_not_modified():
    relevance = torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    colorize(relevance, limits=(0, 1))
    assert relevance.tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 2, 2)])
def test_another_rank_is_an_error(shape):
    with pytest.raises(InputError, match=r"needs relevance of shape \(H, W\), \(C, H, W\) or \(N, C, H, W\), but got"):
        colorize(torch.zeros(shape))


def test_values_that_are_not_finite_are_counted():
    relevance = torch.tensor([[1.0, float("nan"), float("inf"), -float("inf")]])
    with pytest.raises(LrpError, match="3 of 4 values are nan or infinite"):
        colorize(relevance)


def test_an_empty_map_is_an_error():
    with pytest.raises(InputError, match="at least one value"):
        colorize(torch.zeros(1, 0, 8))


def test_a_misspelt_colour_map_is_an_error_with_the_near_misses():
    with pytest.raises(
        InputError, match=r"no colour map is called 'seismik'\. Did you mean 'seismic'.*, and wred, wblue"
    ):
        colorize(torch.zeros(2, 2), colors="seismik")


@pytest.mark.parametrize("limits", [(1.0, 1.0), (1.0, 0.0), (0.0, float("nan"))])
def test_limits_that_do_not_rise_are_an_error(limits):
    with pytest.raises(InputError, match="low < high"):
        colorize(torch.zeros(2, 2), limits=limits)


# -- scales -----------------------------------------------------------------------------------------------------------


def test_joint_maps_share_the_largest_magnitude():
    batch = torch.tensor([[[[1.0, 0.0]]], [[[-2.0, 0.0]]]])
    images = colorize(batch, colors="bwr", joint=True)
    np.testing.assert_allclose(images[0, 0], [(255, 127.5, 127.5), WHITE], atol=1)
    assert images[1, 0].tolist() == [list(BLUE), list(WHITE)]
    np.testing.assert_array_equal(images, colorize(batch, colors="bwr", limits=(-2, 2)))


def test_a_quantile_of_the_magnitudes_is_the_end_of_the_scale():
    # The magnitudes 0, 1, ..., 10: half of them stay below 5, and what lies beyond has the colour of the ends.
    relevance = torch.arange(11.0).reshape(1, 11) * torch.tensor([1.0, -1.0]).repeat(6)[:11]
    np.testing.assert_array_equal(colorize(relevance, quantile=0.5), colorize(relevance, limits=(-5, 5)))
    np.testing.assert_array_equal(colorize(relevance, quantile=1.0), colorize(relevance, limits=(-10, 10)))


def test_a_quantile_is_of_each_map_or_of_all():
    batch = torch.stack([torch.arange(11.0), torch.arange(11.0) + 10]).reshape(2, 1, 1, 11)
    each = colorize(batch, quantile=0.5)
    np.testing.assert_array_equal(each[0], colorize(batch[0], limits=(-5, 5)))
    np.testing.assert_array_equal(each[1], colorize(batch[1], limits=(-15, 15)))
    together = np.quantile(batch.numpy(), 0.5)
    expected = colorize(batch, limits=(-together, together))
    np.testing.assert_array_equal(colorize(batch, quantile=0.5, joint=True), expected)


def test_a_quantile_that_is_zero_gives_way_to_the_maximum():
    sparse = torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0, 3.0]])
    np.testing.assert_array_equal(colorize(sparse, quantile=0.5), colorize(sparse))


def test_a_limit_may_be_left_to_the_relevance():
    relevance = torch.tensor([[-8.0, 0.0, 2.0, 4.0]])
    np.testing.assert_array_equal(colorize(relevance, limits=(0, None)), colorize(relevance, limits=(0, 4)))
    np.testing.assert_array_equal(colorize(relevance, limits=(None, 0)), colorize(relevance, limits=(-8, 0)))
    np.testing.assert_array_equal(colorize(relevance, limits=(None, None)), colorize(relevance))


@pytest.mark.parametrize("limits", [(1.0, None), (None, -1.0), (-np.inf, None), (None, float("nan"))])
def test_beside_an_open_limit_the_other_may_not_lie_beyond_zero(limits):
    with pytest.raises(InputError, match="may not lie beyond zero"):
        heatmap(torch.ones(2, 2), limits=limits)


@pytest.mark.parametrize("quantile", [0.0, 1.1, float("nan")])
def test_a_quantile_beyond_its_range_is_an_error(quantile):
    with pytest.raises(InputError, match="quantile must be above 0 and at most 1, but is"):
        heatmap(torch.ones(2, 2), quantile=quantile)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_zero_has_exactly_the_middle_colour_at_any_scale(scale):
    values = torch.tensor([[0.0, -0.0, 0.3, 1.7]], dtype=torch.float64) * scale
    assert (colorize(values, colors="bwr")[0, :2] == 255).all()


# -- colours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(zennit.image.CMAPS))
def test_the_colours_are_those_of_zennit(name):
    """zennit has 256 colours, that for zero the one of index 128 where there are two signs; we have 257."""
    name_here = f"zennit:{name}" if name in ("hot", "seismic") else name
    expected = zennit.image.palette(name).astype(float)
    ours = colormap(name_here)(np.arange(257))[:, :3] * 255
    zero = 127.5 if name in ("gray", "wred", "wblue", "hot", "cold") else 128
    at = np.interp(np.arange(256), [0, zero, 255], [0, 128, 256])
    got = np.stack([np.interp(at, np.arange(257), channel) for channel in ours.T], axis=1)
    np.testing.assert_allclose(got, expected, atol=2)


@pytest.mark.parametrize("name", ["bwr", "coldnhot", "france", "coleus"])
def test_heatmaps_are_those_of_zennit(name):
    relevance = np.random.default_rng(0).normal(size=(20, 20))
    image = zennit.image.imgify(relevance, symmetric=True, cmap=name)
    image.palette.palette = np.asarray(image.palette.palette).tobytes()  # Pillow 13 takes no arrays there any more
    expected = np.array(image.convert("RGB"), dtype=int)
    # Steps of coldnhot are 6 where it runs through a colour in a sixth of its range, and the nearest may be the next.
    atol = 12 if name == "coldnhot" else 4
    np.testing.assert_allclose(colorize(relevance, name).astype(int), expected, atol=atol)


def test_names_that_mean_two_things_mean_those_of_matplotlib():
    for name in ("hot", "seismic"):
        assert colormap(name) == colormaps[name].resampled(257)
        distance = np.abs(colormap(name)(np.arange(257)) - colormap(f"zennit:{name}")(np.arange(257))).max()
        assert distance > 0.1


def test_a_colour_map_may_be_given_itself():
    relevance = torch.tensor([[-1.0, 0.5, 1.0]])
    np.testing.assert_array_equal(colorize(relevance, colormaps["bwr"]), colorize(relevance, "bwr"))


# -- images -----------------------------------------------------------------------------------------------------------


def test_one_map_is_an_image_and_a_batch_a_list_of_them():
    relevance = torch.randn(3, 2, 5, 7)
    images = heatmap(relevance, joint=True, quantile=0.9)
    assert [(image.mode, image.size) for image in images] == [("RGB", (7, 5))] * 3
    np.testing.assert_array_equal(np.stack(images), colorize(relevance, joint=True, quantile=0.9))
    one = heatmap(relevance[0], colors="coolio")
    assert isinstance(one, Image.Image)
    np.testing.assert_array_equal(one, colorize(relevance[0], "coolio"))
    assert isinstance(heatmap(relevance[0, 0]), Image.Image)
    assert len(heatmap(relevance[:1])) == 1


# Red, of which PIL's gray is 76, beside white.
PIXELS = np.array([[RED, WHITE, WHITE]], dtype=np.uint8)


def test_an_overlay_is_gray_where_relevance_is_zero_and_colour_where_it_is_largest():
    got = np.asarray(overlay(Image.fromarray(PIXELS), torch.tensor([[0.0, -2.0, 1.0]]), colors="bwr"))
    half = (255, 127.5, 127.5)  # the colour of 1 in -2 .. 2, over white by a half
    np.testing.assert_allclose(got[0], [(76, 76, 76), BLUE, np.add(half, WHITE) / 2], atol=1)


def test_opacity_lets_the_image_through():
    got = np.asarray(overlay(Image.fromarray(PIXELS), torch.tensor([[1.0, -1.0, 0.0]]), colors="bwr", opacity=0.5))
    np.testing.assert_allclose(got[0], [(165.5, 38, 38), (127.5, 127.5, 255), WHITE], atol=1)
    hidden = overlay(Image.fromarray(PIXELS), torch.ones(1, 3), opacity=0)
    np.testing.assert_array_equal(hidden, Image.fromarray(PIXELS).convert("L").convert("RGB"))


def test_what_is_clipped_is_not_shown_in_an_overlay():
    got = overlay(Image.fromarray(PIXELS), torch.tensor([[-5.0, 1.0, 0.0]]), colors="bwr", limits=(0, None))
    assert np.asarray(got)[0].tolist() == [[76, 76, 76], list(RED), list(WHITE)]


def test_the_forms_of_an_image_are_the_same():
    relevance = torch.tensor([[0.0, -2.0, 1.0]])
    expected = np.asarray(overlay(Image.fromarray(PIXELS), relevance))
    channels_first = torch.from_numpy(PIXELS).movedim(-1, 0)
    for form in (PIXELS, channels_first, channels_first / 255, (channels_first / 255).numpy(), [PIXELS]):
        np.testing.assert_array_equal(overlay(form, relevance), expected)
    gray = np.array(Image.fromarray(PIXELS).convert("L"))
    for form in (gray, torch.from_numpy(gray) / 255, torch.from_numpy(gray)[None] / 255):
        np.testing.assert_array_equal(overlay(form, relevance), expected)


def test_a_batch_of_overlays_has_an_image_each_or_one_for_all():
    relevance = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    images = torch.rand(2, 3, 4, 4)
    both = overlay(images, relevance, joint=True)
    scale = relevance.sum(1).abs().max().item()
    for one, image, expected in zip(relevance, images, both, strict=True):
        got = np.asarray(overlay(image, one, limits=(-scale, scale)), dtype=float)
        np.testing.assert_allclose(got, np.asarray(expected, dtype=float), atol=4)  # sums in another order
    for one, expected in zip(relevance, overlay(images[0], relevance), strict=True):
        np.testing.assert_array_equal(overlay(images[0], one), expected)
    with pytest.raises(InputError, match="2 maps need as many images, or one for all, but got 3"):
        overlay(torch.rand(3, 3, 4, 4), relevance)


def test_relevance_is_resized_to_the_image():
    relevance = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).reshape(2, 2)
    got = overlay(np.full((100, 101, 3), 255, dtype=np.uint8), relevance, colors="bwr")
    assert got.size == (101, 100)
    pixels = np.asarray(got)
    assert pixels[0, 0].tolist() == list(WHITE)
    assert pixels[-1, -1].tolist() == list(RED)
    across = pixels[0, :, 1].astype(int)
    assert (np.diff(across) <= 0).all()  # no edge between two pixels of the map, but a ramp
    assert len(set(across.tolist())) > 20
    with pytest.raises(InputError, match=r"relevance of 2 x 2 does not fit an image of 100 x 150 \(height x width\)"):
        overlay(np.zeros((100, 150, 3), dtype=np.uint8), relevance)


def test_a_normalized_image_is_an_error_that_says_how_to_undo_it():
    with pytest.raises(InputError, match=r"must lie in 0 to 1, but goes from -2 to 0\.5.*image = x \* std \+ mean"):
        overlay(torch.tensor([[-2.0, 0.5]]), torch.ones(1, 2))
    with pytest.raises(InputError, match="must lie in 0 to 1, but goes from nan"):
        overlay(torch.tensor([[float("nan"), 0.5]]), torch.ones(1, 2))


@pytest.mark.parametrize("image", [torch.zeros(2, 4, 4), np.zeros((4, 4, 4), np.uint8), torch.zeros(4)])
def test_another_shape_of_an_image_is_an_error(image):
    with pytest.raises(InputError, match="with one or three channels, but has shape"):
        overlay(image, torch.ones(4, 4))


@pytest.mark.parametrize("opacity", [-0.1, 1.1])
def test_an_opacity_beyond_its_range_is_an_error(opacity):
    with pytest.raises(InputError, match="opacity must be from 0 to 1"):
        overlay(torch.zeros(4, 4), torch.ones(4, 4), opacity=opacity)


def blank(color, size=(2, 1)):
    return Image.new("RGB", size, color)


def test_a_grid_tiles_with_a_gap():
    got = np.asarray(grid([[blank("red"), blank("blue")], [blank("blue"), blank("red")]], gap=1))
    assert got.shape == (3, 5, 3)
    row = [RED, RED, WHITE, BLUE, BLUE]
    assert [[tuple(pixel) for pixel in line] for line in got.tolist()] == [row, [WHITE] * 5, row[::-1]]


def test_a_flat_list_is_broken_into_rows_and_the_last_filled():
    images = [blank("red"), blank("red"), blank("blue")]
    got = np.asarray(grid(images, columns=2, gap=0, background="black"))
    assert [[tuple(pixel) for pixel in line] for line in got.tolist()] == [[RED] * 4, [BLUE] * 2 + [(0, 0, 0)] * 2]
    assert grid(images, gap=0).size == (6, 1)


def test_tiny_images_are_enlarged_without_smoothing():
    image = Image.fromarray(PIXELS)
    got = np.asarray(grid([image], scale=4))
    np.testing.assert_array_equal(got, PIXELS.repeat(4, axis=0).repeat(4, axis=1))


def test_a_grid_refuses_what_does_not_fit():
    with pytest.raises(InputError, match=r"images of one size, but they have \[\(2, 1\), \(3, 1\)\]"):
        grid([blank("red"), blank("red", (3, 1))])
    with pytest.raises(InputError, match="rows of equally many images"):
        grid([[blank("red")], [blank("red")] * 2])
    with pytest.raises(InputError, match="one image and one column at least, but got 0"):
        grid([])
    with pytest.raises(InputError, match="one image and one column at least, but got 1 and 0"):
        grid([blank("red")], columns=0)
    with pytest.raises(InputError, match="with a flat list of images only"):
        grid([[blank("red")]], columns=1)
    with pytest.raises(InputError, match="a scale >= 1 and a gap >= 0, but got 0 and 2"):
        grid([blank("red")], scale=0)


# -- figures ----------------------------------------------------------------------------------------------------------


def image():
    return np.zeros((4, 4, 3), dtype=np.uint8)


def test_a_figure_is_labelled_and_written(tmp_path):
    drawn = figure([[image()] * 3] * 2, ["a", "b", "c"], ["one", "two"], "title", "caption", ("low", "zero", "high"))
    titles = [axis.get_title() for axis in drawn.axes]
    labels = [axis.get_ylabel() for axis in drawn.axes]
    assert [t for t in titles if t] == ["a", "b", "c"]
    assert [label for label in labels if label] == ["one", "two"]
    assert drawn.get_suptitle() == "title"
    assert drawn.get_supxlabel() == "caption"
    assert [tick.get_text() for tick in drawn.axes[-1].get_xticklabels()] == ["low", "zero", "high"]
    path = save(drawn, tmp_path / "grid.png")
    with Image.open(path) as written:
        written.load()
        assert min(written.size) > 100


def test_words_are_shown_as_they_are(tmp_path):
    """A dollar starts no formula, and a letter that the font does not have is no warning."""
    words = r"a$\frac$b 猫"
    made = figure([[image()]], [words], [words], words, words)
    save(made, tmp_path / "words.png")
    save(show(torch.ones(2, 2), title=words), tmp_path / "show.png")
    assert made.get_suptitle() == words


def test_pyplot_keeps_no_figure():
    before = pyplot.get_fignums()
    figure([[image()]])
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("images", [[], [[]], [[image()], [image(), image()]]])
def test_a_ragged_or_empty_figure_is_an_error(images):
    with pytest.raises(InputError, match="equally many images"):
        figure(images)


def test_labels_that_do_not_fit_are_an_error():
    with pytest.raises(InputError, match="one label per column, 2, but got 1"):
        figure([[image(), image()]], columns=["a"])
    with pytest.raises(InputError, match="one label per row, 1, but got 2"):
        figure([[image()]], rows=["a", "b"])


def test_a_figure_takes_images_too():
    drawn = figure([[Image.fromarray(PIXELS), PIXELS]])
    np.testing.assert_array_equal(drawn.axes[0].get_images()[0].get_array(), PIXELS)
    np.testing.assert_array_equal(drawn.axes[1].get_images()[0].get_array(), PIXELS)
    assert {axis.get_images()[0].get_interpolation() for axis in drawn.axes} == {"nearest"}


def test_show_has_the_input_beside_the_relevance_in_its_units():
    relevance, x = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 1, 8, 8)
    drawn = show(relevance, x, title="title")
    assert drawn.get_suptitle() == "title"
    for i, one in enumerate(relevance.sum(1)):
        under, beside = (axis.get_images()[0] for axis in drawn.axes[2 * i : 2 * i + 2])
        np.testing.assert_allclose(under.get_array()[..., 0], 255 * x[i, 0], atol=0.51)
        np.testing.assert_allclose(beside.get_array(), one)
        largest = one.abs().max().item()
        assert beside.get_clim() == pytest.approx((-largest, largest))
        np.testing.assert_array_equal(beside.to_rgba(beside.get_array(), bytes=True)[..., :3], colorize(one))
    bars = [axis for axis in drawn.axes if axis.get_ylabel() == "relevance"]
    assert len(bars) == 2
    assert bars[0].get_ylim() == pytest.approx(drawn.axes[1].get_images()[0].get_clim())


def test_show_takes_the_scales_of_a_heatmap():
    relevance = torch.tensor([[[[1.0, -3.0]]], [[[0.5, 0.0]]]])
    limits = [image.get_clim() for axis in show(relevance, joint=True).axes for image in axis.get_images()]
    assert limits == [(-3, 3), (-3, 3)]
    drawn = show(relevance, limits=(0, None))
    maps, bars = drawn.axes[:2], drawn.axes[2:]
    assert [axis.images[0].get_clim() for axis in maps] == [(-1, 1), (-0.5, 0.5)]
    assert [axis.images[0].get_array().tolist() for axis in maps] == [[[1, 0]], [[0.5, 0]]]
    assert [bar.get_ylim() for bar in bars] == [(0, 1), (0, 0.5)]
    drawn = show(relevance[0, 0])
    assert len(drawn.axes) == 2  # the map and its colour bar
    with pytest.raises(InputError, match="one for all"):
        show(relevance, torch.rand(3, 1, 1, 2))


def test_show_and_flow_draw_into_a_given_figure(model_and_digits):
    whole = Figure(figsize=(8, 8))
    upper, lower = whole.subfigures(2, 1)
    assert show(torch.randn(2, 2), figure=upper) is upper
    assert flow(*model_and_digits, rules.epsilon(), figure=lower) is lower
    assert len(upper.axes) == 2
    window = pyplot.figure()
    try:
        assert show(torch.randn(2, 2), figure=window) is window
        assert len(window.axes) == 2
    finally:
        pyplot.close(window)


@pytest.mark.parametrize("make", [lambda: show(torch.eye(3)), lambda: figure([[image()]])])
def test_figures_display_themselves_in_a_notebook(make):
    """IPython looks for a printer of the type, as the inline backend registers one for Figure, then for _repr_png_."""
    drawn = make()
    assert type(drawn) is Figure
    with Image.open(io.BytesIO(drawn._repr_png_())) as shown:
        shown.load()
        assert shown.size == tuple((drawn.get_size_inches() * drawn.dpi).astype(int))
    assert not pyplot.get_fignums()
    assert pickle.loads(pickle.dumps(drawn))._repr_png_() == drawn._repr_png_()


# -- where relevance went ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_and_digits():
    model, images, _ = digits.load()
    fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model, images))
    return fmodel, params, images[:4]


def bars(axis):
    """The bars of an axis as (start, width), in the order that they were drawn in."""
    return [(bar.get_x(), bar.get_width()) for bar in axis.patches]


def test_flow_draws_the_numbers_of_the_ledger(model_and_digits):
    rule = composites.epsilon_plus()
    drawn = flow(*model_and_digits, rule, target=3, title="title")
    found = ledger(*model_and_digits, rule, target=3)
    weighted = [entry for entry in found.entries if entry.kind in ("convolution", "dense")]
    total, parts = drawn.axes
    assert [label.get_text() for label in total.get_yticklabels()] == ["output", *(e.name for e in weighted), "inputs"]
    (rule_axis,) = parts.child_axes
    assert [label.get_text() for label in rule_axis.get_yticklabels()] == ["", *(e.rule for e in weighted), ""]
    left = np.array([width for _, width in bars(total)[: len(weighted) + 2]])
    absorbed = bars(total)[len(weighted) + 2 :]
    assert left[0] == pytest.approx(found.seed)
    assert left[-1] == pytest.approx(found.arrived)
    assert [width for _, width in absorbed[1:-1]] == pytest.approx([entry.absorbed for entry in weighted])
    np.testing.assert_allclose(left[:-2] - left[1:-1], [entry.absorbed for entry in weighted], atol=1e-3)
    assert [start for start, _ in absorbed] == pytest.approx(left.tolist())
    assert [width for _, width in bars(parts)] == pytest.approx(
        [share for entry in weighted for share in (entry.arrived, entry.passed_on)]
    )
    assert drawn.get_suptitle() == "title"
    assert f"not shown: {len(found.entries) - len(weighted)} without weights" in drawn.get_supxlabel()


def test_what_absorbs_is_shown_also_without_weights():
    entries = (
        Entry("act", "activation", "own", 1000.0, 800.0),
        Entry("quiet", "activation", "own", 800.0, 799.5),
        Entry("loud", "sum", "own", 799.5, 900.0),
        Entry("conv", "convolution", "own", 900.0, 900.0),
    )
    drawn = draw(Ledger(entries, 1000.0, {"x": 900.0}), "", None)
    total = drawn.axes[0]
    assert [label.get_text() for label in total.get_yticklabels()] == ["output", "act", "loud", "conv", "inputs"]
    assert [width for _, width in bars(total)[:5]] == [1000, 800, 900, 900, 900]
    assert [text.get_text() for text in total.texts] == ["1,000", "-200", "+100", "900"]
    assert drawn.get_supxlabel() == (
        "seed 1,000, at the inputs 900, absorbed 100 (red; blue: below zero), summed over the batch\n"
        "not shown: 1 without weights that absorb nothing noticeable"
    )


def test_long_names_keep_their_ends_and_long_rules_their_beginnings():
    entries = (Entry("encoder." * 9 + "fc", "dense", "zbox(" + "1" * 50, 1.0, 1.0),)
    total, parts = draw(Ledger(entries, 1.0, {"x": 1.0}), "", None).axes
    name = total.get_yticklabels()[1].get_text()
    rule = parts.child_axes[0].get_yticklabels()[1].get_text()
    assert name.startswith("…")
    assert name.endswith(".encoder.fc")
    assert rule.startswith("zbox(111")
    assert rule.endswith("…")
    assert max(len(name), len(rule)) < 50


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan")])
def test_flow_can_be_drawn_of_any_ledger(value, tmp_path):
    path = save(draw(Ledger((Entry("a", "dense", "r", value, 0.0),), value, {"x": 0.0}), "", None), tmp_path / "a.png")
    assert path.stat().st_size > 1000


def test_flow_of_a_residual_network_with_every_entry_in_the_total():
    model, x = branches(bias=True)
    fmodel, params = lrpfunc.functionalize(model, x)
    drawn = flow(fmodel, params, x, composites.guided_backprop())
    found = ledger(fmodel, params, x, composites.guided_backprop())
    names = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    left = {name: width for name, (_, width) in zip(names, bars(drawn.axes[0]), strict=False)}
    after = found.seed
    for entry in found.entries:
        after -= entry.absorbed
        if entry.name in left:
            assert left[entry.name] == pytest.approx(after)
