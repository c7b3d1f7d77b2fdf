"""`heatmaps.show` of a few maps and of many."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from lrpfunc.heatmaps import colorize, save, show


def relevance(count, height=4, width=5):
    return torch.randn(count, 1, height, width, generator=torch.Generator().manual_seed(0))


def pictures(drawn):
    return [axis for axis in drawn.axes if axis.images]


def overlapping(drawn):
    """Pairs of axes that share room."""
    boxes = [axis.get_position() for axis in drawn.axes]
    return [
        (i, j)
        for i, one in enumerate(boxes)
        for j, other in enumerate(boxes[:i])
        if min(one.x1, other.x1) > max(one.x0, other.x0) + 1e-9 and min(one.y1, other.y1) > max(one.y0, other.y0) + 1e-9
    ]


@pytest.mark.parametrize("count", [5, 12, 23])
@pytest.mark.parametrize("with_input", [False, True])
def test_many_maps_stand_in_columns_with_their_scales_in_writing(count, with_input):
    maps = relevance(count)
    drawn = show(maps, torch.rand(count, 1, 4, 5) if with_input else None, title="title")
    axes = pictures(drawn)
    assert len(axes) == len(drawn.axes) == count * (1 + with_input)
    for i, one in enumerate(maps):
        shown = axes[i * (1 + with_input) + with_input].images[0]
        np.testing.assert_allclose(shown.get_array(), one[0])
        np.testing.assert_array_equal(shown.to_rgba(shown.get_array(), bytes=True)[..., :3], colorize(one))
        end = f"±{one.abs().max().item():.3g}"
        words = [axis.get_xlabel() for axis in axes[i * (1 + with_input) : (i + 1) * (1 + with_input)]]
        assert words == ([str(i), end] if with_input else [f"{i}: {end}"])
    assert drawn.get_suptitle() == "title"
    width, height = drawn.get_size_inches()
    assert 0.4 < height / width < 1.6
    assert not overlapping(drawn)


def test_columns_say_how_many_stand_in_a_row():
    axes = pictures(show(relevance(7), torch.rand(7, 1, 4, 5), columns=3))
    rows = [round(axis.get_position().y0, 6) for axis in axes[1::2]]
    assert [rows.count(row) for row in sorted(set(rows), reverse=True)] == [3, 3, 1]
    few = pictures(show(relevance(4), columns=2))
    rows = [axis.get_subplotspec().rowspan.start for axis in few]
    assert rows == [0, 0, 1, 1]
    assert len(pictures(show(relevance(3), columns=9))) == 3


def test_one_scale_for_all_has_one_bar():
    for count in (3, 12):
        for options in ({"joint": True}, {"limits": (-1, 3)}):
            drawn = show(relevance(count), **options)
            (bar,) = [axis for axis in drawn.axes if not axis.images]
            label, ends = (bar.get_ylabel(), bar.get_ylim()) if count == 3 else (bar.get_xlabel(), bar.get_xlim())
            assert label == "relevance"
            end = relevance(count).abs().max().item()
            assert ends == pytest.approx((-end, end) if "joint" in options else (-1, 3))
    assert [axis.get_xlabel() for axis in pictures(drawn)] == [str(i) for i in range(12)]


def test_ends_that_differ_are_both_written():
    drawn = show(relevance(6), limits=(0, None))
    assert drawn.axes[0].get_xlabel() == f"0: 0 to {relevance(6)[0].max().item():.3g}"


def test_channels_are_named():
    drawn = show(torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5), channels="each")
    names = [f"{i}, channel {j}" for i in range(2) for j in range(3)]
    assert [axis.get_xlabel() for axis in drawn.axes[::2]] == names
    drawn = show(torch.randn(3, 4, 5), torch.rand(3, 4, 5), channels="each")
    assert [axis.get_title() for axis in drawn.axes[1:6:2]] == ["channel 0", "channel 1", "channel 2"]


def test_large_maps_in_small_pictures_are_averaged_as_relevance():
    (few,) = pictures(show(relevance(1, 300, 300)))
    assert few.images[0].get_interpolation() == "nearest"
    many = pictures(show(relevance(20, 300, 300)))[0].images[0]
    assert many.get_interpolation() == "antialiased"
    assert many.get_interpolation_stage() == "data"


def test_many_maps_are_drawn_into_a_given_figure(tmp_path):
    whole = Figure(figsize=(8, 4), layout="constrained")
    left, right = whole.subfigures(1, 2)
    assert show(relevance(9), figure=left, title="left") is left
    assert show(relevance(9), torch.rand(9, 1, 4, 5), figure=right, joint=True) is right
    assert len(left.axes) == 9
    assert len(right.axes) == 19
    save(whole, tmp_path / "both.png")
    assert not overlapping(left)
    assert not overlapping(right)
    tiny = Figure(figsize=(0.2, 0.2), layout="constrained")
    save(show(relevance(30), figure=tiny), tmp_path / "tiny.png")
    window = pyplot.figure()
    try:
        assert len(show(relevance(9), figure=window).axes) == 9
    finally:
        pyplot.close(window)


def test_many_maps_take_no_layout_engine():
    """It would take minutes; pictures whose places are known take some ten milliseconds each."""
    drawn = show(relevance(60), torch.rand(60, 1, 4, 5))
    assert drawn.get_layout_engine() is None or type(drawn.get_layout_engine()).__name__ == "PlaceHolderLayoutEngine"
    assert len(drawn.axes) == 120
    assert not overlapping(drawn)
