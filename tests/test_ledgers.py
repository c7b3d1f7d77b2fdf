"""The ledger: by hand, against the relevance that `attribute` finds at each layer, and in total."""

import functools

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites, digits, rules
from lrpfunc.attribution.ledgers import Entry, Ledger, _recording, ledger
from lrpfunc.errors import RuleError
from lrpfunc.operations import facts
from tests.cases import subject
from tests.helpers import randomize

COMPOSITES = {
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-4.0, 4.0),
    "excitation_backprop": composites.excitation_backprop(),
    "deconvnet": composites.deconvnet(),
    "guided_backprop": composites.guided_backprop(),
    "beta_smooth": composites.beta_smooth(),
}


def traced(model, x):
    return *lrpfunc.functionalize(model, x), x


@pytest.fixture(scope="module")
def residual():
    return subject("branches")


@functools.cache
def traced_digits(is_canonical: bool):
    model, images, _ = digits.load()
    images = images[:7].double()
    program = lrpfunc.functionalize(model.double(), images)
    return *(lrpfunc.canonize(*program)[:2] if is_canonical else program), images


def linear():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, -0.5]]))
        model.bias.copy_(torch.tensor([1.0, -2.0]))
    return traced(model, torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))


def test_a_bias_absorbs_its_share():
    # z_0 = 1 + 2 + 1 = 4, of which the bias has 1; for the second sample z_0 = -1 + 1 + 1 = 1, all of it the bias's.
    found = ledger(*linear(), rules.epsilon(0), target=0)
    assert found.entries == (Entry("linear", "dense", "epsilon(0)", 5.0, 3.0),)
    assert found.entries[0].absorbed == found.absorbed == 2.0
    assert (found.seed, found.inputs, found.arrived) == (5.0, {"input": 3.0}, 3.0)


def test_a_stabilizer_absorbs_too_and_a_negative_share_is_one_that_was_added():
    # z_1 = 2 - 1 - 2 = -1 of the first sample, of which the inputs have 1: R_x = 1 / (-1 - 1) * -1 = 0.5.
    fmodel, params, x = linear()
    found = ledger(fmodel, params, x[:1], rules.epsilon(1.0), target=1)
    assert found.seed == -1.0
    assert found.arrived == pytest.approx(0.5)
    assert found.absorbed == pytest.approx(-1.5)


def test_it_prints_a_table_and_the_totals():
    assert str(ledger(*linear(), rules.epsilon(0), target=0)).splitlines() == [
        "name    kind   rule        arrived  passed on  absorbed",
        "linear  dense  epsilon(0)  5.000    3.000      2.000",
        "seed 5.000, at the inputs 3.000, absorbed 2.000",
    ]


@pytest.mark.parametrize(
    ("seed", "arrived", "said"),
    [
        (2.0, 1000.0, "What arrives is 500 times the seed: most was added or taken at 'fc' by epsilon(1e-06)."),
        (-2.0, 1000.0, "What arrives is 500 times the seed"),
        (2.0, -1000.0, "What arrives is 500 times the seed"),
        (0.0, 1.0, "What arrives is of a seed of zero"),
        (2.0, float("inf"), "What arrives is inf times the seed"),
        (2.0, 15.0, ""),
        (2.0, -15.0, ""),
        (0.0, 0.0, ""),
        (2.0, float("nan"), ""),
    ],
)
def test_relevance_that_explodes_is_said(seed, arrived, said):
    entries = [
        Entry("fc", "dense", "epsilon(1e-06)", seed, arrived),
        Entry("conv", "convolution", "zplus()", arrived, arrived),
    ]
    printed = str(Ledger(entries, seed, {"x": arrived}))
    assert said in printed
    assert ("larger stabilizer" in printed) == bool(said)


def test_numbers_stand_flush_right_and_noise_prints_as_zero():
    entries = (Entry("a", "dense", "r", 100.0, -7.25), Entry("b", "dense", "r", -7.25, -7.25 + 1e-9))
    assert repr(Ledger(entries, 100.0, {"x": -7.25})).splitlines() == [
        "name  kind   rule  arrived  passed on  absorbed",
        "a     dense  r     100.0     -7.2      107.2",
        "b     dense  r      -7.2     -7.2        0.0",
        "seed 100.0, at the inputs -7.2, absorbed 107.2",
    ]


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_it_prints_what_is_zero_or_not_a_number(value):
    assert f" {value:.3f}" in str(Ledger((Entry("a", "dense", "r", value, value),), value, {"x": value}))


@pytest.mark.parametrize("name", COMPOSITES)
def test_what_arrives_is_what_attribute_finds_at_each_layer(name, residual):
    fmodel, params, x = residual
    found = ledger(fmodel, params, x, COMPOSITES[name], target=[1, 0, 2])
    names = [entry.name for entry in found.entries]
    relevance, inner = lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target=[1, 0, 2], at=names)
    arrived = {entry.name: entry.arrived for entry in found.entries}
    scale = max(map(abs, arrived.values()))
    assert arrived == pytest.approx({name: inner[name].sum().item() for name in names}, abs=1e-9 * scale)
    assert found.inputs == pytest.approx({"x": relevance.sum().item()}, abs=1e-9 * scale)
    assert found.seed == pytest.approx(fmodel(params, x)[torch.arange(3), torch.tensor([1, 0, 2])].sum().item())


@pytest.mark.parametrize("name", COMPOSITES)
def test_what_is_passed_on_arrives_somewhere(name, residual):
    """At each value: what its readers pass on together is what arrives, seen here for readers of that value alone."""
    fmodel, params, x = residual
    found = {entry.name: entry for entry in ledger(fmodel, params, x, COMPOSITES[name]).entries}
    readers = fmodel.readers()
    checked = 0
    for equation in fmodel.equations:
        after = readers.get(equation.outputs[0].name, [])
        active = [[v.name for v in reader.reads if v.name in facts(fmodel).active] for reader in after]
        if after and all(len(reads) == 1 for reads in active) and equation.name in found:
            passed_on = sum(found[reader.name].passed_on for reader in after)
            assert passed_on == pytest.approx(found[equation.name].arrived, rel=1e-9, abs=1e-9)
            checked += 1
    assert checked > 8


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("is_canonical", [False, True])
def test_all_that_enters_is_absorbed_or_arrives(name, is_canonical):
    fmodel, params, images = traced_digits(is_canonical)
    found = ledger(fmodel, params, images, COMPOSITES[name])
    assert found.seed == pytest.approx(fmodel(params, images).amax(1).sum().item())
    scale = max(abs(entry.arrived) for entry in found.entries)
    assert found.arrived + found.absorbed == pytest.approx(found.seed, abs=1e-12 * scale * len(found.entries))
    assert any(abs(entry.absorbed) > 0.01 for entry in found.entries)


@pytest.mark.parametrize("rule", [rules.epsilon(1e-12), rules.zplus(1e-12), rules.gamma(0.25, 1e-12)])
def test_without_biases_nothing_is_absorbed(rule):
    fmodel, params, x = subject("branches", bias=False)
    kinds = {"linear": rule, "sum": rules.norm(1e-12), "average_pool": rules.norm(1e-12)}
    found = ledger(fmodel, params, x.abs(), composites.by_kind(kinds))
    assert abs(found.seed) > 0.01
    for entry in found.entries:
        assert entry.absorbed == pytest.approx(0, abs=1e-8 * abs(found.seed)), entry.name
    assert found.arrived == pytest.approx(found.seed, rel=1e-8)


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recording_changes_nothing(name, dtype):
    fmodel, params, x = subject("branches")
    params, x = {leaf: p.to(dtype) for leaf, p in params.items()}, x.to(dtype)
    expected = lrpfunc.attribute(fmodel, params, x, COMPOSITES[name])
    entries = []
    got = lrpfunc.attribute(fmodel, params, x, _recording(COMPOSITES[name], entries))
    torch.testing.assert_close(got, expected)
    assert len(entries) == len(lrpfunc.explain(fmodel, COMPOSITES[name]).rows)
    torch.testing.assert_close(lrpfunc.prepare(fmodel, params, _recording(COMPOSITES[name], []))(x), expected)


def test_entries_come_in_the_order_of_relevance_with_the_rules_that_explain_lists(residual):
    fmodel, params, x = residual
    found = ledger(fmodel, params, x, COMPOSITES["epsilon_plus"]).entries
    rows = lrpfunc.explain(fmodel, COMPOSITES["epsilon_plus"]).rows
    assert [(e.name, e.kind, e.rule) for e in found] == [(row[1], row[2], row[-1]) for row in reversed(rows)]


class Unknown(nn.Module):
    """What has no rule, several outputs, outputs that are integers, and inputs of several kinds."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(3, 4)

    def forward(self, x, scale, index):
        left, right = self.mix(self.norm(x)).softmax(-1).chunk(2, -1)
        values, _ = left.sort(-1)
        return self.head((values * right * scale).cumprod(-1))[:, -1] + index


def test_layers_without_rules_several_outputs_and_several_inputs():
    torch.manual_seed(0)
    model = randomize(Unknown()).double()
    x = (torch.randn(2, 5, 6, dtype=torch.float64), torch.rand(2, 5, 1, dtype=torch.float64), torch.tensor([[1], [2]]))
    fmodel, params = lrpfunc.functionalize(model, *x)
    found = ledger(fmodel, params, x, composites.epsilon())
    relevance = lrpfunc.attribute(fmodel, params, x, composites.epsilon())
    assert found.inputs == pytest.approx({"x": relevance[0].sum().item(), "scale": relevance[1].sum().item()})
    assert found.seed == pytest.approx(fmodel(params, *x).amax(1).sum().item())
    assert found.arrived + found.absorbed == pytest.approx(found.seed)
    by_name = {entry.name: entry.rule for entry in found.entries}
    assert {"norm", "mix", "softmax", "chunk", "sort", "cumprod"} <= set(by_name)
    assert by_name["cumprod"] == "input_times_gradient()"


def test_inputs_given_by_name_have_their_own_sums():
    def model(params, a, b):
        return (2 * a + b) * params["w"]

    fmodel, params = lrpfunc.trace(model, {"w": torch.ones(2)}, a=torch.ones(1, 2), b=torch.ones(1, 2))
    x = {"b": torch.tensor([[3.0, 4.0]]), "a": torch.tensor([[1.0, 5.0]])}
    found = ledger(fmodel, params, x, rules.epsilon(), target=lambda y: y)
    assert found.inputs == pytest.approx({"a": 12.0, "b": 7.0}, rel=1e-5)


def test_outputs_that_no_input_changes_are_no_part_of_the_seed():
    fmodel, params = lrpfunc.trace(lambda p, x: (x * p, p * 3), torch.ones(2), torch.ones(1, 2))
    found = ledger(fmodel, params, torch.tensor([[1.0, 2.0]]), rules.epsilon(), target=lambda y: y)
    assert (found.seed, found.arrived) == (3.0, 3.0)


def own_rule(backward):
    return lrpfunc.Rule("own", lambda operation, x: (operation(x), None), backward)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_rule_of_ones_own_sees_the_layout_that_it_would_see_otherwise(part):
    """Where all rules take any layout, images have their channels last, and `view` would fail."""
    fmodel, params, _ = subject("branches")
    params = {leaf: p.float() for leaf, p in params.items()}
    function = getattr(rules.epsilon(), part)
    own = rules.epsilon()._replace(**{part: lambda *arguments: function(*arguments)}, any_layout=False)
    assert not lrpfunc.prepare(fmodel, params, _recording(own, [])).plan.lays_out
    assert lrpfunc.prepare(fmodel, params, _recording(rules.epsilon(), [])).plan.lays_out
    assert not rules.Rule("own", own.forward, own.backward).any_layout


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda operation, _, flow: (None, None), r"own at layer 'linear': backward must return 1 flow\(s\)"),
        (lambda operation, _, flow: flow.tensor, "own at layer 'linear': backward must return Flow"),
    ],
)
def test_a_rule_that_is_wrong_is_named(backward, message):
    with pytest.raises(RuleError, match=message):
        ledger(*linear(), own_rule(backward))


def test_a_layer_that_keeps_everything():
    found = ledger(*linear(), own_rule(lambda operation, _, flow: None), target=0)
    assert found.entries == (Entry("linear", "dense", "own", 5.0, 0.0),)
    assert found.arrived == 0.0


def test_nothing_is_modified(residual):
    fmodel, params, x = residual
    before = {name: p.clone() for name, p in params.items()}, x.clone()
    ledger(fmodel, params, x, COMPOSITES["epsilon_gamma_box"])
    assert all(torch.equal(p, before[0][name]) for name, p in params.items())
    assert torch.equal(x, before[1])
