"""Recipes: questions that a few lines around `attribute` and `record` answer, with a picture of each.

    python examples/recipes.py --out folder

What makes two photos alike (BiLRP), what speaks for one class and not for others (CLRP, SGLRP, a difference of logits),
what looks like another photo, and where two models part. `examples/guides/recipes.md` explains them; `--guides` writes
the guide's pictures beside it. Photos and network are those of the extra `photos`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

import lrpfunc
from lrpfunc import composites, heatmaps, rules
from lrpfunc.pictures import classifiers

SIDE = 224
EMBEDDING, HEAD = "reshape", "_fc"  # of EfficientNet-Lite0
CAT, CUP = "Egyptian cat", "cup"
LINES = 12

# -- the recipes ------------------------------------------------------------------------------------------------------


def patches(relevance, side):
    """The sums (..., patches) of relevance (..., channels, height, width) over squares, row by row."""
    squares = relevance.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))
    return squares.sum((-5, -3, -1)).flatten(-2)


def pairs(embed, params, x, other, rules, side, most=None, chunk_size=16):
    """Relevance (patches of x, patches of other) of the inner product of two images' embeddings: BiLRP."""
    trail = lrpfunc.record(embed, params, torch.cat([x, other]), rules)
    products = trail.output[0] * trail.output[1]
    kept = products.argsort(descending=True)[:most]  # most: only so many dimensions, those with the largest products
    pooled = [patches(trail.pull_each(some)[0], side) for some in kept.split(chunk_size)]
    ours, theirs = torch.cat(pooled).unbind(1)  # (dimensions, patches)
    return ours.T @ theirs


def difference(this, that):
    """Why more of this class than of that."""

    def seed(y):
        relevance = torch.zeros_like(y)
        relevance[:, this], relevance[:, that] = y[:, this], -y[:, that]
        return relevance

    return seed


def against_others(this):
    """A class against all others, which share its logit with a minus: CLRP."""

    def seed(y):
        relevance = (-y[:, [this]] / (y.shape[1] - 1)).expand_as(y).clone()
        relevance[:, this] = y[:, this]
        return relevance

    return seed


def softmax_gradient(this):
    """A class against those that could be taken for it, by the derivative of its probability: SGLRP."""

    def seed(y):
        p = y.softmax(1)
        relevance = -p[:, [this]] * p
        relevance[:, this] += p[:, this]
        return relevance

    return seed


def inner_product(given):
    """What in an image gives its embedding the inner product with another one, `given`."""
    return lambda y: y * given


def cosine(given):
    """As `inner_product`, of the cosine; the lengths of both are constants."""
    return lambda y: y * given / (y.norm(dim=1, keepdim=True) * given.norm())


def turning(given):
    """What turns an embedding towards `given` and what away: the cosine, in which the length counts, too."""
    return lambda y: cosine(given)(y) - cosine(given)(y).sum(1, keepdim=True) * (y / y.norm(dim=1, keepdim=True)) ** 2


def gap(fmodel, params, other_fmodel, other_params, x):
    """A program for what one model gives more than another for the same input, and its parameters."""
    both = {"one": params, "other": other_params}
    return lrpfunc.trace(lambda both, x: fmodel(both["one"], x) - other_fmodel(both["other"], x), both, x)
