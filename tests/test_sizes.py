"""Sizes that may differ from call to call, and those of the trace."""

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc.errors import InputError
from tests.traced import Model, TwoInputs, traced, x_of


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
    assert str(fmodel.input_leaves[0].value) == "(batch, 4, length)"


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


def test_parts_along_an_open_size_have_one_dimension_less():
    """torch 2.15 keeps it in a trace where sizes of one are nothing special, and the model would go another way."""
    traced(Model(lambda self, x: x.diagonal().unbind(-1)[-1] * 2), x_of(4, 4))
    traced(Model(lambda self, x: [x * part for part in x.diagonal().unbind() if part.dim() == 0]), x_of(4, 4))
