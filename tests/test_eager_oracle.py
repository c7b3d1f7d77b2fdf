"""AttnLRP and CP-LRP of transformers of all families against an oracle that runs the module itself, without a trace.

`python -m tests.test_eager_oracle [family ...]` prints a row for each family and composite.
"""

import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lrpfunc
from lrpfunc import composites
from tests import eager_oracle, transformer_zoo
from tests.helpers import relative_error
from tests.transformer_zoo import BLOCKS, CAUSAL, FAMILIES, LABELS, TOKENS, VISION, VOCABULARY, WIDTH

METHODS = {"attn_lrp": composites.attn_lrp(), "cp_lrp": composites.cp_lrp()}
TARGET = 2
PROMISED = 1e-9

LAYERS = {name: BLOCKS[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
PLAIN = {name: CAUSAL[name] for name in CAUSAL if name not in ("num_key_value_heads", "head_dim")}
ENCODER = {**TOKENS, **BLOCKS, "max_position_embeddings": 16, "num_labels": LABELS}
SEQUENCES = {
    **TOKENS, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 16,
    "use_cache": False, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
EXPERTS = {"experts_implementation": "batched_mm"}
LATENT = {
    **PLAIN, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, **EXPERTS,
}  # fmt: skip


def causal(name: str, **keywords) -> tuple[str, str, dict]:
    return f"{name}Config", f"{name}ForCausalLM", {**CAUSAL, **keywords}


def plain(name: str, **keywords) -> tuple[str, str, dict]:
    """Without a number of heads for keys and values, and without a size of heads."""
    return f"{name}Config", f"{name}ForCausalLM", {**PLAIN, **keywords}


def encoder(name: str, **keywords) -> tuple[str, str, dict]:
    return f"{name}Config", f"{name}ForSequenceClassification", {**ENCODER, **keywords}


def vision(name: str, **keywords) -> tuple[str, str, dict]:
    return f"{name}Config", f"{name}ForImageClassification", {**VISION, "num_labels": LABELS, **keywords}


MORE = {
    "gemma": causal("Gemma"),
    "gemma2": causal("Gemma2", sliding_window=4, query_pre_attn_scalar=8),
    "phi": plain("Phi"),
    "phi3": plain("Phi3"),
    "opt": ("OPTConfig", "OPTForCausalLM", {**PLAIN, "ffn_dim": 64, "max_position_embeddings": 16, "word_embed_proj_dim": WIDTH}),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM", {**TOKENS, "hidden_size": WIDTH, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4, "max_position_embeddings": 16, "use_cache": False}),
    "gpt_neox": plain("GPTNeoX", max_position_embeddings=16),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", {**TOKENS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 16, "rotary_dim": 4, "use_cache": False}),
    "codegen": ("CodeGenConfig", "CodeGenForCausalLM", {**TOKENS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 16, "n_ctx": 16, "rotary_dim": 4, "use_cache": False}),
    "falcon": plain("Falcon"),
    "falcon_alibi": plain("Falcon", alibi=True, new_decoder_architecture=False, parallel_attn=False),
    "bloom": ("BloomConfig", "BloomForCausalLM", {**TOKENS, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4, "use_cache": False}),
    "mpt": ("MptConfig", "MptForCausalLM", {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_heads": 4, "n_layers": 2, "max_seq_len": 16, "expansion_ratio": 2, "use_cache": False}),
    "stablelm": plain("StableLm", num_key_value_heads=2),
    "olmo": plain("Olmo"),
    "olmo2": plain("Olmo2"),
    "cohere": plain("Cohere"),
    "granite": plain("Granite", residual_multiplier=0.5, logits_scaling=2.0, attention_multiplier=0.3, embedding_multiplier=3.0),
    "starcoder2": plain("Starcoder2", num_key_value_heads=2),
    "nemotron": plain("Nemotron", num_key_value_heads=2),
    "glm": causal("Glm"),
    "glm4": causal("Glm4"),
    "smollm3": causal("SmolLM3"),
    "qwen2_moe": plain("Qwen2Moe", num_key_value_heads=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4, num_experts_per_tok=2, **EXPERTS),
    "qwen3_moe": causal("Qwen3Moe", moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, **EXPERTS),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM", LATENT),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", LATENT),
    "gpt_oss": causal("GptOss", num_local_experts=4, num_experts_per_tok=2, sliding_window=4, **EXPERTS),
    "mamba": ("MambaConfig", "MambaForCausalLM", {**TOKENS, "hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": 2, "use_cache": False}),
    "roberta": encoder("Roberta"),
    "electra": encoder("Electra", embedding_size=WIDTH),
    "albert": encoder("Albert", embedding_size=WIDTH),
    "distilbert": ("DistilBertConfig", "DistilBertForSequenceClassification", {"vocab_size": VOCABULARY, "dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 16, "num_labels": LABELS}),
    "deberta": encoder("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=8),
    "deberta_v2": encoder("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=8, position_buckets=4, norm_rel_ebd="layer_norm", share_att_key=True),
    "modernbert": encoder("ModernBert", local_attention=4, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2),
    "bart": ("BartConfig", "BartForConditionalGeneration", SEQUENCES),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", SEQUENCES),
    "dinov2": vision("Dinov2"),
    "beit": vision("Beit", use_relative_position_bias=True),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {**VISION, "vision_use_head": False}),
    "swin": ("SwinConfig", "SwinForImageClassification", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": LABELS}),
    "swinv2": ("Swinv2Config", "Swinv2ForImageClassification", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": LABELS}),
    "segformer": ("SegformerConfig", "SegformerForImageClassification", {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "num_labels": LABELS}),
    "convnextv2": ("ConvNextV2Config", "ConvNextV2ForImageClassification", {"patch_size": 4, "num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "image_size": 32, "num_labels": LABELS}),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", {**BLOCKS, "conv_dim": [16, 16], "conv_stride": [4, 2], "conv_kernel": [8, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "num_labels": LABELS}),
    "whisper": ("WhisperConfig", "WhisperForAudioClassification", {**SEQUENCES, "num_mel_bins": 8, "max_source_positions": 12, "classifier_proj_size": 16, "num_labels": LABELS}),
}  # fmt: skip
ALL = {**FAMILIES, **MORE}
IMAGES = ("vit", "deit", "clip", "dinov2", "beit", "siglip", "swin", "swinv2", "segformer", "convnextv2")
TWO_SIDED = ("t5", "bart", "pegasus")


class Classifier(nn.Module):
    """A model whose output is one row of numbers for each sample: the last token's, or an average's."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **x):
        with eager_oracle.InDouble():
            output = self.model(**x)
        logits = output.logits if "logits" in output else output.last_hidden_state
        return logits if logits.dim() == 2 else logits[:, -1]


def build(name: str, attention: str) -> nn.Module:
    import transformers

    config_class, model_class, keywords = ALL[name]
    config = getattr(transformers, config_class)(**keywords)
    model = getattr(transformers, model_class)._from_config(config, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    transformer_zoo.fill(model, bias=True)
    return Classifier(model.double().eval())


def inputs(name: str, batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    if name in IMAGES:
        shapes = {"pixel_values": (batch, 3, transformer_zoo.IMAGE, transformer_zoo.IMAGE)}
    elif name == "wav2vec2":
        shapes = {"input_values": (batch, 100)}
    elif name == "whisper":
        shapes = {"input_features": (batch, 8, 24)}
    else:
        shapes = {"inputs_embeds": (batch, length, WIDTH)}
        if name in TWO_SIDED:
            shapes["decoder_inputs_embeds"] = (batch, length - 2, WIDTH)
    return {key: torch.from_numpy(transformer_zoo.random_state(key).standard_normal(s)) for key, s in shapes.items()}
