"""Prepared explanations that are compiled: the same as without, and compiled once for a shape."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import InputError, RuleError, TargetError, TraceError
from tests.helpers import randomize

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3))).to(DOUBLE)
    return *lrpfunc.functionalize(model, torch.zeros(1, 2, 5, 5, dtype=DOUBLE)), torch.randn(4, 2, 5, 5, dtype=DOUBLE)


def both(net, entries=None, backend="aot_eager"):
    fmodel, params, _ = net
    entries = composites.epsilon_plus_flat() if entries is None else entries
    return [lrpfunc.prepare(fmodel, params, entries, compile=how) for how in (backend, False)]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


TARGETS = [None, 1, -1, [0, 1, 2, 1], range(0, 1), np.array([2, 2, 0, 1]), torch.tensor([0, 1, 2, 0]), np.int64(2)]
TARGETS += [torch.tensor([-1, 1, -3, 0], dtype=torch.int8), torch.tensor(2, dtype=torch.uint8)]


def test_what_is_compiled_gives_the_same(net):
    compiled, plain = both(net)
    x = net[2]
    for target in TARGETS:
        samples = x[:1] if isinstance(target, range) else x
        close(compiled(samples, target), plain(samples, target))
    relevance, inner = compiled(x, 1, at=["0"])
    expected, expected_inner = plain(x, 1, at=["0"])
    close(relevance, expected)
    close(inner["0"], expected_inner["0"])


def test_one_graph_does_for_all_classes_and_another_one_for_another_shape(net):
    compiled, _ = both(net)
    assert str(compiled) == "Prepared(4 equations, inputs input, compiled for 0 shape(s) in 0.0 s)"
    x = net[2]
    for target in range(3):
        compiled(x, target)
    assert len(compiled.compiled.made) == 1
    compiled(x[:2], 0)
    compiled(x, None)
    assert len(compiled.compiled.made) == 3
    assert compiled.compiled.seconds > 0


def test_what_is_not_compiled_is_done_without(net):
    compiled, plain = both(net)
    x = net[2]
    close(compiled(x, lambda y: y), plain(x, lambda y: y))
    close(compiled(x, 1, checkpoint=2), plain(x, 1, checkpoint=2))
    close(compiled.each(x, [0, 1]), plain.each(x, [0, 1]))
    close(torch.func.vmap(lambda x: compiled(x[None], 1)[0])(x), plain(x, 1))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(leaf, 1).square().sum(), leaf)
    (expected,) = torch.autograd.grad(plain(leaf, 1).square().sum(), leaf)
    close(gradient, expected)
    assert not compiled.compiled.made


def test_inputs_in_every_layout_are_taken_by_one_graph():
    model = randomize(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    )
    x = torch.randn(4, 2, 5, 5, dtype=DOUBLE)
    compiled, plain = both((*lrpfunc.functionalize(model.to(DOUBLE), x), x))
    layouts = [x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT, torch.cat([x, x], 3)[..., :5]]
    for same in layouts:
        close(compiled(same, 1), plain(x, 1))
    assert len(compiled.compiled.made) == 1


def test_classes_of_outputs_of_higher_rank_are_part_of_the_graph():
    fmodel, params = lrpfunc.trace(lambda p, x: (x @ p).relu(), torch.eye(3), torch.ones(2, 4, 3))
    x = torch.randn(2, 4, 3)
    compiled = lrpfunc.prepare(fmodel, params, rules.epsilon(), compile="aot_eager")
    for target in ((1, 2), (0, 2)):
        close(compiled(x, target), lrpfunc.attribute(fmodel, params, x, rules.epsilon(), target))
    assert len(compiled.compiled.made) == 2


def test_several_inputs_by_name():
    class Two(nn.Module):
        def forward(self, a, b):
            return (a * 2 + b).relu()

    fmodel, params = lrpfunc.functionalize(Two(), a=torch.ones(2, 3), b=torch.ones(2, 3))
    x = {"a": torch.randn(2, 3), "b": torch.randn(2, 3)}
    compiled = lrpfunc.prepare(fmodel, params, rules.epsilon(), compile="aot_eager")
    found, expected = compiled(x, 1), lrpfunc.attribute(fmodel, params, x, rules.epsilon(), 1)
    for name in x:
        close(found[name], expected[name])


def test_it_is_pickled_copied_and_saved_as_what_it_was_made_of(net, tmp_path):
    compiled, plain = both(net)
    x = net[2]
    compiled(x, 1)
    lrpfunc.save(tmp_path / "compiled.safetensors", compiled)
    for again in (
        pickle.loads(pickle.dumps(compiled)),
        copy.deepcopy(compiled),
        lrpfunc.load(tmp_path / "compiled.safetensors"),
    ):
        assert again.compiled.backend == "aot_eager"
        assert not again.compiled.made
        close(again(x, 1), plain(x, 1))


def test_it_says_that_it_takes_long(net, caplog):
    compiled, _ = both(net)
    with caplog.at_level(logging.INFO, logger="lrpfunc"):
        compiled(net[2], 1)
        compiled(net[2], 2)
    said = [record.getMessage() for record in caplog.records if record.name == "lrpfunc"]
    assert len(said) == 2
    assert said[0].startswith("compiling an explanation of (4, 2, 5, 5): it takes minutes")
    assert said[1].startswith("compiled it in ")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (3, TargetError, "target 3 is out of range: the output has 3 classes, 0 to 2"),
        (torch.tensor([0, 1, 2, -4]), TargetError, "target -4 is out of range"),
        ([0, 1], TargetError, r"must have shape \(4,\), but has \(2,\)"),
        (1.5, TargetError, "a target must be an int"),
    ],
)
def test_targets_that_do_not_fit(net, target, error, message):
    compiled, _ = both(net)
    compiled(net[2], 0)
    with pytest.raises(error, match=message):
        compiled(net[2], target)


def test_inputs_that_do_not_fit(net):
    compiled, _ = both(net)
    with pytest.raises(InputError, match="input"):
        compiled(torch.zeros(4, 3, 5, 5, dtype=DOUBLE), 0)
    with pytest.raises(RuleError, match="no layer"):
        compiled(net[2], 0, at="nothing")


def test_a_compiler_that_fails_is_one_sentence(net):
    compiled, _ = both(net, backend="no_such_backend")
    with pytest.raises(TraceError, match=r"torch.compile failed with .*Prepare without compile=True"):
        compiled(net[2], 0)


@pytest.mark.slow
def test_by_inductor(net):
    compiled, plain = both(net, backend=True)
    for _ in range(2):
        close(compiled(net[2], 1), plain(net[2], 1))
