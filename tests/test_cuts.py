"""Programs cut in two: both are programs, one after the other is the whole, and so is the relevance that goes back."""

import pickle
import warnings

import optree
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import lrpfunc
from lrpfunc import Flow, composites, rules
from lrpfunc.errors import ProgramError
from lrpfunc.operations import facts
from lrpfunc.program import check
from tests.cases import NETWORKS, TINY, in_float64, subject
from tests.helpers import randomize
from tests.test_records import at_all

DOUBLE = torch.float64
NETS = [pytest.param(n, marks=pytest.mark.slow if n == "torchvision_vit" else ()) for n in NETWORKS]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(sum(shape)))


def called(program, params, x):
    return program(params, *x) if isinstance(x, tuple) else program(params, x)


@pytest.mark.parametrize("network", NETS)
def test_upper_after_lower_is_the_whole(network):
    fmodel, params, x = subject(network)
    last = next(e.name for e in fmodel.equations if e.outputs[0].name == fmodel.output_leaves[0].name)
    for name in at_all(fmodel):
        if name == last:
            continue
        lower, upper = fmodel.cut(name if ":" in name else f"{name}:0")
        check(lower)
        check(upper)
        assert len(lower.equations) < len(fmodel.equations)
        for samples in (x, x[:1]):
            torch.testing.assert_close(called(upper, params, lower(params, samples)), fmodel(params, samples))


# -- relevance goes on through a cut ----------------------------------------------------------------------------------

# What takes nothing, so that a value times its coefficient is as good as the coefficient.
WITHOUT_STABILIZERS = composites.by_kind(
    {"normalization": rules.normalization(TINY), "attention": rules.attention("value", TINY)}
)
EXACT = {
    "epsilon": composites.epsilon(TINY),
    "epsilon_plus": composites.epsilon_plus(TINY, TINY),
    "epsilon_plus_flat": composites.epsilon_plus_flat(TINY, TINY),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0, TINY, stabilizer=TINY),
    "attn_lrp": composites.attn_lrp(epsilon=TINY),
    "cp_lrp": composites.cp_lrp(epsilon=TINY),
}
EXACT = {name: composites.first_match(entries, WITHOUT_STABILIZERS) for name, entries in EXACT.items()}


def cut_at(fmodel, name):
    """Cut at an equation, which has the name of the first call where there are several."""
    is_first = ":" not in name and len(fmodel.names(name)) > 1 and name in at_all(fmodel)
    return fmodel.cut(f"{name}:0" if is_first else name)


def in_two(fmodel, params, x, entries, target, name):
    """The relevance of the inputs that goes through a cut: as coefficients or, where there are none, as it is."""
    lower, upper = cut_at(fmodel, name)
    crossing = called(lower, params, x)
    trail = lrpfunc.record(upper, params, crossing, entries)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        flow = Flow(coefficient=trail.pull(target, form="coefficient")[0])
    if said:  # by a rule that shares whatever the value is
        flow = Flow(relevance=trail.pull(target)[0], by_value=False)
    return lrpfunc.record(lower, params, x, entries).pull(flow)[0]


def between(fmodel) -> list[str]:
    """The names of all layers that relevance passes and that others follow."""
    names = [name for name in at_all(fmodel) if fmodel.producers[output_of(fmodel, name)].outputs[0].is_differentiable]
    return [name for name in names if output_of(fmodel, name) not in facts(fmodel).results]


def output_of(fmodel, name: str) -> str:
    return next(e.outputs[0].name for e in fmodel.equations if e.name == name)


def check_law(fmodel, params, x, names=None, target=1) -> None:
    """The whole's relevance, elementwise, under every composite and through every cut."""
    names = names or between(fmodel)
    assert names
    for entry, entries in EXACT.items():
        expected = optree.tree_leaves(lrpfunc.attribute(fmodel, params, x, entries, target))
        scale = max(r.abs().max().item() for r in expected)
        for name in names:
            found = in_two(fmodel, params, x, entries, target, name)
            for got, right in zip(optree.tree_leaves(found), expected, strict=True):
                worst = (got - right).abs().max().item() / scale
                assert worst <= 1e-9, f"{entry}, cut at '{name}': {worst:.2g}"


@pytest.mark.parametrize("name", ["norm", "query", "scaled_dot_product_attention", "gate", "mul", "head", "slice"])
def test_with_stabilizers_too_a_cut_is_exact_in_the_form_in_which_relevance_arrives(name):
    fmodel, params, x = subject("attending")
    entries = composites.epsilon(1e-6)
    expected = lrpfunc.attribute(fmodel, params, x, entries, 1)
    torch.testing.assert_close(in_two(fmodel, params, x, entries, 1, name), expected, rtol=1e-12, atol=1e-12)
    lower, upper = fmodel.cut(name)
    relevance = lrpfunc.record(upper, params, lower(params, x), entries).pull(1)[0]
    found = lrpfunc.record(lower, params, x, entries).pull(Flow(relevance=relevance))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def gru(p, x):
    state = x.new_zeros(x.shape[0], 6)
    for step in x.unbind(1):
        z, r = (step @ p["z"] + state @ p["uz"]).sigmoid(), (step @ p["r"] + state @ p["ur"]).sigmoid()
        state = (1 - z) * (step @ p["n"] + r * (state @ p["un"])).tanh() + z * state
    return state @ p["out"]


def state_space(p, x):
    step, given = F.softplus(x @ p["dt"]), x @ p["b"]
    state = x.new_zeros(x.shape[0], 6)
    for dt, u in zip(step.unbind(1), given.unbind(1), strict=True):
        state = (dt * p["a"]).exp() * state + dt * u
    return state @ p["out"]


def gated(p, x):
    return (x @ p["a"]) * (x @ p["b"]).sigmoid() @ p["c"]


def swish(p, x):
    h = x @ p["a"]
    return h * h.sigmoid() * (x @ p["b"]) @ p["c"]


def rms_norm(p, x):
    h = x @ p["a"]
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * p["s"] @ p["c"]


def attention(p, x):
    return torch.softmax((x @ p["q"]) @ (x @ p["k"]).mT, -1) @ (x @ p["v"]) @ p["c"]


def experts(p, x):
    gates = (x @ p["a"]).softmax(-1).clamp(min=0.1)
    return gates / gates.sum(-1, keepdim=True) * (x @ p["b"]) @ p["c"]


def twice(p, x, weight):
    return ((x @ weight).relu() @ weight).relu() @ p["c"]


def shared(p, x):
    """Places that are read at both ends."""
    at = p["at"][:, : x.shape[1]] * 2
    return ((x + at) @ p["w"]).relu() + at


def held_fast(p, x):
    h = (x @ p["w"]).relu()
    return (h @ p["w"]) * h.detach() + h.detach().abs() * (h @ p["w"]).sign()


def masked(p, x, mask):
    mask = mask[..., None].to(x.dtype)
    return ((x * mask) @ p["w"]).relu() * mask + (1 - mask) * 3


W, A, B, C = random(5, 5), random(5, 6), random(5, 6) + 0.5, random(6, 2)
X = random(3, 4, 5)

FUNCTIONS = {
    # what is made of parameters
    "a tied autoencoder": (lambda p, x: (x @ p["w"]).relu() @ p["w"].mT, {"w": A}),
    "a tied autoencoder of layers": (
        lambda p, x: F.linear(F.linear(x, p["w"], p["b"]).relu(), p["w"].t(), p["c"]),
        {"w": A.mT, "b": random(6), "c": random(5)},
    ),
    "a transposed weight, twice": (lambda p, x: twice(p, x, p["w"].t()), {"w": W, "c": random(5, 2)}),
    "a scaled weight, twice": (
        lambda p, x: twice(p, x, p["w"] * p["s"] / p["w"].norm()), {"w": W, "s": random(5), "c": random(5, 2)},
    ),
    "places at both ends": (shared, {"at": random(1, 9, 5), "w": W}),
    "a token for each sample": (
        lambda p, x: (torch.cat([t := p["t"].expand(x.shape[0], -1, -1), x], 1) @ p["w"]).relu() + t,
        {"t": random(1, 1, 5), "w": W},
    ),
    # what kinds are told by
    "a gate": (gated, {"a": A, "b": B, "c": C}),
    "swish written out": (swish, {"a": A, "b": B, "c": C}),
    "a GRU": (gru, {**{n: random(5, 6) for n in "zrn"}, **{f"u{n}": random(6, 6) for n in "zrn"}, "out": C}),
    "a state space": (state_space, {"dt": A, "b": B, "a": -random(6).abs(), "out": C}),
    "a norm written out": (rms_norm, {"a": A, "s": random(6), "c": C}),
    "attention written out": (attention, {"q": W, "k": W + 1, "v": A, "c": C}),
    "experts": (experts, {"a": A, "b": B, "c": C}),
    # constants
    "what is detached or a step": (held_fast, {"w": W}),
    "a mask of integers": (masked, {"w": W}, X, torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 1]])),
    "a mask of comparisons": (lambda p, x: ((x * (m := (x > 0).to(x.dtype))) @ p["w"]).relu() * m, {"w": W}),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_relevance_through_a_cut_is_that_of_the_whole(name):
    function, given, *inputs = FUNCTIONS[name]
    inputs = tuple(inputs) if inputs else X
    fmodel, params = lrpfunc.trace(function, given, *(inputs if isinstance(inputs, tuple) else [inputs]))
    check_law(fmodel, params, inputs, between(fmodel)[:: 6 if name == "a GRU" else 1], lambda y: y)


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).relu()).relu())


def resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return randomize(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3))


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)


MODULES = {
    "weight norm": (lambda: Twice(parametrizations.weight_norm(nn.Linear(5, 5))), (3, 5), None),
    "spectral norm": (lambda: Twice(parametrizations.spectral_norm(nn.Linear(5, 5))), (3, 5), None),
    "transformer blocks": (encoder, (2, 3, 8), ["layers.0", "layers.0.linear1", "layers.0.self_attn"]),
    "resnet": (resnet, (2, 3, 16, 16), ["conv1", "layer1", "layer2.0.conv1", "layer3"]),
}


@pytest.mark.parametrize("name", MODULES)
def test_relevance_through_a_cut_of_a_module(name):
    make, shape, names = MODULES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(shape)
    fmodel, params = lrpfunc.functionalize(model, x)
    check_law(fmodel, in_float64(params), x.double(), names, lambda y: y)


BLOCKS = {"llama": ["model.model.layers.0", "model.model.layers.0.input_layernorm", "model.model.norm"]}


@pytest.mark.parametrize("network", NETS)
def test_relevance_through_a_cut_of_networks(network):
    """Of the laws' table; `pytest -m slow` has a transformer's other cuts."""
    check_law(*subject(network), BLOCKS.get(network))


@pytest.mark.slow
@pytest.mark.parametrize("network", BLOCKS)
def test_relevance_through_every_cut(network):
    check_law(*subject(network))


def test_what_is_made_of_parameters_does_not_cross():
    given = {"w": A.mT.contiguous(), "s": random(5)}
    fmodel, params = lrpfunc.trace(lambda p, x: (x @ p["w"].t()).relu() @ (p["w"] * p["s"]), given, X)
    for name in between(fmodel):
        lower, upper = cut_at(fmodel, name)
        crossing = lower(params, X)
        assert upper.input_names == ("x",)
        assert {facts(upper).kind_of(e) for e in upper.equations if e.operator == "matmul"} == {"dense"}
        leaf = params["w"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(upper({**params, "w": leaf}, crossing).sum(), leaf)
        found = lrpfunc.parameter_relevance(upper, params, crossing, EXACT["epsilon"], lambda y: y)
        torch.testing.assert_close(found["w"], params["w"] * gradient, rtol=1e-8, atol=1e-10)


def test_kinds_are_those_of_the_whole_where_a_gate_is_all_that_is_left_of_it():
    """Whatever comes there: another model may stand between."""
    fmodel, _ = lrpfunc.trace(gated, {"a": A, "b": B, "c": C}, X)
    for name in between(fmodel):
        _, upper = cut_at(fmodel, name)
        products = [e for e in upper.equations if e.operator == "mul"]
        assert [facts(upper).factor_of(e).role for e in products] == ["gate"] * len(products)
        assigned = [str(row[-1]) for row in lrpfunc.explain(upper, composites.cp_lrp()).rows]
        assert assigned.count("gate(stabilizer=0)") == len(products) == (name != "mul")


def test_constants_cross_and_stay_constants():
    function, given, *inputs = FUNCTIONS["a mask of integers"]
    fmodel, params = lrpfunc.trace(function, given, *inputs)
    lower, upper = fmodel.cut("relu")
    crossing = lower(params, *inputs)
    assert [tuple(one.shape) for one in crossing] == [(3, 4, 5), (3, 4, 1)]
    relevance = lrpfunc.attribute(upper, params, crossing, EXACT["epsilon"], lambda y: y)
    assert relevance[0].any()
    assert not relevance[1].any()


def test_ids_cross_as_they_are():
    """Those that a table is looked up by have the relevance of its rows, also where a program ends in them."""
    given, ids = {"t": random(7, 5), "w": random(5, 2)}, torch.tensor([[1, 2, 3], [4, 5, 6]])
    function = lambda p, ids: (F.embedding((ids + 1) % 7, p["t"]) @ p["w"]).relu().sum(1)  # noqa: E731
    fmodel, params = lrpfunc.trace(function, given, ids)
    expected = lrpfunc.attribute(fmodel, params, ids, EXACT["epsilon"], 1)
    assert expected.any()
    for name in ("add", "remainder"):
        lower, upper = fmodel.cut(name)
        crossing = lower(params, ids)
        above = lrpfunc.attribute(upper, params, crossing, EXACT["epsilon"], 1)
        trail = lrpfunc.record(lower, params, ids, EXACT["epsilon"])
        for flow in (Flow(relevance=above), Flow(coefficient=above)):
            torch.testing.assert_close(trail.pull(flow)[0], expected)


def test_first_layers_are_those_of_the_whole():
    fmodel, *_ = subject("convolutional")
    lower, upper = fmodel.cut("second")
    found = [composites.first_layer(rules.flat())(program) for program in (fmodel, lower, upper)]
    assert [list(one) for one in found] == [["first"], ["first"], []]


def test_a_part_of_a_part():
    fmodel, params = lrpfunc.trace(gru, FUNCTIONS["a GRU"][1], X)
    expected = lrpfunc.attribute(fmodel, params, X, EXACT["cp_lrp"], lambda y: y)
    lower, rest = cut_at(fmodel, between(fmodel)[12])
    middle, upper = cut_at(rest, between(fmodel)[40])
    crossing = called(lower, params, X)
    given = [(lower, X), (middle, crossing), (upper, called(middle, params, crossing))]
    trails = [lrpfunc.record(program, params, x, EXACT["cp_lrp"]) for program, x in given]
    flow = lambda y: y  # noqa: E731
    for trail in reversed(trails):
        flow = Flow(coefficient=trail.pull(flow, form="coefficient")[0])
    torch.testing.assert_close(X * flow.tensor, expected, rtol=1e-8, atol=1e-10)


def test_parts_stay_parts_when_they_are_pickled_saved_and_canonized(tmp_path):
    fmodel, params = lrpfunc.trace(gated, {"a": A, "b": B, "c": C}, X)
    _, upper = fmodel.cut("sigmoid")
    expected = lrpfunc.explain(upper, composites.cp_lrp()).rows
    assert "gate(stabilizer=0)" in [row[-1] for row in expected]
    lrpfunc.save(tmp_path / "upper.safetensors", (upper, params))
    saved, _ = lrpfunc.load(tmp_path / "upper.safetensors")
    for again in (pickle.loads(pickle.dumps(upper)), saved, lrpfunc.canonize(upper, params).fmodel):
        assert lrpfunc.explain(again, composites.cp_lrp()).rows == expected


def test_what_comes_after_is_known_to_a_canonized_part_as_well(tmp_path):
    """A step size is a constant because exponentials follow, whatever the part's own layers have become."""

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.step = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 6)
            self.rates = nn.Parameter(torch.ones(6))

        def forward(self, x):
            dt = F.softplus(self.step(self.norm(self.first(x))))
            return (-dt * self.rates).exp() * x.sum(1, keepdim=True) + dt * x.sum(1, keepdim=True)

    fmodel, params = lrpfunc.functionalize(randomize(Mixer()).eval(), torch.randn(2, 5))
    canonical = lrpfunc.canonize(fmodel, params)
    kinds = {e.name: facts(canonical.fmodel).kind_of(e) for e in canonical.fmodel.equations}
    assert set(kinds) < {e.name for e in fmodel.equations}
    lower, _ = fmodel.cut("softplus")
    lrpfunc.save(tmp_path / "lower.safetensors", (lower, params))
    saved, _ = lrpfunc.load(tmp_path / "lower.safetensors")
    for part in (lower, saved, pickle.loads(pickle.dumps(lower))):
        again = lrpfunc.canonize(part, params).fmodel
        assert {e.name: facts(again).kind_of(e) for e in again.equations}.items() <= kinds.items()
        assert facts(again).exponents == facts(canonical.fmodel).exponents != frozenset()


# -- what crosses -----------------------------------------------------------------------------------------------------


def test_a_module_is_cut_behind_its_last_layer_and_another_model_put_between():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))
    x, half = torch.randn(5, 3), nn.Linear(4, 4)
    lower, upper = (fmodel := lrpfunc.functionalize(model, x))[0].cut("0")
    params = fmodel[1]
    between, inner = lrpfunc.functionalize(half, torch.ones(1, 4))
    got = upper(params, between(inner, lower(params, x)))
    torch.testing.assert_close(got, model[1](half(model[0](x))))


def test_a_skip_connection_crosses_too():
    fmodel, params, x = subject("convolutional")
    lower, upper = fmodel.cut("second")
    crossing = lower(params, x)
    assert [tuple(one.shape) for one in crossing] == [(2, 2, 4, 4), (2, 2, 4, 4)]
    assert upper.input_names == ("x", "crossing_1")
    torch.testing.assert_close(upper(params, *crossing), fmodel(params, x))


def test_sizes_do_not_cross():
    fmodel, params = lrpfunc.trace(
        lambda p, x: (x @ p).relu().reshape(x.shape[0], -1).mean(1), torch.eye(3), torch.ones(2, 4, 3)
    )
    name = fmodel.names("relu*")[0]
    lower, upper = fmodel.cut(name)
    x = torch.randn(5, 4, 3)
    torch.testing.assert_close(upper(params, lower(params, x)), fmodel(params, x))


def test_sizes_are_asked_of_whatever_crosses():
    """The length of what is summed over in the layer itself is had of the skip connection, and not of the input."""

    def network(p, x):
        h = x @ p
        return h.sum(1)[:, None] + h / x.shape[1]

    fmodel, params = lrpfunc.trace(network, W, X)
    lower, upper = fmodel.cut("sum")
    assert [tuple(one.shape) for one in lower(params, X[:, :2])] == [(3, 5), (3, 2, 5)]
    torch.testing.assert_close(upper(params, *lower(params, X[:, :2])), fmodel(params, X[:, :2]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("secnd", r"no layer is called 'secnd'\. Did you mean 'second'"),
        ("head", "nothing follows 'head': what the program gives is made there"),
    ],
)
def test_cuts_that_cannot_be(name, message):
    fmodel, *_ = subject("convolutional")
    with pytest.raises(ProgramError, match=message):
        fmodel.cut(name)


def test_a_layer_of_two_outputs_is_no_place_for_a_cut():
    fmodel, _ = lrpfunc.trace(lambda p, x: x.max(1).values + x.split(2, 1)[0].sum(1), {}, torch.ones(2, 4))
    name = next(e.name for e in fmodel.equations if len(e.outputs) > 1)
    with pytest.raises(ProgramError, match=f"'{name}' has no single tensor as its output: cut at a layer that reads"):
        fmodel.cut(name)
