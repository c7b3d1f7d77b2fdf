"""Which equation gets which rule, as `explain` lists it."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites, rules
from lrpfunc.errors import RuleError
from tests.cases import subject


class Attention(nn.Module):
    """A layer with something that has no rule: its softmax falls back to the gradient."""

    def __init__(self):
        super().__init__()
        self.scores, self.values = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.values(x * self.scores(x).softmax(-1))


@pytest.fixture(scope="module")
def program():
    return subject("branches").fmodel


def labels(program, entries):
    return {name: rule.label for name, rule in composites.assign(program, entries).items()}


def test_explain_lists_equation_kind_and_rule(program):
    sizes = {
        "8, 8": "height, width",
        "4, 4)": "height//2, width//2)",
        "2, 2)": "(height - 2)//4 + 1, (width - 2)//4 + 1)",
    }
    expected = (
        "  name     kind         operation   input                              output            rule\n"
        "  stem     convolution  conv2d      (batch, 3, 8, 8)                   (batch, 4, 8, 8)  flat()\n"
        "  relu     activation   relu        (batch, 4, 8, 8)                   (batch, 4, 8, 8)  pass_through()\n"
        "  block    convolution  conv2d      (batch, 4, 8, 8)                   (batch, 4, 8, 8)  zplus()\n"
        "  relu:1   activation   relu        (batch, 4, 8, 8)                   (batch, 4, 8, 8)  pass_through()\n"
        "  add      sum          add         (batch, 4, 8, 8) (batch, 4, 8, 8)  (batch, 4, 8, 8)  norm()\n"
        "  block:1  convolution  conv2d      (batch, 4, 8, 8)                   (batch, 4, 8, 8)  zplus()\n"
        "  relu:2   activation   relu        (batch, 4, 8, 8)                   (batch, 4, 8, 8)  pass_through()\n"
        "  add:1    sum          add         (batch, 4, 8, 8) (batch, 4, 8, 8)  (batch, 4, 8, 8)  norm()\n"
        "  side     convolution  conv2d      (batch, 4, 8, 8)                   (batch, 3, 8, 8)  zplus()\n"
        "  relu:3   activation   relu        (batch, 3, 8, 8)                   (batch, 3, 8, 8)  pass_through()\n"
        "  cat      movement     cat         (batch, 4, 8, 8) (batch, 3, 8, 8)  (batch, 7, 8, 8)  gradient()\n"
        "  pool     max_pool     max_pool2d  (batch, 7, 8, 8)                   (batch, 7, 4, 4)  gradient()\n"
        "  narrow   convolution  conv2d      (batch, 7, 4, 4)                   (batch, 6, 2, 2)  zplus()\n"
        "  relu:4   activation   relu        (batch, 6, 2, 2)                   (batch, 6, 2, 2)  pass_through()\n"
        "  mean     sum          mean        (batch, 6, 2, 2)                   (batch, 6)        norm()\n"
        "  head     dense        linear      (batch, 6)                         (batch, 5)        epsilon(0.001)"
    )
    for traced, named in sizes.items():
        expected = expected.replace(traced, named)
    listed = str(lrpfunc.explain(program, composites.epsilon_plus_flat(1e-3)))
    assert [line.split() for line in listed.splitlines()] == [line.split() for line in expected.splitlines()]


def test_explain_marks_and_names_the_fallbacks():
    fmodel, _ = lrpfunc.trace(lambda w, x: (x @ w).exp(), torch.randn(4, 3), torch.randn(2, 4))
    listing = lrpfunc.explain(fmodel, composites.epsilon())
    assert listing.fallbacks == ("exp",)
    text = str(listing)
    assert "\n!  exp     other" in text
    assert text.endswith("! 1 equation without a rule: the gradient moves what arrives there.")
    assert repr(listing) == text
    with pytest.raises(RuleError, match=r"no rule for 'exp' \(exp\): strict=True"):
        lrpfunc.explain(fmodel, composites.epsilon(), strict=True)


def test_a_softmax_is_a_gate_whose_signal_takes_all():
    fmodel, _ = lrpfunc.functionalize(Attention(), torch.randn(2, 4))
    assert labels(fmodel, composites.epsilon())["mul"] == "gate()"


def test_names_prefixes_and_patterns(program):
    found = labels(program, {"block": rules.flat(), "s*": rules.gamma(), "*": rules.zplus()})
    assert found["block"] == found["block:1"] == "flat()"  # a layer called twice
    assert found["stem"] == found["side"] == "gamma(0.25)"  # a pattern: what has weights
    assert found["narrow"] == found["head"] == "zplus()"
    assert found["relu"] == "pass_through()"
    assert labels(program, {"block:1": rules.flat()})["block"] == "epsilon(1e-06)"
    assert labels(program, {"relu:1": rules.gradient()})["relu:1"] == "gradient()"


def test_a_prefix_covers_what_is_below_it():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2))
    fmodel, _ = lrpfunc.functionalize(model, torch.randn(2, 4))
    found = labels(fmodel, {"0": rules.flat()})
    expected = ["flat()", "pass_through()", "flat()", "epsilon(1e-06)"]
    assert [found[name] for name in ("0.0", "0.1", "0.2", "1")] == expected


def test_one_rule_is_for_every_weighted_equation(program):
    found = labels(program, rules.gamma(0.5))
    weighted = {"stem", "block", "block:1", "side", "narrow", "head"}
    assert {name for name, label in found.items() if label == "gamma(0.5)"} == weighted


def test_own_entries_come_before_a_presets(program):
    for preset in (
        composites.epsilon, composites.epsilon_plus, composites.epsilon_plus_flat, composites.epsilon_alpha2_beta1,
        composites.epsilon_alpha2_beta1_flat, composites.excitation_backprop, composites.deconvnet,
        composites.guided_backprop, composites.beta_smooth,
    ):  # fmt: skip
        assert labels(program, preset(entries={"stem": rules.wsquare()}))["stem"] == "wsquare()"
    box = composites.epsilon_gamma_box(0, 1, entries={"stem": rules.wsquare()})
    assert labels(program, box)["stem"] == "wsquare()"


def test_first_layers_are_found_by_data_flow():
    class Backwards(nn.Module):
        """Registered last, used first; and an input that joins later has a first layer of its own."""

        def __init__(self):
            super().__init__()
            self.last, self.second, self.first = nn.Linear(4, 2), nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x, late):
            return self.last(self.first(x).relu() + self.second(late))

    fmodel, _ = lrpfunc.functionalize(Backwards(), torch.randn(2, 4), torch.randn(2, 3))
    found = labels(fmodel, composites.first_layer(rules.flat()))
    assert [found[name] for name in ("first", "second", "last")] == ["flat()", "flat()", "epsilon(1e-06)"]


def test_first_match_lays_composites_over_another(program):
    over = composites.first_match({"head": rules.flat()}, composites.by_kind({"linear": rules.gamma()}), rules.zplus())
    found = labels(program, over)
    assert found["head"] == "flat()"
    assert found["stem"] == "gamma(0.25)"


def test_a_composite_may_be_any_function_of_the_program(program):
    assert labels(program, lambda program: {"head": rules.flat()})["head"] == "flat()"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"stemm": rules.flat()},
            r"no layer matches the pattern 'stemm'. Did you mean 'stem'\? `print\(fmodel\)` lists all",
        ),
        ({"layer5.*": rules.flat()}, r"no layer matches the pattern 'layer5.\*'"),
        ({"stem": "flat"}, r"'stem' must be given a rule such as rules.epsilon\(\), but got str"),
        ("epsilon", r"rules must be a composite, a mapping \{name pattern: rule\} or one rule, but is str"),
        (composites.epsilon_plus, r"a composite must return a mapping .* A constructor must be called"),
        (None, r"rules must be a composite"),
        ({0: rules.flat()}, r"rules are given by name, but one key is 0"),
        (lambda program: {"stme": rules.flat()}, r"a composite names 'stme', which is no layer. Did you mean 'stem'"),
    ],
)
def test_bad_entries_are_refused(program, entries, message):
    with pytest.raises(RuleError, match=message):
        composites.assign(program, entries)


def test_an_unknown_kind_is_refused():
    with pytest.raises(
        RuleError, match=r"no kind is called 'convolutions': there are convolution, .*Did you mean 'convolution'"
    ):
        composites.by_kind({"convolutions": rules.flat()})


def test_near_misses_know_prefixes():
    layers = {f"layer{i}": nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for i in range(1, 5)}
    fmodel, _ = lrpfunc.functionalize(nn.Sequential(OrderedDict(layers)), torch.randn(1, 2))
    with pytest.raises(RuleError, match=r"no layer matches the pattern 'layer5.\*'. Did you mean 'layer4.\*' or"):
        composites.assign(fmodel, {"layer5.*": rules.flat()})
