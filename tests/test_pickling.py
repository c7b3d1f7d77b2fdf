"""Programs, rules, composites, canonical forms and prepared explanations through pickle, also into another process."""

import copy
import os
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import RuleError
from tests import cases
from tests.traced import assert_equal, x_of

MADE = [
    rules.affine(),
    rules.alpha_beta(3, 2, 1e-3, zero_bias=True),
    rules.attention("value", 0.0),
    rules.clamp(0.1),
    rules.embedding(),
    rules.epsilon(0.1, zero_bias=True),
    rules.epsilon(rules.stabilizer(0.1, clip=True, norm_scale=True, dim=(1,))),
    rules.epsilon(torch.exp),
    rules.flat(1e-3),
    rules.gamma(0.3, 1e-3),
    rules.gate(1),
    rules.gate(stabilizer=1e-3),
    rules.gradient(),
    rules.halve(0.0),
    rules.input_times_gradient(1e-3),
    rules.norm(0.5),
    rules.normalization(0.0),
    rules.pass_through(),
    rules.recurrent(rules.zplus(), "both", 0.0),
    rules.relu_beta_smooth(3),
    rules.relu_deconvnet(),
    rules.relu_guided_backprop(),
    rules.softmax(0.0),
    rules.transform(),
    rules.wsquare(),
    rules.zbox(torch.full((3, 1, 1), -1.0), 1.0),
    rules.zplus(),
]


def sent(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("rule", MADE, ids=lambda rule: rule.label)
def test_rules(rule):
    again = sent(rule)
    assert (again.label, again.gives, again.any_layout) == (rule.label, rule.gives, rule.any_layout)
    assert sent(again).label == rule.label
    assert copy.deepcopy(rule) is rule
    assert copy.copy(rule) is rule


def test_every_rule_is_among_them():
    assert {rule.label.partition("(")[0] for rule in MADE} == set(rules.__all__) - {"Rule", "Stabilizer", "stabilizer"}


@pytest.mark.parametrize("case", [c for c in cases.CASES if "*" not in c.slow], ids=lambda c: f"{c.network}-{c.name}")
def test_explanations(case):
    """As many as there are rows of small networks: bit for bit what they were, prepared and not, however often sent."""
    if case.network in ("llama", "torchvision_vit"):
        pytest.skip("slow to trace, and made of what others have")
    fmodel, params, x = case.subject.fmodel, case.subject.params, case.subject.x
    again = lrpfunc.attribute(sent(fmodel), params, x, sent(lrpfunc.composites.as_composite(case.rules)))
    assert_equal(again, lrpfunc.attribute(fmodel, params, x, case.rules))
    explain = lrpfunc.prepare(fmodel, params, case.rules)
    expected = explain(x)
    for prepared in (sent(sent(explain)), copy.deepcopy(explain)):
        assert_equal(prepared(x), expected)


def test_canonical_forms_and_their_way_back():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x = x_of(2, 1, 4, 4)
    fmodel, params = lrpfunc.functionalize(model.eval(), x)
    canonical = lrpfunc.canonize(fmodel, params)
    again = sent(canonical)
    assert str(again.report) == str(canonical.report)
    assert_equal(again.fmodel(again.params, x), canonical.fmodel(canonical.params, x))
    assert_equal(again.restore(again.params), params)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


def with_dataclasses(params, given):
    y = given.logits @ params["w"]
    y[:, 0] = 1.0
    parts = y.chunk(2, 1)
    parts[0].mul_(2)
    return Output(y, given.logits)


SCRIPT = """
import pickle, sys, torch
fmodel, params, rules, given, expected = pickle.load(open(sys.argv[1], "rb"))
import lrpfunc
output, relevance = expected
assert torch.equal(fmodel(params, given).logits, output.logits)
target = lambda output: type(output)(output.logits, 0 * output.hidden)
found = lrpfunc.attribute(fmodel, params, given, rules, target)
assert torch.equal(found.logits, relevance.logits)
"""


def test_another_process_has_all_that_it_needs(tmp_path):
    """Operations of torch, dataclasses among inputs and outputs, and writes in place."""
    given, params = Output(x_of(2, 4)), {"w": torch.eye(4) * 2}
    fmodel, params = lrpfunc.trace(with_dataclasses, params, given)
    chosen = composites.epsilon(0.1)
    relevance = lrpfunc.attribute(fmodel, params, given, chosen, target=lambda y: Output(y.logits, 0 * y.hidden))
    path = tmp_path / "sent.pickle"
    path.write_bytes(pickle.dumps((fmodel, params, chosen, given, (fmodel(params, given), relevance))))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_what_is_known_of_a_program_stays_behind():
    fmodel, _ = lrpfunc.functionalize(nn.Linear(3, 2), x_of())
    size = len(pickle.dumps(fmodel))
    str(lrpfunc.explain(fmodel, rules.zplus()))
    assert fmodel.facts is not None
    assert len(pickle.dumps(fmodel)) == size
    assert sent(fmodel).facts is None


# -- rules of one's own -----------------------------------------------------------------------------------------------


def forward(operation, x):
    return operation(x), None


def backward(operation, residuals, flow):
    return lrpfunc.Flow(coefficient=operation.adjoint(flow.tensor))


def test_a_rule_of_ones_own_goes_by_the_names_of_its_functions():
    rule = sent(rules.Rule("mine()", forward, backward))
    assert (rule.label, rule.forward, rule.backward) == ("mine()", forward, backward)
    renamed = sent(rules.zplus()._replace(label="mine()", forward=forward, backward=backward, hoists=()))
    assert (renamed.label, renamed.forward) == ("mine()", forward)


def test_functions_without_a_name_of_their_own_are_refused():
    def inner(*given):
        raise AssertionError

    for rule, name in [
        (rules.Rule("mine()", inner, backward), "inner"),
        (rules.Rule("mine()", forward, lambda *given: None), "<lambda>"),
        (rules.zplus()._replace(label="mine()"), "forward"),
        (rules.zplus()._replace(backward=inner), "forward"),
    ]:
        with pytest.raises(
            RuleError,
            match=rf"rule '{re.escape(rule.label)}' cannot be pickled: its function '\S*{name}' of \S+ has no name at "
            r"module level, where another process could find it\. Define its functions at module level\.",
        ):
            pickle.dumps(rule)
        assert copy.deepcopy(rule) is rule
    with pytest.raises(RuleError, match=r"stabilizer '<lambda>' cannot be pickled: its function .* at module level\."):
        pickle.dumps(composites.epsilon(lambda z: z + 1))
