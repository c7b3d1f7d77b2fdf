"""Graphs of tokens through layers: edges are pullbacks one by one; rows and columns add up; inputs as `attribute`."""

import functools

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import circuits, composites, rules
from lrpfunc.circuits.streams import streams
from lrpfunc.errors import InputError, RuleError, TargetError
from tests import test_eager_oracle as oracle
from tests.helpers import relative_error

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
FAMILIES = ("llama", "gpt2", "bert", "t5", "vit", "mixtral", "lfm2")


@functools.cache
def subject(name: str, attention: str = "sdpa"):
    pytest.importorskip("transformers")
    model = oracle.build(name, attention)
    x = oracle.inputs(model)
    return *lrpfunc.functionalize(model, **x), x


@functools.cache
def graph_of(name: str, attention: str = "sdpa", composite: str = "attn_lrp") -> circuits.Graph:
    return circuits.graph(*subject(name, attention), oracle.TARGET, oracle.METHODS[composite])


# -- streams ----------------------------------------------------------------------------------------------------------

STREAMS = {
    "llama": ["inputs_embeds", "model.model.layers.0", "model.model.layers.1"],
    "gpt2": ["model.transformer.add:1", "model.transformer.h.0", "model.transformer.h.1"],
    "bert": ["model.bert.embeddings.LayerNorm", "model.bert.encoder.layer.0", "model.bert.encoder.layer.1"],
    "t5": [
        "inputs_embeds", "decoder_inputs_embeds", "model.encoder.block.0", "model.encoder.block.1",
        "model.decoder.block.0", "model.decoder.block.1",
    ],
    "vit": ["model.vit.embeddings.add", "model.vit.layers.0", "model.vit.layers.1"],
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_found_by_the_names_of_blocks(name):
    fmodel, _, _ = subject(name)
    assert list(streams(fmodel)) == STREAMS[name]
    assert graph_of(name).streams == (*STREAMS[name], "target")


def test_streams_of_albert_are_the_calls_of_its_one_layer():
    fmodel, _, _ = subject("albert")
    assert len(streams(fmodel)) == 3
    assert [name.rpartition(":")[2] for name in list(streams(fmodel))[1:]] == ["0", "1"]


def test_streams_may_be_named():
    fmodel, params, x = subject("llama")
    layers = ["model.model.layers.1", "model.model.layers.0.add", "inputs_embeds"]
    found = circuits.graph(fmodel, params, x, oracle.TARGET, layers=layers)
    assert found.streams == ("inputs_embeds", "model.model.layers.0.add", "model.model.layers.1", "target")
    whole = graph_of("llama")
    for name in ("inputs_embeds", "model.model.layers.1"):
        close(found.nodes[name], whole.nodes[name])


@pytest.mark.parametrize(("layers", "error", "message"), [
    ([], RuleError, "layers are names of residual streams, but got []"),
    (["model.model.layers.7"], RuleError, "no layer is called 'model.model.layers.7'"),
    (
        ["model.model.layers.0.self_attn:heads"], InputError,
        "'model.model.layers.0.self_attn:heads' is no residual stream: it must be (batch, tokens, width), but is "
        "('batch', 4, 'length', 8)",
    ),
])  # fmt: skip
def test_layers_that_are_no_streams_are_refused(layers, error, message):
    fmodel, params, x = subject("llama")
    with pytest.raises(error) as caught:
        circuits.graph(fmodel, params, x, oracle.TARGET, layers=layers)
    assert message in str(caught.value)


def test_streams_that_are_not_found_are_an_error_that_says_how_to_name_them():
    x = torch.ones(1, 3, 4)
    fmodel, params = lrpfunc.functionalize(nn.Linear(4, 2), x)
    with pytest.raises(InputError, match=r"no residual streams were found: no modules are numbered in a row\. Name"):
        circuits.graph(fmodel, params, x, 0)
    blocks = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(4, 2))])})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = blocks

        def forward(self, x):
            return self.inner["blocks"][0](x)

    fmodel, params = lrpfunc.functionalize(Model(), x)
    with pytest.raises(InputError, match=r"modules numbered in a row at 'inner.blocks' hand on no \(batch, tokens,"):
        circuits.graph(fmodel, params, x, 0)


# -- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", oracle.METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_and_columns_add_up_and_inputs_are_those_of_attribute(name, composite):
    found = graph_of(name, composite=composite)
    sent = {}
    for upper in found.streams:
        for pair in found.below(upper):
            assert pair.edges.shape == (*found.nodes[upper].shape, found.nodes[pair.lower].shape[1])
            sent[pair.lower] = sent.get(pair.lower, 0) + pair.edges.sum(1)
        if found.below(upper):
            close(sum(pair.edges.sum(2) for pair in found.below(upper)) + found.constants[upper], found.nodes[upper])
    assert len(sent) == len(found.streams) - 1
    for lower, total in sent.items():
        close(total, found.nodes[lower])
    fmodel, params, x = subject(name)
    expected = lrpfunc.attribute(fmodel, params, x, oracle.METHODS[composite], oracle.TARGET)
    for key, relevance in expected.items():
        assert relative_error(found.inputs[key], relevance) < 1e-9
    if found.streams[0] in x:
        close(found.nodes[found.streams[0]], expected[found.streams[0]].sum(2))


def test_the_target_node_is_the_logit():
    fmodel, params, x = subject("bert")
    close(graph_of("bert").nodes["target"][:, 0], fmodel(params, **x)[:, oracle.TARGET])


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_edges_are_pullbacks_one_by_one(name):
    """Of one token's relevance alone, which goes no further than to the streams below."""
    fmodel, params, x = subject(name)
    found = graph_of(name)
    inner = [stream for stream in found.streams[:-1] if stream not in x]
    trail = lrpfunc.record(fmodel, params, x, composites.attn_lrp(), at=inner)
    _, arrived = trail.pull(oracle.TARGET)
    for pair in found.pairs:
        if pair.upper == "target" or pair.lower in x:
            continue
        others = {stream: 0.0 for stream in inner if stream not in (pair.upper, pair.lower)}
        below = {stream for stream in others if inner.index(stream) < inner.index(pair.upper)}
        for token in range(pair.edges.shape[1]):
            alone = torch.zeros_like(arrived[pair.upper])
            alone[:, token] = arrived[pair.upper][:, token]
            edit = {stream: 0.0 for stream in below if found.nodes[stream].shape == found.nodes[pair.upper].shape}
            _, moved = trail.pull({pair.upper: alone}, edit=edit if pair.lower not in edit else None)
            assert relative_error(pair.edges[:, token], moved[pair.lower].sum(2)) < 1e-9


def test_chunks_change_nothing():
    fmodel, params, x = subject("t5")
    found = circuits.graph(fmodel, params, x, oracle.TARGET, chunk_size=2)
    for one, other in zip(found.pairs, graph_of("t5").pairs, strict=True):
        close(one.edges, other.edges)


def test_a_graph_is_a_pytree_and_says_which_streams_are_neighbours():
    found = graph_of("gpt2")
    doubled = torch.utils._pytree.tree_map(lambda tensor: 2 * tensor, found)
    assert isinstance(doubled, circuits.Graph)
    close(doubled.pairs[1].edges, 2 * found.pairs[1].edges)
    lower, upper = found.streams[1:3]
    assert found.pair(upper, lower).lower == lower
    with pytest.raises(InputError, match=r"'.*h\.0' and 'target' are no neighbours: there are edges from"):
        found.pair("target", lower)
    assert str(found).splitlines()[0].split() == ["from", "to", "edges", "found", "by"]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_position_outside_is_refused():
    f = lambda p, x: (x + x.mean(1, keepdim=True) @ p) @ p  # noqa: E731
    x = torch.ones(1, 3, 2)
    fmodel, params = lrpfunc.trace(f, torch.eye(2), x)
    with pytest.raises(TargetError, match="3"):
        circuits.graph(fmodel, params, x, (3, 0), layers=["x", "add"])


def test_relevance_that_overflows_is_refused():
    x = torch.full((1, 3, 2), 200.0, dtype=torch.float16)
    fmodel, params = lrpfunc.trace(lambda p, x: ((x @ p) * 100.0) @ p, torch.eye(2).half(), x)
    gradient = composites.by_kind({"*": rules.gradient()})
    with pytest.raises(InputError, match="the relevance at 'matmul' is not finite: float16 ends at 65504"):
        circuits.graph(fmodel, params, x, lambda y: torch.full_like(y, 60000.0), gradient, ["x", "matmul"])
