"""AttnLRP and CP-LRP of transformers of all families against an oracle that runs the module itself, without a trace.

`python -m tests.test_eager_oracle [family ...]` prints a row for each family, kind of attention and composite.
"""

import functools
import sys
import warnings
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpfunc
from lrpfunc import composites
from tests import eager_oracle, transformer_zoo
from tests.helpers import relative_error
from tests.transformer_zoo import BLOCKS, CAUSAL, IMAGE, LABELS, TOKENS, VISION, VOCABULARY, WIDTH

METHODS = {"attn_lrp": composites.attn_lrp(), "cp_lrp": composites.cp_lrp()}
IMPLEMENTATIONS = ("eager", "sdpa")
TARGET = 2
PROMISED = 1e-9


# -- families ---------------------------------------------------------------------------------------------------------

PLAIN = {name: CAUSAL[name] for name in CAUSAL if name not in ("num_key_value_heads", "head_dim")}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
ENCODER = {**TOKENS, **BLOCKS, "max_position_embeddings": 16, "num_labels": LABELS}
OF_OLD = {**TOKENS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 16, "use_cache": False}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
TWO_SIDED = {
    **TOKENS, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 16,
    "use_cache": False, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
WINDOWS = {
    "image_size": IMAGE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
TWO_OF_FOUR = {"num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
EXPERTS = {**TWO_OF_FOUR, "num_experts": 4, "moe_intermediate_size": 16}
LATENT = {
    **PLAIN, **TWO_OF_FOUR, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip

LAYERS = {**TOKENS, "hidden_size": WIDTH, "num_hidden_layers": 2, "use_cache": False}
SCANNED = {**LAYERS, "state_size": 4}
OF_MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 4, "mamba_chunk_size": 4}


def causal(name: str, keywords: dict, **more) -> tuple[str, str, dict]:
    return f"{name}Config", f"{name}ForCausalLM", {**keywords, **more}


def tokens(name: str, keywords: dict, **more) -> tuple[str, str, dict]:
    return f"{name}Config", f"{name}ForSequenceClassification", {**keywords, "num_labels": LABELS, **more}


def images(name: str, keywords: dict, **more) -> tuple[str, str, dict]:
    return f"{name}Config", f"{name}ForImageClassification", {**keywords, "num_labels": LABELS, **more}


FAMILIES = {
    **transformer_zoo.FAMILIES,
    "gemma": causal("Gemma", CAUSAL),
    "gemma2": causal("Gemma2", CAUSAL, sliding_window=4, query_pre_attn_scalar=8),
    "phi": causal("Phi", PLAIN),
    "phi3": causal("Phi3", PLAIN),
    "opt": causal("OPT", PLAIN, ffn_dim=64, max_position_embeddings=16, word_embed_proj_dim=WIDTH),
    "gpt_neo": causal(
        "GPTNeo", TOKENS, hidden_size=WIDTH, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=4, max_position_embeddings=16, use_cache=False,
    ),
    "gpt_neox": causal("GPTNeoX", PLAIN, max_position_embeddings=16),
    "gptj": causal("GPTJ", OF_OLD, rotary_dim=4),
    "codegen": causal("CodeGen", OF_OLD, rotary_dim=4, n_ctx=16),
    "falcon": causal("Falcon", PLAIN),
    "falcon_alibi": causal("Falcon", PLAIN, alibi=True, parallel_attn=False),
    "bloom": causal("Bloom", TOKENS, hidden_size=WIDTH, n_layer=2, n_head=4, use_cache=False),
    "mpt": (
        "MptConfig", "MptForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_heads": 4, "n_layers": 2, "max_seq_len": 16,
         "expansion_ratio": 2, "use_cache": False},
    ),
    "stablelm": causal("StableLm", GROUPED),
    "olmo": causal("Olmo", PLAIN),
    "olmo2": causal("Olmo2", PLAIN),
    "cohere": causal("Cohere", PLAIN),
    "granite": causal(
        "Granite", PLAIN, residual_multiplier=0.5, logits_scaling=2.0, attention_multiplier=0.3,
        embedding_multiplier=3.0,
    ),
    "starcoder2": causal("Starcoder2", GROUPED),
    "nemotron": causal("Nemotron", GROUPED),
    "glm": causal("Glm", CAUSAL),
    "glm4": causal("Glm4", CAUSAL),
    "smollm3": causal("SmolLM3", CAUSAL),
    "qwen2_moe": causal("Qwen2Moe", GROUPED, **EXPERTS, shared_expert_intermediate_size=16),
    "qwen3_moe": causal("Qwen3Moe", CAUSAL, **EXPERTS),
    "deepseek_v2": causal("DeepseekV2", LATENT),
    "deepseek_v3": causal("DeepseekV3", LATENT),
    "gpt_oss": causal("GptOss", CAUSAL, **TWO_OF_FOUR, num_local_experts=4, sliding_window=4),
    "bitnet": causal("BitNet", GROUPED),
    "diffllama": causal("DiffLlama", GROUPED),
    "lfm2": causal("Lfm2", GROUPED, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "llama4": (
        "Llama4TextConfig", "Llama4ForCausalLM",
        {**CAUSAL, "intermediate_size_mlp": 64, "num_local_experts": 4, "interleave_moe_layer_step": 2,
         "attention_chunk_size": 4},
    ),
    "mamba": causal("Mamba", SCANNED, time_step_rank=4),
    "mamba2": causal("Mamba2", SCANNED, num_heads=8, head_dim=8, n_groups=2, chunk_size=4),
    "falcon_mamba": causal("FalconMamba", SCANNED, time_step_rank=4),
    "falcon_h1": causal("FalconH1", CAUSAL, **OF_MAMBA_2, mamba_d_ssm=64),
    "jamba": causal(
        "Jamba", GROUPED, **TWO_OF_FOUR, num_experts=4, num_hidden_layers=4, mamba_d_state=4, mamba_dt_rank=4,
        attn_layer_period=4, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
    ),
    "bamba": causal("Bamba", GROUPED, **OF_MAMBA_2, attn_layer_indices=[1]),
    "rwkv": causal("Rwkv", LAYERS, attention_hidden_size=WIDTH, intermediate_size=64),
    "minimax": causal(
        "MiniMax", CAUSAL, **TWO_OF_FOUR, num_local_experts=4, block_size=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "roberta": tokens("Roberta", ENCODER),
    "electra": tokens("Electra", ENCODER, embedding_size=WIDTH),
    "albert": tokens("Albert", ENCODER, embedding_size=WIDTH),
    "distilbert": tokens(
        "DistilBert", {"vocab_size": VOCABULARY, "dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    ),
    "deberta": tokens("Deberta", {**ENCODER, **RELATIVE}),
    "deberta_v2": tokens(
        "DebertaV2", {**ENCODER, **RELATIVE}, position_buckets=4, norm_rel_ebd="layer_norm", share_att_key=True
    ),
    "modernbert": tokens(
        "ModernBert", ENCODER, local_attention=4, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
    ),
    "big_bird": tokens("BigBird", ENCODER, attention_type="original_full"),
    "roformer": tokens("RoFormer", ENCODER, embedding_size=WIDTH),
    "xlnet": tokens("XLNet", TOKENS, d_model=WIDTH, n_layer=2, n_head=4, d_inner=64),
    "bart": ("BartConfig", "BartForConditionalGeneration", TWO_SIDED),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", TWO_SIDED),
    "dinov2": images("Dinov2", VISION),
    "beit": images("Beit", VISION, use_relative_position_bias=True),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {**VISION, "vision_use_head": False}),
    "swin": images("Swin", WINDOWS),
    "swinv2": images("Swinv2", WINDOWS),
    "segformer": images(
        "Segformer", {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]},
    ),
    "convnextv2": images(
        "ConvNextV2", {"image_size": IMAGE, "patch_size": 4, "num_stages": 2, "hidden_sizes": [16, 32],
        "depths": [1, 1]},
    ),
    "wav2vec2": tokens(
        "Wav2Vec2", BLOCKS, conv_dim=[16, 16], conv_stride=[4, 2], conv_kernel=[8, 3], num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=16,
    ),
    "whisper": (
        "WhisperConfig", "WhisperForAudioClassification",
        {**TWO_SIDED, "num_mel_bins": 8, "max_source_positions": 12, "classifier_proj_size": 16, "num_labels": LABELS},
    ),
}  # fmt: skip

# One of each kind that others repeat, in the plain run; they take a second each.
FEW = ("bert", "bloom", "gpt_neox", "gemma2", "deberta", "qwen3_moe", "mamba")
# No other implementation of attention in transformers.
EAGER = (
    "gemma2",
    "gpt_neo",
    "bloom",
    "mpt",
    "gpt_oss",
    "deberta",
    "deberta_v2",
    "swinv2",
    "convnextv2",
    "big_bird",
    "roformer",
    "xlnet",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "rwkv",
)
# What lrpfunc does not do yet, by family and composite.
CASES = [(name, how) for name in FAMILIES for how in IMPLEMENTATIONS[: 1 if name in EAGER else 2]]


class Classifier(nn.Module):
    """A model that gives each sample a row of numbers, in double throughout: those of its last token, if of several."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **x):
        with eager_oracle.InDouble():
            output = self.model(**x)
        numbers = output.logits if "logits" in output else output.last_hidden_state
        return numbers if numbers.dim() == 2 else numbers[:, -1]


def build(name: str, attention: str) -> Classifier:
    import transformers

    config_class, model_class, keywords = FAMILIES[name]
    config = getattr(transformers, config_class)(**keywords)
    model = getattr(transformers, model_class)._from_config(config, attn_implementation=attention)
    transformer_zoo.fill(model, bias=True)
    return Classifier(model.double().eval())


def inputs(model: Classifier, batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    main = model.model.main_input_name
    shapes = {
        "input_ids": {"inputs_embeds": (batch, length, WIDTH)},
        "pixel_values": {"pixel_values": (batch, 3, IMAGE, IMAGE)},
        "input_values": {"input_values": (batch, 100)},
        "input_features": {"input_features": (batch, 8, 24)},
    }[main]
    if main == "input_ids" and model.model.config.is_encoder_decoder:
        shapes["decoder_inputs_embeds"] = (batch, length - 2, WIDTH)
    drawn = {key: transformer_zoo.random_state(key).standard_normal(shape) for key, shape in shapes.items()}
    return {key: torch.from_numpy(value) for key, value in drawn.items()}


# -- comparison -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One explanation beside the oracle's. `fallbacks`: operations left to the gradient. `total`: sum over logit."""

    equations: int
    fallbacks: str
    difference: float
    total: float
    relevance: dict[str, Tensor]


@functools.cache
def compared(name: str, attention: str) -> tuple[Tensor, dict[str, Row]]:
    """The output, and a row for each composite. The oracle calls experts one by one, the traced model all at once."""
    model = build(name, attention)
    x = inputs(model)
    fmodel, params = lrpfunc.functionalize(model, **x)
    if "experts_implementation" in FAMILIES[name][2]:
        model.model.set_experts_implementation("eager")
    output, rows = fmodel(params, **x), {}
    for method, composite in METHODS.items():
        expected = eager_oracle.relevance(model, x, method, TARGET)
        found = lrpfunc.attribute(fmodel, params, x, composite, target=TARGET)
        total = sum(value.flatten(1).sum(1) for value in found.values()) / output[:, TARGET]
        rows[method] = Row(
            len(fmodel.equations),
            " ".join(sorted({row[3] for row in lrpfunc.explain(fmodel, composite).rows if row[0]})),
            max(relative_error(found[key], expected[key]) for key in x),
            total[0].item(),
            found,
        )
    return output, rows


def cases() -> list:
    marks = {name: () if name in FEW else (pytest.mark.slow,) for name, _ in CASES}
    return [pytest.param(*case, marks=marks[case[0]], id="-".join(case)) for case in CASES]


def assert_is_the_oracles(name: str, attention: str, method: str) -> None:
    pytest.importorskip("transformers")
    row = compared(name, attention)[1][method]
    assert row.fallbacks == ""
    assert all(value.any() for value in row.relevance.values())
    assert row.difference < PROMISED


@pytest.mark.parametrize(("name", "attention"), cases())
def test_attn_lrp_is_the_oracles(name, attention):
    assert_is_the_oracles(name, attention, "attn_lrp")


@pytest.mark.parametrize(("name", "attention"), cases())
def test_cp_lrp_is_the_oracles(name, attention):
    assert_is_the_oracles(name, attention, "cp_lrp")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
    for name in FAMILIES if name not in EAGER and name != "falcon_alibi"  # whose two have outputs of their own
])  # fmt: skip
def test_attention_written_out_and_as_a_whole_have_one_map(name, method):
    pytest.importorskip("transformers")
    (eager, ours), (whole, theirs) = (compared(name, attention) for attention in IMPLEMENTATIONS)
    assert relative_error(whole, eager) < PROMISED
    for key, value in ours[method].relevance.items():
        assert relative_error(theirs[method].relevance[key], value) < PROMISED


# -- the oracle itself ------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def attention(x):
    """Of three tokens, each its own query, key and value."""
    x = x[..., None]
    return F.scaled_dot_product_attention(x, x, x).squeeze(-1)


# x = (1, 2, 3); the relevance of the first output by AttnLRP and by CP-LRP.
BY_HAND = {
    "a product halves": (lambda x: x[:, :1] * x[:, 1:2], [1, 1, 0], [1, 1, 0]),
    "an activation passes all on": (lambda x: torch.tanh(x), [0.76159416, 0, 0], [0.76159416, 0, 0]),
    "a gate": (lambda x: x[:, :1] * x[:, 1:2].relu(), [1, 1, 0], [2, 0, 0]),
    "a slope": (lambda x: x * torch.sigmoid(2 * x), [0.88079708, 0, 0], [0.88079708, 0, 0]),
    "a denominator": (lambda x: x / x.square().mean(-1, keepdim=True).sqrt(), [0.46291005, 0, 0], [0.46291005, 0, 0]),
    "a layer norm": (
        lambda x: F.layer_norm(x, (3,), eps=0.0), [0.81649658, -0.81649658, -1.22474487],
        [0.81649658, -0.81649658, -1.22474487],
    ),
    "in place": (lambda x: (x + 0).mul_(x.flip(-1)), [1.5, 0, 1.5], [1.5, 0, 1.5]),
    # p = softmax(1, 2, 3), y = sum p x; CP-LRP: p x; AttnLRP: p x / 2 + x p (x - y) / 4, and of the query besides
    # sum p x (x - y) / 4.
    "attention": (attention, [0.11566215, 0.17434329, 1.20980202], [0.09003057, 0.48945694, 1.99572287]),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_the_oracle_by_hand(name):
    function, attn, cp = BY_HAND[name]
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    for method, expected in (("attn_lrp", attn), ("cp_lrp", cp)):
        found = eager_oracle.relevance(Small(function), {"x": x}, method, 0)["x"]
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-7, atol=0)


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    print("family         attention composite equations difference sum/logit  fallbacks")
    for name, attention in CASES:
        if names and name not in names:
            continue
        for method, row in compared(name, attention)[1].items():
            print(
                f"{name:14} {attention:9} {method:9} {row.equations:9} {row.difference:10.1e} {row.total:9.3g}  "
                f"{row.fallbacks or '-'}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
