"""Between pytrees and lists of tensors: names of inputs, nested containers, dataclasses."""

import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc.errors import InputError
from tests.traced import Model, Pair, TwoInputs, assert_equal, traced, x_of

# -- inputs -----------------------------------------------------------------------------------------------------------


def test_several_inputs():
    fmodel, _ = traced(TwoInputs(), x_of(), x_of(), at=[(x_of(5), x_of(5))])
    assert fmodel.input_names == ("x", "y")


def test_one_tensor_given_twice_is_two_inputs():
    x = x_of()
    traced(TwoInputs(), x, x, at=[(x, x + 1)])


def test_keyword_inputs():
    model, x, y = TwoInputs(), x_of(), x_of(2) + 1
    fmodel, params = traced(model, x, y=y, shift=x)
    assert fmodel.input_names == ("x", "y", "shift")
    expected = model(x, y, shift=x)
    assert_equal(fmodel(params, x, y, x), expected)
    assert_equal(fmodel(params, shift=x, y=y, x=x), expected)


def test_keywords_may_be_called_like_our_own_arguments():
    class Odd(nn.Module):
        def forward(self, model, params, function):
            return model + params * function

    x = x_of()
    traced(Odd(), model=x, params=x, function=x)
    fmodel, _ = lrpfunc.trace(lambda p, params, function: p * params + function, x, params=x, function=x)
    assert_equal(fmodel(x, params=x, function=x), x * x + x)


def test_variable_positional_inputs_are_numbered():
    class Sum(nn.Module):
        def forward(self, first, *rest):
            return first + sum(rest)

    fmodel, _ = traced(Sum(), x_of(), x_of(), x_of())
    assert fmodel.input_names == ("first", "rest0", "rest1")


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        (1, {"z": 0}, r"no input is called 'z': the program takes \(params, x, y\)\."),
        (1, {"xx": 0}, r"no input is called 'xx': .*Did you mean 'x'\?"),
        (1, {}, r"input 'y' is missing: the program takes \(params, x, y\)\."),
        (1, {"x": 0, "y": 0}, r"input 'x' was given twice, by position and by name\."),
        (3, {}, r"the program takes \(params, x, y\), but got 3 positional inputs\."),
    ],
)
def test_inputs_that_do_not_fit_by_name_are_refused(inputs, keywords, message):
    x = x_of()
    fmodel, params = lrpfunc.functionalize(TwoInputs(), x, y=x)
    with pytest.raises(InputError, match=message):
        fmodel(params, *[x] * inputs, **dict.fromkeys(keywords, x))


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        (1, {}, r"the example inputs do not fit the signature \(x, y, scale=1.0, shift=None\): missing .* 'y'\."),
        (2, {"mask": 0}, r"do not fit the signature .*: got an unexpected keyword argument 'mask'\."),
        (5, {}, r"do not fit the signature .*: too many positional arguments\."),
    ],
)
def test_example_inputs_that_forward_does_not_take_are_refused(inputs, keywords, message):
    with pytest.raises(InputError, match=message):
        lrpfunc.functionalize(TwoInputs(), *[x_of()] * inputs, **dict.fromkeys(keywords, x_of()))


def test_inputs_that_are_no_tensors_are_part_of_the_trace():
    model, x = TwoInputs(), x_of()
    fmodel, params = traced(model, x, x, 2.0)
    with pytest.raises(
        InputError, match=r"input 'scale' is part of the trace with the value 2.0, but is now 3.0\. Trace"
    ):
        fmodel(params, x, x, 3.0)
    with pytest.raises(InputError, match=r"input 'scale' is part of the trace with the value 2.0, but is now tensor"):
        fmodel(params, x, x, torch.tensor(2.0))


def test_unused_inputs():
    class First(nn.Module):
        def forward(self, x, unused, none=None):
            return x * 2

    traced(First(), x_of(), x_of(), at=[(x_of(4), x_of(4))])
    traced(First(), x_of(), x_of(), None)


def test_integer_inputs():
    model = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(12, 2)).eval().requires_grad_(False)
    tokens = torch.arange(8).reshape(2, 4)
    fmodel, params = traced(model, tokens, at=[(tokens[:1],)])
    with pytest.raises(
        InputError, match=r"input 'input' must be torch.int64 as in the trace, but is torch.int32\. Cast"
    ):
        fmodel(params, tokens.int())


def test_boolean_inputs():
    class Masked(nn.Module):
        def forward(self, x, mask):
            return x.masked_fill(mask, 0.0)

    fmodel, params = traced(Masked(), x_of(), x_of() > 0)
    with pytest.raises(InputError, match=r"input 'mask' must be torch.bool as in the trace, but is torch.int64"):
        fmodel(params, x_of(), (x_of() > 0).long())


# -- pytrees ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Plain:
    features: torch.Tensor
    extra: dict | None = None
    note: str | None = None


@dataclasses.dataclass
class ModelOutput(OrderedDict):
    """An output as Hugging Face has them: a dataclass that is a dict of its fields that are not None."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Trees(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, batch):
        x, (y, z) = batch["x"], batch["rest"]
        return self.wrap(x + 1, y * z.left - z.right)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, [b]],
        lambda a, b: {"b": b, "a": {"c": [a]}},
        lambda a, b: Pair(a, Pair(b, None)),
        lambda a, b: Plain(a, {"b": b}, "a note"),
        lambda a, b: Plain(a, {"nested": Plain(b)}),
        lambda a, b: ModelOutput(logits=a, hidden_states=(a, b)),
        lambda a, b: [a, a, None, 1, "text"],
    ],
    ids=["tuple", "list", "dict", "namedtuple", "dataclass", "nested dataclasses", "ModelOutput", "no tensors"],
)
def test_nested_inputs_and_outputs(wrap):
    def batch(n):
        return {"x": x_of(n), "rest": [x_of(n), Pair(x_of(n) + 1, x_of(n) + 2)]}

    traced(Trees(wrap), batch(2), at=[(batch(1),), (batch(4),)])


def test_dataclasses_as_inputs():
    class Takes(nn.Module):
        def forward(self, plain):
            return ModelOutput(logits=plain.features * plain.extra["b"])

    fmodel, params = traced(Takes(), Plain(x_of(), {"b": x_of()}), at=[(Plain(x_of(4), {"b": x_of(4)}),)])
    with pytest.raises(
        InputError, match=r"must have the leaves plain\.features, plain\.extra\['b'\] .* but have plain"
    ):
        fmodel(params, Plain(x_of()))


def test_model_output_keeps_its_items():
    output = lrpfunc.trace(lambda p, x: ModelOutput(logits=x * p), x_of(1), x_of())[0](x_of(1), x_of())
    assert list(output) == ["logits"]
    assert output.loss is None
    assert output["logits"] is output.logits


def test_inputs_of_another_structure_are_refused():
    fmodel, params = lrpfunc.functionalize(Trees(lambda a, b: a), {"x": x_of(), "rest": [x_of(), Pair(x_of(), x_of())]})
    expected = (
        r"must have the leaves batch\['rest'\]\[0\], .*batch\['x'\] that they were traced with, but have batch\['x'\]"
    )
    with pytest.raises(InputError, match=expected):
        fmodel(params, {"x": x_of()})
    with pytest.raises(InputError, match=r"input 'batch\['x'\]' must be a tensor, but is str\."):
        fmodel(params, {"x": "text", "rest": [x_of(), Pair(x_of(), x_of())]})


def test_an_output_may_be_an_input_or_a_constant():
    traced(Model(lambda self, x: (x, self.scale, x * 2, torch.zeros(2)), scale=torch.ones(3)), x_of(), at=[(x_of(4),)])


def test_an_output_may_be_a_size():
    fmodel, params = traced(Model(lambda self, x: (self.fc(x), x.shape[0], x.shape[1])), x_of(), at=[(x_of(5),)])
    assert fmodel(params, x_of(7))[1:] == (7, 3)
