"""Heatmaps of the shipped digits in every form: images, overlays, a grid, a figure, and where relevance went.

`python examples/heatmaps.py --out folder` writes them; `--guides` instead the pictures of the guides beside
this file.
"""

import argparse
from pathlib import Path

import lrpfunc
from lrpfunc import composites, digits, heatmaps

RULES = composites.epsilon_gamma_box(low=0.0, high=1.0)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("heatmaps"), help="a folder, made if it does not exist")
    parser.add_argument("--guides", action="store_true", help="write the pictures of the guides")
    options = parser.parse_args(arguments)
    model, x, _ = digits.load()
    with digits.single_thread():
        fmodel, params, *_ = lrpfunc.canonize(*lrpfunc.functionalize(model, x))
        if options.guides:
            return write_for_guides(fmodel, params, x[10:20], Path(__file__).parent)
        options.out.mkdir(parents=True, exist_ok=True)
        return write_all(fmodel, params, x[:4], options.out)


def write_all(fmodel, params, x, out):
    relevance = lrpfunc.attribute(fmodel, params, x, RULES)
    heatmaps.heatmap(relevance[0]).save(out / "heatmap.png")
    heatmaps.overlay(x[0], relevance[0]).save(out / "overlay.png")
    rows(x, relevance).save(out / "grid.png")
    heatmaps.save(heatmaps.show(relevance, x, title="Four digits"), out / "show.png")
    heatmaps.save(heatmaps.flow(fmodel, params, x, RULES, title="Where relevance went"), out / "flow.png")


def rows(x, relevance):
    """Digits, their heatmaps, and both in one."""
    inputs = heatmaps.heatmap(x, "gray", limits=(0, 1))
    return heatmaps.grid([inputs, heatmaps.heatmap(relevance), heatmaps.overlay(x, relevance)], scale=10, gap=4)


def write_for_guides(fmodel, params, x, out):
    rows(x, lrpfunc.attribute(fmodel, params, x, RULES)).save(out / "heatmaps.png", optimize=True)
    heatmaps.save(heatmaps.flow(fmodel, params, x, RULES), out / "flow.png", dpi=90)


if __name__ == "__main__":
    main()
