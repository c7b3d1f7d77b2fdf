"""Which parts of a network can go? Pruned by relevance, by magnitude, by Taylor's expansion, and at random.

    python examples/prune_by_relevance.py                  # the digits network, half a minute of one core
    python examples/prune_by_relevance.py --photos         # and EfficientNet-Lite0, on photos: some minutes more

A criterion gives each unit a number, and those with the smallest go first, in all layers alike: whole filters (outputs of
a convolution, with their biases) or single weights. Nothing is trained again. The criteria are sums over a reference
batch that is not the one that accuracy is measured on:

    relevance   |R| of each sample, by `lrpfunc.parameter_relevance` of the labels' logits under a composite
    taylor      |w * dL/dw| of each sample, L its cross entropy; for a filter, of the sum over its weights
    magnitude   |w|; for a filter, the root mean square of its weights
    random      ten orders, ± their standard error

For filters, magnitude and Taylor are divided by their norm over each layer, as their authors do (Molchanov et al. 2017,
arXiv:1611.06440). Relevance is not, as it is one account for all layers (Yeom et al. 2021,
doi:10.1016/j.patcog.2021.107899); "relevance / layer" is, for comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import lrpfunc
from lrpfunc import composites, digits, heatmaps
from lrpfunc.pictures import classifiers
from lrpfunc.pictures.demo.photographs import PHOTOS, photograph
from lrpfunc.program import Program

SPARSITIES = tuple(i / 10 for i in range(10))
FILTERS, WEIGHTS = "filters", "weights"
COMPOSITES = {
    "relevance, epsilon_plus": composites.epsilon_plus(),
    "relevance, alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "relevance, epsilon": composites.epsilon(),
}

Tensors = Mapping[str, Tensor]


class Subject(NamedTuple):
    """A network with its batch norms folded, which of its parameters are pruned, and what its criteria are taken on."""

    name: str
    fmodel: Program
    params: dict[str, Tensor]
    weights: tuple[str, ...]  # the names of those, the last one a dense layer, whose outputs stay
    reference: Tensor
    labels: Tensor


class Tested(NamedTuple):
    """Inputs, and what is right for them."""

    name: str
    x: Tensor
    labels: Tensor


# -- criteria ---------------------------------------------------------------------------------------------------------


def of_filters(tensor: Tensor) -> Tensor:
    """The sum over the weights of each output."""
    return tensor.flatten(1).sum(1)


def relevance(subject: Subject, composite, unit: str) -> dict[str, Tensor]:
    """|R| of each weight or filter, summed over samples."""

    def one(x: Tensor, label: Tensor) -> Tensors:
        return lrpfunc.parameter_relevance(subject.fmodel, subject.params, x, composite, label)

    return _summed(subject, one, unit)


def taylor(subject: Subject, unit: str) -> dict[str, Tensor]:
    """|w * dL/dw| likewise: what the loss would change by without it, to first order."""

    def one(x: Tensor, label: Tensor) -> Tensors:
        gradients = torch.func.grad(lambda params: F.cross_entropy(subject.fmodel(params, x), label))(subject.params)
        return {name: subject.params[name] * gradients[name] for name in subject.weights}

    return _summed(subject, one, unit)


def _summed(subject: Subject, one: Callable[[Tensor, Tensor], Tensors], unit: str) -> dict[str, Tensor]:
    total = {name: 0.0 for name in subject.weights}
    for x, label in zip(subject.reference.split(1), subject.labels.split(1), strict=True):
        found = one(x, label)
        for name in total:
            share = found[name].detach()
            total[name] = total[name] + (of_filters(share) if unit == FILTERS else share).abs()
    return total


def magnitude(subject: Subject, unit: str) -> dict[str, Tensor]:
    weights = {name: subject.params[name] for name in subject.weights}
    if unit == WEIGHTS:
        return {name: w.abs() for name, w in weights.items()}
    return {name: w.flatten(1).square().mean(1).sqrt() for name, w in weights.items()}


def at_random(subject: Subject, unit: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: subject.params[name].shape for name in subject.weights}
    return {n: torch.rand(s if unit == WEIGHTS else s[:1], generator=generator) for n, s in sizes.items()}


def by_layer(scores: Tensors) -> dict[str, Tensor]:
    """Divided by their norm over each layer."""
    return {name: s / s.norm().clamp(min=1e-12) for name, s in scores.items()}


def criteria(subject: Subject, unit: str) -> dict[str, dict[str, Tensor]]:
    """The scores of all weights or filters, by criterion; those of random orders are not among them."""
    found = {name: relevance(subject, composite, unit) for name, composite in COMPOSITES.items()}
    others = {"taylor": taylor(subject, unit), "magnitude": magnitude(subject, unit)}
    if unit == FILTERS:
        first = next(iter(found))
        return found | {f"{first}, / layer": by_layer(found[first])} | {n: by_layer(s) for n, s in others.items()}
    return found | others


# -- pruning ----------------------------------------------------------------------------------------------------------


def pruned(subject: Subject, scores: Tensors, sparsity: float, unit: str) -> dict[str, Tensor]:
    """The parameters without the units whose scores are the lowest; of equal ones, the first go first.

    The classes, which are outputs of the last layer, are no filters that may go.
    """
    names = [name for name in subject.weights if unit == WEIGHTS or name != subject.weights[-1]]
    flat = torch.cat([scores[name].flatten() for name in names])
    kept = torch.ones_like(flat)
    kept[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = 0
    params = dict(subject.params)
    for name, part in zip(names, kept.split([scores[name].numel() for name in names]), strict=True):
        mask = part.reshape(scores[name].shape)
        bias = name.removesuffix("weight") + "bias"
        if unit == FILTERS and bias in params:
            params[bias] = params[bias] * mask
        params[name] = params[name] * mask.reshape(*mask.shape, *[1] * (params[name].dim() - mask.dim()))
    return params
