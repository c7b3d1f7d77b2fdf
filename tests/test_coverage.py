"""The coverage of whole models: a few rows of the table, what makes a row incomplete, and the command line.

`python -m tests.coverage` prints the whole table.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from tests.coverage import models
from tests.coverage.__main__ import app, line
from tests.coverage.measure import Model, Row, examined

# What else is promised by name: dynamicLRP's fifteen, hilrp's five.
PUBLISHED = {
    "VGG": "torchvision/vgg11_bn", "ResNet": "torchvision/resnet18", "EfficientNetV2": "torchvision/efficientnet_v2_s",
    "ViT": "transformers/vit", "SigLIP2": "transformers/siglip2", "Wav2Vec2": "transformers/wav2vec2",
    "Whisper": "transformers/whisper", "GPT-2": "transformers/gpt2", "RoBERTa": "transformers/roberta",
    "Llama": "transformers/llama", "Gemma 3": "transformers/gemma3", "Qwen3": "transformers/qwen3",
    "Flan-T5": "transformers/flan_t5", "DePlot": "transformers/pix2struct", "Mamba": "transformers/mamba",
    "Swin": "timm/swin_tiny_patch4_window7_224", "PVT-v2": "timm/pvt_v2_b0", "MaxViT": "timm/maxvit_tiny_tf_224",
    "MobileViT-v2": "timm/mobilevitv2_050", "EfficientViT": "timm/efficientvit_b0",
}  # fmt: skip
FEW = ("torchvision/squeezenet1_1", "transformers/clip", "transformers/patchtst")
TITLES = [model.title for model in models.models()]


def of(function) -> Model:
    """A model that is one function of three numbers."""

    class Small(nn.Module):
        def forward(self, x):
            return function(x)

    return Model("own", "small", lambda: (Small(), {"x": torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)}))


@torch.library.custom_op("lrpfunc_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x * x


mystery.register_fake(torch.empty_like)
mystery.register_autograd(
    lambda context, gradient: 2 * context.saved_tensors[0] * gradient,
    setup_context=lambda context, inputs, output: context.save_for_backward(*inputs),
)
MYSTERY = of(lambda x: mystery(x.relu()) + x)


# -- rows -------------------------------------------------------------------------------------------------------------


def assert_complete(row: Row) -> None:
    assert (row.error, dict(row.fallbacks), row.percent) == ("", {}, 100.0)
    assert row.equations > 0


def parameter(title: str):
    few = title in FEW
    library = title.partition("/")[0]
    return pytest.param(
        title, marks=() if few else (pytest.mark.slow, pytest.mark.dev) if library == "timm" else pytest.mark.slow
    )


@pytest.mark.parametrize("title", [parameter(title) for title in TITLES])
def test_every_equation_of_a_model_has_a_rule(title):
    pytest.importorskip(title.partition("/")[0])
    (model,) = models.selected([title])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        row = examined(model)
    assert_complete(row)
    if title in FEW:
        assert row.total == pytest.approx(1.0, abs=1e-6)


def test_an_operation_that_nobody_knows_shows():
    row = examined(MYSTERY)
    assert (row.equations, dict(row.fallbacks), row.percent) == (3, {"mystery": 1}, 66.7)
    assert "66.7" in line(row)
    assert "mystery (1)" in line(row)


def test_100_per_cent_are_all():
    assert Row("", 10_000, {"mystery": 1}).percent == 99.9
    assert Row("", 10_000, {"mystery": 101}).percent == 99.0
    assert Row("", 10_000).percent == 100.0
    assert Row("").percent == 0.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.randn(3) * x, "TraceError: 'randn'"),
        (lambda x: torch.sqrt(x - 5), "ArithmeticError: relevance by attn_lrp is not finite"),
        (lambda x: (x - 5).relu(), "ArithmeticError: no relevance by attn_lrp"),
    ],
)
def test_what_goes_wrong_is_said_in_the_row(function, message):
    row = examined(of(function))
    assert row.error.startswith(message)
    assert "\n" not in line(row)


# -- conservation: what is added whatever the input is left out -------------------------------------------------------

WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, 0.1]], dtype=torch.float64)
ADDED = {
    "a bias": lambda x: F.linear(x, WEIGHT, WEIGHT[:, 0]),
    "a shift": lambda x: 3 - F.linear(x + WEIGHT[0], WEIGHT),
    "a number": lambda x: (x + 0.5) * 2,
    "a class token": lambda x: torch.cat([WEIGHT[:1], x], 1),
    "a layer norm": lambda x: F.layer_norm(x, (3,), WEIGHT[0], WEIGHT[1]),
    "a group norm": lambda x: F.group_norm(x, 1, WEIGHT[0], WEIGHT[1]),
    "a batch norm": lambda x: F.batch_norm(x, WEIGHT[0], WEIGHT[1].abs(), WEIGHT[1], WEIGHT[0]),
    "a place": lambda x: torch.where(x > 1.5, x, WEIGHT[0]),
}


@pytest.mark.parametrize("name", ADDED)
def test_the_sum_is_the_output_without_constants(name):
    row = examined(of(ADDED[name]))
    assert_complete(row)
    assert (row.total, row.lost) == (pytest.approx(1.0, abs=1e-9), "")


def test_where_nothing_is_left_of_the_output_there_is_no_share():
    row = examined(of(lambda x: torch.cat([WEIGHT[:1], x], 1)[:, :3] * x))  # what reads a class token alone
    assert (str(row.total), row.lost) == ("nan", "")


def test_a_rule_that_loses_something_is_named():
    row = examined(of(lambda x: F.linear(x, WEIGHT).softmax(-1)))
    assert abs(row.total - 1) > 1e-3
    assert row.lost == "softmax 'softmax'"
    assert "lost at softmax 'softmax'" in line(row)


def test_relevance_of_both_signs_that_grows_is_not_lost():
    def cancels(x):
        twice = F.linear(x, WEIGHT[0].expand(2, 3))
        return F.linear(F.linear(twice, WEIGHT.new_tensor([[1e17, 16 - 1e17]])), WEIGHT[:, :1])

    row = examined(of(cancels))
    assert abs(row.total - 1) > 1e-3
    assert not row.lost
    assert row.grown > 1e14
    assert "of the output: rounding" in line(row)


# -- the command line -------------------------------------------------------------------------------------------------


def test_what_was_published_is_in_the_table():
    assert set(PUBLISHED.values()) <= set(TITLES)
    assert len(set(TITLES)) == len(TITLES) > 250


def test_words_are_libraries_names_and_patterns():
    def titles(*words):
        return [model.title for model in models.selected(words)]

    assert titles("llama") == ["transformers/llama"]
    assert titles("timm") == [title for title in TITLES if title.startswith("timm/")]
    assert titles("vgg1?", "vgg11", "transformers/vi[t]") == [
        "torchvision/vgg11", "torchvision/vgg13", "torchvision/vgg16", "torchvision/vgg19", "transformers/vit",
    ]  # fmt: skip
    assert titles() == TITLES
    with pytest.raises(ValueError, match="no model, library or pattern 'lama': --list has all names"):
        titles("lama")


def run(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_the_exit_code_tells_an_incomplete_row(monkeypatch):
    monkeypatch.setattr(models, "models", lambda: [MYSTERY._replace(name="mystery"), of(torch.relu)])
    result = run()
    assert result.exit_code == 1
    assert "1 of 2 models: 100.0 %, strict" in result.output
    result = run("small")
    assert result.exit_code == 0
    assert "1 of 1 models: 100.0 %, strict" in result.output
    assert run("mystery").exit_code == 1
    assert run("--list").output.split() == ["own/mystery", "own/small"]
    assert "no model, library or pattern 'lama'" in run("lama").output
    monkeypatch.setattr(models, "models", lambda: [of(lambda x: F.linear(x, WEIGHT).softmax(-1))])
    assert run().exit_code == 1


def test_a_library_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(models, "models", lambda: [of(torch.relu), of(torch.relu)._replace(library="timm")])
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == "timm" else name)
    result = run()
    assert "timm is not installed: its rows are left out" in result.output
    assert "1 of 1 models" in result.output
