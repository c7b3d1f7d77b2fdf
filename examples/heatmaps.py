"""Heatmaps of the shipped digits in every form: images, overlays, a grid, a figure, and where relevance went.

And a series and a volume, of networks that are made by hand, so that one knows what they look at.

`python examples/heatmaps.py --out folder` writes them; `--guides` instead the pictures of the guides beside
this file.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

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
    heatmaps.save(series(), out / "lines.png")
    heatmaps.save(volume(), out / "slices.png")


def rows(x, relevance):
    """Digits, their heatmaps, and both in one."""
    inputs = heatmaps.heatmap(x, "gray", limits=(0, 1))
    return heatmaps.grid([inputs, heatmaps.heatmap(relevance), heatmaps.overlay(x, relevance)], scale=10, gap=4)


# -- a series ---------------------------------------------------------------------------------------------------------


def pulse(time, at, width=0.02):
    return torch.exp(-(((time - at) / width) ** 2))


def recording():
    """Two leads (1, 2, 1000) of four seconds; the fourth beat comes 0.4 s after the third, the others 0.8 s apart."""
    time = torch.arange(1000) / 250
    noise = 0.03 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    beats = sum(pulse(time, at) - 0.2 * pulse(time, at + 0.05) + 0.3 * pulse(time, at + 0.2, 0.06) for at in BEATS)
    return time, (torch.tensor([[1.0], [-0.6]]) * beats + noise)[None]


BEATS = (0.4, 1.2, 2.0, 2.4, 3.3)


def early_beats():
    """It answers to two beats that are 0.4 s apart: a filter with two pulses, and a bias that one does not reach."""
    time = torch.arange(121) / 250
    filters = pulse(time, 0.04) + pulse(time, 0.44)
    find = nn.Conv1d(2, 1, 121)
    find.weight.data = torch.stack([filters, -filters])[None]
    find.bias.data.fill_(-1.3 * 1.6 * (pulse(time, 0.24) ** 2).sum())
    return nn.Sequential(find, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def series():
    time, x = recording()
    relevance = lrpfunc.attribute(*lrpfunc.functionalize(early_beats(), x), x, composites.epsilon_plus(), target=0)
    return heatmaps.lines(relevance[0], x[0], time, names=["I", "II"], x_label="time in s", unit="mV")


# -- a volume ---------------------------------------------------------------------------------------------------------


def ball(shape, centre, radius):
    where = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), dim=-1)
    return torch.sigmoid(4 * (radius - (where - torch.tensor(centre)).float().norm(dim=-1)))


def scan():
    """A volume (1, 1, 24, 40, 40): a body, in it a small ball at (8, 14, 24) and a rod across it."""
    shape = (24, 40, 40)
    noise = 0.03 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rod = torch.zeros(shape)
    rod[15:18, 8:32, 14:17] = 0.6
    body = 0.4 * ball(shape, (11.5, 19.5, 19.5), 16)
    return (body + rod + 0.6 * ball(shape, (8, 14, 24), 3) + noise)[None, None]


def small_balls():
    """It answers to what is bright within three voxels and dark around: a ball, but not a rod or the body."""
    inner, outer = ball((9, 9, 9), (4, 4, 4), 3), ball((9, 9, 9), (4, 4, 4), 4.4)
    shell = outer - inner
    find = nn.Conv3d(1, 1, 9, padding=4, padding_mode="replicate")
    find.weight.data = (inner / inner.sum() - shell / shell.sum())[None, None]
    find.bias.data.fill_(-0.22)
    return nn.Sequential(find, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())


def volume():
    x = scan()
    relevance = lrpfunc.attribute(*lrpfunc.functionalize(small_balls(), x), x, composites.epsilon(), target=0)
    return heatmaps.slices(relevance[0], x[0], count=4, quantile=0.9999)


# -- the guides -------------------------------------------------------------------------------------------------------


def write_for_guides(fmodel, params, x, out):
    rows(x, lrpfunc.attribute(fmodel, params, x, RULES)).save(out / "heatmaps.png", optimize=True)
    heatmaps.save(heatmaps.flow(fmodel, params, x, RULES), out / "flow.png", dpi=90)
    heatmaps.save(series(), out / "lines.png", dpi=90)
    heatmaps.save(volume(), out / "slices.png", dpi=80)


if __name__ == "__main__":
    main()
