"""What cannot be traced says who, what was needed, what came, and the way out."""

import re

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, rnn

import lrpfunc
from lrpfunc import rules
from lrpfunc.errors import InputError, TraceError
from tests.traced import Model, assert_equal, x_of

HERE = r"\S*test_refusals\.py:\d+ \(`.*`\)"


def refused(model, *inputs, error=TraceError, **keywords) -> str:
    with pytest.raises(error) as caught:
        lrpfunc.functionalize(model, *inputs, **keywords)
    return str(caught.value)


# -- what models are made of ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
def test_sparse_tensors(layout):
    sparse = torch.eye(3).to_sparse(layout=getattr(torch, layout))
    model = Model(lambda self, x: (self.table @ x.T).T)
    model.register_buffer("table", sparse)
    rest = rf"'\w+' must be a dense tensor, but is sparse \({layout}\)\. Call to_dense\(\) on it\."
    assert re.fullmatch("parameter or buffer " + rest, refused(model, x_of()))
    assert re.fullmatch("input " + rest, refused(Model(lambda self, x: x @ x), sparse, error=InputError))
    with pytest.raises(TraceError, match="^leaf of params " + rest):
        lrpfunc.trace(lambda p, x: p["table"] @ x, {"table": sparse}, x_of())


def test_sparse_tensors_that_forward_makes():
    message = refused(Model(lambda self, x: torch.sparse.mm(torch.eye(2).to_sparse(), x)), x_of())
    way = r"a sparse tensor is made at .*, which lrpfunc cannot follow: make it dense, by to_dense\(\)\."
    assert re.fullmatch(way, message)


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_nested_and_quantized_tensors():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    quantized = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    model = Model(lambda self, x: x)
    for x, way in [
        (nested, r"nested\. Pad it: tensor\.to_padded_tensor\(0\.0\)"),
        (quantized, r"quantized\. Call deq"),
    ]:
        assert re.match(rf"input 'x' must be a dense tensor, but is {way}", refused(model, x, error=InputError))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_compiled_modules():
    whole = torch.jit.script(nn.Sequential(nn.Linear(3, 3)))
    way = r"was compiled by torch\.jit\.script, which hides its operations\. Give the module that it was made of\."
    assert re.fullmatch(f"the model {way}", refused(whole, x_of()))
    part = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(3, 3)))
    assert re.fullmatch(rf"layer '1' \(RecursiveScriptModule\) {way}", refused(part, x_of()))


@pytest.mark.filterwarnings("ignore")
def test_quantized_modules():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 3)), {nn.Linear}, dtype=torch.qint8)
    assert refused(model, x_of()) == (
        "layer '0' (Linear) is quantized, and has no derivative. Give the model as it was before, in floating point."
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normalize", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norms_in_training_mode(normalize):
    model = nn.Sequential(normalize(nn.Linear(3, 3)))
    way = r"layer '0\S*' \(\w+\) is spectrally normalized in training mode, which changes it at every call\. Call"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert re.match(way, refused(model, x_of()))
    assert_equal(dict(model.state_dict()), before)
    fmodel, params = lrpfunc.functionalize(model.eval(), x_of())
    assert torch.allclose(fmodel(params, x_of()), model(x_of()))


def test_parameters_without_a_shape():
    model = nn.LazyLinear(3)
    message = "parameter or buffer 'weight' has no shape yet. Call the model once on real inputs, and then trace it."
    assert refused(model, x_of()) == message
    assert isinstance(model, nn.LazyLinear)


def test_models_and_inputs_made_under_inference_mode():
    with torch.inference_mode():
        model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).eval(), x_of() * 1
    fmodel, params = lrpfunc.functionalize(model, x)
    with torch.inference_mode():
        expected = model(x)
    assert torch.equal(fmodel(params, x), expected)
    assert params["0.weight"].data_ptr() == model[0].weight.data_ptr()
    relevance = lrpfunc.attribute(fmodel, params, x_of(), rules.epsilon(0), target=0)
    gradient = torch.func.grad(lambda x: fmodel(params, x)[:, 0].sum())(x_of())
    assert torch.allclose(relevance, x_of() * gradient, atol=1e-6)


# -- what forward does ------------------------------------------------------------------------------------------------


def packed(x):
    return rnn.pack_padded_sequence(x, torch.tensor([4, 3]), batch_first=True)


def test_packed_sequences():
    way = r"is a packed sequence, whose sizes depend on its values: give the padded tensor, and take each sample"
    model = Model(lambda self, x: self.lstm(x)[1][0][0], lstm=nn.LSTM(3, 3, batch_first=True))
    assert re.match(f"input 'x' {way}", refused(model, packed(x_of(2, 4, 3)), error=InputError))
    model.function = lambda self, x: self.lstm(packed(x))[1][0][0]
    message = refused(model, x_of(2, 4, 3))
    assert re.match(
        rf"the model cannot be exported in layer 'lstm' at {HERE}: .*\. What a recurrent layer is given {way}", message
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_transforms_inside_forward():
    message = refused(Model(lambda self, x: torch.vmap(lambda row: self.fc(row).relu())(x)), x_of())
    assert re.fullmatch(
        rf"a transform of torch\.func \(vmap, grad\) is used at {HERE}, which lrpfunc cannot follow inside forward: "
        r"write it for the whole batch\.",
        message,
    )
    message = refused(Model(lambda self, x: torch.func.grad(lambda r: self.fc(r).relu().sum())(x)), x_of())
    assert message.endswith(". Transforms of torch.func inside forward are not followed: write them out.")


def test_numpy_inside_forward():
    message = refused(Model(lambda self, x: self.fc(torch.from_numpy(x.numpy()))), x_of())
    assert message.endswith(". What leaves torch for numpy cannot be followed: write it with torch.")


@pytest.mark.slow  # a minute
def test_detection():
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    message = refused(model, [torch.rand(3, 64, 64)])
    assert message.endswith(
        " Detection models choose boxes by their values: explain the backbone and the head alone, "
        "without postprocessing."
    )
    assert len(message) < 800


def test_a_failing_layer_is_named():
    class Inner(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    message = refused(nn.Sequential(nn.Linear(3, 3), nn.Sequential(Inner())), x_of())
    assert re.match(rf"the model cannot be exported in layer '1\.0' at {HERE}: GuardOnDataDependent", message)


def test_autocast_around_tracing():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        message = refused(nn.Linear(3, 3), x_of())
    assert message == (
        "a model is traced in the precision of its parameters, but autocast is on for cpu. Trace outside of it; for "
        "another precision cast the model and its inputs: model.to(torch.bfloat16)."
    )


# -- what it is given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [x_of().tolist(), x_of().numpy(), np.float32(1)])
def test_lists_and_arrays_to_trace_with(x):
    assert refused(Model(lambda self, x: x), x) == (
        "there is no tensor among the example inputs: give at least one. Numbers, lists and arrays are made tensors by "
        "torch.as_tensor."
    )


def test_a_long_list_to_explain():
    fmodel, params = lrpfunc.functionalize(nn.Linear(3, 3), x_of())
    with pytest.raises(InputError) as caught:
        lrpfunc.attribute(fmodel, params, torch.zeros(200, 300).tolist(), rules.epsilon())
    assert str(caught.value) == (
        "the inputs must have the leaves input that they were traced with, but have input[0][0], input[0][1], "
        "input[0][2], input[0][3], input[0][4] and 59995 more. Lists of numbers are made tensors by torch.as_tensor."
    )


def add(params, a, b):
    return a + b


def test_inputs_by_name_and_by_position():
    x = x_of()
    by_position, _ = lrpfunc.trace(add, {}, x, x)
    by_name, _ = lrpfunc.trace(add, {}, a=x, b=x)
    one, params = lrpfunc.functionalize(nn.Linear(3, 3), x)
    for fmodel, given, inputs, message in [
        (
            by_position,
            {},
            {"a": x, "b": x},
            "a dict of 'a', 'b', but were traced by position as (a, b): give a tuple, or ",
        ),
        (
            one,
            params,
            {"input": x},
            "a dict of 'input', but were traced by position as (input): give the tensor, or trac",
        ),
        (by_name, {}, x, "traced by name as a, b: give a dict of them, but got Tensor."),
        (by_name, {}, [x, x], "traced by name as a, b: give a dict of them, but got list."),
    ]:
        with pytest.raises(InputError, match=rf"^the inputs (are|were) {re.escape(message)}"):
            lrpfunc.attribute(fmodel, given, inputs, rules.norm())
    whole, _ = lrpfunc.trace(lambda p, batch: batch["a"] * 2, {}, {"a": x})
    assert set(lrpfunc.attribute(whole, {}, {"a": x}, rules.norm(), target=0)) == {"a"}


# -- what is explained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [nn.Softmax(-1), nn.LogSoftmax(-1), nn.Sigmoid(), nn.LogSigmoid()])
def test_probabilities_as_outputs(end):
    fmodel, _ = lrpfunc.functionalize(nn.Sequential(nn.Linear(3, 3), end), x_of())
    name = fmodel.equations[-1].operator
    assert str(lrpfunc.explain(fmodel, rules.epsilon())).splitlines()[-1] == (
        f"The output is a {name} ('1'): its relevance is that of a probability. Explain the logit in front of it, in a "
        "model without '1'."
    )
    inside, _ = lrpfunc.functionalize(nn.Sequential(nn.Linear(3, 3), end, nn.Linear(3, 3)), x_of())
    assert lrpfunc.explain(inside, rules.epsilon()).advice == ()


def test_objects_that_are_no_tensors():
    def draw(p, x):
        return x * torch.randn(4, generator=torch.Generator().manual_seed(0))

    with pytest.raises(TraceError) as caught:
        lrpfunc.trace(draw, {}, torch.ones(2, 4))
    assert str(caught.value) == (
        "forward makes or reads an object of class Generator, which is no tensor. Make random numbers and whatever "
        "else it gives beforehand, and make them an input."
    )
