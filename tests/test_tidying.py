"""A new program tidied: names, frozen batch norms, nothing random."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc.errors import TraceError
from tests.traced import Block, Model, assert_equal, names, operators, traced, x_of

# -- names ------------------------------------------------------------------------------------------------------------


def test_a_module_called_twice_is_two_equations():
    model = Model(lambda self, x: self.fc(torch.relu(self.fc(x))))
    fmodel, params = traced(model, x_of())
    assert names(fmodel) == ["fc", "relu", "fc:1"]
    assert sorted(params) == ["fc.bias", "fc.weight"]


def test_a_nested_module_called_twice():
    fmodel, _ = traced(Model(lambda self, x: self.block(self.block(x)), block=Block()), x_of())
    assert names(fmodel) == ["block.fc", "block.act", "block.add", "block.fc:1", "block.act:1", "block.add:1"]


def test_shared_weights_are_one_leaf():
    model = Model(lambda self, x: self.head(self.fc(x)), head=nn.Linear(3, 3))
    model.head.weight = model.fc.weight
    fmodel, params = traced(model, x_of())
    assert sorted(params) == ["fc.bias", "fc.weight", "head.bias"]
    assert names(fmodel) == ["fc", "head"]
    doubled = fmodel({**params, "fc.weight": 2 * params["fc.weight"]}, x_of())
    model.fc.weight.mul_(2)
    assert_equal(doubled, model(x_of()))


def test_functions_are_named_after_their_module_and_operation():
    model = Model(lambda self, x: F.gelu(self.block(F.relu(x))), block=Block())
    assert names(traced(model, x_of())[0]) == ["relu", "block.fc", "block.act", "block.add", "gelu"]


def test_layers_without_a_module_are_named_after_their_weight():
    model = Model(lambda self, x: F.linear(x, self.weights.first) @ self.weights.second, weights=nn.ParameterDict())
    model.weights["first"], model.weights["second"] = torch.eye(3), torch.ones(3, 2)
    model.requires_grad_(False)
    assert names(traced(model, x_of())[0]) == ["weights.first", "weights.second"]


def test_unread_results_take_no_names():
    def forward(self, x):
        self.fc(x).relu()
        return self.fc(x).relu()

    assert names(traced(Model(forward), x_of())[0]) == ["fc", "relu"]


def test_the_listing_of_a_small_network():
    torch.manual_seed(0)
    net = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3, bias=False),
            bn=nn.BatchNorm2d(4),
            act=nn.ReLU(inplace=True),
            block=nn.Sequential(nn.Conv2d(4, 4, 1), nn.SiLU()),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            drop=nn.Dropout(),
            head=nn.Linear(4, 10),
        )
    )
    fmodel, _ = lrpfunc.functionalize(net.eval(), x_of(1, 3, 8, 8))
    assert str(fmodel) == (
        "name     operation            input                              output\n"
        "conv     conv2d               (batch, 3, height, width)          (batch, 4, height - 2, width - 2)\n"
        "bn       batch_norm           (batch, 4, height - 2, width - 2)  (batch, 4, height - 2, width - 2)\n"
        "act      relu                 (batch, 4, height - 2, width - 2)  (batch, 4, height - 2, width - 2)\n"
        "block.0  conv2d               (batch, 4, height - 2, width - 2)  (batch, 4, height - 2, width - 2)\n"
        "block.1  silu                 (batch, 4, height - 2, width - 2)  (batch, 4, height - 2, width - 2)\n"
        "pool     adaptive_avg_pool2d  (batch, 4, height - 2, width - 2)  (batch, 4, 1, 1)\n"
        "flat     flatten              (batch, 4, 1, 1)                   (batch, 4)\n"
        "head     linear               (batch, 4)                         (batch, 10)"
    )


# -- frozen batch norms -----------------------------------------------------------------------------------------------


def test_frozen_batch_norms_become_one_equation():
    from torchvision.ops import FrozenBatchNorm2d

    frozen = FrozenBatchNorm2d(4)
    for name, buffer in frozen.named_buffers():
        buffer.copy_(torch.linspace(0.5, 1.5, 4) + len(name) / 20)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), frozen, nn.ReLU()).eval().requires_grad_(False)
    fmodel, params = traced(model, x_of(2, 3, 5, 5), at=[(x_of(1, 3, 5, 5),)])
    assert list(zip(names(fmodel), operators(fmodel), strict=True)) == [
        ("0", "conv2d"),
        ("1", "frozen_batch_norm"),
        ("2", "relu"),
    ]
    assert params["1.eps"].item() == frozen.eps
    assert_equal(params["0.bias"], torch.zeros(4))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x * self.a + (self.b - self.c * self.b),
        lambda self, x: x * (s := self.a * self.b.rsqrt()) + (self.c - self.b * s),
        lambda self, x: x * (s := self.a * (self.b + self.c).rsqrt()) + (self.c - self.b * s),
    ],
    ids=["another scale", "no eps", "no number for eps"],
)
def test_what_only_looks_like_a_frozen_batch_norm_stays_as_it_is(forward):
    a, b, c = torch.ones(3), torch.full((3,), 2.0), torch.full((3,), 3.0)
    fmodel, _ = traced(Model(forward, a=a, b=b, c=c), x_of())
    assert operators(fmodel)[-1] == "add"


# -- training and randomness ------------------------------------------------------------------------------------------


def test_dropout_in_training_mode_is_the_identity():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
            self.lstm = nn.LSTM(4, 4, 2, batch_first=True)
            self.drops = nn.Sequential(nn.Dropout(), nn.AlphaDropout(), nn.Dropout1d(), nn.RReLU())

        def forward(self, x):
            return self.lstm(self.drops(self.attention(x, x, x, need_weights=False)[0]))[0]

    model = Dropped().requires_grad_(False)
    fmodel, params = lrpfunc.functionalize(model.train(), x_of(2, 5, 4))
    assert "dropout" not in operators(fmodel)
    torch.testing.assert_close(fmodel(params, x_of(2, 5, 4)), model.eval()(x_of(2, 5, 4)))
    assert_equal(fmodel(params, x_of(2, 5, 4)), fmodel(params, x_of(2, 5, 4)))


@pytest.mark.parametrize("statistics", [True, False])
def test_a_batch_norm_in_training_mode_is_an_error(statistics):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4, track_running_stats=statistics)))
    net.train(statistics)
    with pytest.raises(
        TraceError, match=r"batch norm '1\.0' is in training mode, in which .* Call model\.eval\(\) first"
    ):
        lrpfunc.functionalize(net, x_of(1, 3, 5, 5))


def test_a_batch_norm_in_training_mode_that_forward_skips_does_no_harm():
    traced(Model(lambda self, x: self.fc(x), bn=nn.BatchNorm1d(3)).train(), x_of())


def test_instance_norm_in_training_mode_leaves_its_statistics_alone():
    model = nn.InstanceNorm1d(3, track_running_stats=True).train()
    fmodel, params = lrpfunc.functionalize(model, x_of(2, 3, 5))
    assert_equal(fmodel(params, x_of(2, 3, 5)), model(x_of(2, 3, 5)))
    assert params == {}


@pytest.mark.parametrize(
    ("draw", "operation"),
    [
        (lambda x: x + torch.rand(3), "rand"),
        (lambda x: x + torch.randn_like(x), "randn_like"),
        (lambda x: x * torch.empty(3).bernoulli_(0.5), "bernoulli_"),
        (lambda x: F.gumbel_softmax(x), "exponential"),
    ],
)
def test_random_numbers_are_an_error(draw, operation):
    with pytest.raises(
        TraceError, match=rf"'{operation}' at .*test_tidying.* draws random numbers, but a program is a"
    ):
        lrpfunc.functionalize(Model(lambda self, x: draw(x)), x_of())


def test_random_numbers_that_nothing_depends_on_do_no_harm():
    def forward(self, x):
        torch.rand(3)
        return self.fc(x)

    traced(Model(forward), x_of())
