"""AttnLRP and CP-LRP on small transformers of every family: covered, conserving, lawful, on tokens of any number."""

import functools

import optree
import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

import lrpfunc
from lrpfunc import composites, rules, text
from lrpfunc.errors import InputError, RuleError, TraceError
from lrpfunc.operations import facts
from tests import transformer_zoo
from tests.conservation import watched
from tests.helpers import relative_error

transformers = pytest.importorskip("transformers")

COMPOSITES = {
    "attn_lrp": composites.attn_lrp(),
    "cp_lrp": composites.cp_lrp(),
    "gamma": composites.attn_lrp(gamma=0.25),
}
every_composite = pytest.mark.parametrize("name", COMPOSITES)
close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)

# These are, to lrpfunc, another model of the table: llama with biases or a window, a vision transformer.
SAME = ("qwen2", "mistral", "deit")
every_model = pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name in SAME else ()) for name in transformer_zoo.NAMES]
)


@functools.cache
def traced(model: str, bias: bool = True):
    """Of two layers, as some families have layers of two kinds."""
    if not bias:
        fmodel, params, x = traced(model)
        return fmodel, {name: p * 0 if name.endswith("bias") else p for name, p in params.items()}, x
    module, x = transformer_zoo.build(model), transformer_zoo.inputs(model)
    return *lrpfunc.functionalize(module, **x), x


def in_float64(tree):
    return optree.tree_map(lambda p: p.double() if p.is_floating_point() else p, tree)


def explained(output):
    """The third logit, of the last token if there are several."""
    logits = output if isinstance(output, torch.Tensor) else output.get("logits", output.get("pooler_output"))
    leaves, structure = optree.tree_flatten(output, namespace="lrpfunc")
    place = next(i for i, leaf in enumerate(leaves) if leaf is logits)
    seeds = [torch.zeros_like(leaf) for leaf in leaves]
    mask = torch.zeros(logits.shape[-1], dtype=torch.bool)
    mask[2] = True
    last = torch.zeros(logits.shape[1] if logits.dim() == 3 else 1, dtype=torch.bool)
    last[-1] = True
    seeds[place] = logits * (mask & last[:, None] if logits.dim() == 3 else mask)
    return optree.tree_unflatten(structure, seeds)


# -- coverage ---------------------------------------------------------------------------------------------------------


@every_model
@every_composite
def test_every_equation_has_a_rule_and_relevance_is_finite(model, name):
    fmodel, params, x = traced(model)
    assert lrpfunc.explain(fmodel, COMPOSITES[name], strict=True).fallbacks == ()
    relevance = lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], explained, strict=True)
    for key, value in relevance.items():
        assert value.shape == x[key].shape
        assert value.isfinite().all()
        assert value.flatten(1).any(1).all(), key


def test_an_operation_without_a_rule_is_named():
    fmodel, _ = lrpfunc.trace(lambda w, x: torch.special.i0(x @ w), torch.randn(3, 3), torch.randn(2, 3))
    with pytest.raises(RuleError, match=r"no rule for 'special_i0' \(special_i0\): strict=True allows no fallback"):
        lrpfunc.explain(fmodel, composites.attn_lrp(), strict=True)


def test_what_counts_as_a_constant_is_listed_as_such_and_costs_no_rule():
    fmodel, _, _ = traced("llama")
    listing = {row[1]: row[-1] for row in lrpfunc.explain(fmodel, composites.cp_lrp()).rows}
    layer = "model.layers.0"
    assert listing[f"{layer}.self_attn.q_proj"] == listing[f"{layer}.mlp.gate_proj"] == "constant"
    assert listing[f"{layer}.input_layernorm.rsqrt"] == "constant"
    assert listing[f"{layer}.self_attn.v_proj"] == "epsilon(0)"
    assert listing[f"{layer}.mlp.mul"] == "gate(stabilizer=0)"
    listing = {row[1]: row[-1] for row in lrpfunc.explain(fmodel, composites.attn_lrp(gamma=0.25)).rows}
    assert listing[f"{layer}.self_attn.q_proj"] == "gamma(0.25)"
    assert listing[f"{layer}.mlp.mul"] == "halve(stabilizer=0)"
    assert listing[f"{layer}.input_layernorm.mul"] == "normalization(stabilizer=0)"


def test_layers_that_no_relevance_comes_to_have_zeros():
    fmodel, params, x = traced("llama")
    names = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]
    _, inner = lrpfunc.attribute(fmodel, params, x, composites.cp_lrp(), explained, at=names)
    assert not inner[names[0]].any()
    assert inner[names[1]].any()


def test_gelu_written_out_is_an_activation_and_never_halved():
    fmodel, _, _ = traced("gpt2")
    listing = {row[1]: row[-1] for row in lrpfunc.explain(fmodel, composites.attn_lrp()).rows}
    products = {name: rule for name, rule in listing.items() if name.startswith("transformer.h.0.mlp.act.mul")}
    assert "gate(stabilizer=0)" in products.values()
    assert not any("halve" in rule for rule in products.values())
    assert listing["transformer.h.0.mlp.act.tanh"] == "constant"


# -- conservation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["llama", "qwen3", "gemma3"])
def test_cp_lrp_conserves_at_every_equation_without_biases(model):
    fmodel, params, x = traced(model, bias=False)
    params, x = in_float64((params, x))
    seen = []

    watching = watched(composites.cp_lrp(), seen, rtol=1e-5, atol=1e-8)
    relevance = lrpfunc.attribute(fmodel, params, x, watching, explained)
    assert len(seen) == len(composites.assign(fmodel, composites.cp_lrp()))
    logit = fmodel(params, **x).logits[:, -1, 2]
    torch.testing.assert_close(relevance["inputs_embeds"].sum((1, 2)), logit, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("model", ["llama", "qwen3", "gemma3"])
def test_cp_lrp_conserves_between_layers(model):
    fmodel, params, x = traced(model, bias=False)
    layers = ["model.layers.0", "model.layers.1", "model.norm"]
    _, inner = lrpfunc.attribute(fmodel, params, x, composites.cp_lrp(), explained, at=layers)
    logit = fmodel(params, **x).logits[:, -1, 2]
    for name in layers:
        torch.testing.assert_close(inner[name].sum((1, 2)), logit, rtol=1e-5, atol=1e-6)


# -- tokens -----------------------------------------------------------------------------------------------------------


def tokens(model: str, batch: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch + length)
    ids = torch.randint(3, transformer_zoo.VOCABULARY, (batch, length), generator=generator)
    x = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model == "t5":
        x["decoder_input_ids"] = torch.randint(3, transformer_zoo.VOCABULARY, (batch, 5), generator=generator)
    return x


@functools.cache
def traced_tokens(model: str):
    module = transformer_zoo.build(model)
    return *lrpfunc.functionalize(module, **tokens(model)), module


# Each of these is traced afresh; the others of the table by `pytest -m slow`.
def slow(*models: str) -> list:
    return [pytest.param(model, marks=pytest.mark.slow) for model in models]


@pytest.mark.parametrize("model", ["bert", *slow("llama", "t5", "gemma3", "gpt2", "mixtral")])
def test_a_token_has_the_relevance_of_its_embedding(model):
    fmodel, params, module = traced_tokens(model)
    x = tokens(model)
    found = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), explained)
    table = module.get_input_embeddings()
    embedded = {"inputs_embeds": table(x["input_ids"]).detach(), "attention_mask": x["attention_mask"]}
    if model == "t5":
        embedded["decoder_inputs_embeds"] = table(x["decoder_input_ids"]).detach()
    expected = lrpfunc.attribute(*lrpfunc.functionalize(module, **embedded), embedded, composites.attn_lrp(), explained)
    assert relative_error(found["input_ids"], text.per_token(expected["inputs_embeds"])) < 1e-6
    assert not found["attention_mask"].any()
    if model == "t5":
        assert relative_error(found["decoder_input_ids"], text.per_token(expected["decoder_inputs_embeds"])) < 1e-6


@pytest.mark.parametrize("model", ["llama", *slow("bert", "t5", "gemma3", "gpt2", "mixtral")])
def test_one_trace_serves_every_batch_and_length(model):
    fmodel, params, module = traced_tokens(model)
    for batch, length in ((1, 7), (3, 4), (1, 12)):
        x = tokens(model, batch, length)
        assert relative_error(fmodel(params, **x).logits, module(**x).logits) < 1e-5
    found = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), explained)
    afresh = lrpfunc.attribute(*lrpfunc.functionalize(module, **x), x, composites.attn_lrp(), explained)
    assert relative_error(found["input_ids"], afresh["input_ids"]) < 1e-5


@pytest.mark.parametrize("model", ["llama", *slow("gemma3", "mixtral")])
def test_padding_has_no_relevance_and_changes_none(model):
    fmodel, params, _ = traced_tokens(model)
    x = tokens(model, 2, 6)
    padded = {key: torch.nn.functional.pad(value, (3, 0)) for key, value in x.items()}
    found = lrpfunc.attribute(fmodel, params, padded, composites.attn_lrp(), explained)["input_ids"]
    expected = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), explained)["input_ids"]
    assert not found[:, :3].any()
    assert relative_error(found[:, 3:], expected) < 1e-5


def test_each_table_that_tokens_are_looked_up_in_gives_its_own_relevance():
    ids = tokens("bert")["input_ids"]
    x = {"input_ids": ids, "token_type_ids": (ids > 20).long()}
    module = transformer_zoo.build("bert")
    fmodel, params = lrpfunc.functionalize(module, **x)
    assert facts(fmodel).active >= {leaf.value.name for leaf in fmodel.input_leaves}
    relevance = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), explained)
    assert relevance["token_type_ids"].any()
    assert not torch.equal(relevance["token_type_ids"], relevance["input_ids"])


@pytest.mark.parametrize("name", ["deconvnet", "guided_backprop", "beta_smooth"])
def test_gradients_of_tokens_are_summed_over_the_width(name):
    fmodel, params, module = traced_tokens("bert")
    x = tokens("bert")
    everywhere = composites.by_kind({"*": rules.gradient()})
    found = lrpfunc.attribute(fmodel, params, x, everywhere, explained)["input_ids"]
    embedded = module.get_input_embeddings()(x["input_ids"]).detach().requires_grad_()
    logit = module(inputs_embeds=embedded, attention_mask=x["attention_mask"]).logits[:, 2]
    gradient = torch.autograd.grad(logit.square().sum() / 2, embedded)[0]  # that of the logit, times the logit
    assert relative_error(found, gradient.sum(-1)) < 1e-5
    made = getattr(composites, name)()
    assert lrpfunc.attribute(fmodel, params, x, made, explained)["input_ids"].isfinite().all()


def test_tokens_that_the_model_changes_keep_their_relevance():
    table = torch.randn(9, 4, dtype=torch.float64)
    ids = torch.tensor([[1, 3, 5], [3, 3, 8]])

    def masked(p, ids):
        return F.embedding(torch.where(ids == 3, 0, ids), p["table"]).sum(1)

    def written(p, ids):
        changed = ids.clone()
        changed[ids == 3] = 0
        return F.embedding(changed, p["table"]).sum(1)

    def twice(p, ids):
        return (F.embedding(ids, 2 * p["table"]) + F.embedding(ids.masked_fill(ids == 3, 0), p["table"])).sum(1)

    kept = torch.where(ids == 3, 0, table[ids].sum(-1))
    for model, expected in ((masked, kept), (written, kept), (twice, 2 * table[ids].sum(-1) + kept)):
        fmodel, params = lrpfunc.trace(model, {"table": table}, ids)
        found = lrpfunc.attribute(fmodel, params, ids, composites.attn_lrp(), target=lambda y: y)
        close(found, expected)


def test_the_same_tokens_in_a_table_of_parameters_and_in_one_that_is_an_input():
    table, own = torch.randn(2, 5, 4, dtype=torch.float64)
    ids = torch.tensor([[1, 3]])

    def model(p, ids, own):
        return (F.embedding(ids, p["table"]) + F.embedding(ids, own)).sum(1)

    fmodel, params = lrpfunc.trace(model, {"table": table}, ids, own)
    token, rows = lrpfunc.attribute(fmodel, params, (ids, own), composites.attn_lrp(), target=lambda y: y)
    close(token, table[ids].sum(-1))
    close(rows.sum(-1), torch.zeros(5, dtype=torch.float64).index_put((ids[0],), own[ids[0]].sum(-1)))


def test_a_prefix_of_ones_own_and_tokens_share_the_relevance():
    """Token ids that are only compared elsewhere keep their relevance; a table made of an input is moved as rows."""
    torch.manual_seed(0)
    table, head = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def model(params, ids, prompt):
        rows = F.embedding(ids, params["table"])
        own = F.embedding(ids[:, :1] * 0, prompt)  # of a table that is an input
        mask = (ids != 0)[..., None].to(rows.dtype)
        return ((rows * mask).sum(1) + own.sum(1)) @ params["head"]

    ids, prompt = torch.tensor([[0, 3, 5]]), torch.randn(2, 4, dtype=torch.float64)
    fmodel, params = lrpfunc.trace(model, {"table": table, "head": head}, ids, prompt)
    token, own = lrpfunc.attribute(fmodel, params, (ids, prompt), composites.attn_lrp(), target=1, strict=True)
    close(
        token, torch.stack([torch.zeros((), dtype=torch.float64), table[3] @ head[:, 1], table[5] @ head[:, 1]])[None]
    )
    close(own, torch.stack([prompt[0] * head[:, 1], torch.zeros(4, dtype=torch.float64)]))


# -- laws of inputs by name, outputs with fields and targets of tokens; all others are in test_laws --------------------


def test_vmap_over_tokens_to_explain_equals_the_loop():
    fmodel, params, x = traced("llama")
    params, x = in_float64((params, x))
    for composite in COMPOSITES.values():
        mapped = vmap(lambda t, c=composite: lrpfunc.attribute(fmodel, params, x, c, text.token(t)))(torch.arange(3))
        each = lrpfunc.attribute_each(fmodel, params, x, composite, [text.token(t) for t in range(3)])
        for target in range(3):
            alone = lrpfunc.attribute(fmodel, params, x, composite, text.token(target))["inputs_embeds"]
            close(mapped["inputs_embeds"][target], alone)
            close(each["inputs_embeds"][target], alone)


def test_make_fx_and_export_take_inputs_by_name_and_outputs_with_fields():
    fmodel, params, x = traced("gpt2")
    params, x = in_float64((params, x))

    class Relevance(torch.nn.Module):
        def forward(self, params, x):
            return lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), explained)

    f, other = Relevance(), {key: 2 * value for key, value in x.items()}
    expected = f(params, other)["inputs_embeds"]
    close(make_fx(f)(params, x)(params, other)["inputs_embeds"], expected)
    exported = torch.export.export(f, (params, x), strict=False)
    close(exported.module()(params, other)["inputs_embeds"], expected)


def test_the_vjp_of_with_rules_and_a_prepared_explanation_take_them_too():
    fmodel, params, x = traced("llama")
    params, x = in_float64((params, x))
    expected = lrpfunc.attribute(fmodel, params, x, composites.cp_lrp(), explained)["inputs_embeds"]
    g = lrpfunc.with_rules(fmodel, composites.cp_lrp())
    output, pullback = torch.func.vjp(lambda v: g(params, inputs_embeds=v).logits, x["inputs_embeds"])
    close(pullback(explained(output))[0], expected)
    close(output, fmodel(params, **x).logits)
    prepared = lrpfunc.prepare(fmodel, params, composites.cp_lrp())
    close(prepared(x, explained)["inputs_embeds"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("model", ["llama", "torchvision_vit"])
def test_torch_compile_without_graph_breaks_gives_the_eager_result(model, name):
    fmodel, params, x = traced(model)

    target = text.token(3) if model == "llama" else 2

    def f(params, x):
        return lrpfunc.attribute(fmodel, params, x, COMPOSITES[name], target)

    torch.compiler.reset()
    (found,) = torch.compile(f, fullgraph=True, backend="aot_eager")(params, x).values()
    (expected,) = f(params, x).values()
    assert relative_error(found, expected) < 1e-4


def test_with_rules_gives_token_ids_no_derivative():
    fmodel, params, _ = traced_tokens("llama")
    x = tokens("llama")
    leaf = torch.ones((), requires_grad=True)
    g = lrpfunc.with_rules(fmodel, composites.attn_lrp())
    logits = g({k: p * leaf if p.is_floating_point() else p for k, p in params.items()}, **x).logits
    logits.sum().backward()
    assert leaf.grad is None or not leaf.grad.any()  # parameters get no relevance


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["llama", "qwen3", "gemma3", "gpt2", "bert"])
@every_composite
def test_bfloat16_stays_finite_and_near_float32(model, name):
    fmodel, params, x = traced(model)
    half = optree.tree_map(lambda p: p.bfloat16() if p.is_floating_point() else p, (params, x))
    full = in_float64(half)  # the same numbers, so that rounding parameters counts for nothing
    expected = text.per_token(lrpfunc.attribute(fmodel, *full, COMPOSITES[name], explained)["inputs_embeds"])
    found = text.per_token(lrpfunc.attribute(fmodel, *half, COMPOSITES[name], explained)["inputs_embeds"])
    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected) < 0.02


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_sequence_longer_than_the_models_positions_is_an_error():
    message = r"'length' of input 'input_ids' must be between \d and 16, but is 17: the model takes no longer sequences"
    for model in ("gpt2", "bert"):
        fmodel, params, _ = traced_tokens(model)
        with pytest.raises(InputError, match=message):
            lrpfunc.attribute(fmodel, params, tokens(model, 2, 17), composites.attn_lrp(), explained)


def test_a_token_outside_the_vocabulary_is_an_error():
    fmodel, params, _ = traced_tokens("llama")
    for wrong in (transformer_zoo.VOCABULARY, -1):
        x = tokens("llama")
        x["input_ids"][1, 2] = wrong
        with pytest.raises(InputError, match=rf"embedding of 50 rows was asked for row {wrong}: either a token id is"):
            lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), explained)
        with pytest.raises(InputError, match=r"outside the vocabulary, or the sequence is longer than the model's 50"):
            fmodel(params, **x)


def test_experts_that_are_called_one_by_one_cannot_be_exported():
    config = transformers.MixtralConfig(**transformer_zoo.CAUSAL, num_local_experts=4, experts_implementation="eager")
    with pytest.raises(
        TraceError, match=r'tokens choose them: make the model with experts_implementation="batched_mm"'
    ):
        lrpfunc.functionalize(transformers.MixtralForCausalLM(config).eval(), inputs_embeds=torch.randn(2, 5, 32))


def test_relevance_that_overflows_half_precision_is_an_error():
    fmodel, _ = lrpfunc.trace(lambda w, x: (x @ w) @ w, torch.eye(2), torch.ones(1, 2))
    half, x = torch.eye(2, dtype=torch.float16) * 200, torch.full((1, 2), 2.0, dtype=torch.float16)
    with pytest.raises(
        InputError, match=r"overflowed in float16, which ends at 65504\. Cast inputs and params to bfloat16"
    ):
        lrpfunc.attribute(fmodel, half, x, composites.attn_lrp(), target=0)
    relevance = lrpfunc.attribute(fmodel, half.bfloat16(), x.bfloat16(), composites.attn_lrp(), target=0)
    assert relevance.isfinite().all()


def test_a_cache_in_the_output_comes_back_as_none():
    config = transformers.LlamaConfig(**transformer_zoo.BLOCKS, vocab_size=50)
    module = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor([[1, 2, 3]])
    fmodel, params = lrpfunc.functionalize(module, input_ids=ids)
    output = fmodel(params, input_ids=ids)
    assert output.past_key_values is None
    torch.testing.assert_close(output.logits, module(input_ids=ids).logits)
    relevance = lrpfunc.attribute(fmodel, params, {"input_ids": ids}, composites.attn_lrp(), text.token(4))
    assert relevance["input_ids"].shape == (1, 3)


def test_rules_of_a_pattern_come_first():
    fmodel, params, x = traced("llama")
    entries = {"model.layers.*.mlp.*": rules.gamma(0.1)}
    listing = {row[1]: row[-1] for row in lrpfunc.explain(fmodel, composites.attn_lrp(entries=entries)).rows}
    assert listing["model.layers.1.mlp.down_proj"] == "gamma(0.1)"
    assert listing["model.layers.1.self_attn.o_proj"] == "epsilon(0)"
    plain = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(), explained)["inputs_embeds"]
    other = lrpfunc.attribute(fmodel, params, x, composites.attn_lrp(entries=entries), explained)["inputs_embeds"]
    assert not torch.allclose(plain, other)
