"""What folding changes becomes a leaf of the parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import randomize
from tests.traced import Model, assert_equal, traced, x_of


def test_what_folding_changes_is_lifted():
    net = randomize(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3), nn.Conv2d(4, 2, 1, bias=False))
    )
    _, params = traced(net.requires_grad_(False), x_of(2, 3, 5, 5))
    assert params["1.eps"] == torch.tensor(1e-3, dtype=torch.float64)
    assert_equal(params["0.bias"], torch.zeros(4))
    assert "2.bias" not in params


def test_a_lifted_leaf_takes_no_name_that_is_in_use():
    def forward(self, x):
        return self.bn(F.conv2d(x, self.conv.weight)) + self.conv.bias.sum() + self.bn.eps_

    model = Model(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    model.bn.register_buffer("eps_", torch.tensor(1.0))
    _, params = traced(randomize(model).requires_grad_(False), x_of(2, 3, 5, 5))
    assert_equal(params["conv.bias"], model.conv.bias.data)
    assert_equal(params["conv.bias'"], torch.zeros(4))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(3, 5, bias=False), (2, 4, 3)), (nn.Conv1d(4, 4, 3, bias=False), (4, 9))],
    ids=["features are the last axis", "no batch dimension"],
)
def test_a_bias_is_not_lifted_where_its_channels_are_not_those_of_the_batch_norm(layer, shape):
    model = randomize(nn.Sequential(layer, nn.BatchNorm1d(4 if len(shape) == 3 else 7))).requires_grad_(False)
    _, params = traced(model, torch.randn(*shape))
    assert "0.bias" not in params


def test_layers_and_batch_norms_called_twice_share_what_is_lifted():
    model = Model(lambda self, x: self.bn(self.conv(self.bn(self.conv(x)))), conv=nn.Conv2d(3, 3, 1, bias=False))
    model.bn = nn.BatchNorm2d(3)
    _, params = traced(randomize(model).requires_grad_(False), x_of(2, 3, 5, 5))
    assert sorted(n for n in params if "eps" in n or "bias" in n) == ["bn.bias", "bn.eps", "conv.bias"]
