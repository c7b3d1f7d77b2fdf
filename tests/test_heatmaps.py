"""Heatmaps by hand, and what they refuse."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from lrpfunc.errors import InputError, LrpError
from lrpfunc.heatmaps import grid, heatmap, save

# The ends of bwr are pure blue and pure red, its middle pure white.
BLUE, WHITE, RED = (0, 0, 255), (255, 255, 255), (255, 0, 0)


def test_the_extremes_and_zero_have_the_colours_of_the_ends_and_the_middle():
    image = heatmap(torch.tensor([[-2.0, 0.0, 2.0]]), colors="bwr")
    assert image.dtype == np.uint8
    assert image.tolist() == [[list(BLUE), list(WHITE), list(RED)]]


def test_the_scale_is_symmetric_even_if_the_relevance_is_not():
    # Of -4 .. 4, the value 2 lies three quarters up: bwr is (1, 0.5, 0.5) there.
    image = heatmap(torch.tensor([[0.0, 2.0, 4.0]]), colors="bwr")
    assert tuple(image[0, 0]) == WHITE
    assert tuple(image[0, 2]) == RED
    np.testing.assert_allclose(image[0, 1], (255, 127.5, 127.5), atol=1)


def test_the_default_colours_are_seismic_with_white_for_zero():
    image = heatmap(torch.tensor([[-1.0, 0.0, 1.0]]))
    assert tuple(image[0, 1]) == WHITE
    assert tuple(image[0, 0]) == tuple(colormaps["seismic"](0.0, bytes=True)[:3])
    assert tuple(image[0, 2]) == tuple(colormaps["seismic"](1.0, bytes=True)[:3])


def test_relevance_that_is_zero_everywhere_is_the_middle_colour():
    assert (heatmap(torch.zeros(2, 3), colors="bwr") == 255).all()


def test_channels_are_summed_before_the_colours():
    relevance = torch.tensor([[[1.0, 3.0]], [[-1.0, 1.0]]])  # sums to (0, 4)
    assert heatmap(relevance, colors="bwr").tolist() == [[list(WHITE), list(RED)]]


def test_the_maps_of_a_batch_are_scaled_one_by_one():
    batch = torch.tensor([[[[1.0, 0.0]]], [[[-100.0, 0.0]]]])
    images = heatmap(batch, colors="bwr")
    assert images.shape == (2, 1, 2, 3)
    assert images[:, 0, 0].tolist() == [list(RED), list(BLUE)]
    for one, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(heatmap(one, colors="bwr"), image)


def test_limits_set_the_scale_and_clip_to_it():
    image = heatmap(torch.tensor([[-1.0, 0.0, 0.5, 1.0, 9.0]]), colors="bwr", limits=(0.0, 1.0))
    assert [tuple(pixel) for pixel in image[0]] == [BLUE, BLUE, WHITE, RED, RED]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_gradients_and_arrays_are_fine(dtype):
    relevance = torch.tensor([[-1.0, 1.0]], dtype=dtype, requires_grad=True)
    expected = heatmap(np.array([[-1.0, 1.0]]))
    np.testing.assert_array_equal(heatmap(relevance), expected)


def test_the_relevance_is_not_modified():
    relevance = torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    heatmap(relevance, limits=(0, 1))
    assert relevance.tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 2, 2)])
def test_another_rank_is_an_error(shape):
    with pytest.raises(InputError, match=r"needs relevance of shape \(H, W\), \(C, H, W\) or \(N, C, H, W\), but got"):
        heatmap(torch.zeros(shape))


def test_values_that_are_not_finite_are_counted():
    relevance = torch.tensor([[1.0, float("nan"), float("inf"), -float("inf")]])
    with pytest.raises(LrpError, match="3 of 4 values are nan or infinite"):
        heatmap(relevance)


def test_an_empty_map_is_an_error():
    with pytest.raises(InputError, match="at least one value"):
        heatmap(torch.zeros(1, 0, 8))


def test_a_misspelt_colour_map_is_an_error_with_the_near_misses():
    with pytest.raises(InputError, match=r"no colour map is called 'seismik'\. Did you mean 'seismic'"):
        heatmap(torch.zeros(2, 2), colors="seismik")


@pytest.mark.parametrize("limits", [(1.0, 1.0), (1.0, 0.0), (0.0, float("nan"))])
def test_limits_that_do_not_rise_are_an_error(limits):
    with pytest.raises(InputError, match="low < high"):
        heatmap(torch.zeros(2, 2), limits=limits)


def image():
    return np.zeros((4, 4, 3), dtype=np.uint8)


def test_a_grid_is_labelled_and_written(tmp_path):
    figure = grid([[image()] * 3] * 2, ["a", "b", "c"], ["one", "two"], "title", "caption", ("low", "zero", "high"))
    titles = [axis.get_title() for axis in figure.axes]
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert [t for t in titles if t] == ["a", "b", "c"]
    assert [label for label in labels if label] == ["one", "two"]
    assert figure.get_suptitle() == "title"
    assert figure.get_supxlabel() == "caption"
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["low", "zero", "high"]
    path = save(figure, tmp_path / "grid.png")
    with Image.open(path) as written:
        written.load()
        assert min(written.size) > 100


def test_pyplot_keeps_no_figure():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    grid([[image()]])
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("images", [[], [[]], [[image()], [image(), image()]]])
def test_a_ragged_or_empty_grid_is_an_error(images):
    with pytest.raises(InputError, match="equally many images"):
        grid(images)


def test_labels_that_do_not_fit_are_an_error():
    with pytest.raises(InputError, match="one label per column, 2, but got 1"):
        grid([[image(), image()]], columns=["a"])
    with pytest.raises(InputError, match="one label per row, 1, but got 2"):
        grid([[image()]], rows=["a", "b"])


def test_an_ending_that_names_no_format_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"must name an image format, one of .*png"):
        save(grid([[image()]]), tmp_path / "grid.xyz")


def test_a_missing_folder_and_a_folder_as_path_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save(grid([[image()]]), tmp_path / "missing" / "grid.png")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(grid([[image()]]), tmp_path)
