"""What is called more than once: one meaning of its name wherever layers are named."""

import pickle

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import circuits, composites, rules
from lrpfunc.attribution.places import outputs_named
from lrpfunc.errors import InputError, ProgramError, RuleError
from tests.test_records import close


class Block(nn.Module):
    """A layer of its own, an activation that is used twice, and an operation without a name of its own."""

    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)

    def forward(self, x):
        return self.act(self.down(self.act(self.up(x)))) + x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.block(self.block(x) * 2))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Twice().double().eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def traced(model, x):
    return lrpfunc.functionalize(model, x)


def test_names_of_the_network(traced):
    fmodel, _ = traced
    assert fmodel.names() == (
        "block.up",
        "block.act",
        "block.down",
        "block.act:1",
        "block.add",
        "mul",
        "block.up:1",
        "block.act:2",
        "block.down:1",
        "block.act:3",
        "block.add:1",
        "head",
    )


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("block.up", {"block.up:0": "block.up", "block.up:1": "block.up:1"}),
        ("block.act", {f"block.act:{i}": f"block.act:{i}" if i else "block.act" for i in range(4)}),
        ("block.act:0", {"block.act:0": "block.act"}),
        ("block.act:2", {"block.act:2": "block.act:2"}),
        ("block", {"block:0": "block.add", "block:1": "block.add:1"}),
        ("block:1", {"block:1": "block.add:1"}),
        ("*.down", {"block.down:0": "block.down", "block.down:1": "block.down:1"}),
        ("*.act:[02]", {"block.act:0": "block.act", "block.act:2": "block.act:2"}),
        ("block.up:*", {"block.up:0": "block.up", "block.up:1": "block.up:1"}),
        ("block:residual", {"block:0:residual": "block.add", "block:1:residual": "block.add:1"}),
        ("block:1:residual", {"block:1:residual": "block.add:1"}),
        ("block.add", {"block.add": "block.add"}),  # an operation, and no layer
        ("block.add*", {"block.add": "block.add", "block.add:1": "block.add:1"}),
        ("mul", {"mul": "mul"}),
        ("head", {"head": "head"}),
        (["block.up", "block.up:1"], {"block.up": "block.up", "block.up:1": "block.up:1"}),  # as they are listed
        (["block.up:0", "block.up"], {"block.up:0": "block.up", "block.up:1": "block.up:1"}),
    ],
)
def test_a_name_means_all_calls(name, layers, traced):
    fmodel, _ = traced
    makers = {place: equation.name for place, equation in fmodel.producers.items()}
    assert {layer: makers[place] for layer, place in outputs_named(fmodel, name).items()} == layers


def test_all_names_of_a_listing_are_equations(traced):
    fmodel, _ = traced
    places = outputs_named(fmodel, fmodel.names())
    assert {fmodel.producers[place].name: name for name, place in places.items()} == {n: n for n in fmodel.names()}


def test_values_are_those_of_each_call(traced, model, x):
    trail = lrpfunc.record(*traced, x, rules.epsilon(), at="block")
    first = model.block(x)
    close(trail.values, {"block:0": first.detach(), "block:1": model.block(2 * first).detach()})


def test_seeds_and_edits_are_for_all_calls_or_for_one(traced, x):
    trail = lrpfunc.record(*traced, x, composites.epsilon(), at="block.up")
    relevance, _ = trail.pull(1)
    halved = trail.pull(1, edit={"block.up": 0.5})[0]
    close(halved, trail.pull(1, edit={"block.up:0": 0.5, "block.up:1": 0.5})[0])
    close(halved, trail.pull(1, edit={"*.up": 0.5})[0])
    assert not torch.allclose(halved, trail.pull(1, edit={"block.up:0": 0.5})[0])
    assert not torch.allclose(halved, relevance)
    seed = torch.ones(2, 5, dtype=torch.float64)
    alone = [trail.pull({f"block.up:{i}": seed})[0] for i in range(2)]
    close(trail.pull({"block.up": seed})[0], sum(alone))
    close(trail.pull({"block.u?": lambda value: value})[0], trail.pull({"block.up": lambda value: value})[0])


def test_a_listing_of_both_has_the_first_by_its_own_name(traced, x):
    trail = lrpfunc.record(*traced, x, composites.epsilon(), at=["block.up", "block.up:1"])
    seed = torch.ones(2, 5, dtype=torch.float64)
    below, inner = trail.pull({"block.up": seed})
    close(inner, {"block.up": seed, "block.up:1": 0 * seed})
    close(below, trail.pull({"block.up:0": seed})[0])


def test_one_place_is_needed_for_a_cut(traced, x):
    fmodel, params = traced
    for name in ("block", "block.up", "block.act"):
        with pytest.raises(ProgramError, match=rf"'{name}' is called [24] times: cut at one of {name}:0, {name}:1"):
            fmodel.cut(name)
    for name in ("block:0", "block:1", "block.up:0", "block.act:1", "block.add"):
        lower, upper = fmodel.cut(name)
        crossing = lower(params, x)
        crossing = crossing if isinstance(crossing, tuple) else (crossing,)
        close(upper(params, *crossing), fmodel(params, x))
    with pytest.raises(ProgramError, match=r"no layer is called 'block:2'\. Did you mean 'block' or"):
        fmodel.cut("block:2")


def test_rules_and_lists_have_the_same_names(traced):
    fmodel, _ = traced
    assert fmodel.names("block.act") == fmodel.names("*.act") == tuple(n for n in fmodel.names() if ".act" in n)
    assert fmodel.names("block.act:0") == ("block.act",)
    assert fmodel.names("block:1") == ("block.up:1", "block.act:2", "block.down:1", "block.act:3", "block.add:1")
    for pattern, named in {
        "block.up": ("block.up", "block.up:1"),
        "*.up": ("block.up", "block.up:1"),
        "block.up:0": ("block.up",),
        "block:1": ("block.up:1", "block.down:1"),
    }.items():
        assert tuple(composites.by_name({pattern: rules.flat()})(fmodel)) == named
    with pytest.raises(RuleError, match="no layer matches the pattern 'block:2'"):
        composites.by_name({"block:2": rules.flat()})(fmodel)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block:2", r"no layer is called 'block:2'\. Did you mean"),
        ("head:1", r"no layer is called 'head:1'\. Did you mean 'head'"),
        ("block:2:residual", r"'block:2' has no residual\."),
        ("block.up:x*", r"no layer matches the pattern 'block\.up:x\*'"),
    ],
)
def test_calls_that_there_are_not(name, message, traced):
    with pytest.raises(RuleError, match=message):
        outputs_named(traced[0], name)


def test_a_weight_that_is_used_twice_is_a_layer_called_twice(x):
    def net(p, x):
        return (x @ p["w"]).relu() @ p["w"]

    fmodel, _ = lrpfunc.trace(net, {"w": torch.eye(4, dtype=torch.float64)}, x)
    assert list(outputs_named(fmodel, "w")) == ["w:0", "w:1"]
    assert list(outputs_named(fmodel, "relu")) == ["relu"]


def test_calls_are_kept_by_canonization_pickles_and_files(tmp_path):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())

        def forward(self, x):
            return self.block(self.block(x)).mean((2, 3))

    fmodel, params = lrpfunc.functionalize(Normed().eval(), torch.randn(2, 3, 4, 4))
    canonical = lrpfunc.canonize(fmodel, params)
    lrpfunc.save(tmp_path / "model.safetensors", fmodel)
    again = [canonical.fmodel, pickle.loads(pickle.dumps(fmodel)), lrpfunc.load(tmp_path / "model.safetensors")]
    for program in (fmodel, *again):
        assert list(outputs_named(program, "block")) == ["block:0", "block:1"]
        assert [program.producers[p].name for p in outputs_named(program, "block").values()] == ["block.2", "block.2:1"]


def test_values_put_in_are_for_all_calls_or_for_one(traced, model, x):
    fmodel, params = traced
    value = torch.randn(2, 4, dtype=torch.float64)
    close(circuits.patched(fmodel, params, x, {"block:0": value}), model.head(model.block(2 * value)).detach())
    close(circuits.patched(fmodel, params, x, {"block": value}), model.head(value).detach())
    with pytest.raises(InputError, match=r"some of 'block', 'block:1' are one layer: give its value once"):
        circuits.patched(fmodel, params, x, {"block": value, "block:1": value})


def test_the_final_stream_of_a_lens_is_one(traced, x):
    fmodel, params = lrpfunc.functionalize(Twice().double(), x[:, None])
    sources = circuits.lens(fmodel, params, [x[:, None]], composites.epsilon(), at="block").source_layers
    assert sources == ("block:0",)
    with pytest.raises(RuleError, match=r"'block' means 2 layers where one is needed: name one of block:0, block:1"):
        circuits.lens(fmodel, params, [x[:, None]], composites.epsilon(), at="block", final="block")
    with pytest.raises(InputError, match=r"the final stream, 'block:0', does not depend on 'block:1', or only through"):
        circuits.lens(fmodel, params, [x[:, None]], composites.epsilon(), at=["block:1", "block:0"])
