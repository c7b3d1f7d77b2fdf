"""Graphs of tokens through layers: edges are pullbacks one by one; rows and columns add up; inputs as `attribute`."""

import functools

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc import circuits, composites, rules
from lrpfunc.circuits import closed
from lrpfunc.circuits.streams import streams
from lrpfunc.errors import InputError, RuleError, TargetError
from tests import test_eager_oracle as oracle
from tests import transformer_zoo
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
    with pytest.raises(InputError, match=r"of modules numbered in a row those at 'inner.blocks' hand on \(batch, "):
        circuits.graph(fmodel, params, x, 0)


def test_blocks_of_stages_are_found_within():
    """Swin's stages, of which the first hands on 16 tokens; within, blocks have as many as come in."""
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2}
    model = transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)).double().eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fmodel, params = lrpfunc.functionalize(model, x)
    found = circuits.graph(fmodel, params, x, 1)
    blocks = [f"swin.encoder.layers.{name}" for name in ("0.blocks.0", "1.blocks.0", "1.blocks.1")]
    between = "swin.encoder.layers.0.downsample.reduction"
    assert found.streams == ("swin.embeddings.norm", blocks[0], between, *blocks[1:], "target")
    assert found.pair(between, blocks[0]).edges.shape == (2, 4, 16)
    relevance = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), 1)
    close(found.inputs, relevance)
    assert_sums(found)


def assert_sums(found: circuits.Graph) -> None:
    for pair in found.pairs:
        close(pair.edges.sum(1), found.nodes[pair.lower])
        close(pair.edges.sum(2) + found.constants[pair.upper], found.nodes[pair.upper])


def test_streams_in_another_layout_are_named_with_their_shapes():
    transformers = pytest.importorskip("transformers")
    config = transformers.XLNetConfig(d_model=8, n_layer=1, n_head=2, d_inner=8, vocab_size=20)
    ids = torch.tensor([[1, 2, 3, 4]])
    model = transformers.XLNetForSequenceClassification(config).eval()
    fmodel, params = lrpfunc.functionalize(model, input_ids=ids)
    with pytest.raises(InputError) as caught:
        circuits.graph(fmodel, params, {"input_ids": ids}, 0)
    assert str(caught.value).startswith(
        "no residual streams were found: of modules numbered in a row those at 'transformer.layer' hand on (length, "
        "batch, 8), and no (batch, tokens, width). Name them, from the embedding upwards: layers=["
    )
    with pytest.raises(InputError, match=r"'transformer.layer.0.ff.layer_norm' is no residual stream: it must be"):
        circuits.graph(fmodel, params, {"input_ids": ids}, 0, layers="transformer.layer.0.ff.layer_norm")


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


def test_token_ids_have_the_relevance_of_the_embedding_stream():
    pytest.importorskip("transformers")
    model = transformer_zoo.build("llama", torch.float64)
    ids = torch.tensor([[3, 7, 7, 1], [9, 4, 2, 5]])
    fmodel, params = lrpfunc.functionalize(model, input_ids=ids)
    found = circuits.graph(fmodel, params, {"input_ids": ids}, (-1, 3))
    assert found.streams[0] == "model.embed_tokens"
    close(found.inputs["input_ids"], found.nodes["model.embed_tokens"])


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


# -- in closed form ---------------------------------------------------------------------------------------------------

CLOSED = [
    (name, attention)
    for name in ("llama", "qwen3", "gemma3", "gemma2", "gpt2", "bert", "t5", "vit", "mixtral", "qwen3_moe", "gpt_oss")
    for attention in (oracle.IMPLEMENTATIONS[:1] if name in oracle.EAGER else oracle.IMPLEMENTATIONS)
]
ATTENTION = "scaled_dot_product_attention"
MIXING = "tokens mix in more than attention"


@functools.cache
def by_pullbacks(name: str, attention: str, composite: str) -> circuits.Graph:
    return circuits.graph(
        *subject(name, attention), oracle.TARGET, oracle.METHODS[composite], method="pullbacks", chunk_size=7
    )


def assert_alike(found: circuits.Graph, expected: circuits.Graph) -> None:
    assert [(pair.upper, pair.lower) for pair in found.pairs] == [(pair.upper, pair.lower) for pair in expected.pairs]
    for one, other in zip(found.pairs, expected.pairs, strict=True):
        close(one.edges, other.edges)


@pytest.mark.parametrize("composite", oracle.METHODS)
@pytest.mark.parametrize(("name", "attention"), CLOSED)
def test_closed_forms_are_the_pullbacks(name, attention, composite):
    found = graph_of(name, attention, composite)
    assert {pair.method for pair in found.pairs} == {"closed", "one pullback"}
    expected = by_pullbacks(name, attention, composite)
    assert {pair.why for pair in expected.pairs} == {"asked for", ""}
    assert_alike(found, expected)


@pytest.mark.parametrize("composite", [
    composites.attn_lrp(gamma=0.25), composites.attn_lrp(epsilon=1e-2), composites.epsilon_plus(),
    composites.by_kind({"*": rules.input_times_gradient()}),
], ids=["gamma", "epsilon", "epsilon_plus", "input_times_gradient"])  # fmt: skip
def test_closed_forms_hold_under_other_rules(composite):
    found = circuits.graph(*subject("llama"), oracle.TARGET, composite, method="closed")
    assert_alike(found, circuits.graph(*subject("llama"), oracle.TARGET, composite, method="pullbacks"))


@pytest.mark.parametrize(("name", "why"), [
    ("lfm2", [MIXING, ""]), ("mamba", [MIXING, MIXING]), ("deberta", [MIXING, MIXING]),
])  # fmt: skip
def test_convolutions_and_scans_are_pulled_back(name, why):
    """Blocks with a short convolution, a state space, and attention by relative positions."""
    attention = "eager" if name in oracle.EAGER else "sdpa"
    found = graph_of(name, attention)
    assert [pair.why for pair in found.pairs[:-1]] == why
    assert f"pullbacks: {MIXING}" in str(found)
    assert_alike(found, by_pullbacks(name, attention, "attn_lrp"))
    with pytest.raises(
        RuleError, match=rf"^the edges below '.*' have no closed form: {MIXING}\. With method=None they"
    ):
        circuits.graph(*subject(name, attention), oracle.TARGET, method="closed")


def test_two_attentions_in_a_row_are_pulled_back():
    fmodel, params, x = subject("llama")
    layers = ["inputs_embeds", "model.model.layers.1"]
    found = circuits.graph(fmodel, params, x, oracle.TARGET, layers=layers)
    assert found.pairs[0].why == (
        "'model.model.layers.1.self_attn.scaled_dot_product_attention' attends to tokens that were mixed before"
    )
    close(found.nodes["inputs_embeds"], graph_of("llama").nodes["inputs_embeds"])


def test_the_gradient_of_a_relevance_is_pulled_back():
    """Where the relevance of attention's output is moved as if it were a coefficient."""
    found = circuits.graph(*subject("gpt2"), oracle.TARGET, composites.by_kind({"*": rules.gradient()}))
    assert found.pairs[1].why.startswith("a relevance and no coefficient arrives at 'model.transformer.h.1.attn")


def attend(p, x, mask=None, is_causal=False, groups=1):
    """One block of two heads, or more that share two keys."""
    q = (x @ p["q"]).reshape(*x.shape[:2], 2 * groups, 2).transpose(1, 2)
    k, v = ((x @ p[name]).reshape(*x.shape[:2], 2, 2).transpose(1, 2) for name in "kv")
    y = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=groups > 1)
    x = x + y.transpose(1, 2).flatten(2) @ p["o"]
    return (x + (x @ p["up"]).relu() @ p["down"])[:, -1]


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "of truth": {"mask": torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]).bool()},
    "of numbers": {"mask": torch.linspace(-2, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)},
    "of columns": {"mask": torch.tensor([[1, 1, 0, 1]]).bool()},
    "shared keys": {"groups": 2},
}


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_has_a_closed_form(mask):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    groups = MASKS[mask].get("groups", 1)
    params = {"q": random(4, 4 * groups), "k": random(4, 4), "v": random(4, 4), "o": random(4 * groups, 4)}
    params |= {"up": random(4, 8), "down": random(8, 4)}
    x = random(2, 4, 4)
    fmodel, params = lrpfunc.trace(functools.partial(attend, **MASKS[mask]), params, x)
    graphs = [circuits.graph(fmodel, params, x, 1, layers=["x", "add:1"], method=m) for m in ("closed", "pullbacks")]
    assert_alike(*graphs)


def test_a_batch_of_none_has_empty_edges_and_inputs_that_autograd_watches_those_of_others():
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 4, 3)
    fmodel, params = lrpfunc.trace(plain, torch.eye(3, dtype=torch.float64), x)
    find = functools.partial(circuits.graph, fmodel, params, target=1, layers=["x", "add"])
    for options in ({}, {"keep": 2}, {"split": True}):
        found = find(x[:0], **options)
        assert [pair.edges.shape for pair in found.pairs] == [(0, 4, 4), (0, 1, 4)]
        assert found.pairs[0].why == "there are no tokens"
        assert found.inputs.shape == (0, 4, 3)
    assert_alike(find(x.clone().requires_grad_()), find(x))


def test_tokens_that_are_mixed_in_another_order_are_no_closed_form():
    """Keys of the next token: what is a weight's own is not a token's."""
    f = lambda p, x: (x + attention(x, x.roll(1, 1), x.roll(1, 1)) @ p)[:, -1] @ p  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 3, generator=generator, dtype=torch.float64)
    fmodel, params = lrpfunc.trace(f, torch.randn(3, 3, generator=generator, dtype=torch.float64), x)
    found = circuits.graph(fmodel, params, x, 1, layers=["x", "add"])
    assert found.pairs[0].why
    assert_alike(found, circuits.graph(fmodel, params, x, 1, layers=["x", "add"], method="pullbacks"))


def memory(p, x):
    """With a key of the model's own in front of those of the tokens."""
    k, v = (torch.cat([p[:1].expand(len(x), 1, -1), x @ p], 1) for _ in range(2))
    return (x + attention(x, k, v))[:, -1] @ p


def shared(p, x):
    k = x @ p
    return (x + attention(x, k, k) + attention(2 * x, k, k))[:, -1] @ p


def across_samples(p, x):
    y = x.transpose(0, 1)
    return (x + attention(y @ p, y @ p, y @ p).transpose(0, 1))[:, -1] @ p


def plain(p, x):
    return (x + attention(x @ p, x @ p, x @ p))[:, -1] @ p


def attention(q, k, v):
    return nn.functional.scaled_dot_product_attention(q, k, v)


def of_size_alone() -> rules.Rule:
    """What the vector-Jacobian product's size is, which no rule of attention here gives."""
    usual = rules.attention("value", 0)

    def backward(operation, residuals, flow):
        return [
            None if one is None else one.moved(one.tensor.abs()) for one in usual.backward(operation, residuals, flow)
        ]

    return usual._replace(label="of_size_alone()", backward=backward)


@pytest.mark.parametrize(("function", "rule", "why"), [
    (memory, None, f"'{ATTENTION}' attends to something else than tokens"),
    (shared, None, f"'{ATTENTION}' is not alone in reading its keys or values"),
    (across_samples, None, "attention of shape (5, 2, 3) is not by samples and heads"),
    (plain, of_size_alone(), f"the rule of '{ATTENTION}' is no multiple of the vector-Jacobian product"),
])  # fmt: skip
def test_other_attention_is_pulled_back(function, rule, why):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    fmodel, params = lrpfunc.trace(function, torch.randn(3, 3, generator=generator, dtype=torch.float64), x)
    end = [name for name in fmodel.names() if name.startswith("add")][-1]
    composite = composites.attn_lrp(entries=None if rule is None else {ATTENTION: rule})
    found = circuits.graph(fmodel, params, x, 1, composite, ["x", end])
    assert found.pairs[0].why == why
    sent = found.pairs[0].edges.sum(2) + found.constants[end]
    close(sent, found.nodes[end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_have_closed_forms(dtype):
    pytest.importorskip("transformers")
    model, x = transformer_zoo.build("gpt2", dtype), transformer_zoo.inputs("gpt2", dtype=dtype)
    fmodel, params = lrpfunc.functionalize(model, **x)
    found = circuits.graph(fmodel, params, x, (-1, 3), method="closed")
    whole = graph_in_float64()
    for pair, other in zip(found.pairs, whole.pairs, strict=True):
        assert pair.edges.dtype == torch.float32
        assert relative_error(pair.edges, other.edges) < {torch.float32: 1e-5}.get(dtype, 0.05)


def test_keys_whose_parts_nearly_cancel_have_a_closed_form():
    """Where values are nearly alike, as those of thousands of tokens become, scores are given differences of these."""

    def f(p, x):
        return (x + nn.functional.scaled_dot_product_attention(x @ p, x @ p, x @ p, is_causal=True))[:, -1] @ p

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 4, generator=generator) * 1e-5 + 1
    fmodel, params = lrpfunc.trace(f, torch.eye(4), x)
    graphs = [circuits.graph(fmodel, params, x, 1, layers=["x", "add"], method=m) for m in (None, "pullbacks")]
    assert graphs[0].pairs[0].why == ""
    torch.testing.assert_close(graphs[0].pairs[0].edges, graphs[1].pairs[0].edges, rtol=1e-4, atol=1e-6)


def graph_in_float64() -> circuits.Graph:
    model, x = transformer_zoo.build("gpt2", torch.float64), transformer_zoo.inputs("gpt2", dtype=torch.float64)
    return circuits.graph(*lrpfunc.functionalize(model, **x), x, (-1, 3))


def test_chunks_change_nothing():
    fmodel, params, x = subject("t5")
    assert_alike(
        circuits.graph(fmodel, params, x, oracle.TARGET, method="pullbacks", chunk_size=2),
        by_pullbacks("t5", "sdpa", "attn_lrp"),
    )


def test_some_rows_at_a_time_change_nothing(monkeypatch):
    monkeypatch.setattr(closed, "ELEMENTS", 2 * 4 * 7 * 3)  # three rows of two samples and four heads
    assert_alike(circuits.graph(*subject("llama"), oracle.TARGET), graph_of("llama"))


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


# -- split ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", oracle.IMPLEMENTATIONS)
def test_edges_by_heads_are_pullbacks_through_one_head(attention):
    """But for the token itself, to which a pullback through one head brings what went by the residual as well."""
    fmodel, params, x = subject("llama", attention)
    found = circuits.graph(fmodel, params, x, oracle.TARGET, split=True)
    assert_alike(found, graph_of("llama", attention))
    lower, upper = found.streams[1:3]
    pair = found.pair(upper, lower)
    assert pair.heads.shape == (2, 4, 7, 7)
    heads = f"{upper}.self_attn:heads"
    trail = lrpfunc.record(fmodel, params, x, composites.attn_lrp(), at=[lower, heads, upper])
    _, arrived = trail.pull(oracle.TARGET)
    others = ~torch.eye(7, dtype=torch.bool)
    for head in range(4):
        only = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
        only[:, head] = 1
        for token in range(7):
            alone = torch.zeros_like(arrived[upper])
            alone[:, token] = arrived[upper][:, token]
            _, moved = trail.pull({upper: alone}, edit={heads: only})
            close(pair.heads[:, head, token][:, others[token]], moved[lower].sum(2)[:, others[token]])
    stays = pair.edges - pair.heads.sum(1)
    close(stays, torch.diag_embed(stays.diagonal(dim1=1, dim2=2)))


def test_branches_are_what_arrives_at_attention_and_mlp():
    fmodel, params, x = subject("t5")
    found = circuits.graph(fmodel, params, x, oracle.TARGET, split=True)
    assert [len(found.branches[name]) for name in found.streams[2:-1]] == [2, 2, 3, 3]
    names = [name for branches in found.branches.values() for name in branches]
    assert "model.decoder.block.1.layer.1.EncDecAttention.o" in names
    _, arrived = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), oracle.TARGET, at=names)
    for branches in found.branches.values():
        for name, relevance in branches.items():
            close(relevance, arrived[name].sum(2))


def test_split_graphs_are_pytrees_and_have_spans():
    found = circuits.graph(*subject("llama"), oracle.TARGET, split=True)
    spans = torch.utils._pytree.tree_map(lambda tensor: 2 * tensor, found).spans({"first": range(3)})
    pair, whole = spans.pairs[0], found.pairs[0]
    close(pair.heads[:, :, 1, 0], 2 * whole.heads[:, :, 3:, :3].sum((2, 3)))
    (first, _) = found.branches[pair.upper]
    close(spans.branches[pair.upper][first][:, 0], 2 * found.branches[pair.upper][first][:, :3].sum(1))
    assert found.prune(0.5).pairs[0].heads is None


def test_heads_are_not_known_of_pullbacks():
    found = circuits.graph(*subject("lfm2"), oracle.TARGET, split=True)
    assert [pair.heads is None for pair in found.pairs] == [True, False, True]
    with pytest.raises(RuleError, match=r"^split=True stores the edges of all heads, which keep= would not: leave one"):
        circuits.graph(*subject("lfm2"), oracle.TARGET, split=True, keep=3)


# -- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["closed", "pullbacks"])
def test_the_strongest_edges_of_each_token_are_kept(method):
    found = circuits.graph(*subject("llama"), oracle.TARGET, method=method, keep=2)
    for pair, whole in zip(found.pairs[:-1], graph_of("llama").pairs[:-1], strict=True):
        strongest = whole.edges.abs().sort(2, descending=True).values[:, :, 1:2]
        expected = torch.where((whole.edges.abs() >= strongest) & (whole.edges != 0), whole.edges, 0.0)
        assert pair.edges.is_sparse
        assert pair.edges.values().numel() < whole.edges.numel() / 3
        close(pair.edges.to_dense(), expected)
        close(pair.dropped, (whole.edges - expected).sum(2))
        close(pair.dropped + pair.edges.to_dense().sum(2) + found.constants[pair.upper], found.nodes[pair.upper])


def test_edges_of_a_share_of_what_is_explained_are_kept():
    found, whole = circuits.graph(*subject("t5"), oracle.TARGET, keep=0.05), graph_of("t5")
    least = 0.05 * whole.nodes["target"].abs()[:, :, None]
    for pair, other in zip(found.pairs[:-1], whole.pairs[:-1], strict=True):
        close(pair.edges.to_dense(), torch.where(other.edges.abs() >= least, other.edges, 0.0))


@pytest.mark.parametrize("keep", [0, -1, 1.0, True, "all"])
def test_what_says_nothing_of_edges_is_refused(keep):
    with pytest.raises(
        InputError, match=r"^keep must be a number of edges for each token, such as 32, or the least share"
    ):
        circuits.graph(*subject("llama"), oracle.TARGET, keep=keep)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_another_method_is_refused():
    with pytest.raises(RuleError, match=r"^method must be None, 'closed' or 'pullbacks', but is 'fast'\.$"):
        circuits.graph(*subject("llama"), oracle.TARGET, method="fast")


def test_a_position_outside_is_refused():
    f = lambda p, x: (x + x.mean(1, keepdim=True) @ p) @ p  # noqa: E731
    x = torch.ones(1, 3, 2)
    fmodel, params = lrpfunc.trace(f, torch.eye(2), x)
    with pytest.raises(
        TargetError,
        match=r"^index 3 of the target is out of range: dimension 1 of the output, .*, has size 3, 0 to 2\.$",
    ):
        circuits.graph(fmodel, params, x, (3, 0), layers=["x", "add"])


def test_relevance_that_is_not_finite_is_refused():
    x = torch.zeros(1, 3, 2, dtype=torch.float64)
    x[0, 0, 0] = torch.inf
    fmodel, params = lrpfunc.trace(lambda p, x: ((x @ p) * 2.0) @ p, torch.eye(2).double(), x)
    with pytest.raises(InputError, match=r"the relevance at '\w+' is not finite: a rule above it divides by"):
        circuits.graph(fmodel, params, x, (0, 0), layers=["x", "matmul"])


def test_what_overflows_in_float16_is_refused_by_its_stream():
    """A coefficient of 300 * 300, which float32 and bfloat16 hold."""

    def f(p, x):
        return ((x @ p) @ (300 * p)) @ (300 * p)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.full((1, 3, 2), 0.01, dtype=dtype)
        fmodel, params = lrpfunc.trace(f, torch.eye(2, dtype=dtype), x)
        if dtype != torch.float16:
            circuits.graph(fmodel, params, x, (0, 0), layers=["x", "matmul"])
            continue
        with pytest.raises(
            InputError, match=r"^the relevance at 'matmul' is not finite: float16 ends at 65504\. Cast inputs and "
        ):
            circuits.graph(fmodel, params, x, (0, 0), layers=["x", "matmul"])


def test_relevance_that_overflows_is_refused():
    x = torch.full((1, 3, 2), 200.0, dtype=torch.float16)
    fmodel, params = lrpfunc.trace(lambda p, x: ((x @ p) * 100.0) @ p, torch.eye(2).half(), x)
    gradient = composites.by_kind({"*": rules.gradient()})
    with pytest.raises(InputError, match="the relevance at 'matmul' is not finite: float16 ends at 65504"):
        circuits.graph(fmodel, params, x, lambda y: torch.full_like(y, 60000.0), gradient, ["x", "matmul"])
