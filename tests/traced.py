"""Small models, inputs and comparisons for the tests of tracing."""

import copy
from collections import namedtuple

import optree
import torch
from torch import nn

import lrpfunc

Pair = namedtuple("Pair", ["left", "right"])


class Model(nn.Module):
    """A linear layer and whatever children are given, with a function as forward."""

    def __init__(self, function, **attributes):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 3)
        self.function = function
        for name, attribute in attributes.items():
            setattr(self, name, attribute)
        # Weights that require gradients get another kernel from torch, whose last digits differ.
        self.eval().requires_grad_(False)

    def forward(self, x):
        return self.function(self, x)


def x_of(batch: int = 2, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.randn(batch, *(shape or (3,)), generator=torch.Generator().manual_seed(batch), dtype=dtype)


def assert_equal(got, expected) -> None:
    """The same pytree, bit for bit."""
    assert type(got) is type(expected)
    (got, structure), (expected, expected_structure) = (
        optree.tree_flatten(t, namespace="lrpfunc") for t in (got, expected)
    )
    assert structure == expected_structure
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(b, torch.Tensor) else a == b


def traced(model, /, *inputs, at=(), **keywords):
    """The program and parameters, checked against the module at the example and at other inputs."""
    fmodel, params = lrpfunc.functionalize(model, *inputs, **keywords)
    with torch.no_grad():
        assert_equal(fmodel(params, *copy.deepcopy(inputs), **keywords), model(*copy.deepcopy(inputs), **keywords))
        for other in at:
            assert_equal(fmodel(params, *copy.deepcopy(other)), model(*copy.deepcopy(other)))
    return fmodel, params


def names(fmodel) -> list[str]:
    return [equation.name for equation in fmodel.equations]


def operators(fmodel) -> list[str]:
    return [equation.operator for equation in fmodel.equations]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x, y, scale=1.0, shift=None):
        x = self.fc(x) * scale + y
        return x if shift is None else x + shift


class Block(nn.Module):
    def __init__(self, width: int = 3):
        super().__init__()
        self.fc, self.act = nn.Linear(width, width), nn.ReLU()

    def forward(self, x):
        return self.act(self.fc(x)) + x
