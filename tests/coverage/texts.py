"""Language models: those that carry a state, those with experts, encoders and what else has parts of its own."""

from __future__ import annotations

import torch

from tests.coverage.specs import Spec, ids, random
from tests.test_eager_oracle import (
    CAUSAL,
    ENCODER,
    EXPERTS,
    GROUPED,
    LABELS,
    LAYERS,
    OF_MAMBA_2,
    PLAIN,
    TOKENS,
    TWO_OF_FOUR,
    TWO_SIDED,
    causal,
    tokens,
)
from tests.transformer_zoo import BLOCKS, VOCABULARY, WIDTH

BOTH_IDS = {
    "input_ids": ids(1, 7), "attention_mask": torch.ones(1, 7, dtype=torch.long), "decoder_input_ids": ids(1, 4),
}  # fmt: skip

TEXTS = {
    # -- state spaces and other recurrences --
    "recurrent_gemma": causal("RecurrentGemma", CAUSAL, num_hidden_layers=3, lru_width=WIDTH, attention_window_size=4),
    "xlstm": causal("xLSTM", LAYERS, num_heads=4, chunk_size=4, qk_dim_factor=0.5, mode="inference"),
    "qwen3_next": causal("Qwen3Next", CAUSAL, **EXPERTS, layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        shared_expert_intermediate_size=16),
    "zamba2": causal("Zamba2", PLAIN, num_key_value_heads=4, mamba_d_state=4, mamba_ngroups=1, n_mamba_heads=4,
        mamba_headdim=16, chunk_size=4, num_mem_blocks=1, layer_types=["mamba", "hybrid"], hybrid_layer_ids=[1]),
    "nemotron_h": causal("NemotronH", CAUSAL, layers_block_type=["mamba", "attention", "moe"], mamba_num_heads=8,
        mamba_head_dim=8, n_groups=2, ssm_state_size=4, chunk_size=4, n_routed_experts=4, moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16, **TWO_OF_FOUR),
    "granite_moe_hybrid": causal("GraniteMoeHybrid", GROUPED, **OF_MAMBA_2, layer_types=["mamba", "attention"],
        num_local_experts=4, shared_intermediate_size=16, **TWO_OF_FOUR),
    # -- experts --
    "olmoe": causal("Olmoe", GROUPED, **EXPERTS),
    "phimoe": causal("Phimoe", GROUPED, **TWO_OF_FOUR, num_local_experts=4),
    "granite_moe": causal("GraniteMoe", GROUPED, **TWO_OF_FOUR, num_local_experts=4),
    "ernie4_5_moe": causal("Ernie4_5_Moe", GROUPED, **TWO_OF_FOUR, moe_num_experts=4, moe_k=2,
        moe_intermediate_size=16, moe_layer_start_index=0),
    "glm4_moe": causal("Glm4Moe", GROUPED, **TWO_OF_FOUR, n_routed_experts=4, n_shared_experts=1,
        moe_intermediate_size=16, first_k_dense_replace=1),
    # -- encoders and decoders of text --
    "flan_t5": Spec("T5Config", "T5ForConditionalGeneration", {"vocab_size": VOCABULARY, "pad_token_id": 0,
        "eos_token_id": 2, "decoder_start_token_id": 0, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2,
        "num_heads": 4, "use_cache": False, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "longt5": Spec("LongT5Config", "LongT5ForConditionalGeneration", {"vocab_size": VOCABULARY, "pad_token_id": 0,
        "eos_token_id": 2, "decoder_start_token_id": 0, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 1,
        "num_heads": 4, "use_cache": False, "local_radius": 3}, BOTH_IDS),
    "marian": Spec("MarianConfig", "MarianMTModel", {**TWO_SIDED, "decoder_vocab_size": VOCABULARY}),
    "m2m_100": Spec("M2M100Config", "M2M100ForConditionalGeneration", TWO_SIDED),
    "fnet": tokens("FNet", {**ENCODER, "tpu_short_seq_length": 7}),
    "mpnet": tokens("MPNet", ENCODER),
    "mobilebert": tokens("MobileBert", ENCODER, embedding_size=WIDTH, intra_bottleneck_size=16, trigram_input=True),
    "squeezebert": tokens("SqueezeBert", ENCODER, embedding_size=WIDTH, q_groups=2, k_groups=2, v_groups=2,
        post_attention_groups=1, intermediate_groups=2, output_groups=2),
    "convbert": tokens("ConvBert", ENCODER, embedding_size=WIDTH, head_ratio=2, conv_kernel_size=3),
    "big_bird_sparse": tokens("BigBird", ENCODER, attention_type="block_sparse", block_size=2, num_random_blocks=1),
    "funnel": tokens("Funnel", TOKENS, d_model=WIDTH, block_sizes=[1, 1], n_head=4, d_head=8, d_inner=64,
        num_decoder_layers=1),
    "canine": Spec("CanineConfig", "CanineForSequenceClassification", {**BLOCKS, "num_labels": LABELS,
        "downsampling_rate": 2, "local_transformer_stride": 4, "num_hash_buckets": 16, "max_position_embeddings": 16},
        {"inputs_embeds": random(1, 8, WIDTH)}),
    "xlm": tokens("XLM", TOKENS, emb_dim=WIDTH, n_layers=2, n_heads=4, max_position_embeddings=16),
    "luke": Spec("LukeConfig", "LukeModel", {**ENCODER, "entity_vocab_size": 10, "entity_emb_size": 16}),
    "esm": tokens("Esm", ENCODER, position_embedding_type="rotary", mask_token_id=4),
    "nomic_bert": Spec("NomicBertConfig", "NomicBertModel", ENCODER),
    "xmod": tokens("Xmod", ENCODER, languages=["en"], default_language="en"),
    "perceiver": Spec("PerceiverConfig", "PerceiverForSequenceClassification", {"vocab_size": VOCABULARY,
        "d_model": WIDTH, "d_latents": WIDTH, "num_latents": 4, "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "max_position_embeddings": 16,
        "num_labels": LABELS}, {"inputs": ids(1, 7)}),
}  # fmt: skip
