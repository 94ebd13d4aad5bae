"""Encoders with decoders, of language and of time series."""

from __future__ import annotations

from typing import Any

from zoo.entry import VOCABULARY, Entry, family, join, normal, ones, pair, values
from zoo.sizes import GEMMA, IDS, LAYERS, SEQ2SEQ, T5


def _bart(name: str, kind: str, **config: Any) -> Entry:
    return Entry(name, family(kind, **{**SEQ2SEQ, "max_position_embeddings": 64, **config}), pair)


def _t5(name: str, kind: str, **config: Any) -> Entry:
    return Entry(name, family(kind, **T5, **config), pair)


_SERIES: dict[str, Any] = {
    "prediction_length": 4,
    "context_length": 12,
    "lags_sequence": [1, 2],
    "num_time_features": 2,
    "d_model": 32,
    "use_cache": False,
    **LAYERS,
}
_series = join(
    normal(
        past_values=(14,),
        past_time_features=(14, 2),
        future_values=(4,),
        future_time_features=(4, 2),
    ),
    ones(past_observed_mask=(14,)),
)
_PATCHES: dict[str, Any] = {
    "num_input_channels": 2,
    "context_length": 32,
    "patch_length": 8,
    "patch_stride": 8,
    "d_model": 32,
}

ENTRIES = (
    _t5("T5 (ReLU)", "T5", feed_forward_proj="relu"),
    _t5("T5 v1.1 (gated GELU)", "T5", feed_forward_proj="gated-gelu"),
    _t5("T5 (gated SiLU)", "T5", feed_forward_proj="gated-silu"),
    _t5("T5 (gated ReLU)", "T5", feed_forward_proj="gated-relu"),
    _t5("T5 (GELU)", "T5", feed_forward_proj="gelu"),
    _t5("T5 v1.1 without dropout", "T5", feed_forward_proj="gated-gelu", dropout_rate=0.0),
    _t5("mT5", "MT5", feed_forward_proj="gated-gelu"),
    _t5("UMT5", "UMT5", feed_forward_proj="gated-gelu"),
    _t5(
        "LongT5",
        "LongT5",
        feed_forward_proj="gated-gelu",
        encoder_attention_type="transient-global",
        local_radius=7,
        global_block_size=4,
    ),
    _t5(
        "Switch Transformers",
        "SwitchTransformers",
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        router_jitter_noise=0.0,  # its draws depend on the dtype
        dense_act_fn="gelu",
    ),
    Entry("T5Gemma", family("T5Gemma", encoder=GEMMA, decoder=GEMMA, vocab_size=VOCABULARY), pair),
    _bart("BART", "Bart"),
    _bart("mBART", "MBart"),
    _bart("Pegasus", "Pegasus"),
    _bart("PEGASUS-X", "PegasusX", block_size=8, num_global_tokens=4),
    _bart("BigBird-Pegasus", "BigBirdPegasus", block_size=2, num_random_blocks=1),
    _bart("Marian", "Marian"),
    _bart("Blenderbot", "Blenderbot"),
    _bart("PLBART", "PLBart"),
    _bart("M2M100", "M2M100"),
    _bart(
        "NLLB-MoE",
        "NllbMoe",
        num_experts=4,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        expert_capacity=32,
        activation_function="gelu",
    ),
    _bart("LED", "LED", attention_window=8, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64),
    Entry(
        "ProphetNet",
        family(
            "ProphetNet",
            **IDS,
            hidden_size=32,
            num_encoder_layers=1,
            num_decoder_layers=1,
            num_encoder_attention_heads=4,
            num_decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            max_position_embeddings=64,
            use_cache=False,
        ),
        pair,
    ),
    Entry("Time Series Transformer", family("TimeSeriesTransformer", **_SERIES), _series),
    Entry("Informer", family("Informer", **_SERIES), _series),
    Entry(
        "PatchTST",
        family("PatchTST", **_PATCHES, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128, ff_dropout=0.1),
        normal(past_values=(32, 2)),
    ),
    Entry("PatchTSMixer", family("PatchTSMixer", **_PATCHES, num_layers=2), normal(past_values=(32, 2))),
    Entry(
        "TimesFM",
        family(
            "TimesFm",
            patch_length=8,
            context_length=32,
            horizon_length=8,
            hidden_size=32,
            intermediate_size=64,
            head_dim=8,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        join(normal(past_values=(32,)), values(past_values_padding=[[0.0] * 32] * 2, freq=[[0], [0]])),
    ),
    Entry(
        "Decision Transformer",
        family(
            "DecisionTransformer",
            state_dim=5,
            act_dim=3,
            hidden_size=32,
            n_layer=2,
            n_head=4,
            max_ep_len=32,
            n_positions=64,
            activation_function="gelu_new",
        ),
        join(
            normal(states=(8, 5), actions=(8, 3), rewards=(8, 1), returns_to_go=(8, 1)),
            values(timesteps=[list(range(8))] * 2),
        ),
    ),
    Entry(
        "Perceiver",
        family(
            "Perceiver",
            d_model=32,
            num_latents=8,
            d_latents=32,
            num_self_attends_per_block=2,
            num_self_attention_heads=4,
            num_cross_attention_heads=4,
        ),
        normal(inputs=(24, 32)),
    ),
    Entry(
        "Seamless M4T v2, text",
        family("SeamlessM4Tv2", "SeamlessM4Tv2ForTextToText", **{**SEQ2SEQ, "hidden_size": 32}),
        pair,
    ),
)
