"""What may be done with a trail and what is refused: seeds, edits, copies, memory that nobody shares."""

import copy
import functools
import warnings

import optree
import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils import _pytree

import lrpfunc
from lrpfunc import Flow, circuits, composites, rules
from lrpfunc.errors import InputError, RuleError, TargetError
from tests.cases import law, subject
from tests.helpers import randomize
from tests.test_records import at_all, close


def dense(*layers, seed=0):
    """A network of layers in float64, as a program with its parameters."""
    torch.manual_seed(seed)
    model = randomize(nn.Sequential(*layers)).double().eval()
    return lrpfunc.functionalize(model, torch.ones(2, 4, dtype=torch.float64))


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def mlp():
    return (*dense(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)), normal(2, 4))


# -- a dict as output -------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """The output's keys are names of layers, and not of those that make them."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        h = self.body(x).relu()
        return {"head": self.other(h), "other": self.head(h).relu()}


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return (*lrpfunc.functionalize(Heads().double(), normal(2, 4)), normal(2, 4))


def test_keys_of_the_output_that_are_names_of_layers(heads):
    """Either is said by what cannot be the other."""
    trail = lrpfunc.record(*heads, rules.epsilon(), at=["head", "other", "body"])
    given = {"head": normal(2, 3), "other": normal(2, 3, seed=2)}
    with pytest.raises(TargetError, match=r"'head', 'other': parts of the output are called so, and layers of this"):
        trail.pull(given)
    _, inner = trail.pull(lambda output: given)
    close(inner["other"], given["head"])
    for one in (lambda name: Flow(relevance=given[name]), lambda name: lambda value: given[name]):
        _, inner = trail.pull({name: one(name) for name in given})
        close([inner["head"], inner["other"]], [given["head"], given["other"]])
    _, inner = trail.pull({"head": given["head"]})  # which is not the whole output
    close(inner["head"], given["head"])
    _, inner = lrpfunc.record(*heads, rules.epsilon(), at="head").pull(given)  # as 'other' was not recorded
    assert not torch.allclose(inner["head"], given["head"])


def test_keys_that_mean_the_same_either_way():
    torch.manual_seed(0)
    fmodel, params = lrpfunc.trace(lambda p, x: {"w": x @ p["w"]}, {"w": normal(4, 3)}, normal(2, 4))
    trail, seed = lrpfunc.record(fmodel, params, normal(2, 4), rules.epsilon(), at="w"), normal(2, 3)
    close(trail.pull({"w": seed}), trail.pull(lambda output: {"w": seed}))


def test_shapes_may_tell_layers_from_outputs():
    torch.manual_seed(0)
    params = {"w": normal(4, 3), "u": normal(3, 5, seed=3)}
    fmodel, params = lrpfunc.trace(lambda p, x: {"w": (x @ p["w"]) @ p["u"]}, params, normal(2, 4))
    trail = lrpfunc.record(fmodel, params, normal(2, 4), rules.epsilon(), at="w")
    close(trail.pull({"w": normal(2, 3)}), trail.pull({"w": Flow(relevance=normal(2, 3))}))
    close(trail.pull({"w": normal(2, 5)}), trail.pull(lambda output: {"w": normal(2, 5)}))
    with pytest.raises(TargetError, match=r"Of the output, \(2, 5\), give a function, .* of layers, \(2, 3\), flows"):
        trail.pull({"w": normal(2, 4)})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"head": torch.ones(2, 3)}, r"the relevance of the output must have its structure, .* but has"),
        ({"head": 1, "other": 2}, r"the relevance of the output must have its shape, \(2, 3\), but has int"),
        ({"head": torch.ones(1, 3), "other": torch.ones(2, 3)}, r"its shape, \(2, 3\), but has \(1, 3\)"),
    ],
)
def test_keys_that_no_layer_has_are_those_of_the_output(target, message, heads):
    with pytest.raises(TargetError, match=message):
        lrpfunc.record(*heads, rules.epsilon(), at="body").pull(target)


# -- one pull ---------------------------------------------------------------------------------------------------------

COPIES = {
    "torch's tree_map": lambda trail: _pytree.tree_map(lambda leaf: leaf, trail),
    "clones": lambda trail: _pytree.tree_map(torch.clone, trail),
    "optree's tree_map": lambda trail: optree.tree_map(lambda leaf: leaf, trail),
    "copy": copy.copy,
    "vmap": lambda trail: vmap(lambda _: trail, out_dims=None)(torch.zeros(1)),
}
USED_UP = "this trail was made for one pull, which has used it up: record it again, or without once"


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_trail_for_one_pull_are_used_up_with_it(how, mlp):
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at="1", once=True)
    early = COPIES[how](trail)
    expected = trail.pull(1)
    for each in (early, COPIES[how](trail), trail):
        with pytest.raises(InputError, match=USED_UP):
            each.pull(1)
        with pytest.raises(InputError, match=USED_UP):
            each.pull_each([1])
        close(each.output, mlp[0](*mlp[1:]))
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at="1", once=True)
    early = COPIES[how](trail)
    close(early.pull(1), expected)
    with pytest.raises(InputError, match=USED_UP):
        trail.pull(1)


def test_a_deep_copy_is_another_trail(mlp):
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), once=True)
    other = copy.deepcopy(trail)
    close(other.pull(1), trail.pull(1))


REFUSED = [
    {"target": {"1": torch.ones(7)}},
    {"target": {"9": torch.ones(7)}},
    {"target": 17},
    {"target": 1, "form": "both"},
    {"target": 1, "edit": {"1": torch.ones(7)}},
    {"target": 1, "edit": {"1": "half"}},
    {"target": 1, "edit": {"1": 0.5, "[1]": 0.5}},
    {"target": 1, "edit": {"0": 0.5}},
    {"target": {"1": lambda value: value}, "edit": {"3": 0.5}},
]


@pytest.mark.parametrize("refused", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_uses_nothing_up(refused, mlp):
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at=["1", "3"], once=True)
    with pytest.raises(lrpfunc.LrpError):
        trail.pull(**refused)
    with pytest.raises(lrpfunc.LrpError):
        trail.pull_each([refused["target"]], **{name: given for name, given in refused.items() if name != "target"})
    close(trail.pull(1)[0], lrpfunc.attribute(*mlp, composites.epsilon_plus(), 1))


def test_a_batch_is_one_pull_and_chunks_are_several(mlp):
    several = lrpfunc.record(*mlp, composites.epsilon_plus(), at="1")
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at="1", once=True)
    with pytest.raises(
        InputError, match="for one pull, but 3 targets are several, 2 at once: leave chunk_size out, or"
    ):
        trail.pull_each(range(3), chunk_size=2)
    close(trail.pull_each(range(3), chunk_size=3), several.pull_each(range(3), chunk_size=1))
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at="1", once=True)
    close(trail.pull_each([2], chunk_size=1), several.pull_each([2]))
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at="1", once=True)
    close(trail.pull_each(range(3)), several.pull_each(range(3)))


# -- derivatives in what is captured ----------------------------------------------------------------------------------


@law
def test_derivatives_of_seeds_and_edits_of_a_trail_from_outside(case):
    """By torch.func and by autograd; of a trail for one pull, which may write over its memory, as of any other."""
    fmodel, params, x = case.subject
    names = at_all(fmodel)
    record = functools.partial(lrpfunc.record, fmodel, params, x, case.rules)
    values, arrived = (trail := record(at=names)).values, trail.pull(1)[1]
    seen = [name for name in names if arrived[name].any()]
    for name in seen[:: max(1, len(seen) // 3)]:
        layer = next(iter(record(at=name).values))  # of several calls the first
        mask = torch.rand(values[name].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

        def edited(mask, trail, layer=layer):
            return trail.pull(1, edit={layer: mask})[0].square().sum()

        def seeded(seed, trail, layer=layer):
            return trail.pull({layer: seed})[0].square().sum()

        for total in (edited, seeded):
            of = lambda trail, total=total: functools.partial(total, trail=trail)  # noqa: E731, captured by the transform
            expected = grad(of(record(at=name)))(mask)
            close(grad(of(record(at=name, once=True)))(mask), expected)
            leaf = mask.clone().requires_grad_()
            close(torch.autograd.grad(total(leaf, record(at=name, once=True)), leaf)[0], expected)
            step = 1e-6 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
            slope = (total(mask + step, record(at=name)) - total(mask - step, record(at=name))) / 2
            close((expected * step).sum(), slope, rtol=1e-4, atol=1e-10)


def test_residuals_are_not_written_over_where_a_transform_runs(mlp):
    """Gamma adds to its own where it may."""
    for at in (["3"], ["1", "3"], ["2", "3"]):
        record = functools.partial(lrpfunc.record, *mlp, rules.gamma(0.25), at=at)
        total = lambda mask, trail: trail.pull(1, edit={"3": mask})[0].square().sum()  # noqa: E731
        mask = torch.rand(5, dtype=torch.float64)
        found = [grad(functools.partial(total, trail=record(once=once)))(mask) for once in (True, False)]
        close(*found)


# -- names of several -------------------------------------------------------------------------------------------------


def test_patterns_in_seeds_and_edits_mean_all_that_match(mlp):
    trail = lrpfunc.record(*mlp, composites.epsilon(), at=["0", "1", "2", "4"])
    mask = torch.rand(5, dtype=torch.float64)
    close(trail.pull(1, edit={"[02]": mask}), trail.pull(1, edit={"0": mask, "2": mask}))
    close(trail.pull({"[02]": lambda value: value}), trail.pull({name: trail.values[name] for name in ("0", "2")}))
    with pytest.raises(
        InputError, match=r"the edit of '4' multiplies what passes there, \(2, 3\), which a mask \(5,\)"
    ):
        trail.pull(1, edit={"[024]": mask})
    with pytest.raises(TargetError, match=r"what enters at '4' must be a tensor \(2, 3\)"):
        trail.pull({"[024]": normal(2, 5)})
    with pytest.raises(InputError, match=r"some of '0', '\[02\]' are one layer: edit it once"):
        trail.pull(1, edit={"0": mask, "[02]": mask})
    with pytest.raises(RuleError, match=r"'3' is not among the layers that this trail was recorded at, 0, 1, 2, 4"):
        trail.pull(1, edit={"[13]": mask})
    with pytest.raises(RuleError, match=r"no layer is called '00'\. Did you mean '0'"):
        trail.pull(1, edit={"00": mask})
    with pytest.raises(RuleError, match="layers go by their names, but got 3"):
        trail.pull({3: mask})


def test_heads_of_all_blocks_have_one_mask():
    fmodel, params, x = subject("llama")
    trail = lrpfunc.record(fmodel, params, x, composites.cp_lrp(), at="*.self_attn:heads")
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None, None]
    close(trail.pull(1, edit={"*.self_attn:heads": mask}), trail.pull(1, edit=dict.fromkeys(trail.values, mask)))


# -- what no relevance reaches ----------------------------------------------------------------------------------------


def attending():
    """Attention by hand, of which queries are constants under CP-LRP."""

    def net(p, x):
        pattern = torch.softmax((x @ p["q"]).tanh() @ x.transpose(1, 2), -1)
        return ((pattern @ (x @ p["v"]).relu()) @ p["o"])[:, -1]

    params = {name: normal(4, 4, seed=seed) for seed, name in enumerate("qvo")}
    return (*lrpfunc.trace(net, params, normal(2, 3, 4)), normal(2, 3, 4))


UNSEEN = "the edit of '{}' would change nothing: no relevance comes there from where it enters"


def test_edits_that_no_relevance_reaches(mlp):
    trail = lrpfunc.record(*mlp, composites.epsilon(), at=["1", "3"])
    for target in ({"1": normal(2, 5)}, {"1": Flow(coefficient=normal(2, 5))}):
        with pytest.raises(InputError, match=UNSEEN.format("3")):
            trail.pull(target, edit={"3": 0.5})
        with pytest.raises(InputError, match=UNSEEN.format("3")):
            trail.pull_each([target], edit={"[3]": lambda relevance: relevance})
    close(trail.pull({"3": normal(2, 5), "1": normal(2, 5)}, edit={"3": 0.0}), trail.pull({"1": normal(2, 5)}))


def test_edits_behind_what_counts_as_a_constant():
    trail = lrpfunc.record(*attending(), composites.cp_lrp(), at=["q", "v"])
    with pytest.raises(InputError, match=UNSEEN.format("q") + ".* or only through what counts as a constant"):
        trail.pull(1, edit={"v": 0.5, "q": 0.5})


def test_edits_of_another_output(heads):
    fmodel, params, x = heads
    trail = lrpfunc.record(fmodel, params, x, rules.epsilon(), at=["head", "body"])
    one = lambda output: {"head": output["head"], "other": 0 * output["other"]}  # noqa: E731
    close(trail.pull(one, edit={"head": 7.0}), trail.pull(one))  # what passes there is zero


def test_a_rule_that_sends_nothing_without_saying_so():
    """What it does not declare is found when nothing came."""
    fmodel, params = dense(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    silent = rules.epsilon()._replace(backward=lambda operation, residuals, flow: None, gives="")
    composite = composites.by_name({"2": silent})
    trail = lrpfunc.record(fmodel, params, normal(2, 4), composites.first_match(composite, rules.epsilon()), at="1")
    with pytest.raises(InputError, match=UNSEEN.format("1")):
        trail.pull(1, edit={"1": 0.5})


def test_relevance_enters_where_none_comes_from_an_output():
    """Below what CP-LRP counts as a constant, by the rules of what is there."""
    fmodel, params, x = attending()
    trail = lrpfunc.record(fmodel, params, x, composites.cp_lrp(epsilon=0), at=["q", "tanh"])
    seed = normal(2, 3, 4)
    queries = x @ params["q"]
    close(trail.pull({"q": seed})[0], x * ((seed / queries) @ params["q"].T))
    below, inner = trail.pull({"tanh": seed})
    close([below, inner["q"]], [trail.pull({"q": seed})[0], seed])
    close(trail.pull(1)[0], lrpfunc.attribute(fmodel, params, x, composites.cp_lrp(epsilon=0), 1))
    explain = lrpfunc.prepare(fmodel, params, composites.cp_lrp(epsilon=0))
    close(explain.record(x, at=["q", "tanh"]).pull({"q": seed}), trail.pull({"q": seed}))


def test_an_output_without_a_derivative_is_needed_by_what_enters_there_alone():
    """A record for inner seeds is one of a model that ends in an arg-max, or in several outputs."""

    def classes(p, x):
        return (x @ p["w"]).relu().argmax(-1)

    fmodel, params = lrpfunc.trace(classes, {"w": normal(4, 3)}, normal(2, 4))
    trail = lrpfunc.record(fmodel, params, normal(2, 4), rules.epsilon(0), at="w")
    seed = normal(2, 3)
    values = normal(2, 4) @ params["w"]
    close(trail.pull({"w": seed})[0], normal(2, 4) * ((seed / values) @ params["w"].T))
    for target in (None, 1, lambda output: output):
        with pytest.raises(InputError, match="no relevance can flow: no output depends on an input"):
            trail.pull(target)
    for call in (lrpfunc.record, lrpfunc.vjp, lrpfunc.attribute):
        with pytest.raises(InputError, match="no relevance can flow: no output depends on an input"):
            call(fmodel, params, normal(2, 4), rules.epsilon())


def test_strict_also_looks_below_where_relevance_enters():
    def net(p, x):
        return torch.linalg.det((x @ p["w"]).reshape(-1, 2, 2)).argmax(-1)

    fmodel, params = lrpfunc.trace(net, {"w": normal(4, 4)}, normal(2, 4))
    name = next(name for name in fmodel.names() if "det" in name)
    lrpfunc.record(fmodel, params, normal(2, 4), rules.epsilon(), at="w", strict=True)
    for record in (
        lambda: lrpfunc.record(fmodel, params, normal(2, 4), rules.epsilon(), at=name, strict=True),
        lambda: lrpfunc.prepare(fmodel, params, rules.epsilon(), strict=True).record(normal(2, 4), at=name),
    ):
        with pytest.raises(RuleError, match="strict=True allows no fallback to the gradient"):
            record()


# -- complex values, ids, devices -------------------------------------------------------------------------------------


@pytest.fixture
def spectral():
    def net(p, x):
        return torch.fft.irfft(torch.fft.rfft(x @ p["a"]) * p["c"], n=4) @ p["b"]

    params = {"a": normal(4, 4), "c": torch.complex(normal(3), normal(3, seed=2)), "b": normal(4, 3, seed=3)}
    return (*lrpfunc.trace(net, params, normal(2, 4)), normal(2, 4))


def test_coefficients_enter_at_complex_values(spectral):
    trail = lrpfunc.record(*spectral, rules.epsilon(0), at=["fft_rfft", "mul"])
    expected, inner = trail.pull(1)
    _, coefficients = trail.pull(1, form="coefficient")
    for name, c in coefficients.items():
        assert c.dtype == torch.complex128
        close(trail.pull({name: Flow(coefficient=c)})[0], expected)
        close((trail.values[name] * c.conj()).real, inner[name])
        close(trail.pull_each([{name: Flow(coefficient=c)}] * 2)[0][1], expected)
    close(trail.pull(1, edit={"mul": torch.full((3,), 0.5)})[0], 0.5 * expected)
    close(trail.pull(1, edit={"mul": lambda relevance: 0 * relevance})[0], 0 * expected)


@pytest.mark.parametrize(
    ("target", "edit", "error", "message"),
    [
        (1, {"mul": torch.ones(3, dtype=torch.complex128)}, InputError, "must be real, as relevance is, also where"),
        (1, {"a": torch.ones(4, dtype=torch.complex64)}, InputError, "must be real, .* but is torch.complex64"),
        (1, {"mul": 1j}, InputError, "must be a tensor, a number, or a function of a relevance, but is 1j"),
        (
            {"mul": torch.ones(2, 3, dtype=torch.complex128)},
            None,
            TargetError,
            r"must be a tensor \(2, 3\) of torch.float64, as the value, but is \(2, 3\) of torch.complex128",
        ),
        (
            {"mul": Flow(coefficient=torch.ones(2, 3, dtype=torch.float64))},
            None,
            TargetError,
            "of torch.complex128, as the value, but is .* of torch.float64",
        ),
    ],
)
def test_complex_numbers_that_mean_nothing(target, edit, error, message, spectral):
    with pytest.raises(error, match=message):
        lrpfunc.record(*spectral, rules.epsilon(), at=["a", "mul"]).pull(target, edit=edit)


def test_a_complex_output_has_real_relevance_and_complex_coefficients():
    fmodel, params = lrpfunc.trace(lambda p, x: torch.fft.fft(x @ p), normal(4, 4), normal(2, 4))
    trail = lrpfunc.record(fmodel, params, normal(2, 4), composites.epsilon(0))
    c = torch.complex(normal(2, 4), normal(2, 4, seed=2))
    expected = grad(lambda x: (torch.fft.fft(x @ params) * c.conj()).real.sum())(normal(2, 4)) * normal(2, 4)
    close(trail.pull(Flow(coefficient=c))[0], expected)
    relevance = (trail.output * c.conj()).real
    close(trail.pull(lambda output: relevance), trail.pull(relevance))
    close(trail.pull(relevance)[0].sum(1), relevance.sum(1))
    with pytest.raises(
        TargetError, match=r"must be torch.float64 as it is real also of complex numbers, but is torch.c"
    ):
        trail.pull(lambda output: output)
    with pytest.raises(TargetError, match=r"the coefficient of the output must be torch.complex128 as it is, but is"):
        trail.pull(Flow(coefficient=relevance))


def test_patching_at_complex_values_is_exact_where_what_follows_is_linear(spectral):
    fmodel, params, x = spectral
    clean = x.flip(0) + 1
    found = circuits.patching(fmodel, params, clean, x, 1, rules.epsilon(0), at=["fft_rfft", "mul"])
    truth = (fmodel(params, clean) - fmodel(params, x))[:, 1]
    for effect in found.values():
        assert not effect.is_complex()
        close(effect.sum(1), truth)


def test_ids_have_relevance_inside():
    def net(p, ids):
        return p["table"][ids + 1].sum(1) @ p["w"]

    params = {"table": normal(6, 4), "w": normal(4, 3)}
    ids = torch.tensor([[1, 2], [0, 3]])
    fmodel, params = lrpfunc.trace(net, params, ids)
    trail = lrpfunc.record(fmodel, params, ids, rules.epsilon(0), at=["add", "index"])
    relevance, inner = trail.pull(1)
    close(trail.pull({"add": inner["add"]})[0], relevance)
    close(trail.pull(1, edit={"add": torch.tensor([1.0, 0.0])})[0], relevance * torch.tensor([1.0, 0.0]).double())
    with pytest.raises(TargetError, match="'add' holds integers, to which nothing is proportional: give Flow"):
        trail.pull({"add": Flow(coefficient=normal(2, 2))})
    with pytest.raises(
        TargetError, match=r"must be a tensor \(2, 2\) of floating-point numbers, but is .* torch.int64"
    ):
        trail.pull({"add": ids})
    with pytest.raises(InputError, match="'add' holds integers, of which no part can be put in"):
        circuits.patching(fmodel, params, ids, ids.flip(0), 1, rules.epsilon(0), at="add")


def test_another_device(mlp):
    trail = lrpfunc.record(*mlp, composites.epsilon(), at="1")
    with pytest.raises(InputError, match="the edit of '1' must be on cpu, as the value, but is on meta"):
        trail.pull(1, edit={"1": torch.ones(5, device="meta")})
    with pytest.raises(InputError, match="what enters at '1' must be on cpu, as the value, but is on meta"):
        trail.pull({"1": torch.ones(2, 5, device="meta", dtype=torch.float64)})


# -- memory -----------------------------------------------------------------------------------------------------------


def leaves_of(tree):
    return [leaf for leaf in optree.tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.numel()]


def wipe(tree):
    for leaf in leaves_of(tree):
        leaf.fill_(torch.nan)


@law
def test_what_is_handed_out_is_shared_with_nobody(case):
    """Results, values and outputs may be written over, and what is given stays what it was."""
    fmodel, params, x = case.subject
    names = at_all(fmodel)
    trail = lrpfunc.record(fmodel, params, x, case.rules, at=names)
    expected = optree.tree_map(torch.clone, (trail.output, trail.values, trail.pull(1)))
    seed = torch.zeros_like(trail.output)
    seed[:, 1] = trail.output[:, 1]
    given = seed.clone()
    for results in (trail.output, trail.values, trail.pull(given), trail.pull_each([given, given])):
        memory = [leaf.untyped_storage().data_ptr() for leaf in leaves_of(results)]
        assert len(set(memory)) == len(memory)
        wipe(results)
        close((trail.output, trail.values, trail.pull(given)), expected)
    once = lrpfunc.record(fmodel, params, x, case.rules, at=names, once=True)
    results = once.pull(given)
    close(results, expected[2])
    wipe(results)
    assert torch.equal(given, seed)
    close((once.output, once.values), expected[:2])


def test_functions_get_tensors_of_their_own(mlp):
    """They may write over them, and keep what they give."""
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at=["0", "1"])
    expected = trail.pull(1)
    kept = normal(2, 5)

    def clamped(relevance):
        return relevance.clamp_(min=0)

    close(trail.pull(1, edit={"1": clamped}), trail.pull(1, edit={"1": lambda relevance: relevance.clamp(min=0)}))
    trail.pull({"1": lambda value: value.mul_(0)})
    trail.pull(lambda output: output.mul_(0))
    _, inner = trail.pull(1, edit={"1": lambda relevance: kept})
    wipe(inner)
    _, inner = trail.pull({"1": lambda value: kept})
    wipe(inner)
    trail.pull({"1": kept}, edit={"1": lambda relevance: relevance.mul_(0)})
    assert torch.equal(kept, normal(2, 5))
    close(trail.pull(1), expected)


def test_mapped_results_are_shared_with_nobody(mlp):
    trail = lrpfunc.record(*mlp, composites.epsilon_plus(), at=["0", "1"])
    masks = torch.rand(3, 5, dtype=torch.float64)
    _, inner = vmap(lambda mask: trail.pull(1, edit={"1": mask}))(masks)
    before = inner["0"].clone()  # which the ReLU passed on
    assert torch.equal(before, inner["1"])
    wipe(inner["1"])
    assert torch.equal(inner["0"], before)


def test_an_output_and_a_pullback_share_nothing(mlp):
    fmodel, params, x = mlp
    y, pullback = lrpfunc.vjp(fmodel, params, x, composites.epsilon())
    expected = pullback(y).clone()
    given = y.clone()
    wipe(y)
    close(pullback(given), expected)


@pytest.mark.parametrize("name", ["input", "2.weight"])
def test_what_was_written_over_since(name, mlp):
    fmodel, params, x = mlp
    params = {key: leaf.clone() for key, leaf in params.items()}
    trails = [lrpfunc.record(fmodel, params, x, composites.epsilon(), at="1", once=once) for once in (False, True)]
    trails[0].pull(1)
    (x if name == "input" else params[name]).mul_(2)
    for pull in (each for trail in trails for each in (trail.pull, trail.pull_each)):
        with pytest.raises(InputError, match=f"'{name}' was written to after this trail was recorded, which needs it"):
            pull([1, 1])


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_a_warning_points_to_the_line_that_pulled(mlp):
    trail = lrpfunc.record(*mlp, rules.flat(), at="0")
    explain = lrpfunc.prepare(*mlp[:2], rules.flat())
    for pull in (
        lambda: trail.pull(1, form="coefficient"),
        lambda: trail.pull_each([1, 2], form="coefficient"),
        lambda: vmap(lambda x: explain.record(x[None], at="0").pull(1, form="coefficient"))(mlp[2]),
    ):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            pull()
        assert found
        assert {one.filename for one in found} == {__file__}
