"""Speech and music that is made, and their codecs."""

from __future__ import annotations

from typing import Any

import torch

from zoo.entry import LENGTH, VOCABULARY, Entry, chosen, family, join, normal, tokens
from zoo.sizes import LAYERS

_VOCODER: dict[str, Any] = {
    "upsample_initial_channel": 16,
    "upsample_rates": [2, 2],
    "upsample_kernel_sizes": [4, 4],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}

ENTRIES = (
    Entry(
        "SpeechT5, text to speech",
        family(
            "SpeechT5",
            "SpeechT5ForTextToSpeech",
            vocab_size=VOCABULARY,
            hidden_size=32,
            **LAYERS,
            encoder_max_relative_position=16,
            num_mel_bins=8,
            speech_decoder_prenet_units=16,
            speech_decoder_postnet_units=16,
            speaker_embedding_dim=8,
            use_cache=False,
        ),
        join(tokens, normal(decoder_input_values=(8, 8), speaker_embeddings=(8,))),
    ),
    Entry(
        "MusicGen, decoder",
        family(
            "MusicgenDecoder",
            "MusicgenForCausalLM",
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=4,
            num_codebooks=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            use_cache=False,
        ),
        lambda: {"input_ids": torch.randint(3, VOCABULARY, (4, LENGTH))},
    ),
    Entry(
        "Bark, coarse",
        family(
            "BarkCoarse",
            "BarkCoarseModel",
            input_vocab_size=VOCABULARY,
            output_vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            block_size=64,
            use_cache=False,
        ),
        tokens,
    ),
    Entry(
        "VITS",
        family(
            "Vits",
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            ffn_dim=64,
            flow_size=32,
            spectrogram_bins=16,
            prior_encoder_num_flows=2,
            prior_encoder_num_wavenet_layers=2,
            posterior_encoder_num_wavenet_layers=2,
            duration_predictor_num_flows=2,
            duration_predictor_filter_channels=16,
            depth_separable_num_layers=1,
            noise_scale=0.0,  # its draws depend on the dtype
            noise_scale_duration=0.0,
            layerdrop=0.0,
            **_VOCODER,
        ),
        tokens,
    ),
    Entry(
        "EnCodec",
        chosen(
            family(
                "Encodec",
                target_bandwidths=[60.0],
                num_filters=8,
                num_residual_layers=1,
                upsampling_ratios=[4, 2],
                hidden_size=16,
                codebook_size=32,
                codebook_dim=16,
                num_lstm_layers=1,
            ),
            "audio_values",
        ),
        normal(input_values=(1, 320)),
    ),
    Entry(
        "UnivNet",
        family(
            "UnivNet",
            model_in_channels=8,
            model_hidden_channels=8,
            num_mel_bins=8,
            resblock_kernel_sizes=[3, 3],
            resblock_stride_sizes=[4, 4],
            resblock_dilation_sizes=[[1, 3], [1, 3]],
            kernel_predictor_num_blocks=1,
            kernel_predictor_hidden_channels=8,
        ),
        normal(input_features=(8, 8), noise_sequence=(8, 8)),
    ),
)
