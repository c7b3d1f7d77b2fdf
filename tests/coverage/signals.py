"""Models of sound, series and video."""

from __future__ import annotations

import torch

from tests.coverage.specs import Spec, ids, random
from tests.test_eager_oracle import TWO_SIDED, tokens
from tests.transformer_zoo import BLOCKS, IMAGE, LABELS, WIDTH

SERIES = {
    "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1, "d_model": WIDTH,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "use_cache": False,
}  # fmt: skip
OF_SERIES = {
    "past_values": random(1, 10), "past_time_features": random(1, 10, 1), "past_observed_mask": torch.ones(1, 10),
    "future_values": random(1, 4), "future_time_features": random(1, 4, 1),
}  # fmt: skip
VIDEO = {**BLOCKS, "image_size": IMAGE, "patch_size": 8, "num_frames": 2, "num_labels": LABELS}
OF_VIDEO = {"pixel_values": random(1, 2, 3, IMAGE, IMAGE)}
AUDIO = {**BLOCKS, "conv_dim": [16, 16], "conv_stride": [4, 2], "conv_kernel": [8, 3], "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "num_labels": LABELS}  # fmt: skip

SIGNALS = {
    # -- sound --
    "hubert": tokens("Hubert", AUDIO),
    "wavlm": tokens("WavLM", AUDIO),
    "sew": tokens("SEW", AUDIO, squeeze_factor=2),
    "wav2vec2_conformer": tokens("Wav2Vec2Conformer", AUDIO),
    "whisper_generation": Spec("WhisperConfig", "WhisperForConditionalGeneration", {**TWO_SIDED, "num_mel_bins": 8,
        "max_source_positions": 12, "max_target_positions": 12}, {"input_features": random(1, 8, 24),
        "decoder_input_ids": ids(1, 4)}),
    "ast": Spec("ASTConfig", "ASTForAudioClassification", {**BLOCKS, "num_labels": LABELS, "patch_size": 8,
        "max_length": 24, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8}, {"input_values": random(1, 24,
        16)}),
    "clap_audio": Spec("ClapAudioConfig", "ClapAudioModel", {"hidden_size": 32, "patch_embeds_hidden_size": 8,
        "depths": [1, 1], "num_attention_heads": [2, 2], "num_hidden_layers": 2, "spec_size": 32, "num_mel_bins": 16,
        "window_size": 4, "patch_size": 4, "patch_stride": [4, 4]}, {"input_features": random(1, 1, 64, 16)}),
    # -- series and video --
    "patchtst": Spec("PatchTSTConfig", "PatchTSTForPrediction", {"num_input_channels": 2, "context_length": 16,
        "patch_length": 4, "patch_stride": 4, "prediction_length": 4, "d_model": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 4, "ffn_dim": 32}, {"past_values": random(2, 16, 2)}),
    "patchtsmixer": Spec("PatchTSMixerConfig", "PatchTSMixerForPrediction", {"num_input_channels": 2,
        "context_length": 16, "patch_length": 4, "patch_stride": 4, "prediction_length": 4, "d_model": 16,
        "num_layers": 1}, {"past_values": random(2, 16, 2)}),
    "informer": Spec("InformerConfig", "InformerModel", {**SERIES, "attention_type": "full"}, OF_SERIES),
    "autoformer": Spec("AutoformerConfig", "AutoformerModel", {**SERIES, "moving_average": 3, "label_length": 4},
        OF_SERIES),
    "time_series_transformer": Spec("TimeSeriesTransformerConfig", "TimeSeriesTransformerModel", SERIES, OF_SERIES),
    "timesfm": Spec("TimesFmConfig", "TimesFmModel", {"patch_length": 4, "context_length": 16, "horizon_length": 4,
        "hidden_size": WIDTH, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1,
        "num_attention_heads": 4}, {"past_values": random(1, 16), "past_values_padding": torch.zeros(1, 16),
        "freq": torch.zeros(1, 1, dtype=torch.long)}),
    "decision_transformer": Spec("DecisionTransformerConfig", "DecisionTransformerModel", {"state_dim": 4,
        "act_dim": 2, "hidden_size": WIDTH, "n_layer": 1, "n_head": 4, "max_ep_len": 16, "n_positions": 32},
        {"states": random(1, 3, 4), "actions": random(1, 3, 2), "rewards": random(1, 3, 1), "returns_to_go": random(1,
        3, 1), "timesteps": torch.arange(3)[None], "attention_mask": torch.ones(1, 3, dtype=torch.long)}),
    "timesformer": Spec("TimesformerConfig", "TimesformerForVideoClassification", VIDEO, OF_VIDEO),
    "videomae": Spec("VideoMAEConfig", "VideoMAEForVideoClassification", {**VIDEO, "tubelet_size": 2}, OF_VIDEO),
    "vivit": Spec("VivitConfig", "VivitForVideoClassification", {**VIDEO, "tubelet_size": [2, 8, 8]}, OF_VIDEO),
}  # fmt: skip
