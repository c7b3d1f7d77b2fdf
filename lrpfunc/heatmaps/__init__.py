"""Relevance as pictures."""

from lrpfunc.heatmaps.heatmaps import (
    COLORS,
    PLAIN,
    check_path,
    colorize,
    colormap,
    figure,
    flow,
    grid,
    heatmap,
    new_figure,
    overlay,
    save,
    show,
    tail,
)
