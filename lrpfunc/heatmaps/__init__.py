"""Heatmaps: relevance as pictures, and where relevance went as a figure.

    image = heatmaps.heatmap(relevance)                         # PIL images: heatmap, overlay, grid
    figure = heatmaps.show(relevance, photo)                    # matplotlib figures: show, figure, flow
    heatmaps.save(figure, "relevance.png")

`colorize` gives arrays. PIL and matplotlib are imported where they are used. Read on in this order: colours, pictures,
figures, flows, files.
"""

from lrpfunc.heatmaps.colours import COLORS, colorize, colormap
from lrpfunc.heatmaps.figures import PLAIN, figure, new_figure, tail
from lrpfunc.heatmaps.files import check_path, save
from lrpfunc.heatmaps.flows import flow
from lrpfunc.heatmaps.maps import why_not_finite
from lrpfunc.heatmaps.pictures import grid, heatmap, overlay
from lrpfunc.heatmaps.series import lines
from lrpfunc.heatmaps.sheets import show
from lrpfunc.heatmaps.volumes import slices

__all__ = [
    "colorize",
    "colormap",
    "figure",
    "flow",
    "grid",
    "heatmap",
    "lines",
    "overlay",
    "save",
    "show",
    "slices",
]
