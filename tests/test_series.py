"""`heatmaps.lines`: bars and curves by hand, and what is refused."""

import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import colorize, lines, save

RELEVANCE = torch.tensor([0.0, 1.0, -2.0, 0.5])
VALUES = torch.tensor([5.0, 6.0, 4.0, 4.0])


def bars(axis):
    """Left, right, the end that is not at zero, and the colour of each."""
    (collection,) = axis.collections
    corners = [path.vertices[:4] for path in collection.get_paths()]
    ends = [(c[0, 0], c[2, 0], c[1, 1]) for c in corners]
    return ends, collection.get_facecolors()


def test_bars_are_as_long_as_the_relevance_and_have_its_colour():
    (axis,) = lines(RELEVANCE).axes
    ends, colors = bars(axis)
    assert ends == [(-0.5, 0.5, 0), (0.5, 1.5, 1), (1.5, 2.5, -2), (2.5, 3.5, 0.5)]
    np.testing.assert_allclose(colors[:, :3] * 255, colorize(RELEVANCE[None])[0])
    assert axis.get_ylim() == (-2, 2)
    assert axis.get_xlim() == (-0.5, 3.5)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["-2", "2"]
    assert axis.get_xlabel() == "step"


def test_a_curve_goes_through_the_values_in_the_colours_of_the_bars():
    curve, below = lines(RELEVANCE, VALUES, unit="mV").axes
    (band,) = curve.collections
    pieces = [piece.tolist() for piece in band.get_segments()]
    assert pieces[0] == [[0, 5], [0, 5], [0.5, 5.5]]
    assert pieces[1] == [[0.5, 5.5], [1, 6], [1.5, 5]]
    assert pieces[-1] == [[2.5, 4], [3, 4], [3, 4]]
    np.testing.assert_allclose(band.get_colors(), bars(below)[1])
    (line,) = curve.lines
    assert set(VALUES.tolist()) <= set(line.get_ydata().tolist())
    assert curve.get_ylabel() == "mV"
    assert to_rgba(line.get_color())[:3] == (0.25, 0.25, 0.25)  # seen where the band is white


def test_steps_are_where_x_is():
    for x in ([0.0, 0.1, 0.4, 0.8], np.array([0.0, 0.1, 0.4, 0.8]), torch.tensor([0.0, 0.1, 0.4, 0.8]).double()):
        (axis,) = lines(RELEVANCE, x=x, x_label="time in s").axes
        np.testing.assert_allclose(
            [end[:2] for end in bars(axis)[0]], [(-0.05, 0.05), (0.05, 0.25), (0.25, 0.6), (0.6, 1)]
        )
        assert axis.get_xlabel() == "time in s"


def test_channels_are_rows_of_one_scale_and_samples_have_their_own():
    relevance = torch.tensor([[[1.0, 0.0], [0.5, 0.0]], [[0.0, -4.0], [2.0, 0.0]]])
    drawn = lines(relevance, names=["I", "II"])
    assert [axis.get_ylabel() for axis in drawn.axes] == ["sample 0: I", "sample 0: II", "sample 1: I", "sample 1: II"]
    assert [axis.get_ylim() for axis in drawn.axes] == [(-1, 1)] * 2 + [(-4, 4)] * 2
    assert [axis.get_ylim() for axis in lines(relevance, joint=True).axes] == [(-4, 4)] * 4
    assert [axis.get_ylabel() for axis in lines(relevance[0]).axes] == ["0", "1"]
    assert [axis.get_ylabel() for axis in lines(relevance[:1, 0]).axes] == [""]


def test_limits_end_the_bars_and_zero_stays_neutral():
    (axis,) = lines(RELEVANCE, limits=(0, None), colors="bwr").axes
    ends, colors = bars(axis)
    assert [end[2] for end in ends] == [0, 1, 0, 0.5]
    assert axis.get_ylim() == (0, 1)
    assert colors[[0, 2], :3].tolist() == [[1, 1, 1]] * 2


def test_one_step_is_drawn():
    curve, below = lines(torch.tensor([2.0]), torch.tensor([3.0])).axes
    assert bars(below)[0] == [(-0.5, 0.5, 2)]
    assert curve.lines[0].get_marker() == "."


def test_of_many_steps_the_largest_of_each_column_is_shown():
    """10,000 steps in 2000 columns of five."""
    relevance, values = torch.zeros(10_000), torch.zeros(10_000)
    relevance[7], relevance[8], relevance[9_999] = 1.0, -3.0, 2.0
    values[7], values[8] = 5.0, -6.0
    curve, below = lines(relevance, values).axes
    ends, _ = bars(below)
    assert len(ends) == 2000
    assert ends[1] == (5, 10, -3)
    assert ends[-1][2] == 2
    assert sum(end[2] != 0 for end in ends) == 2
    pieces = curve.collections[0].get_segments()
    assert pieces[1].tolist() == [[7.5, -6], [7.5, 5]]
    assert below.get_xlabel() == "step (each bar: the largest relevance of 5 steps or fewer)"
    assert len(bars(lines(torch.ones(2001)).axes[0])[0]) == 2000


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-30, 1e200, 1.7e308])
def test_lines_do_not_depend_on_the_size_of_numbers(scale, tmp_path):
    series = np.array([-scale, 0.0, scale])
    drawn = lines(series, series, unit="V")
    curve, below = drawn.axes
    assert [tick.get_text() for tick in below.get_yticklabels()] == [f"{-scale:.3g}", f"{scale:.3g}"]
    np.testing.assert_allclose(bars(below)[1][:, :3] * 255, colorize(np.sign(series)[None])[0])
    assert curve.get_ylabel() in ("V", f"V in {10.0 ** max(np.floor(np.log10(scale)), -323):.0e}")
    save(drawn, tmp_path / "lines.png")


def test_lines_draw_into_a_given_figure():
    whole = Figure(figsize=(8, 8))
    upper, _ = whole.subfigures(2, 1)
    assert lines(RELEVANCE, VALUES, title="title", figure=upper) is upper
    assert len(upper.axes) == 2
    assert upper.get_suptitle() == "title"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relevance": torch.zeros(1, 1, 1, 4)}, "relevance of shape (T,), (C, T) or (N, C, T), but got (1, 1, 1, 4)"),
        ({"relevance": torch.zeros(())}, "relevance of shape (T,), (C, T) or (N, C, T), but got ()"),
        ({"relevance": torch.zeros(2, 0)}, "lines needs at least one value, but the relevance has shape (2, 0)"),
        ({"relevance": torch.tensor([1.0, torch.nan])}, "finite relevance, but 1 of 2 values are nan or infinite."),
        ({"relevance": torch.zeros(500, 3)}, "has 500: choose some, sum over channels, or, if time is not the last"),
        ({"values": VALUES[:3]}, "values must have the shape of the relevance, (4,), but have (3,)."),
        ({"values": VALUES / 0}, "values must be finite, but 4 of 4 are nan or infinite: fill gaps first."),
        ({"x": [0, 1, 2]}, "x needs one number for each of the 4 steps, but has shape (3,)."),
        ({"x": [0, 1, 1, 2]}, "x must be finite and rise from step to step: sort by it first."),
        ({"x": torch.tensor([0, 1, 2, torch.inf])}, "x must be finite and rise from step to step: sort by it first."),
        ({"x": [0, 1, None, 3]}, "number 2 of x must be a finite number, but is None."),
        ({"names": ["a", "b"]}, "names must be one per channel, 1, but are 2."),
        ({"quantile": 0}, "quantile must be above 0 and at most 1, but is 0."),
    ],
)  # fmt: skip
def test_lines_refuse_what_does_not_fit(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        lines(**{"relevance": RELEVANCE, **arguments})
