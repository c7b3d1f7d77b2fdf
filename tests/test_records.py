"""Law 11, and all that a record can do: seeds and edits inside, coefficients, batches of pulls, transforms."""

import functools

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import InputError, RuleError, TargetError
from lrpfunc.operations import active_equations
from tests.cases import law, subject
from tests.helpers import Branches, branches, randomize, relative_error

close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)


def waists(fmodel):
    """The equations with one output through which every path from an input to an output leads."""
    equations = active_equations(fmodel)
    inputs = {leaf.value.name for leaf in fmodel.input_leaves}
    outputs = {leaf.name for leaf in fmodel.output_leaves}

    def is_cut(without):
        reached = set(inputs)
        for equation in equations:
            if equation.name != without and any(v.name in reached for v in equation.reads):
                reached.update(v.name for v in equation.outputs)
        return not reached & outputs

    return [e.name for e in equations if len(e.outputs) == 1 and is_cut(e.name)]


def at_all(fmodel):
    return [e.name for e in active_equations(fmodel) if len(e.outputs) == 1]


# -- law 11 -----------------------------------------------------------------------------------------------------------


@law
def test_a_record_seeded_at_the_output_is_attribute(case):
    fmodel, params, x = case.subject
    names = at_all(fmodel)
    expected, expected_inner = lrpfunc.attribute(fmodel, params, x, case.rules, 1, at=names)
    trail = lrpfunc.record(fmodel, params, x, case.rules, at=names)
    relevance, inner = trail.pull(1)
    close(relevance, expected)
    close(inner, expected_inner)
    close(trail.output, fmodel(params, x))
    start = torch.zeros_like(trail.output)
    start[:, 1] = trail.output[:, 1]
    close(trail.pull(start)[0], expected)
    last = next(e.name for e in fmodel.equations if e.outputs[0].name == fmodel.output_leaves[0].name)
    close(trail.pull({last: start})[0], expected)


GRADIENTS = ("deconvnet", "guided_backprop", "beta_smooth")  # which move a relevance as it is
CLAMPING = ("deconvnet", "guided_backprop")  # what passes is not additive


@law
def test_what_arrived_at_a_waist_gives_the_same_below(case):
    fmodel, params, x = case.subject
    names = waists(fmodel)
    assert len(names) > 1
    trail = lrpfunc.record(fmodel, params, x, case.rules, at=names)
    expected, inner = trail.pull(1)
    for name in names:
        arrived = inner[name]
        if case.name not in GRADIENTS:
            value = trail.values[name]
            arrived = lrpfunc.Flow(coefficient=torch.where(value == 0, 0.0, arrived / value))
        below, _ = trail.pull({name: arrived})
        torch.testing.assert_close(below, expected, rtol=1e-6, atol=1e-9)


@law
def test_masks_that_sum_to_one_give_maps_that_sum_to_the_map(case):
    """What goes round a masked layer counts in each of the maps."""
    fmodel, params, x = case.subject
    names = at_all(fmodel)
    trail = lrpfunc.record(fmodel, params, x, case.rules, at=names)
    whole, _ = trail.pull(1)
    seen = [name for name, arrived in trail.pull(1)[1].items() if arrived.any()]
    for name in seen[:: max(1, len(seen) // 4)]:
        around, inner = trail.pull(1, edit={name: 0.0})
        assert not inner[name].any()
        mask = torch.rand(trail.values[name].shape, dtype=torch.float64)
        masks = [mask, 1 - mask]
        parts = [trail.pull(1, edit={name: m})[0] for m in masks]
        if case.name not in CLAMPING:
            close(parts[0] + parts[1], whole + around)
            close(trail.pull(1, edit={name: 0.25})[0], around + 0.25 * (whole - around))
        close(vmap(lambda m, name=name: trail.pull(1, edit={name: m})[0])(torch.stack(masks)), torch.stack(parts))
        close(trail.pull(1, edit={name: lambda relevance, m=mask: relevance * m})[0], parts[0])
    if case.name not in CLAMPING:
        ends = [name for name in waists(fmodel) if trail.values[name].dim() > 2][:2]
        assert all(not trail.pull(1, edit={name: 0.0})[0].any() for name in ends)


# -- coefficients -----------------------------------------------------------------------------------------------------


@law
def test_relevance_is_value_times_coefficient(case, recwarn):
    """Wherever a coefficient arrives; where a warning says that it was divided, to the stabilizer."""
    fmodel, params, x = case.subject
    names = at_all(fmodel)
    trail = lrpfunc.record(fmodel, params, x, case.rules, at=names)
    relevance, inner = trail.pull(1)
    coefficient, inside = trail.pull(1, form="coefficient")
    divided = {str(warning.message).split("'")[1] for warning in recwarn.list}
    recwarn.clear()
    label = fmodel.input_leaves[0].label
    found = {name: (trail.values[name], inside[name], inner[name]) for name in names}
    for name, (value, c, expected) in (found | {label: (x, coefficient, relevance)}).items():
        if name in divided:  # there is no coefficient of a zero
            torch.testing.assert_close(value * c, torch.where(value == 0, 0.0, expected), rtol=1e-2, atol=1e-3)
        else:
            close(value * c, expected)


def test_coefficients_are_derivatives_where_a_rule_is_the_gradient():
    """LRP-0 at each layer against finite differences of what follows it, by hand."""
    fmodel, params, x = subject("branches")
    model = branches(True)[0].double()
    model.load_state_dict(params)
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon(0), at=["narrow", "stem"])
    _, inner = trail.pull(lambda y: y * torch.eye(5, dtype=y.dtype)[2], form="coefficient")

    def after(narrow):
        return model.head(narrow.relu().mean((2, 3)))[:, 2].sum()

    narrow, direction = trail.values["narrow"], torch.randn(3, 6, 2, 2, dtype=torch.float64)
    step = 1e-6
    slope = (after(narrow + step * direction) - after(narrow - step * direction)) / (2 * step)
    close((inner["narrow"] * direction).sum(), slope, rtol=1e-6, atol=1e-9)


def test_token_ids_have_relevance_and_no_coefficient():
    torch.manual_seed(0)
    model, ids = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)), torch.tensor([[1, 0], [4, 2]])
    fmodel, params = lrpfunc.functionalize(model, ids)
    trail = lrpfunc.record(fmodel, params, ids, rules.epsilon(0), at="0")
    given, inner = trail.pull(1, form="coefficient")
    close(given, (trail.values["0"] * inner["0"]).sum(-1))
    close(given, trail.pull(1)[0])
    close(trail.pull_each([1, 2], form="coefficient")[0][0], given)


def test_coefficients_are_those_of_the_detach_trick():
    """Epsilon and CP-LRP written as a function whose gradient times input is LRP, with its own gradient."""
    torch.manual_seed(0)
    wq, wv, wo = (torch.randn(4, 4, dtype=torch.float64) for _ in range(3))
    x = torch.randn(2, 3, 4, dtype=torch.float64)

    def net(p, x):
        h = (x @ p["v"]).relu()
        pattern = torch.softmax((x @ p["q"]) @ x.transpose(1, 2), -1)
        return ((pattern @ h) @ p["o"])[:, -1]

    def surrogate(x):
        z = x @ wv
        h = z * (z > 0).detach()
        pattern = torch.softmax((x @ wq) @ x.transpose(1, 2), -1).detach()
        y = (pattern @ h) @ wo
        return y[:, -1]

    fmodel, params = lrpfunc.trace(net, {"q": wq, "v": wv, "o": wo}, x)
    trail = lrpfunc.record(fmodel, params, x, composites.cp_lrp(epsilon=0))
    seed = lambda y: y * torch.eye(4, dtype=y.dtype)[1]  # noqa: E731
    coefficient, _ = trail.pull(seed, form="coefficient")
    close(coefficient, grad(lambda x: surrogate(x)[:, 1].sum())(x))


def test_a_relevance_that_is_divided_is_said(recwarn):
    fmodel, params, x = subject("branches")
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon_plus_flat(), at="stem")
    with pytest.warns(UserWarning, match="at 'x' only a relevance is known, as a rule above it shares whatever"):
        coefficient, _ = trail.pull(1, form="coefficient")
    relevance, _ = trail.pull(1)
    close(coefficient, relevance / (x + 1e-6 * torch.where(x < 0, -1.0, 1.0).double()))


# -- batches of pulls -------------------------------------------------------------------------------------------------


@law
def test_pulls_of_a_batch_are_those_of_the_loop(case):
    fmodel, params, x = case.subject
    name = waists(fmodel)[0]
    trail = lrpfunc.record(fmodel, params, x, case.rules, at=name)
    loop = [trail.pull(target) for target in (2, 0, 1)]
    for chunk_size in (None, 2):
        relevance, inner = trail.pull_each([2, 0, 1], chunk_size=chunk_size)
        close(relevance, torch.stack([one for one, _ in loop]))
        close(inner[name], torch.stack([inside[name] for _, inside in loop]))
    seeds = torch.randn(3, *trail.values[name].shape, dtype=torch.float64)
    below, inner = trail.pull_each([{name: seed} for seed in seeds], edit={name: 0.5})
    close(below, torch.stack([trail.pull({name: seed}, edit={name: 0.5})[0] for seed in seeds]))
    close(inner[name], 0.5 * seeds)


def test_there_is_one_forward_pass(monkeypatch):
    fmodel, params, x = subject("branches")
    calls = []
    rule = rules.epsilon()

    def forward(operation, *inputs):
        calls.append(operation.name)
        return rule.forward(operation, *inputs)

    counting = composites.first_match({"*": rule._replace(forward=forward)}, composites.epsilon())
    trail = lrpfunc.record(fmodel, params, x, counting, at=["narrow", "side"])
    layers = len(calls)
    assert layers == 6  # block is called twice
    trail.pull_each(range(5))
    trail.pull_each([{"narrow": trail.values["narrow"]}] * 4)
    trail.pull(0, form="coefficient")
    trail.pull({"side": torch.ones_like(trail.values["side"]), "narrow": lambda value: value})
    assert len(calls) == layers


def test_seeds_at_several_layers_add_up():
    fmodel, params, x = subject("branches")
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon_plus(), at=["narrow", "side", "head"])
    seeds = {name: torch.rand_like(value) for name, value in trail.values.items()}
    alone = [trail.pull({name: seed})[0] for name, seed in seeds.items()]
    together, inner = trail.pull(seeds)
    close(together, sum(alone))
    close(inner["head"], seeds["head"])
    assert relative_error(inner["narrow"], seeds["narrow"]) > 0.01  # with what came from the head


# -- transforms -------------------------------------------------------------------------------------------------------


def pulled(x, params, fmodel, case_rules, mask):
    trail = lrpfunc.record(fmodel, params, x, case_rules, at="narrow")
    relevance, inner = trail.pull(1, edit={"narrow": mask})
    return relevance, inner["narrow"], trail.values["narrow"]


def test_derivatives_go_through():
    fmodel, params, x = subject("branches")
    mask = torch.rand(3, 6, 2, 2, dtype=torch.float64)
    direction = torch.randn_like(x)

    def total(x, mask):
        relevance, inner, values = pulled(x, params, fmodel, composites.epsilon(0.1), mask)
        return (relevance.square().sum() + (inner * values).sum()).reshape(())

    step = 1e-6
    slope = (total(x + step * direction, mask) - total(x - step * direction, mask)) / (2 * step)
    _, tangent = jvp(lambda x: total(x, mask), (x,), (direction,))
    close(tangent, slope, rtol=1e-5, atol=1e-8)
    close((grad(total)(x, mask) * direction).sum(), slope, rtol=1e-5, atol=1e-8)
    change = torch.randn_like(mask)
    slope = (total(x, mask + step * change) - total(x, mask - step * change)) / (2 * step)
    close((grad(total, argnums=1)(x, mask) * change).sum(), slope, rtol=1e-5, atol=1e-8)


def test_a_record_compiles():
    fmodel, params, x = subject("dense")
    mask, composite = torch.rand(2, 3, dtype=torch.float64), composites.epsilon()

    def explained(x, mask):
        trail = lrpfunc.record(fmodel, params, x, composite, at="first")
        relevance, inner = trail.pull(1, edit={"first": mask})
        coefficient, _ = trail.pull(1, form="coefficient")
        below, _ = trail.pull({"first": inner["first"]})
        return relevance, inner["first"], coefficient, below, trail.values["first"]

    compiled = torch.compile(explained, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(x, mask), explained(x, mask), strict=True):
        close(got, expected)


@law
def test_a_trail_is_a_pytree_of_tensors(case):
    """It may leave one function that torch transforms, and enter another."""
    fmodel, params, x = case.subject
    name = waists(fmodel)[0]
    expected, inner = lrpfunc.record(fmodel, params, x, case.rules, at=name).pull(1)
    trails = vmap(lambda sample: lrpfunc.record(fmodel, params, sample[None], case.rules, at=name))(x)
    assert isinstance(trails, lrpfunc.Trail)
    relevance, inside = vmap(lambda trail: trail.pull(1))(trails)
    close(relevance[:, 0], expected)
    close(inside[name][:, 0], inner[name])


def test_a_trail_of_stacked_parameters_is_a_pytree_too():
    fmodel, params, x = subject("branches")
    stacked = {name: torch.stack([p, 2 * p]) for name, p in params.items()}
    trails = vmap(lambda p: lrpfunc.record(fmodel, p, x, composites.epsilon_plus(), at="narrow"))(stacked)
    relevance, _ = vmap(lambda trail: trail.pull(1))(trails)
    for i in range(2):
        one = {name: p[i] for name, p in stacked.items()}
        close(relevance[i], lrpfunc.attribute(fmodel, one, x, composites.epsilon_plus(), 1))


@pytest.mark.parametrize("checkpoint", [1, 2, 5])
def test_checkpoints_change_nothing(checkpoint):
    fmodel, params, x = subject("branches")
    names = at_all(fmodel)
    whole = lrpfunc.record(fmodel, params, x, composites.epsilon_plus(), at=names)
    parts = lrpfunc.record(fmodel, params, x, composites.epsilon_plus(), at=names, checkpoint=checkpoint)
    seeds = {"stem": torch.ones_like(whole.values["stem"]), "narrow": whole.values["narrow"]}
    for _ in range(2):
        close(parts.values, whole.values)
        close(parts.pull(seeds, edit={"pool": 0.5}), whole.pull(seeds, edit={"pool": 0.5}))
        close(parts.pull(3), whole.pull(3))


def test_a_prepared_explanation_records():
    fmodel, params, x = subject("branches")
    explain = lrpfunc.prepare(fmodel, params, composites.epsilon_gamma_box(-3.0, 3.0))
    direct = lrpfunc.record(fmodel, params, x, composites.epsilon_gamma_box(-3.0, 3.0), at="narrow")
    trail = explain.record(x, at="narrow")
    close(trail.pull(2), direct.pull(2))
    seed = {"narrow": torch.rand_like(trail.values["narrow"])}
    close(trail.pull(seed), direct.pull(seed))
    assert repr(trail) == "Trail(output (3, 5), at narrow)"


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trail():
    fmodel, params, x = subject("branches")
    return lrpfunc.record(fmodel, params, x, composites.epsilon_plus(), at=["narrow", "head"])


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("narow", r"no layer is called 'narow'\. Did you mean 'narrow'\? `print\(fmodel\)` lists all names\."),
        (3, "`at` takes names of layers, but got 3"),
        (["head", 3], "`at` takes names of layers, but got"),
        ("nar*x", r"no layer matches the pattern 'nar\*x'"),
    ],
)
def test_places_that_there_are_not(at, message):
    fmodel, params, x = subject("branches")
    with pytest.raises(RuleError, match=message):
        lrpfunc.record(fmodel, params, x, composites.epsilon(), at=at)


def test_a_constant_is_no_place():
    fmodel, params = lrpfunc.trace(lambda p, x: x * (x.sign() + 1), {}, torch.ones(2, 3))
    name = next(e.name for e in fmodel.equations if e.operator == "sign")
    with pytest.raises(RuleError, match=f"'{name}' is a constant: it does not depend on an input through what has a"):
        lrpfunc.record(fmodel, params, torch.ones(2, 3), composites.epsilon(), at=name)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            {"side": torch.ones(1)},
            RuleError,
            r"'side' is not among the layers that this trail was recorded at, narrow, ",
        ),
        ({"narrow": torch.ones(2)}, TargetError, r"what enters at 'narrow' must be a tensor \(3, 6, 2, 2\) of torch"),
        ({"narrow": 3}, TargetError, "as the value, but is int"),
        ({"narrow": torch.ones(3, 6, 2, 2)}, TargetError, "of torch.float64, as the value, but is .* of torch.float32"),
        ({"narrow": lambda value: value[0]}, TargetError, "what enters at 'narrow' must be a tensor"),
        (torch.ones(2, 5), TargetError, "an index tensor must hold integers, but is torch.float32"),
        (17, TargetError, "target 17 is out of range"),
    ],
)
def test_seeds_that_do_not_fit(target, error, message, trail):
    with pytest.raises(error, match=message):
        trail.pull(target)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        ({"side": 1.0}, RuleError, "'side' is not among the layers"),
        (
            {"narrow": torch.ones(4, 1, 6, 2, 2)},
            InputError,
            r"multiplies what passes there, \(3, 6, 2, 2\), which a mask",
        ),
        ({"narrow": torch.ones(7)}, InputError, "would give another shape"),
        ({"narrow": "half"}, InputError, "the edit of 'narrow' must be a tensor, a number, or a function of a relev"),
        ({"narrow": True}, InputError, "must be a tensor, a number, or a function"),
        ({"narrow": lambda r: r[0]}, InputError, "what the edit of 'narrow' gives must be a tensor"),
        ({"narrow": lambda r: None}, InputError, "as the value, but is NoneType"),
    ],
)
def test_edits_that_do_not_fit(edit, error, message, trail):
    with pytest.raises(error, match=message):
        trail.pull(1, edit=edit)


def test_edits_and_seeds_that_are_no_mapping_or_nothing(trail):
    with pytest.raises(InputError, match=r"edits are \{name: mask or function\}, but got list"):
        trail.pull(1, edit=[0.5])
    with pytest.raises(TargetError, match="nothing enters: give the relevance of one layer at least"):
        trail.pull({})


def test_one_layer_by_two_names():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.Linear(5, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon(), at=["0", "0.1"])
    seed = trail.values["0"]
    close(trail.pull({"0": seed, "0.1": seed})[0], 2 * trail.pull({"0": seed})[0])
    with pytest.raises(InputError, match=r"some of '0', '0\.1' are one layer: edit it once"):
        trail.pull(1, edit={"0": 0.5, "0.1": 0.5})


def test_masks_of_another_dtype():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).bfloat16(), torch.randn(2, 4).bfloat16()
    fmodel, params = lrpfunc.functionalize(model, x)
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon(), at="1")
    expected, _ = trail.pull(1, edit={"1": 0.5})
    for mask in (torch.full((2, 5), 0.5), torch.full((5,), 0.5, dtype=torch.float64)):
        assert torch.equal(trail.pull(1, edit={"1": mask})[0], expected)
    whole, _ = trail.pull(1)
    assert torch.equal(trail.pull(1, edit={"1": torch.ones(5, dtype=torch.bool)})[0], whole)


def test_batches_that_are_none(trail):
    with pytest.raises(TargetError, match="targets must be a sequence of at least one target or an index tensor"):
        trail.pull_each([])
    with pytest.raises(TargetError, match="must enter at the same layers: pull the others by themselves"):
        trail.pull_each([1, {"narrow": trail.values["narrow"]}])
    with pytest.raises(TargetError, match="chunk_size must be a number of targets >= 1, but is 0"):
        trail.pull_each([1], chunk_size=0)


def test_a_form_that_there_is_not(trail):
    with pytest.raises(RuleError, match="form must be 'relevance' or 'coefficient', but is 'both'"):
        trail.pull(1, form="both")


def test_a_trail_for_one_pull_is_used_up():
    fmodel, params, x = subject("branches")
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon_plus(), once=True)
    trail.pull(1)
    with pytest.raises(InputError, match="this trail was made for one pull, which has used it up: record it again"):
        trail.pull(1)


def test_patterns_are_several_layers():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(Branches(True), nn.ReLU(), nn.Linear(5, 2)))
    x = torch.randn(2, 3, 8, 8)
    fmodel, params = lrpfunc.functionalize(model, x)
    trail = lrpfunc.record(fmodel, params, x, composites.epsilon(), at=["0.*e", "0", "2"])
    assert list(trail.values) == ["0.side", "0", "2"]
    torch.testing.assert_close(trail.values["0"], model[0](x).detach())


def test_leaves_keep_their_places_in_compiled_code():
    """Also where a dict is not in the order of its keys."""
    fmodel, params, x = subject("dense")
    params, rule = dict(reversed(params.items())), composites.epsilon()

    def explained(params, x):
        return lrpfunc.parameter_relevance(fmodel, params, x, rule, 1)

    compiled = torch.compile(explained, fullgraph=True, backend="eager")
    close(compiled(params, x), explained(params, x))
