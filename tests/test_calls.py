"""What a program is called with: dtypes, devices and parameters that fit the trace, or an error."""

from collections import OrderedDict

import optree
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpfunc
from lrpfunc.errors import InputError, ParameterError
from tests.traced import Model, TwoInputs, traced, x_of

# -- dtypes and devices -----------------------------------------------------------------------------------------------


def with_factories() -> Model:
    def forward(self, x):
        h = self.fc(x).to(x.dtype) + torch.zeros(3, dtype=x.dtype, device=x.device) + torch.ones_like(x)
        h = h + x.new_zeros(3) + torch.full((3,), 0.5, dtype=self.fc.weight.dtype) + torch.tensor(2.0)
        steps = torch.arange(3, device=x.device)
        return h * self.scale + h.new_tensor(3.0) + steps + h[:, torch.tensor([2, 0, 1])] + torch.eye(3)[1]

    return Model(forward, scale=torch.linspace(0.1, 1.0, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_takes_one_cast_of_the_parameters(dtype):
    model = with_factories()
    fmodel, params = traced(model, x_of())
    cast = optree.tree_map(lambda p: p.to(dtype) if p.is_floating_point() else p, params)
    output = fmodel(cast, x_of().to(dtype))
    model.to(dtype).scale = model.scale.to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(output, model(x_of().to(dtype)), check_dtype=False)


def test_an_input_must_be_cast_along():
    fmodel, params = lrpfunc.functionalize(TwoInputs(), x_of(), x_of())
    with pytest.raises(
        InputError, match=r"input 'x' must be torch.float32 as the parameters are, but is torch.float64\. Cast"
    ):
        fmodel(params, x_of().double(), x_of())


def test_an_input_of_a_dtype_of_its_own_keeps_it():
    fmodel, params = traced(Model(lambda self, x: self.fc(x.float())), x_of().bfloat16())
    with pytest.raises(InputError, match=r"input 'x' must be torch.bfloat16 as in the trace, but is torch.float32"):
        fmodel(params, x_of())


def test_nothing_is_tied_to_the_device_of_the_trace():
    model = with_factories()
    model.function, inner = lambda self, x: inner(self, writes(x) + dropped(x)), model.function

    def writes(x):
        x = x * 1
        x[:, 0] = 0
        return x.masked_fill_(x > 1, 0.5)

    def dropped(x):
        return F.dropout(x, 0.5, False).to("cpu")

    fmodel, params = traced(model, x_of())
    on_meta = optree.tree_map(lambda p: p.to("meta"), params)
    output = fmodel(on_meta, x_of(4).to("meta"))
    assert output.device.type == "meta"
    assert output.shape == (4, 3)


def test_devices_must_agree():
    fmodel, params = lrpfunc.functionalize(TwoInputs(), x_of(), x_of())
    with pytest.raises(
        InputError, match=r"input 'x' is on meta, but the other tensors are on cpu\. Move one to the other"
    ):
        fmodel(params, x_of().to("meta"), x_of())


def test_a_model_on_the_meta_device_can_be_traced():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    fmodel, params = lrpfunc.functionalize(model, torch.empty(1, 3, 5, 5, device="meta"))
    assert {p.device.type for p in params.values()} == {"meta"}
    assert fmodel(params, torch.empty(2, 3, 5, 5, device="meta")).shape == (2, 4, 3, 3)


# -- parameters that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {},
            r"params lacks the leaf 'fc.bias' and 1 more\. It needs the leaves that functionalize returned\.",
        ),
        (lambda p: {"fc.weights": p["fc.weight"], "fc.bias": p["fc.bias"]}, r"lacks .*Did you mean 'fc.weights'\?"),
        (
            lambda p: {**p, "extra": p["fc.bias"]},
            r"params has the leaf 'extra', which the program never reads\. Remove it\.",
        ),
        (lambda p: OrderedDict(p), r"has the right leaves in another kind of container than the one"),
        (lambda p: {**p, "fc.bias": 1.0}, r"leaf 'fc.bias' of params must be a tensor, but is float\."),
        (
            lambda p: {**p, "fc.bias": torch.ones(2, 3)},
            r"leaf 'fc.bias' of params must have shape \(3\), but has \(2, 3\)\. For",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change, message):
    fmodel, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x)), x_of())
    with pytest.raises(ParameterError, match=message):
        fmodel(change(params), x_of())
