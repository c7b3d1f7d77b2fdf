"""From modules and functions to programs: what forward does, the program computes, or tracing says why it cannot."""

import copy
import dataclasses
import random
from collections import OrderedDict, namedtuple

import optree
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import lrpfunc
from lrpfunc import composites
from lrpfunc.errors import InputError, ParameterError, TraceError
from lrpfunc.operations import facts
from tests.helpers import randomize

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


# -- inputs -----------------------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x, y, scale=1.0, shift=None):
        x = self.fc(x) * scale + y
        return x if shift is None else x + shift


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


# -- sizes ------------------------------------------------------------------------------------------------------------


def mixing() -> Model:
    """Views, sizes and factories that depend on the batch size."""

    def forward(self, x):
        n = x.shape[0]
        h = self.fc(x).view(n, 3, 1).permute(1, 0, 2).reshape(3 * n)
        return torch.cat([h, torch.arange(n), x.new_ones(n) / n]).view(-1, n).sum(0) + x.size(0)

    return Model(forward)


@pytest.mark.parametrize("batch", [1, 2])
def test_one_trace_serves_every_batch_size(batch):
    fmodel, _ = traced(mixing(), x_of(batch), at=[(x_of(n),) for n in (1, 2, 7)])
    assert "(batch, 3)" in str(fmodel)
    assert "(3*batch)" in str(fmodel)


@pytest.mark.parametrize("batch", [1, 2])
def test_inputs_with_and_without_a_batch_dimension(batch):
    class Table(nn.Module):
        def forward(self, x, table, scalar):
            return x @ table * scalar

    fmodel, _ = traced(
        Table(), x_of(batch), x_of(3, 4), torch.tensor(2.0), at=[(x_of(5), x_of(3, 4), torch.tensor(1.0))]
    )
    assert [str(leaf.value) for leaf in fmodel.input_leaves] == ["(batch, 3)", "(3, 4)", "()"]


def test_batch_sizes_of_inputs_must_agree():
    fmodel, params = lrpfunc.functionalize(TwoInputs(), x_of(), x_of())
    with pytest.raises(InputError, match=r"inputs 'x' and 'y' must agree in 'batch', but have 3 and 2\."):
        fmodel(params, x_of(3), x_of(2))


def test_a_model_may_check_its_batch_sizes_itself():
    class Checks(nn.Module):
        def forward(self, x, y):
            assert x.shape[0] == y.shape[0], "another batch size"
            return x * y

    fmodel, _ = traced(Checks(), x_of(), x_of(), at=[(x_of(1), x_of(1)), (x_of(5), x_of(5))])
    assert [str(leaf.value) for leaf in fmodel.input_leaves] == ["(batch, 3)", "(batch, 3)"]


def test_inputs_that_do_not_meet_may_have_different_batch_sizes():
    class Apart(nn.Module):
        def forward(self, x, y):
            return x * 2, y * 3

    fmodel, _ = traced(Apart(), x_of(2), x_of(2), at=[(x_of(3), x_of(5))])
    assert [str(leaf.value) for leaf in fmodel.input_leaves] == ["(batch, 3)", "(batch2, 3)"]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_that_fixes_its_batch_size_keeps_it(batch):
    model = Model(lambda self, x: self.fc(x) + self.table, table=torch.ones(2, 3))
    if batch == 1:
        model.table = torch.ones(1, 3).expand(1, 3).contiguous()
        model.function = lambda self, x: torch.stack([self.fc(row) for row in x])
    fmodel, params = traced(model, x_of(batch))
    message = rf"must have shape \({batch}, 3\), but has \(3, 3\)\. The model fixes its batch size at {batch}: trace it"
    with pytest.raises(InputError, match=message):
        fmodel(params, x_of(3))


def test_an_input_of_one_row_that_the_model_fixes_stays_as_it_was():
    class Fixed(nn.Module):
        def forward(self, x, row):
            return x + row[0] * len(row)

    fmodel, _ = traced(Fixed(), x_of(1), x_of(1), at=[(x_of(4), x_of(1))])
    assert [str(leaf.value) for leaf in fmodel.input_leaves] == ["(batch, 3)", "(1, 3)"]


@pytest.mark.parametrize(
    ("condition", "fits", "message"),
    [
        (lambda n: n > 5, [1, 5], r"'batch' of input 'x' must be between 0 and 5, but is 6: the model decides on it\."),
        (lambda n: n == 1, [2, 9], r"'batch' of input 'x' must be at least 2, but is 1: the model decides on it\."),
        (lambda n: n > 1, [2, 9], r"'batch' of input 'x' must be at least 2, but is 1: the model decides on it\."),
        (lambda n: n != 4, [1, 3], r"'batch' of input 'x' must be between 0 and 3, but is 4"),
        (
            lambda n: n % 2 == 0,
            [2],
            r"input 'x' must have shape \(2, 3\), but has \(1, 3\)\. The model fixes its batch",
        ),
    ],
    ids=[">5", "==1", ">1", "!=4", "even"],
)
def test_a_model_that_decides_on_the_batch_size_is_held_to_its_branch(condition, fits, message):
    model = Model(lambda self, x: self.fc(x) * 2 if condition(x.shape[0]) else self.fc(x))
    fmodel, params = traced(model, x_of(2), at=[(x_of(n),) for n in fits])
    with pytest.raises(InputError, match=message):
        fmodel(params, x_of(next(n for n in range(1, 10) if condition(n) != condition(2))))


def test_the_length_of_a_sequence_stays_open_where_the_model_allows_it():
    model = Model(lambda self, x: self.fc(x).cumsum(1))
    fmodel, _ = traced(model, x_of(2, 4, 3), at=[(x_of(1, 9, 3),), (x_of(3, 1, 3),)])
    assert str(fmodel.input_leaves[0].value) == "(batch, length, 3)"
    fixed = nn.Conv1d(4, 2, 1)  # whose channels stand where a sequence has its length
    fmodel, _ = lrpfunc.functionalize(fixed, x_of(2, 4, 3))
    assert str(fmodel.input_leaves[0].value) == "(batch, 4, 3)"


def test_token_ids_and_masks_have_the_length_of_the_sequence():
    def several(params, x, ids, mask, weights):
        return x @ params * mask[..., None] + ids[..., None] * weights[..., None]

    ids = torch.arange(8).reshape(2, 4)
    fmodel, params = lrpfunc.trace(several, torch.randn(3, 3), x_of(2, 4, 3), ids, ids > 2, x_of(2, 4))
    longer = x_of(3, 5, 3), torch.arange(15).reshape(3, 5), torch.ones(3, 5, dtype=torch.bool), x_of(3, 5)
    assert torch.equal(fmodel(params, *longer), several(params, *longer))


@pytest.mark.parametrize("example", [1, 2])
def test_one_is_allowed_where_asking_for_it_only_saves_work(example):
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            mean = x.mean(0, keepdim=True) if x.shape[0] != 1 else x
            return self.fc(x) - mean

    fmodel, params = lrpfunc.functionalize(Saving(), x_of(example))
    assert torch.allclose(fmodel(params, x_of(1)), Saving.forward(saved(fmodel, params), x_of(1)))
    fmodel, _ = lrpfunc.functionalize(Model(lambda self, x: self.fc(x) * 0 * (1 if x.shape[0] != 1 else 2)), x_of(2))
    assert fmodel.size_ranges == {"batch": (2, None)}  # a constant output is no evidence
    branches = Model(lambda self, x: x + self.fc(x) if x.shape[0] != 1 else x)
    torch.nn.init.zeros_(branches.fc.weight)  # which would hide a branch
    fmodel, _ = lrpfunc.functionalize(branches, x_of(2))
    assert fmodel.size_ranges == {"batch": (2, None)}


@pytest.mark.parametrize("example", [(1, 4), (2, 7)])
def test_sizes_that_a_model_compares_must_agree_and_stay_open(example):
    def model(params, ids, mask):
        if ids.shape[1] > mask.shape[1]:
            raise ValueError("a mask that is too short")
        return (params[ids] * mask[:, : ids.shape[1], None]).sum(1)

    def inputs(*shape):
        return torch.arange(shape[0] * shape[1]).reshape(shape) % 9, torch.ones(shape)

    fmodel, params = lrpfunc.trace(model, torch.randn(9, 3), *inputs(*example))
    labels = [str(leaf.value) for leaf in fmodel.input_leaves]
    assert [label.split(", ")[1] for label in labels] == ["length)", "length)"]
    assert torch.equal(fmodel(params, *inputs(3, 5)), model(params, *inputs(3, 5)))
    with pytest.raises(InputError, match=r"inputs 'ids' and 'mask' must agree in 'length', but have 5 and 4"):
        fmodel(params, inputs(3, 5)[0], torch.ones(3, 4))


def test_a_number_of_parts_that_the_size_decides_is_that_of_the_trace():
    fmodel, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x).chunk(4, 1)[0]), x_of(2, 8, 3))
    if str(fmodel.input_leaves[0].value) == "(batch, length, 3)":
        with pytest.raises(InputError, match=r"makes 3 values of inputs of this size, but made 4 when it was"):
            fmodel(params, x_of(2, 5, 3))


def saved(fmodel, params):
    model = nn.Module()
    model.fc = nn.Linear(3, 3)
    model.fc.load_state_dict({key.removeprefix("fc."): value for key, value in params.items()})
    return model


def test_other_sizes_are_those_of_the_trace():
    fmodel, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x)), x_of(2, 4, 1, 3))
    with pytest.raises(
        InputError, match=r"input 'x' must have shape \(batch, 4, 1, 3\), but has \(2, 5, 1, 3\)\. Trace the model"
    ):
        fmodel(params, x_of(2, 5, 1, 3))
    with pytest.raises(
        InputError, match=r"input 'x' must have the 4 dimensions \(batch, 4, 1, 3\), but has \(2, 3\)\."
    ):
        fmodel(params, x_of(2, 3))


# -- dtypes and devices -----------------------------------------------------------------------------------------------


def with_factories() -> Model:
    def forward(self, x):
        h = self.fc(x).to(x.dtype) + torch.zeros(3, dtype=x.dtype, device=x.device) + torch.ones_like(x)
        h = h + x.new_zeros(3) + torch.full((3,), 0.5, dtype=self.fc.weight.dtype) + torch.tensor(2.0)
        places = torch.arange(3, device=x.device)
        return h * self.scale + h.new_tensor(3.0) + places + h[:, torch.tensor([2, 0, 1])] + torch.eye(3)[1]

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


# -- names ------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int = 3):
        super().__init__()
        self.fc, self.act = nn.Linear(width, width), nn.ReLU()

    def forward(self, x):
        return self.act(self.fc(x)) + x


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
        "name     operation            input             output\n"
        "conv     conv2d               (batch, 3, 8, 8)  (batch, 4, 6, 6)\n"
        "bn       batch_norm           (batch, 4, 6, 6)  (batch, 4, 6, 6)\n"
        "act      relu                 (batch, 4, 6, 6)  (batch, 4, 6, 6)\n"
        "block.0  conv2d               (batch, 4, 6, 6)  (batch, 4, 6, 6)\n"
        "block.1  silu                 (batch, 4, 6, 6)  (batch, 4, 6, 6)\n"
        "pool     adaptive_avg_pool2d  (batch, 4, 6, 6)  (batch, 4, 1, 1)\n"
        "flat     flatten              (batch, 4, 1, 1)  (batch, 4)\n"
        "head     linear               (batch, 4)        (batch, 10)"
    )


# -- in-place operations ----------------------------------------------------------------------------------------------


def slices(self, x):
    h = self.fc(x)
    h[:, 0] = 0
    h[:, 1:] += x[:, :2]
    h[0] = h[-1] * 2
    return h


def views_of_views(self, x):
    h = self.fc(x)
    h.view(-1, 3, 1).transpose(1, 2)[:, 0, 1:][:, 0].mul_(3)
    return h * 2


def conditions(self, x):
    h = self.fc(x)
    h.masked_fill_(h > 1, 0.25)
    h[h < 0] = 7.0
    h.index_put_((torch.tensor([0]), torch.tensor([2])), torch.tensor(5.0))
    h[:, torch.tensor([0, 2])] = h[:, torch.tensor([2, 0])] + 1
    return h


def fills(self, x):
    h, other = self.fc(x), torch.empty(3)
    other.fill_(2.0)
    h[:, 1].fill_(h[0, 0])
    h[:, 2].zero_()
    h[:, 0].copy_(x[:, 0].double())
    return h + other.clamp_(max=1.5)


def chains(self, x):
    h = self.fc(x)
    first = h[:, :2]
    first.relu_().mul_(3)
    first += 1
    h.add_(h.clone(), alpha=2)
    return h


def promotions(self, x):
    h = self.fc(x)
    flags, total = h.clone().lt_(0.5), torch.zeros(3, dtype=torch.float64)
    total += h[0]
    return h * flags, total


def parts(self, x):
    h = self.fc(x)
    first, *_ = h.chunk(3, dim=1)
    first.mul_(2)
    second = h.unbind(1)[1]
    second.add_(1)
    return h


def reshaping(self, x):
    h = self.fc(x)
    column = h[:, 0]
    column.unsqueeze_(1).add_(1)
    square = self.fc.weight.clone()
    square.t_().mul_(torch.arange(3))
    return h @ square, column


def into_no_grad(self, x):
    h = self.fc(x)
    with torch.no_grad():
        h.mul_(2)
        h[:, 0] = 1
    return h + 1


def without_dropout(self, x):
    h = self.fc(x)
    F.dropout(h, 0.5, False).add_(1)
    h.detach().mul_(2)
    h.contiguous().sub_(1)
    h.to(torch.float32)[:, 0].neg_()
    return F.relu6(h, inplace=True) + F.dropout(h, 0.5, False, inplace=True)


def of_the_input(self, x):
    x.relu_()
    x[:, 0] = 1
    return self.fc(x) + x


def of_state(self, x):
    self.total.add_(x.sum())
    self.count = self.count + 1
    self.fc.weight[0].mul_(2)
    return self.fc(x) * self.total + self.count


@pytest.mark.parametrize(
    "forward",
    [
        slices,
        views_of_views,
        conditions,
        fills,
        chains,
        promotions,
        parts,
        reshaping,
        into_no_grad,
        without_dropout,
        of_the_input,
    ],
    ids=lambda forward: forward.__name__,
)
def test_in_place_operations_become_functional(forward):
    model, x = Model(forward), x_of()
    before = x.clone()
    fmodel, params = traced(model, x, at=[(x_of(1),), (x_of(7),)])
    assert_equal(x, before)
    kept = optree.tree_map(torch.clone, params)
    fmodel(params, x)
    assert_equal(x, before)
    assert_equal(params, kept)
    assert not any(
        equation.function._schema.is_mutable for equation in fmodel.equations if "aten" in str(equation.function)
    )


def test_writes_into_buffers_and_parameters_stay_in_the_call():
    model = Model(of_state)
    model.register_buffer("total", torch.tensor(1.0))
    model.register_buffer("count", torch.tensor(2.0))
    fmodel, params = lrpfunc.functionalize(model, x_of())
    first, second = fmodel(params, x_of()), fmodel(params, x_of())
    assert_equal(first, second)
    assert model.count == 2.0
    assert_equal(first, model(x_of()))


def stale_view(self, x):
    h = self.fc(x)
    flat = h.view(-1)
    h.add_(1)
    return flat * 2


def stale_base(self, x):
    h = self.fc(x)
    flat = h.view(-1)
    h[:, 0] = 0
    return flat


def stale_part(self, x):
    first, second, _ = self.fc(x).chunk(3, dim=1)
    first.relu_()
    return torch.cat([first, second], dim=1)


@pytest.mark.parametrize(
    ("forward", "read", "write"),
    [
        (stale_view, r"'view', read at .*`return flat \* 2`\)", r"`h.add_\(1\)`"),
        (stale_base, r"'view', returned by forward", r"`h\[:, 0\] = 0`"),
        (stale_part, r"'getitem_1', read at .*`return torch.cat\(.*\)`\)", r"`first.relu_\(\)`"),
    ],
)
def test_memory_read_again_under_another_name_is_an_error(forward, read, write):
    file = r"\S*test_tracing\.py:\d+ \("
    message = (
        rf"{read}, shares memory that was overwritten under another name at {file}{write}\)\. Replace the in-place"
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(forward), x_of())


def bits(self, x):
    h = self.fc(x)
    h.view(torch.int32).zero_()
    return h


def strided(self, x):
    h = self.fc(x)
    h.as_strided((2,), (1,)).zero_()
    return h


@pytest.mark.parametrize(("forward", "name"), [(bits, "view"), (strided, "as_strided")])
def test_writes_through_views_that_cannot_be_followed_are_errors(forward, name):
    message = (
        rf"the in-place operation at .*zero_\(\)`\) writes through '{name}', which lrpfunc cannot follow\. Replace it"
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(forward), x_of())


def resized(self, x):
    return self.fc(x).resize_(3, 2)


def written_out(self, x):
    h = self.fc(x)
    torch.add(h, 1, out=h)
    return h


@pytest.mark.parametrize(("forward", "name"), [(resized, "resize_"), (written_out, "add")])
def test_in_place_operations_without_a_twin_are_errors(forward, name):
    with pytest.raises(
        TraceError, match=rf"the in-place operation '{name}' at .*test_tracing.* has no functional twin\."
    ):
        lrpfunc.functionalize(Model(forward), x_of())


VIEWS = [
    lambda t: t[..., :2],
    lambda t: t.select(-1, 0).unsqueeze(-1),
    lambda t: t.transpose(0, -1),
    lambda t: t.reshape(-1),
    lambda t: t.chunk(2, -1)[0],
    lambda t: t.unbind(-1)[-1].unsqueeze(-1),
    lambda t: t.detach(),
    lambda t: t.contiguous(),
    lambda t: t.flip(-1),
    lambda t: t.diagonal() if t.dim() > 1 else t,
    lambda t: t.expand_as(t),
    lambda t: t * 2 + 1,
]
WRITES = [
    lambda t, n, others: t.add_(n),
    lambda t, n, others: t.relu_().mul_(n),
    lambda t, n, others: t.copy_(others[n % len(others)] * 1),
    lambda t, n, others: t[..., 0].fill_(n),
    lambda t, n, others: t.masked_fill_(t > 0.1, n),
    lambda t, n, others: t.unsqueeze_(0).neg_().squeeze_(0),
    lambda t, n, others: t.lt_(0.3),
]


@pytest.mark.parametrize("seed", range(40))
def test_random_views_and_writes_compute_the_same_or_are_refused(seed):
    def forward(self, x):
        draw, pool = random.Random(seed), [x, x @ self.weight, self.shift]
        for _ in range(draw.randint(3, 9)):
            tensor = draw.choice(pool)
            if draw.random() < 0.5:
                pool.append(draw.choice(VIEWS)(tensor))
                continue
            with torch.enable_grad() if draw.random() < 0.2 else torch.no_grad():
                draw.choice(WRITES)(tensor, draw.randint(0, 5), [t for t in pool if t.shape == tensor.shape])
        return [draw.choice(pool) * 1 for _ in range(2)]

    model = Model(forward, weight=torch.linspace(-1, 1, 16).reshape(4, 4))
    model.register_buffer("shift", torch.linspace(-1, 1, 4))
    x, state, refusal = x_of(4, 4), copy.deepcopy(model.state_dict()), "shares memory that was overwritten, or not"
    with torch.no_grad():
        expected = copy.deepcopy(model)(x.clone())
        try:
            fmodel, params = lrpfunc.functionalize(model, x)
            assert_equal(fmodel(params, x), expected)
        except TraceError as error:
            refusal = str(error)
    assert "shares memory that was overwritten" in refusal
    assert_equal(model.state_dict(), state)


# -- training and randomness ------------------------------------------------------------------------------------------


def test_dropout_in_training_mode_is_the_identity():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
            self.lstm = nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)
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
        TraceError, match=rf"'{operation}' at .*test_tracing.* draws random numbers, but a program is a"
    ):
        lrpfunc.functionalize(Model(lambda self, x: draw(x)), x_of())


def test_random_numbers_that_nothing_depends_on_do_no_harm():
    def forward(self, x):
        torch.rand(3)
        return self.fc(x)

    traced(Model(forward), x_of())


# -- what modules are made of -----------------------------------------------------------------------------------------


def test_buffers_constants_and_plain_tensor_attributes_are_leaves():
    def forward(self, x):
        return self.fc(x) * self.scale + self.shift + torch.tensor(2.0) + torch.tensor([1.0, 2.0, 3.0])

    model = Model(forward, scale=torch.full((3,), 2.0))
    model.register_buffer("shift", torch.ones(3))
    model.register_buffer("unread", torch.ones(3))
    _, params = traced(model, x_of())
    assert sorted(params) == ["fc.bias", "fc.weight", "lifted_tensor_0", "lifted_tensor_1", "scale", "shift"]
    assert params["scale"].data_ptr() == model.scale.data_ptr()


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=lambda wrap: wrap.__name__,
)
def test_parametrized_weights(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 2)).eval().requires_grad_(False)
    fmodel, params = traced(model, x_of(), at=[(x_of(1),)])
    assert any(name.startswith("0.parametrizations.weight") for name in params)
    assert fmodel.equations[-3].operator == "linear"


def test_no_grad_parts():
    def forward(self, x):
        with torch.no_grad():
            x = self.fc(x)
        with torch.enable_grad():
            return self.fc(x)

    assert names(traced(Model(forward), x_of())[0]) == ["fc", "fc:1"]


def test_disabled_autocast_parts():
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            angles = torch.outer(x[:, 0], self.fc.bias).sin()
        return self.fc(x) + angles

    fmodel, _ = traced(Model(forward), x_of(), at=[(x_of(5),)])
    assert fmodel.equations[-1].name == "add"


def test_enabled_autocast_is_an_error():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x)

    with pytest.raises(TraceError, match=r"'wrap_with_autocast' at .* is not supported: remove it from forward\."):
        lrpfunc.functionalize(Model(forward), x_of())


def test_operations_with_several_outputs():
    def forward(self, x):
        h = self.fc(x)
        first, *rest = h.split([1, 2], dim=1)
        values, indices = h.topk(2, dim=1)
        largest, where = h.max(dim=1)
        return first, rest, values, indices, largest, where, h.unbind(1), h.chunk(2, dim=1), h.sort(dim=1)

    traced(Model(forward), x_of(), at=[(x_of(1),), (x_of(5),)])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(3, 4, batch_first=True, bidirectional=True), nn.Linear(8, 2)

        def forward(self, x):
            output, _ = self.rnn(x)
            return self.head(output[:, -1])

    traced(Recurrent().eval().requires_grad_(False), x_of(2, 5, 3), at=[(x_of(1, 5, 3),), (x_of(4, 5, 3),)])


def test_attention_and_transformer_layers():
    # The fused kernel that these have for evaluation is not captured; its last digits differ.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval().requires_grad_(False)
        traced(model, x_of(2, 5, 8), at=[(x_of(1, 5, 8),), (x_of(3, 5, 8),)])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_operations_with_several_names_go_by_the_usual_one():
    def f(params, x):
        y = torch.concat([x, torch.concatenate([x, x.clip(0, 1)], 1)], 1)
        y = torch.moveaxis(y.multiply(2.0).divide(3.0).subtract(1.0), 1, 2).negative()
        return torch.true_divide(y.multiply_(params["w"]), 2.0)

    params, x = {"w": torch.tensor(3.0)}, torch.randn(2, 3, 4)
    fmodel, params = lrpfunc.trace(f, params, x)
    names = {equation.operator for equation in fmodel.equations}
    assert names == {"clamp", "cat", "mul", "div", "sub", "movedim", "neg"}
    assert torch.equal(fmodel(params, x), f(params, x))


def test_shapes_taken_from_a_tensor_carry_no_relevance():
    def forward(self, x):
        h = self.fc(x)
        return torch.zeros_like(h), h.new_full((3,), 2.0), torch.ones(1, 3).expand_as(h), h.clone().fill_(1.0)

    fmodel, _ = traced(Model(forward), x_of())
    assert [leaf.name in facts(fmodel).active for leaf in fmodel.output_leaves] == [False] * 4


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


# -- lifting ----------------------------------------------------------------------------------------------------------


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


# -- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.addmm(torch.zeros(3), x, torch.ones(6, 3)),
        lambda x: torch.baddbmm(torch.zeros(1), x[:, None], torch.ones(2, 6, 3))[:, 0],
        lambda x: torch.tensordot(x, torch.ones(6, 3), 1),
        lambda x: torch.linalg.matmul(x, torch.ones(6, 3)),
        lambda x: torch.zeros(2, 4).scatter_add(1, torch.tensor([[0, 0, 1], [1, 2, 3]]), x[:, :3]),
        lambda x: torch.zeros(2, 4).index_add(1, torch.tensor([1, 1, 3]), x[:, :3]),
        lambda x: F.fold(x.reshape(2, 2, 3), (1, 4), (1, 2)).flatten(1),
        lambda x: F.max_unpool2d(*F.max_pool2d(x[:, :4].reshape(2, 1, 2, 2), 2, return_indices=True), 2).flatten(1),
        lambda x: F.interpolate(x[:, None], scale_factor=2, mode="nearest-exact")[:, 0],
        lambda x: F.interpolate(x.reshape(2, 1, 2, 3), size=(3, 3), mode="bilinear", antialias=True).flatten(1),
        lambda x: x.topk(2, dim=1).values,
        lambda x: x.sort(dim=1).values,
        lambda x: x.take(torch.tensor([[0, 1], [6, 7]])),
        lambda x: x.clone().fill_(x[0, 0]),
        lambda x: torch.moveaxis(torch.cat(x.reshape(2, 3, 2).hsplit(3), 2), 1, 2).flatten(1),
    ],
)
def test_operations_without_a_module_have_a_kind_that_conserves_relevance(function):
    x = x_of(2, 6).abs() + 0.1
    fmodel, params = traced(Model(lambda self, x: function(x)), x)
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon(1e-9), strict=True)
    torch.testing.assert_close(relevance.sum(), fmodel(params, x).amax(1).sum())


# -- trace ------------------------------------------------------------------------------------------------------------


def affine(weight, bias, x):
    return F.linear(x, weight, bias).relu()


@pytest.mark.parametrize(
    ("params", "function"),
    [
        ({"w": torch.eye(3), "b": torch.ones(3)}, lambda p, x: affine(p["w"], p["b"], x)),
        ({"fc": {"w": torch.eye(3), "b": [torch.ones(3)]}}, lambda p, x: affine(p["fc"]["w"], p["fc"]["b"][0], x)),
        ([torch.eye(3), torch.ones(3)], lambda p, x: affine(*p, x)),
        ((torch.eye(3), (torch.ones(3),)), lambda p, x: affine(p[0], p[1][0], x)),
        (Pair(torch.eye(3), torch.ones(3)), lambda p, x: affine(p.left, p.right, x)),
        (torch.eye(3), lambda p, x: affine(p, None, x)),
    ],
    ids=["dict", "nested dict", "list", "tuple", "namedtuple", "tensor"],
)
def test_trace_takes_any_pytree_of_parameters(params, function):
    fmodel, same = lrpfunc.trace(function, params, x_of())
    assert_equal(same, params)
    for batch in (1, 2, 7):
        assert_equal(fmodel(same, x_of(batch)), function(params, x_of(batch)))


def test_trace_keeps_the_callers_tensors():
    params = {"w": torch.eye(3, requires_grad=True), "unread": torch.ones(3)}
    _, same = lrpfunc.trace(lambda p, x: x @ p["w"], params, x_of())
    assert set(same) == {"w", "unread"}
    assert same["w"] is params["w"]


def test_trace_of_a_functional_call():
    model = Model(lambda self, x: self.block(self.fc(x)), block=Block())
    params = dict(model.named_parameters())
    fmodel, params = lrpfunc.trace(lambda p, x: functional_call(model, p, (x,)), params, x_of())
    assert_equal(fmodel(params, x_of(5)), model(x_of(5)))
    assert names(fmodel) == ["fc", "block.fc", "relu", "add"]


def test_trace_of_a_builtin():
    fmodel, weight = lrpfunc.trace(torch.mm, torch.eye(3), x_of(3))
    assert fmodel.input_names == ("input1",)
    assert_equal(fmodel(weight, x_of(3)), x_of(3))


def test_trace_of_a_program():
    inner, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x).relu()), x_of())
    fmodel, params = lrpfunc.trace(lambda p, x: inner(p, x) * 2, params, x_of())
    assert_equal(fmodel(params, x_of(5)), inner(params, x_of(5)) * 2)


def test_errors_of_a_program_that_is_traced_pass_through():
    inner, params = lrpfunc.functionalize(Model(lambda self, x: self.fc(x)), x_of())
    with pytest.raises(InputError, match=r"input 'x' must have shape \(batch, 3\), but has \(2, 2\)\."):
        lrpfunc.trace(lambda p, x: inner(p, x[:, :2]), params, x_of())


def test_one_tensor_under_two_names_is_two_parameters():
    w = torch.eye(3)
    fmodel, _ = lrpfunc.trace(lambda p, x: x @ p["a"] + 2 * (x @ p["b"]), {"a": w, "b": w}, x_of())
    assert_equal(fmodel({"a": w, "b": 2 * w}, x_of()), x_of() + 2 * (x_of() @ (2 * w)))


def constants(params, x):
    return x * next(iter(params)) + torch.tensor([1.0, 2.0, 3.0]) + torch.tensor(2.0)


def test_constants_of_a_function_are_leaves_or_equations():
    fmodel, params = lrpfunc.trace(lambda p, x: constants(p.values(), x), {"w": torch.ones(3)}, x_of())
    assert sorted(params) == ["lifted_tensor_0", "lifted_tensor_1", "w"]
    assert_equal(fmodel(params, x_of()), constants([torch.ones(3)], x_of()))
    fmodel, params = lrpfunc.trace(constants, [torch.ones(3)], x_of())
    assert_equal(fmodel(params, x_of()), constants([torch.ones(3)], x_of()))
    assert fmodel([torch.ones(3).to("meta")], x_of().to("meta")).device.type == "meta"
    assert fmodel([torch.ones(3).double()], x_of().double()).dtype == torch.float64


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


# -- models that cannot be traced -------------------------------------------------------------------------------------


def decides_on_values(self, x):
    h = self.fc(x)
    if h.sum() > 0:
        return h
    return -h


def fails(self, x):
    return self.fc(x) @ torch.ones(4, 4)


def test_a_decision_on_values_is_an_error_with_its_line():
    message = (
        r"the model cannot be exported at \S*test_tracing\.py:\d+ \(`if h\.sum\(\) > 0:`\): GuardOnDataDependent"
        r".* The model decides by a value that is only known when it runs: write it with torch\.where\."
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(decides_on_values), x_of())


def test_a_failing_model_is_an_error_with_its_line(capfd):
    message = (
        r"the model cannot be exported at \S*test_tracing\.py:\d+ \(`return self\.fc\(x\) @ torch\.ones\(4, 4\)`\): "
    )
    with pytest.raises(TraceError, match=message):
        lrpfunc.functionalize(Model(fails), x_of())
    assert capfd.readouterr() == ("", "")


def test_what_is_no_module_is_refused():
    with pytest.raises(
        TraceError, match=r"functionalize needs an nn.Module, but got function\. Use lrpfunc.trace for func"
    ):
        lrpfunc.functionalize(lambda x: x, x_of())
    with pytest.raises(TraceError, match=r"trace needs a function f\(params, \*inputs\), but got dict\."):
        lrpfunc.trace({}, {}, x_of())


def test_example_inputs_without_a_tensor_are_refused():
    for inputs in ((3,), (None,), ([],)):
        with pytest.raises(TraceError, match=r"there is no tensor among the example inputs: give at least one\."):
            lrpfunc.functionalize(Model(lambda self, x: x), *inputs)


def test_parameters_must_be_tensors_with_names_of_their_own():
    with pytest.raises(TraceError, match=r"leaf 'fc.w' of params must be a tensor, but is float\."):
        lrpfunc.trace(lambda p, x: x, {"fc": {"w": 1.0}}, x_of())
    with pytest.raises(
        TraceError, match=r"two leaves of params are called 'a\.b': a dot also joins nested names\. Rename"
    ):
        lrpfunc.trace(lambda p, x: x, {"a": {"b": x_of()}, "a.b": x_of()}, x_of())


def test_conditional_operators_are_an_error():
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    with pytest.raises(
        TraceError, match=r"the model cannot be exported at \S*test_tracing\.py:\d+ \(`return torch\.cond"
    ):
        lrpfunc.functionalize(Model(forward), x_of())


# -- purity -----------------------------------------------------------------------------------------------------------


class Impure(nn.Module):
    """A model that changes itself wherever it can while it runs."""

    def __init__(self, fail: bool):
        super().__init__()
        self.fc, self.drop = nn.Linear(3, 3), nn.Dropout()
        self.bn = nn.BatchNorm1d(3)
        self.register_buffer("count", torch.zeros(()))
        self.calls, self.seen, self.notes, self.fail = 0, [], {"last": None}, fail

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.seen.append(x)
        self.notes["last"] = x
        self.cache = x * 2
        x.relu_()
        if self.fail and x.sum() > 0:
            return x
        return self.bn(self.drop(self.fc(x))) + self.cache


def state_of(model: nn.Module) -> list:
    """Everything that a module holds: identities of modules and attributes, contents of containers, bits of tensors."""
    state = []
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            contents = (
                list(value.items()) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
            )
            state.append((name, key, id(value), repr(contents)))
    return [
        *state,
        *((n, id(t), t.data_ptr(), t.requires_grad, t.tolist()) for n, t in model.state_dict(keep_vars=True).items()),
    ]


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_changed_by_tracing(fail):
    model = Impure(fail).eval()
    model.drop.train()
    model.fc.register_forward_hook(lambda module, inputs, output: output * 2)
    x = x_of()
    before, input_before, generator_before = state_of(model), x.clone(), torch.get_rng_state()
    if fail:
        with pytest.raises(TraceError, match="cannot be exported"):
            lrpfunc.functionalize(model, x)
    else:
        fmodel, params = lrpfunc.functionalize(model, x)
        fmodel(params, x)
    assert state_of(model) == before
    assert_equal(x, input_before)
    assert_equal(torch.get_rng_state(), generator_before)
    assert torch.is_grad_enabled()


def test_functions_leave_their_parameters_and_inputs_alone():
    def function(params, x):
        params["w"].mul_(2)
        x.add_(1)
        return x @ params["w"]

    params, x = {"w": torch.eye(3)}, x_of()
    fmodel, same = lrpfunc.trace(function, params, x)
    fmodel(same, x)
    assert_equal(params, {"w": torch.eye(3)})
    assert_equal(x, x_of())
    assert_equal(fmodel(same, x), (x_of() + 1) @ (2 * torch.eye(3)))


def test_params_share_storage_with_the_module_and_require_no_gradient():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    _, params = lrpfunc.functionalize(model, x_of())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in params:
            assert params[name].data_ptr() == tensor.data_ptr()
    assert len(params) == 7
    assert not any(p.requires_grad for p in params.values())


def test_hooks_are_part_of_the_function():
    model = Model(lambda self, x: self.fc(x))
    model.fc.register_forward_hook(lambda module, inputs, output: output * 2)
    traced(model, x_of())
