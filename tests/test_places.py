"""What names mean: equations, modules, patterns, and the parts of transformers."""

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import composites
from lrpfunc.attribution.places import outputs_named
from lrpfunc.errors import RuleError
from tests import transformer_zoo
from tests.cases import subject

LLAMA = "model.model.layers.0"


def traced(name):
    pytest.importorskip("transformers")
    model = transformer_zoo.build(name, layers=2)
    inputs = transformer_zoo.inputs(name)
    return (*lrpfunc.functionalize(model, **inputs), inputs, model)


def test_heads_neurons_and_residuals_of_llama():
    fmodel, params, x = subject("llama")
    names = [f"{LLAMA}.self_attn:heads", f"{LLAMA}.mlp:neurons", f"{LLAMA}:residual", LLAMA]
    trail = lrpfunc.record(fmodel, params, x, composites.cp_lrp(), at=names)
    _, inner = trail.pull(1)
    batch, length = x.shape[:2]
    shapes = [(batch, 4, length, 8), (batch, length, 64), (batch, length, 32), (batch, length, 32)]
    assert [tuple(trail.values[name].shape) for name in names] == shapes
    down = params[f"{LLAMA}.mlp.down_proj.weight"]
    other = lrpfunc.record(fmodel, params, x, composites.cp_lrp(), at=[f"{LLAMA}.mlp.down_proj", f"{LLAMA}.mlp.mul"])
    torch.testing.assert_close(trail.values[f"{LLAMA}.mlp:neurons"] @ down.T, other.values[f"{LLAMA}.mlp.down_proj"])
    torch.testing.assert_close(trail.values[LLAMA], trail.values[f"{LLAMA}:residual"])
    torch.testing.assert_close(inner[LLAMA], inner[f"{LLAMA}:residual"])


def test_patterns_of_paths_have_a_part_each():
    fmodel, *_ = traced("llama")
    found = outputs_named(fmodel, ["*.self_attn:heads", "*mlp:neurons"])
    paths = [f"model.layers.{i}" for i in range(2)]
    assert list(found) == [*(f"{p}.self_attn:heads" for p in paths), *(f"{p}.mlp:neurons" for p in paths)]
    everywhere = outputs_named(fmodel, "*:heads")
    assert list(everywhere) == list(found)[:2]  # the innermost module that has them
    assert {found[name] for name in everywhere} == set(everywhere.values())


def test_layers_that_share_their_weights_have_a_part_in_each_call():
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.AlbertConfig(vocab_size=50, num_hidden_layers=2, num_labels=3, **sizes)
    ids = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    fmodel, params = lrpfunc.functionalize(transformers.AlbertForSequenceClassification(config).eval(), **ids)
    trail = lrpfunc.record(fmodel, params, ids, composites.cp_lrp(), at="*:heads")
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    heads = [f"{layer}.attention:{call}:heads" for call in range(2)]
    assert list(trail.values) == list(outputs_named(fmodel, f"{layer}.attention:heads")) == heads
    assert list(outputs_named(fmodel, f"{layer}.attention:1:heads")) == heads[1:]
    edited, _ = trail.pull(1, edit={"*:heads": 0.5})
    torch.testing.assert_close(edited, trail.pull(1, edit=dict.fromkeys(heads, 0.5))[0])
    assert not torch.allclose(edited["input_ids"], trail.pull(1, edit={heads[1]: 0.5})[0]["input_ids"])


def test_sums_of_rotary_embeddings_are_no_residuals():
    fmodel, *_ = traced("llama")
    assert any(e.name.startswith("model.layers.0.self_attn.add") for e in fmodel.equations)
    found = outputs_named(fmodel, "model.layers.*:residual")
    assert list(found) == ["model.layers.0:residual", "model.layers.1:residual"]
    with pytest.raises(RuleError, match="has no residual"):
        outputs_named(fmodel, "model.layers.0.self_attn:residual")


def test_eager_attention_has_a_pattern_and_heads():
    *_, inputs, model = traced("llama")
    model.config._attn_implementation = "eager"
    fmodel, params = lrpfunc.functionalize(model, **inputs)
    name = "model.layers.0.self_attn"
    trail = lrpfunc.record(fmodel, params, inputs, composites.cp_lrp(), at=[f"{name}:pattern", f"{name}:heads"])
    pattern = trail.values[f"{name}:pattern"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    assert trail.values[f"{name}:heads"].shape[:3] == pattern.shape[:3]
    assert (pattern.triu(1) == 0).all()


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (
            f"{LLAMA}.self_attn:head",
            r"asks for 'head', but parts are heads, pattern, neurons, residual\. Did you mean 'h",
        ),
        (f"{LLAMA}.self_atn:heads", r"no module is at 'model\.model\.layers\.0\.self_atn'\. Did you mean 'model\.mod"),
        (f"{LLAMA}.mlp:heads", rf"'{LLAMA}\.mlp' has no heads\. `lrpfunc\.explain\(fmodel\)` lists what is there"),
        (
            f"{LLAMA}:pattern",
            "has no pattern. Attention as one operation has none: load the model with eager attention",
        ),
    ],
)
def test_parts_that_there_are_not(at, message):
    fmodel, *_ = subject("llama")
    with pytest.raises(RuleError, match=message):
        outputs_named(fmodel, at)


def test_names_are_listed():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    fmodel, _ = lrpfunc.functionalize(model, torch.ones(1, 3))
    assert fmodel.names() == ("0", "1", "2.0", "2.1")
    assert fmodel.names("2") == fmodel.names("2.*") == ("2.0", "2.1")
    assert fmodel.names("?") == ("0", "1")
    assert fmodel.names("nothing") == ()
