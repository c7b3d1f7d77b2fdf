"""`prepare`, many targets at once, segments, and that nothing is kept longer than it is needed."""

import weakref

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import Flow, composites, rules
from lrpfunc.errors import InputError, ParameterError, RuleError, TargetError, TraceError
from tests.cases import subject
from tests.helpers import randomize

COMPOSITES = {
    "epsilon": composites.epsilon(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0),
    "wsquare": rules.wsquare(),
    "gradient": composites.guided_backprop(),
}


def traced():
    return subject("branches")


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


# -- prepare ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_prepared_explanation_is_that_of_attribute(name):
    fmodel, params, x = traced()
    explain = lrpfunc.prepare(fmodel, params, COMPOSITES[name])
    for batch in (x, x[:1], torch.cat([x, x])):
        expected, inner = lrpfunc.attribute(fmodel, params, batch, COMPOSITES[name], target=2, at=["stem", "block:1"])
        got, got_inner = explain(batch, 2, at=["stem", "block:1"])
        close(got, expected)
        close(got_inner, inner)
    y, pullback = explain.vjp(x)
    expected_y, expected_pullback = lrpfunc.vjp(fmodel, params, x, COMPOSITES[name])
    close(y, expected_y)
    close(pullback(y.sin()), expected_pullback(y.sin()))


def test_what_depends_on_parameters_only_is_made_once():
    made = []
    base = rules.zplus()
    counting = base._replace(hoists=(lambda operation: made.append(operation.name), *base.hoists))
    fmodel, params, x = traced()
    explain = lrpfunc.prepare(fmodel, params, counting)
    assert sorted(made) == ["block", "block:1", "head", "narrow", "side", "stem"]
    explain(x)
    explain(x[:2], 1)
    assert len(made) == 6


def test_computed_weights_are_computed_once():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)
    explain = lrpfunc.prepare(fmodel, params, rules.zplus())
    assert all(step.rule is not None for step in explain.plan.steps)
    assert len(explain.plan.steps) < len(fmodel.equations)
    close(explain(x), lrpfunc.attribute(fmodel, params, x, rules.zplus()))


@pytest.mark.parametrize("name", ["epsilon_plus_flat", "epsilon_gamma_box"])
def test_preparing_is_pure_and_composes(name):
    fmodel, params, x = traced()

    def total(params, x, prepared):
        explain = lrpfunc.prepare(fmodel, params, COMPOSITES[name]) if prepared else None
        relevance = explain(x, 1) if explain else lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], 1)
        return (relevance * x.cos()).sum()

    before = {leaf: tensor.clone() for leaf, tensor in params.items()}
    close(torch.func.grad(total, (0, 1))(params, x, True), torch.func.grad(total, (0, 1))(params, x, False))
    stacked = {leaf: torch.stack([tensor, 1.1 * tensor]) for leaf, tensor in params.items()}
    several = torch.func.vmap(lambda p: lrpfunc.prepare(fmodel, p, COMPOSITES[name])(x, 1))(stacked)
    for i, relevance in enumerate(several):
        own = {leaf: tensor[i] for leaf, tensor in stacked.items()}
        close(relevance, lrpfunc.attribute(fmodel, own, x, COMPOSITES[name], 1))
    assert all(torch.equal(params[leaf], before[leaf]) for leaf in params)


def test_a_prepared_explanation_compiles():
    fmodel, params, x = subject("convolutional")
    explain = lrpfunc.prepare(fmodel, params, COMPOSITES["epsilon_plus_flat"])
    torch.compiler.reset()
    compiled = torch.compile(lambda x: explain(x, 1), fullgraph=True, backend="aot_eager")
    close(compiled(x), explain(x, 1))


def test_a_prepared_explanation_says_what_it_is():
    fmodel, params, _ = traced()
    assert repr(lrpfunc.prepare(fmodel, params, rules.epsilon())).startswith("Prepared(")


def test_errors_of_prepare_come_before_any_input():
    fmodel, params, x = traced()
    with pytest.raises(TraceError, match="a program is needed"):
        lrpfunc.prepare(nn.Linear(2, 2), params, rules.epsilon())
    with pytest.raises(ParameterError, match="params lacks the leaf"):
        lrpfunc.prepare(fmodel, {}, rules.epsilon())
    with pytest.raises(RuleError, match="no layer matches the pattern 'blok'"):
        lrpfunc.prepare(fmodel, params, {"blok": rules.epsilon()})
    with pytest.raises(RuleError, match=r"zbox\(tensor, 1\) at layer 'stem': 'low' of zbox must be a number"):
        lrpfunc.prepare(fmodel, params, {"stem": rules.zbox(torch.zeros(7), 1.0)})
    with pytest.raises(InputError, match="must have shape"):
        lrpfunc.prepare(fmodel, params, rules.epsilon())(x[:, :2])


# -- many targets, many conditions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 7])
def test_each_of_several_targets_equals_the_loop(name, chunk_size):
    fmodel, params, x = traced()
    targets = [0, [1, 2, 3], torch.tensor([4, 0, -1]), None, lambda output: output.softmax(1)]
    got = lrpfunc.attribute_each(fmodel, params, x, COMPOSITES[name], targets, chunk_size=chunk_size)
    expected = [lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target) for target in targets]
    close(got, torch.stack(expected))


def test_targets_may_be_an_index_tensor():
    fmodel, params, x = traced()
    explain = lrpfunc.prepare(fmodel, params, rules.zplus())
    for targets in (torch.arange(5), torch.tensor([[0, 1, 2], [3, 4, 0]])):
        close(explain.each(x, targets), torch.stack([explain(x, target) for target in targets]))


def test_relevance_of_several_targets_has_the_structure_of_the_input():
    fmodel, params = lrpfunc.trace(
        lambda p, x: (x["a"] * p["w"] + x["b"]).relu(),
        {"w": torch.ones(3)},
        {"a": torch.randn(2, 3), "b": torch.randn(2, 3)},
    )
    x = ({"a": torch.randn(2, 3), "b": torch.randn(2, 3)},)
    (got,) = lrpfunc.attribute_each(fmodel, params, x, composites.epsilon(), range(3))
    assert {key: tuple(value.shape) for key, value in got.items()} == {"a": (3, 2, 3), "b": (3, 2, 3)}


@pytest.mark.parametrize("targets", [[], torch.zeros(0, dtype=torch.long), torch.tensor(3), "3", b"3", 3])
def test_no_targets_is_an_error(targets):
    fmodel, params, x = traced()
    with pytest.raises(TargetError, match="targets must be a sequence of at least one target or an index tensor"):
        lrpfunc.attribute_each(fmodel, params, x, rules.epsilon(), targets)


def test_conditions_share_one_forward_pass():
    """A condition is a rule of one's own that lets part of the relevance through; vmap maps over it."""
    fmodel, params, x = traced()
    base, forwards = rules.zplus(), []

    def conditional(mask):
        def forward(operation, x):
            forwards.append(operation.name)
            output, residuals = base.forward(operation, x)
            return output, (output, residuals)

        def backward(operation, residuals, flow):
            output, residuals = residuals
            return base.backward(operation, residuals, Flow(relevance=flow.relevance(output) * mask[:, None, None]))

        return {"narrow": rules.Rule("conditional", forward, backward), "*": base}

    def relevance(mask):
        return lrpfunc.attribute(fmodel, params, x, conditional(mask), target=1)

    masks = torch.eye(6, dtype=torch.float64)
    several = torch.func.vmap(relevance)(masks)
    assert forwards == ["narrow"]
    close(several, torch.stack([relevance(mask) for mask in masks]))
    close(several.sum(0), relevance(masks.sum(0)))


# -- segments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 1000])
def test_segments_change_nothing(name, count):
    fmodel, params, x = traced()
    layers = ["stem", "block", "block:1", "side", "narrow", "head"]
    expected, inner = lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target=3, at=layers)
    got, got_inner = lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target=3, at=layers, checkpoint=count)
    close(got, expected)
    close(got_inner, inner)
    y, pullback = lrpfunc.vjp(fmodel, params, x, COMPOSITES[name], checkpoint=count)
    for _ in range(2):
        close(pullback(y.sin()), lrpfunc.vjp(fmodel, params, x, COMPOSITES[name])[1](y.sin()))


def test_segments_compose_with_derivatives_and_vmap():
    fmodel, params, x = traced()

    def total(x, count):
        return (lrpfunc.attribute(fmodel, params, x, rules.zplus(), target=3, checkpoint=count) ** 2).sum()

    close(torch.func.grad(total)(x, 3), torch.func.grad(total)(x, None))
    close(torch.func.vmap(lambda x: total(x[None], 3))(x), torch.func.vmap(lambda x: total(x[None], None))(x))


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "2"])
def test_a_number_of_segments_that_is_none(count):
    fmodel, params, x = traced()
    with pytest.raises(RuleError, match="checkpoint must be a number of segments >= 1, but is"):
        lrpfunc.attribute(fmodel, params, x, rules.epsilon(), checkpoint=count)


# -- memory -----------------------------------------------------------------------------------------------------------


class Chain(nn.Sequential):
    def __init__(self):
        super().__init__(*(nn.Linear(3, 3) for _ in range(6)))


def watched(alive: dict, log: dict):
    """epsilon that notes whose residuals are in memory when relevance arrives."""
    base = rules.epsilon()

    def forward(operation, x):
        output, residuals = base.forward(operation, x)
        mine = output.clone()
        alive[operation.name] = weakref.ref(mine)
        return output, (residuals, mine)

    def backward(operation, residuals, flow):
        log[operation.name] = {name for name, reference in alive.items() if reference() is not None}
        return base.backward(operation, residuals[0], flow)

    return rules.Rule("watched", forward, backward)


def test_residuals_are_freed_as_relevance_passes():
    x = torch.randn(2, 3)
    fmodel, params = lrpfunc.functionalize(Chain(), x)
    log: dict = {}
    lrpfunc.attribute(fmodel, params, x, watched({}, log), target=0)
    assert log == {str(i): {str(j) for j in range(i + 1)} for i in range(6)}


def test_with_segments_only_one_has_residuals():
    x = torch.randn(2, 3)
    fmodel, params = lrpfunc.functionalize(Chain(), x)
    log: dict = {}
    lrpfunc.attribute(fmodel, params, x, watched({}, log), target=0, checkpoint=3)
    assert log == {"5": {"4", "5"}, "4": {"4"}, "3": {"2", "3"}, "2": {"2"}, "1": {"0", "1"}, "0": {"0"}}


def test_a_pullback_may_be_called_again():
    """What a one-shot explanation writes over, a pullback must not."""
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()))
    x = torch.randn(2, 3, 8, 8)
    fmodel, params = lrpfunc.functionalize(model, x)
    for composite in COMPOSITES.values():
        y, pullback = lrpfunc.vjp(fmodel, params, x, composite)
        first = pullback(y)
        assert torch.equal(pullback(y), first)
        torch.testing.assert_close(lrpfunc.attribute(fmodel, params, x, composite, lambda y: y), first)


def test_a_call_leaves_the_inputs_as_they_are():
    fmodel, params, x = traced()
    before, kept = x.clone(), {leaf: tensor.clone() for leaf, tensor in params.items()}
    for composite in COMPOSITES.values():
        explain = lrpfunc.prepare(fmodel, params, composite)
        close(explain(x), explain(x))
    assert torch.equal(x, before)
    assert all(torch.equal(params[leaf], kept[leaf]) for leaf in params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_layout_of_contiguous_tensors(dtype):
    """Inside, images may have their channels last; whoever calls `view` on a result need not know."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    fmodel, params = lrpfunc.functionalize(model, x)
    relevance, inner = lrpfunc.attribute(fmodel, params, x, rules.flat(), target=(0, 1, 2), at=["0"])
    y, _ = lrpfunc.vjp(fmodel, params, x, rules.flat())
    assert relevance.is_contiguous()
    assert inner["0"].is_contiguous()
    assert y.is_contiguous()


def test_a_model_that_looks_at_strides_keeps_its_layout():
    def strided(params, x):
        return torch.conv2d(x, params["w"]).as_strided((1, 4, 4), (64, 16, 5)).flatten(1)

    x = torch.randn(1, 3, 6, 6)
    fmodel, params = lrpfunc.trace(strided, {"w": torch.randn(4, 3, 3, 3)}, x)
    y, _ = lrpfunc.vjp(fmodel, params, x, rules.epsilon())
    assert torch.equal(y, fmodel(params, x))


class Answer(nn.Module):
    """What Hugging Face's models do: a dict with fields that are not there."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask):
        return {"logits": self.layer(x), "loss": None, "step": 3}


def test_several_targets_of_outputs_and_inputs_that_are_not_all_tensors():
    x = (torch.randn(2, 4), None)
    fmodel, params = lrpfunc.functionalize(Answer(), *x)
    got = lrpfunc.attribute_each(fmodel, params, x, rules.epsilon(), range(3))
    expected = [lrpfunc.attribute(fmodel, params, x, rules.epsilon(), target) for target in range(3)]
    assert got[1] is None
    assert torch.equal(got[0], torch.stack([relevance for relevance, _ in expected]))


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5, True])
def test_a_chunk_size_that_is_none(chunk_size):
    fmodel, params, x = traced()
    with pytest.raises(TargetError, match="chunk_size must be a number of targets >= 1, but is"):
        lrpfunc.attribute_each(fmodel, params, x, rules.epsilon(), [0, 1], chunk_size=chunk_size)
