"""Speech and sound that is heard."""

from __future__ import annotations

from typing import Any

from zoo.entry import (
    LENGTH,
    VOCABULARY,
    Entry,
    chosen,
    decoder_tokens,
    family,
    join,
    normal,
    tokens,
    values,
)
from zoo.sizes import BERT, SEQ2SEQ, TOWER

_WAVES: dict[str, Any] = {
    **TOWER,
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def _speech(name: str, kind: str, **config: Any) -> Entry:
    return Entry(name, family(kind, **{**_WAVES, **config}), normal(input_values=(1600,)))


_CLAP: dict[str, Any] = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [1, 1],
    "num_attention_heads": [2, 4],
    "window_size": 4,
    "patch_stride": [4, 4],
    "aff_block_r": 1,
    "num_classes": 4,
    "enable_fusion": False,
    "fusion_type": None,
    "drop_path_rate": 0.0,
}
_CONFORMER: dict[str, Any] = {
    "feature_projection_input_dim": 16,
    "conv_depthwise_kernel_size": 7,
    "max_source_positions": 64,
}
ENTRIES = (
    _speech("Wav2Vec2", "Wav2Vec2"),
    _speech("Wav2Vec2, stable", "Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True),
    _speech("HuBERT", "Hubert"),
    _speech("WavLM", "WavLM"),
    _speech("UniSpeech-SAT", "UniSpeechSat"),
    _speech("data2vec, audio", "Data2VecAudio", conv_pos_kernel_size=3, num_conv_pos_embeddings=2),
    _speech("SEW", "SEW", squeeze_factor=2),
    _speech("SEW-D", "SEWD", squeeze_factor=2, max_position_embeddings=64, position_buckets=16),
    _speech("Wav2Vec2-Conformer", "Wav2Vec2Conformer", conv_depthwise_kernel_size=7, max_source_positions=512),
    Entry(
        "Wav2Vec2-BERT",
        family(
            "Wav2Vec2Bert",
            **TOWER,
            **_CONFORMER,
            position_embeddings_type="relative_key",
            left_max_position_embeddings=8,
            right_max_position_embeddings=8,
        ),
        normal(input_features=(LENGTH, 16)),
    ),
    Entry(
        "AST",
        family(
            "AST",
            "ASTModel",
            **TOWER,
            patch_size=8,
            max_length=32,
            num_mel_bins=16,
            frequency_stride=8,
            time_stride=8,
        ),
        normal(input_values=(32, 16)),
    ),
    Entry(
        "Whisper",
        family("Whisper", **SEQ2SEQ, num_mel_bins=16, max_source_positions=LENGTH, max_target_positions=64),
        join(normal(input_features=(16, 2 * LENGTH)), decoder_tokens),
    ),
    Entry(
        "Speech2Text",
        family(
            "Speech2Text",
            **SEQ2SEQ,
            input_feat_per_channel=16,
            conv_channels=32,
            max_source_positions=64,
            max_target_positions=64,
        ),
        join(normal(input_features=(2 * LENGTH, 16)), decoder_tokens),
    ),
    Entry(
        "Moonshine",
        family(
            "Moonshine",
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=1,
            encoder_num_attention_heads=4,
            decoder_num_attention_heads=4,
            max_position_embeddings=64,
            use_cache=False,
            pad_token_id=0,
        ),
        join(normal(input_values=(6400,)), decoder_tokens),
    ),
    Entry(
        "CLAP",
        chosen(
            family("Clap", audio_config=_CLAP, text_config=BERT, projection_dim=16), "text_embeds", "audio_embeds"
        ),
        join(tokens, normal(input_features=(1, 64, 16)), values(is_longer=[[False], [False]])),
    ),
    Entry(
        "Qwen2-Audio, encoder",
        family(
            "Qwen2AudioEncoder",
            d_model=32,
            encoder_layers=1,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            num_mel_bins=16,
            max_source_positions=LENGTH,
        ),
        normal(input_features=(16, 2 * LENGTH)),
    ),
    Entry(
        "Parakeet, encoder",
        family(
            "ParakeetEncoder",
            **TOWER,
            num_mel_bins=16,
            subsampling_conv_channels=16,
            conv_kernel_size=7,
            subsampling_factor=4,
        ),
        normal(input_features=(2 * LENGTH, 16)),
    ),
    Entry(
        "Gemma 3n, audio",
        family(
            "Gemma3nAudio",
            "Gemma3nAudioEncoder",
            hidden_size=32,
            conf_num_hidden_layers=1,
            conf_num_attention_heads=4,
            input_feat_size=16,
            sscp_conv_channel_size=[8, 8],
        ),
        join(normal(audio_mel=(32, 16)), values(audio_mel_mask=[[False] * 32] * 2)),
    ),
    Entry(
        "Seamless M4T, speech to text",
        family(
            "SeamlessM4T",
            "SeamlessM4TForSpeechToText",
            **{**SEQ2SEQ, "hidden_size": 32},
            **_CONFORMER,
            speech_encoder_layers=1,
            speech_encoder_attention_heads=4,
            speech_encoder_intermediate_size=64,
            num_adapter_layers=1,
            adaptor_kernel_size=4,
            adaptor_stride=4,
        ),
        join(normal(input_features=(LENGTH, 16)), decoder_tokens),
    ),
)
