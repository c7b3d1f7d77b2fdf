"""From a module to its explanation in one call, the preset that suits it, and how names come to the package."""

import subprocess
import sys
from collections import UserDict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites, contents, rules
from tests.traced import assert_equal, x_of


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
        self[1].running_mean.uniform_(-1, 1)
        self[1].running_var.uniform_(1, 2)
        self.double().eval()


def steps(model, x, chosen, *given):
    canonical = lrpfunc.canonize(*lrpfunc.functionalize(model, *given))
    return lrpfunc.attribute(canonical.fmodel, canonical.params, x, chosen, 1)


def test_one_call_is_its_steps():
    model, x = Normed(), x_of(3, 2, 3, 3, dtype=torch.float64)
    for given, chosen in [(None, composites.epsilon_plus_flat()), (rules.epsilon(), rules.epsilon())]:
        expected = steps(model, x, chosen, x)
        assert expected.any()
        assert_equal(lrpfunc.relevance(model, x, given, 1), expected)
        assert_equal(lrpfunc.explainer(model, x[:1], given)(x, 1), expected)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, a, *, scale=None):
        return self.layer(a) * (1 if scale is None else scale)


def test_inputs_are_tensors_tuples_and_mappings():
    model, a, scale = Two(), x_of(2, 3, dtype=torch.float64), x_of(2, 2, dtype=torch.float64)
    expected = lrpfunc.relevance(model, a, target=1)
    assert_equal(lrpfunc.relevance(model, (a,), target=1), (expected,))
    assert_equal(lrpfunc.relevance(model, {"a": a}, target=1), {"a": expected})
    assert_equal(lrpfunc.relevance(model, UserDict(a=a), target=1), {"a": expected})  # as tokenizers give them
    both = lrpfunc.relevance(model, {"a": a, "scale": scale}, target=1)
    assert set(both) == {"a", "scale"}
    assert both["scale"].any()


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class OfPair(nn.Module):
    def forward(self, pair):
        return pair.a * 2 + pair.b


def test_a_named_tuple_is_one_input():
    pair = Pair(x_of(2, 3), x_of(2, 3) + 1)
    found = lrpfunc.relevance(OfPair(), pair, rules.epsilon(), 1)
    assert isinstance(found, Pair)
    assert_equal(found, lrpfunc.relevance(OfPair(), (pair,), rules.epsilon(), 1)[0])


def test_the_module_is_left_as_it_was():
    model, x = Normed(), x_of(1, 2, 3, 3, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lrpfunc.relevance(model, x)
    assert_equal(dict(model.state_dict()), before)


# -- the preset -------------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    def __init__(self, convolutions=1):
        super().__init__()
        self.cut = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(convolutions)))

    def forward(self, x):
        h = self.cut(x).flatten(2)
        return nn.functional.scaled_dot_product_attention(h, h, h).sum(2)


class WrittenOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(4, 4)

    def forward(self, x):
        return (self.q(x) @ x.mT).softmax(-1) @ x


class Weighing(nn.Module):
    """A softmax that chooses among values, or that is only clamped."""

    def __init__(self, ending):
        super().__init__()
        self.net, self.ending = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(10, 3)), ending

    def forward(self, x):
        return self.ending(self.net(x).softmax(-1))


MIXER = nn.Sequential(nn.Conv1d(2, 3, 1), *(nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5)) for _ in range(6)))


def hearing(first):
    """A network whose second layer has one channel, too, and is no first one."""
    layers = (nn.Identity(), first, nn.ReLU(), nn.Flatten(1), nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 3, 2), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2))


MADE_OF = [
    (Weighing(lambda p: p.clamp(min=0.1)), (2, 5), "epsilon_plus_flat()", "1 of 2 layers is a convolution"),
    (Weighing(lambda p: p * torch.arange(3.0)), (2, 5), "epsilon_plus_flat()", "1 of 2 layers is a convolution"),
    (MIXER, (2, 5), "attn_lrp()", "it has normalizations or products of"),
    (nn.Linear(3, 2), (3,), "epsilon()", "its layers are dense ones, without attention"),
    (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), (3,), "attn_lrp()", "it has normalizations or products of"),
    (nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1)), (3,), "epsilon()", "its layers are dense ones, without attention"),
    (nn.Conv1d(2, 3, 1), (2, 5), "epsilon_plus_flat()", "1 of 1 layer is a convolution"),
    (Normed().float(), (2, 3, 3), "epsilon_plus_flat()", "1 of 2 layers is a convolution"),
    (Attending(), (2, 3, 3), "attn_lrp()", "attention is what decides (1 times)"),
    (Attending(2), (2, 3, 3), "epsilon_plus_flat()", "2 of 2 layers are convolutions"),
    (WrittenOut(), (3, 4), "attn_lrp()", "attention is what decides (1 times)"),
    (hearing(nn.Conv1d(1, 2, 5)), (1, 9), "epsilon_plus(entries={'1': rules.epsilon()})", "2 of 3 layers are convolut"),
    (hearing(nn.Conv2d(1, 2, (5, 1))), (1, 9, 3), "epsilon_plus(entries={'1': rules.epsilon()})", "2 of 3 layers are"),
    (hearing(nn.Conv1d(1, 2, 1)), (1, 9), "epsilon_plus_flat()", "2 of 3 layers are convolutions"),
    (hearing(nn.Conv1d(2, 2, 5)), (2, 9), "epsilon_plus_flat()", "2 of 3 layers are convolutions"),
    (hearing(nn.Conv2d(1, 2, (5, 2))), (1, 9, 3), "epsilon_plus_flat()", "2 of 3 layers are convolutions"),
]


@pytest.mark.parametrize(("model", "shape", "call", "reason"), MADE_OF)
def test_the_preset_follows_from_what_the_model_is_made_of(model, shape, call, reason):
    fmodel, _ = lrpfunc.functionalize(model, torch.randn(1, *shape))
    suggestion = composites.suggest(fmodel)
    assert suggestion.call == call
    assert suggestion.reason.startswith(reason)
    listing = lrpfunc.explain(fmodel)
    assert str(listing).splitlines()[0] == f"composites.{call}: {suggestion.reason}."
    chosen = eval(call, {**vars(composites), "rules": rules})
    assert listing.rows == lrpfunc.explain(fmodel, chosen).rows
    assert "composites." not in str(lrpfunc.explain(fmodel, chosen))


def test_tokens_are_explained_by_attnlrp():
    model = nn.Sequential(nn.Embedding(5, 2), nn.Conv1d(3, 2, 1), nn.Flatten(), nn.Linear(4, 2))
    ids = torch.tensor([[0, 4, 1]])
    fmodel, _ = lrpfunc.functionalize(model, ids)
    assert str(composites.suggest(fmodel)) == "composites.attn_lrp(): tokens are looked up in a table."
    assert lrpfunc.relevance(model, ids).shape == (1, 3)


# -- names ------------------------------------------------------------------------------------------------------------


def test_the_package_has_the_names_of_its_contents_page():
    assert set(contents.__all__) <= set(dir(lrpfunc))
    assert lrpfunc.__all__ == contents.__all__
    for name in contents.__all__:
        assert getattr(lrpfunc, name) is getattr(contents, name)


def test_a_name_that_does_not_exist_is_an_attribute_error_with_near_misses():
    with pytest.raises(AttributeError, match=r"^module 'lrpfunc' has no attribute 'atribute'\. Did you mean"):
        lrpfunc.atribute  # noqa: B018
    assert not hasattr(lrpfunc, "__path_to_nothing__")
    assert not hasattr(lrpfunc, "_nothing")


def test_threads_may_ask_for_the_first_name_at_once():
    code = (
        "import lrpfunc, threading\nfound = []\n"
        "ask = lambda: found.append(lrpfunc.attribute)\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert len(found) == 8, found"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


FOLDERS = sorted(path.parent.name for path in Path(lrpfunc.__file__).parent.glob("*/__init__.py"))
FIRST = """
import os, sys, torch
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        __import__("lrpfunc." + name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_every_folder_can_be_imported_first():
    modules = [*FOLDERS, "contents", "compat", "composites.presets", "composites.assignment", "pictures.inspection"]
    found = subprocess.run([sys.executable, "-c", FIRST, *modules], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_of_a_waveform_the_first_layer_gets_epsilon_and_a_reason():
    """Under z+ each sound gets about its share of the power; under epsilon one that is not heard cancels."""
    time = torch.arange(64, dtype=torch.float64)
    heard, louder = (torch.sin(2 * torch.pi * time * k / 64) for k in (8, 24))
    listen, weigh = nn.Conv1d(1, 2, 16, stride=4, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    listen.weight.data = torch.stack([heard[:16], -heard[:16]])[:, None]
    weigh.weight.data.fill_(1)
    model = nn.Sequential(listen, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), weigh)
    x = (heard + 2 * louder)[None, None]
    fmodel, params = lrpfunc.functionalize(model, x)
    suggestion = composites.suggest(fmodel)
    assert str(suggestion) == (
        "composites.epsilon_plus(entries={'0': rules.epsilon()}): 1 of 2 layers is a convolution, and '0' reads a "
        "waveform, of which only what a filter answers to may count."
    )
    expected = lrpfunc.attribute(fmodel, params, x, suggestion.composite)
    torch.testing.assert_close(lrpfunc.relevance(model, x), expected)

    def share_of_the_tone(composite):
        z = torch.fft.rfft(x)
        program, same = lrpfunc.trace(lambda params, z: fmodel(params, torch.fft.irfft(z)), params, z)
        relevance = lrpfunc.attribute(program, same, z, composite)[0, 0]
        return relevance[8] / relevance.sum()

    torch.testing.assert_close(share_of_the_tone(suggestion.composite), torch.tensor(1.0).double(), rtol=0, atol=1e-6)
    assert share_of_the_tone(composites.epsilon_plus()) < 0.6
