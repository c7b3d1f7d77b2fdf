"""What `attribute` and `vjp` take and give, and what they refuse. Their mathematics is in test_rules and test_laws."""

from typing import NamedTuple

import optree
import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import InputError, LrpError, ParameterError, RuleError, TargetError, TraceError
from tests.cases import subject


@pytest.fixture(scope="module")
def network():
    return subject("branches")


EPSILON = composites.epsilon(1e-3)

# -- targets ----------------------------------------------------------------------------------------------------------


def rows(network, *targets):
    """The expected relevance: sample i under targets[i], each by its own pullback."""
    fmodel, params, x = network
    seed = torch.zeros(3, 5, dtype=x.dtype)
    for i, target in enumerate(targets):
        seed[i, target] = fmodel(params, x)[i, target]
    return lrpfunc.vjp(fmodel, params, x, EPSILON)[1](seed)


def described(value):
    """A parameter in a test's name, the same in every process: functions have no address there."""
    return "function" if callable(value) and not isinstance(value, torch.Tensor) else str(value)


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (2, (2, 2, 2)),
        (-1, (4, 4, 4)),
        (torch.tensor([0, 3, 1]), (0, 3, 1)),
        (torch.tensor(4), (4, 4, 4)),
        ([1, 0, 4], (1, 0, 4)),
        ([(1,), (0,), (4,)], (1, 0, 4)),
        ((3,), (3, 3, 3)),
        (lambda y: y * torch.eye(5, dtype=y.dtype)[[2, 2, 0]], (2, 2, 0)),
    ],
    ids=described,
)
def test_every_form_of_target(network, target, classes):
    torch.testing.assert_close(lrpfunc.attribute(*network, EPSILON, target), rows(network, *classes))


def test_no_target_is_the_arg_max_of_each_sample(network):
    fmodel, params, x = network
    classes = fmodel(params, x).argmax(1).tolist()
    torch.testing.assert_close(lrpfunc.attribute(*network, EPSILON), rows(network, *classes))


def test_targets_of_outputs_of_higher_rank():
    x = torch.randn(2, 3, 4, 4)
    fmodel, params = lrpfunc.functionalize(nn.Conv2d(3, 5, 1), x)
    at_one_place = lrpfunc.attribute(fmodel, params, x, EPSILON, target=(1, 2, 3))
    assert at_one_place[:, :, 2, 3].all()
    at_one_place[:, :, 2, 3] = 0
    assert not at_one_place.any()
    per_sample = lrpfunc.attribute(fmodel, params, x, EPSILON, target=[(1, 2, 3), (0, 0, 0)])
    assert per_sample[0, :, 2, 3].all()
    assert per_sample[1, :, 0, 0].all()


def test_one_number_per_sample_is_its_own_seed():
    fmodel, params = lrpfunc.trace(lambda p, x: (x * p["w"]).sum(1), {"w": torch.ones(3)}, torch.randn(2, 3))
    x = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(lrpfunc.attribute(fmodel, params, x, composites.epsilon(0)), x)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, r"target 5 is out of range: the output has 5 classes, 0 to 4"),
        (-6, r"target -6 is out of range"),
        (torch.tensor([0, 1, 5]), r"target 5 is out of range"),
        (torch.tensor([0, 1]), r"an index tensor must have shape \(3,\), but has \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), r"an index tensor must hold integers, but is torch.float32"),
        ([0, 1], r"a list of targets must have one per sample, 3, but has 2"),
        ([0, 1, 9], r"target 9 is out of range"),
        ([0, 1, (1, 2)], r"each target in a list must be 1 int\(s\), but one is \(1, 2\)"),
        ((1, 2), r"target must have 1 indices for an output of shape \(3, 5\), but has 2"),
        (
            "cat",
            r"a target must be an int, an index tensor, an array, a range, a tuple, a list or a function, but is 'cat'",
        ),
        (True, r"a target must be an int"),
        (lambda y: y[:2], r"the relevance of the output must have its shape, \(3, 5\), but has \(2, 5\)"),
        (lambda y: y.float(), r"the relevance of the output must be torch.float64 as it is, but is torch.float32"),
        (lambda y: [y], r"the relevance of the output must have its structure"),
    ],
    ids=described,
)
def test_bad_targets_are_refused(network, target, message):
    with pytest.raises(TargetError, match=message):
        lrpfunc.attribute(*network, EPSILON, target)


def test_targets_that_need_more_are_refused():
    x = torch.randn(2, 3, 4, 4)
    fmodel, params = lrpfunc.functionalize(nn.Conv2d(3, 5, 1), x)
    with pytest.raises(TargetError, match=r"the arg-max of a sample is no class: give a tuple of indices"):
        lrpfunc.attribute(fmodel, params, x, EPSILON)
    fmodel, params = lrpfunc.trace(lambda p, x: (x.sum(1) * p, x * p), torch.ones(()), x)
    with pytest.raises(TargetError, match=r"the output has 2 floating-point tensors"):
        lrpfunc.attribute(fmodel, params, x, EPSILON, target=0)
    fmodel, params = lrpfunc.trace(lambda p, x: x.sum((1, 2, 3)) * p, torch.ones(()), x)
    with pytest.raises(TargetError, match=r"the output has one number per sample, so target must be None, but is 1"):
        lrpfunc.attribute(fmodel, params, x, EPSILON, target=1)
    _, pullback = lrpfunc.vjp(fmodel, params, x, EPSILON)
    with pytest.raises(TargetError, match=r"must have its shape, \(2,\), but has \(3,\)"):
        pullback(torch.ones(3))


# -- structures of inputs ---------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Many(nn.Module):
    """A tensor, a pytree, token indices and a mask come in; a dict with one floating-point tensor goes out."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x, pair, tokens, mask=None):
        hidden = x + pair["both"].left * pair["both"].right + self.embedding(tokens)
        return {"logits": self.head(hidden * mask if mask is not None else hidden), "tokens": tokens}


def many(n=2):
    x, left, right = torch.randn(3, n, 4)
    return (x, {"both": Pair(left, right)}, torch.arange(n)), torch.ones(n, 4)


def test_the_relevance_has_the_structure_of_the_inputs_and_zeros_where_none_can_be():
    inputs, mask = many()
    fmodel, params = lrpfunc.functionalize(Many(), *inputs, mask)
    relevance = lrpfunc.attribute(fmodel, params, (*inputs, mask), EPSILON, target=1)
    assert isinstance(relevance, tuple)
    assert isinstance(relevance[1]["both"], Pair)
    assert relevance[0].any()
    assert relevance[1]["both"].left.any()
    assert relevance[2].dtype == torch.float32  # of tokens, per token: the embedding's summed over its width
    assert relevance[2].shape == inputs[2].shape
    exact = lrpfunc.attribute(fmodel, params, (*inputs, mask), composites.epsilon(0.0), target=1)
    without_bias = fmodel(params, *inputs, mask)["logits"][:, 1] - params["head.bias"][1]
    torch.testing.assert_close(sum(leaf.sum() for leaf in optree.tree_leaves(exact)), without_bias.sum())


def test_keyword_inputs_are_attributed_as_a_dict_by_name_or_a_tuple_in_order():
    inputs, mask = many()
    fmodel, params = lrpfunc.functionalize(Many(), *inputs, mask=mask)
    by_order = lrpfunc.attribute(fmodel, params, (*inputs, mask), EPSILON, target=1)
    names = dict(zip(("x", "pair", "tokens", "mask"), (*inputs, mask), strict=True))
    by_name = lrpfunc.attribute(fmodel, params, names, EPSILON, target=1)
    assert list(by_name) == list(names)
    assert torch.equal(by_name["x"], by_order[0])
    assert torch.equal(by_name["mask"], by_order[3])


# -- inner layers -----------------------------------------------------------------------------------------------------


def test_at_gives_the_relevance_of_a_layers_output(network):
    fmodel, params, x = network
    relevance, inner = lrpfunc.attribute(fmodel, params, x, EPSILON, 1, at=["head", "narrow", "pool"])
    assert list(inner) == ["head", "narrow", "pool"]
    logits = fmodel(params, x)
    assert torch.equal(inner["head"], logits * torch.eye(5, dtype=x.dtype)[1])
    assert inner["pool"].shape == (3, 7, 4, 4)
    assert torch.equal(relevance, lrpfunc.attribute(fmodel, params, x, EPSILON, 1))


def test_the_relevance_at_a_layer_is_the_attribution_of_the_rest_of_the_network():
    torch.manual_seed(0)
    first, rest = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(2, 6)
    whole, params = lrpfunc.functionalize(nn.Sequential(first, rest), x)
    _, inner = lrpfunc.attribute(whole, params, x, EPSILON, 1, at="0")  # a module's path: its last equation
    part, part_params = lrpfunc.functionalize(rest, first(x))
    expected = lrpfunc.attribute(part, part_params, first(x).detach(), EPSILON, 1)
    torch.testing.assert_close(inner["0"], expected)


def test_at_a_layer_that_relevance_does_not_reach_it_is_zero():
    def f(params, x):
        return {"used": x * params, "unused": (x - params).tanh()}

    x = torch.randn(2, 3)
    fmodel, params = lrpfunc.trace(f, torch.ones(()), x)
    seed = {"used": torch.ones(2, 3), "unused": torch.zeros(2, 3)}
    _, inner = lrpfunc.attribute(fmodel, params, x, EPSILON, lambda y: seed, at="tanh")
    assert not inner["tanh"].any()


def test_an_unknown_layer_is_refused_with_near_misses(network):
    with pytest.raises(
        RuleError, match=r"no layer is called 'haed'. Did you mean 'head' or 'add'\? `print\(fmodel\)` lists"
    ):
        lrpfunc.attribute(*network, EPSILON, at="haed")


# -- strict -----------------------------------------------------------------------------------------------------------


def test_strict_refuses_fallbacks_to_the_gradient():
    def f(params, x):
        return torch.special.erfcx(x * params)

    x = torch.randn(2, 3)
    fmodel, params = lrpfunc.trace(f, torch.ones(3), x)
    lrpfunc.attribute(fmodel, params, x, EPSILON, 0)
    with pytest.raises(
        RuleError, match=r"no rule for 'special_erfcx' \(special_erfcx\): strict=True allows no fallback"
    ):
        lrpfunc.attribute(fmodel, params, x, EPSILON, 0, strict=True)
    named = composites.first_match({"special_erfcx": rules.gradient()}, EPSILON)
    lrpfunc.attribute(fmodel, params, x, named, 0, strict=True)


# -- bad input leaves everything as it was ----------------------------------------------------------------------------


def test_integers_that_no_embedding_looks_up_cannot_be_attributed():
    x = torch.tensor([[1, 2]])
    fmodel, params = lrpfunc.trace(lambda w, x: x @ w, torch.ones(2, 3, dtype=torch.int64), x)
    message = r"needs a floating-point input, or token ids that go to an embedding, but .* \(inputs_embeds\)"
    with pytest.raises(InputError, match=message):
        lrpfunc.attribute(fmodel, params, x, EPSILON, target=0)
    fmodel, params = lrpfunc.trace(lambda w, x: nn.functional.embedding((x > 1).long(), w), torch.ones(4, 3), x)
    with pytest.raises(InputError, match=message):
        lrpfunc.attribute(fmodel, params, x, EPSILON, target=(0, 0))


def without(params, name):
    return {k: v for k, v in params.items() if k != name}


STRUCTURE = r"must have the leaves x that they were traced with, but have x\[0\]"
DTYPE = r"must be torch.float64 as the parameters are, but is torch.float32"
SHAPE = r"leaf 'head.bias' of params must have shape \(5\), but has \(3, 3, 8, 8\)"
EXTRA = r"has the leaf 'haed.bias', which .* Remove it. Did you mean 'head.bias'"


def test_what_relevance_cannot_flow_through_is_refused():
    x = torch.randn(2, 8)
    fmodel, params = lrpfunc.trace(lambda p, x: x.sign() * p, torch.ones(()), x)
    message = r"no relevance can flow: no output depends on an input through .* detach are constants"
    with pytest.raises(InputError, match=message):
        lrpfunc.attribute(fmodel, params, x, EPSILON)


def test_a_module_in_place_of_a_program_is_refused():
    with pytest.raises(
        TraceError, match=r"a program is needed, as functionalize and trace return it first, but got Linear"
    ):
        lrpfunc.attribute(nn.Linear(3, 2), {}, torch.randn(1, 3), EPSILON)


def test_at_takes_names_and_one_output():
    x = torch.randn(2, 4)
    fmodel, params = lrpfunc.trace(lambda p, x: sum(x.chunk(2, 1)) * p, torch.ones(()), x)
    with pytest.raises(RuleError, match=r"`at` takes names of layers, but got \[3\]"):
        lrpfunc.attribute(fmodel, params, x, EPSILON, at=[3])
    with pytest.raises(RuleError, match=r"'chunk' has 2 outputs: name a layer that reads the one you want"):
        lrpfunc.attribute(fmodel, params, x, EPSILON, at="chunk")


def test_with_rules_may_return_an_input_as_it_is():
    x = torch.randn(2, 3)
    fmodel, params = lrpfunc.trace(lambda p, x: {"x": x, "y": x * p}, torch.ones(()), x)
    g = lrpfunc.with_rules(fmodel, EPSILON)
    seed = {"x": torch.ones(2, 3), "y": torch.ones(2, 3)}
    relevance = torch.func.vjp(lambda x: g(params, x), x)[1](seed)[0]
    torch.testing.assert_close(relevance, torch.full((2, 3), 2.0))


BAD_CALLS = {
    "rank": (lambda p, x: (p, x[0]), InputError, r"the 4 dimensions \(batch, 3, height, width\), but has"),
    "size": (lambda p, x: (p, x[:, 1:]), InputError, r"must have shape \(batch, 3, height, width\), but has"),
    "dtype": (lambda p, x: (p, x.float()), InputError, DTYPE),
    "integers": (lambda p, x: (p, x.long()), InputError, r"must be torch.float64"),
    "device": (lambda p, x: (p, x.to("meta")), InputError, r"input 'x' is on meta, but the other tensors are on cpu"),
    "no tensor": (lambda p, x: (p, 1.0), InputError, r"input 'x' must be a tensor, but is float"),
    "structure": (lambda p, x: (p, ([x],)), InputError, STRUCTURE),
    "too many": (lambda p, x: (p, (x, x)), InputError, r"takes \(params, x\), but got 2 positional inputs"),
    "missing": (lambda p, x: (without(p, "head.bias"), x), ParameterError, r"lacks the leaf 'head.bias'"),
    "extra": (lambda p, x: ({**p, "haed.bias": x}, x), ParameterError, EXTRA),
    "shape": (lambda p, x: ({**p, "head.bias": x}, x), ParameterError, SHAPE),
    "leaf": (lambda p, x: ({**p, "head.bias": 1.0}, x), ParameterError, r"'head.bias' of params must be a tensor"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused_and_change_nothing(network, case):
    fmodel, params, x = network
    before, x_before = {k: v.clone() for k, v in params.items()}, x.clone()
    spoil, error, message = BAD_CALLS[case]
    bad_params, bad_x = spoil(params, x)
    for call in (lrpfunc.attribute, lrpfunc.vjp):
        with pytest.raises(error, match=message) as raised:
            call(fmodel, bad_params, bad_x, EPSILON)
        assert isinstance(raised.value, LrpError)
    assert all(torch.equal(before[k], v) for k, v in params.items())
    assert torch.equal(x, x_before)


def test_a_split_into_one_part_is_no_obstacle():
    x = torch.randn(2, 3, dtype=torch.float64)
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    fmodel, params = lrpfunc.trace(lambda p, x: (x * p).split(3, -1)[0], weight, x)
    relevance = lrpfunc.attribute(fmodel, params, x, lrpfunc.rules.epsilon(0.0), target=1)
    torch.testing.assert_close(relevance, x * weight * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
