"""Height, width, time steps, nodes and edges: one trace, other sizes, equal to fresh traces."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc import composites
from lrpfunc.tracing.axes import Opening
from tests.helpers import randomize
from tests.traced import x_of

DOUBLE = torch.float64


# -- networks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Strides, a shortcut, adaptive pooling: a ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.a = nn.Sequential(
            nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1)
        )
        self.b = nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(self.a(x) + self.b(x)))


class Segmenting(nn.Module):
    """A class for each pixel, by interpolation up to the image's own size: an FCN."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, dilation=2, padding=2)
        )

    def forward(self, x):
        return F.interpolate(self.body(x), size=x.shape[-2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Skip connections, for which sizes must be multiples of four."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.up1, self.up2 = nn.ConvTranspose2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 2, 2, 2)
        self.mix1, self.mix2 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        x = F.relu(self.mix1(torch.cat([two, self.up1(F.max_pool2d(two, 2))], 1)))
        return self.mix2(torch.cat([one, self.up2(x)], 1))


class Hearing(nn.Module):
    """Convolutions over time."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 4, 9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(3), nn.Conv1d(4, 5, 3), nn.ReLU()
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(2))


class Graph(nn.Module):
    """Two graph convolutions (GCN) over a list of edges."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, nodes, edges):
        source, target = edges
        degree = nodes.new_ones(nodes.shape[0]).index_add(0, target, nodes.new_ones(edges.shape[1]))
        norm = degree.rsqrt()

        def spread(h):
            messages = h[source] * (norm[source] * norm[target])[:, None]
            return (h / degree[:, None]).index_add(0, target, messages)

        return spread(self.b(F.relu(spread(self.a(nodes)))))


def images(height, width, channels=3, batch=2):
    return (x_of(batch, channels, height, width, dtype=DOUBLE),)


def graph(nodes, edges):
    return x_of(nodes, 3, dtype=DOUBLE), torch.randint(
        nodes, (2, edges), generator=torch.Generator().manual_seed(edges)
    )


COMPOSITES = {
    "plus": composites.epsilon_plus(),
    "flat": composites.epsilon_alpha2_beta1_flat(),
    "gamma_box": composites.epsilon_gamma_box(-4.0, 4.0),
    "attn_lrp": composites.attn_lrp(),
}


class Case(NamedTuple):
    """A network, an example, inputs of other sizes, and how the inputs' shapes read."""

    network: Callable[[], nn.Module]
    example: tuple
    others: list[tuple]
    shapes: str


def audio(batch, time):
    return (x_of(batch, 1, time, dtype=DOUBLE),)


SPACE = "(batch, 3, height, width)"
CASES = {
    "resnet": Case(Residual, images(32, 48), [images(33, 40), images(21, 64, batch=1), images(64, 64)], SPACE),
    "fcn": Case(Segmenting, images(12, 16), [images(13, 16), images(24, 9, batch=1), images(7, 30)], SPACE),
    "u-net": Case(
        UNet, images(8, 16, 1), [images(12, 8, 1), images(16, 4, 1, 3), images(20, 20, 1)], "(batch, 1, height, width)"
    ),
    "audio": Case(Hearing, audio(2, 120), [audio(2, 90), audio(1, 101), audio(3, 240)], "(batch, 1, length)"),
    "gcn": Case(Graph, graph(6, 9), [graph(9, 5), graph(4, 30), graph(7, 7)], "(batch, 3), (2, length)"),
}
ASKED = {
    "resnet": [(0, 2, 3)],
    "fcn": [(2, 3)],
    "u-net": [(-1, -2)],
    "audio": [(2,)],
    "gcn": [(0,), (1,)],
}


def asked(case: str, inputs: tuple) -> tuple:
    return tuple(lrpfunc.varying(x, *axes) for x, axes in zip(inputs, ASKED[case], strict=True))


def shapes(fmodel) -> str:
    return ", ".join(str(leaf.value) for leaf in fmodel.input_leaves)


@pytest.fixture
def fixed(monkeypatch):
    """Traces of one size alone."""

    def trace(model, *inputs):
        with monkeypatch.context() as patch:
            patch.setattr(Opening, "attempts", lambda opening, inputs: iter(()))
            fmodel, params = lrpfunc.functionalize(model, *inputs)
        assert not any(isinstance(n, str) for leaf in fmodel.input_leaves for n in leaf.value.shape)
        return fmodel, params

    return trace


@pytest.mark.parametrize("is_asked", [False, True], ids=["found", "asked"])
@pytest.mark.parametrize("case", CASES)
def test_one_trace_has_the_values_of_the_module_at_other_sizes(case, is_asked):
    network, example, others, expected = CASES[case]
    model = randomize(network()).double()
    fmodel, params = lrpfunc.functionalize(model, *(asked(case, example) if is_asked else example))
    assert shapes(fmodel) == expected
    for inputs in (example, *others):
        assert torch.equal(fmodel(params, *inputs), model(*inputs))


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("case", CASES)
def test_one_trace_has_the_relevance_of_fresh_traces(case, composite, fixed):
    network, example, others, _ = CASES[case]
    model, rules = randomize(network()).double(), COMPOSITES[composite]
    one = lrpfunc.functionalize(model, *example)
    for open_, at in (
        (one, lambda *fresh: fresh),
        (lrpfunc.canonize(*one)[:2], lambda *fresh: lrpfunc.canonize(*fresh)[:2]),
    ):
        explain = lrpfunc.prepare(*open_, rules)
        for inputs in others:
            fmodel, params = at(*fixed(model, *inputs))
            x = inputs if len(inputs) > 1 else inputs[0]
            expected = lrpfunc.attribute(fmodel, params, x, rules, target=lambda y: y)
            for found in (lrpfunc.attribute(*open_, x, rules, target=lambda y: y), explain(x, target=lambda y: y)):
                compare(found, expected)


def compare(found, expected) -> None:
    found, expected = (value if isinstance(value, tuple) else (value,) for value in (found, expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
