"""Transformers of diffusers for films and sound."""

from __future__ import annotations

import torch

from zoo.diffusion import SMALL, dit, mask, steps
from zoo.entry import BATCH, Entry, Inputs, join, normal, values


def _film(*more: Inputs) -> Inputs:
    return join(normal(hidden_states=(4, 2, 8, 8), encoder_hidden_states=(6, 16)), steps, *more)


ENTRIES: tuple[Entry, ...] = (
    dit(
        "CogVideoX",
        "CogVideoXTransformer3DModel",
        join(_film(), normal(hidden_states=(2, 4, 8, 8))),
        **SMALL,
        time_embed_dim=8,
        text_embed_dim=16,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=6,
    ),
    dit(
        "LTX-Video",
        "LTXVideoTransformer3DModel",
        join(
            normal(hidden_states=(32, 4), encoder_hidden_states=(6, 16)),
            steps,
            mask,
            values(num_frames=2, height=4, width=4),
        ),
        **SMALL,
        cross_attention_dim=32,
        caption_channels=16,
    ),
    dit(
        "Wan",
        "WanTransformer3DModel",
        _film(),
        **SMALL,
        text_dim=16,
        freq_dim=16,
        ffn_dim=128,
        rope_max_seq_len=32,
    ),
    dit(
        "Mochi",
        "MochiTransformer3DModel",
        _film(values(encoder_attention_mask=[[True] * 6] * BATCH)),
        in_channels=4,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    ),
    dit(
        "Stable Audio",
        "StableAudioDiTModel",
        join(
            normal(hidden_states=(4, 8), encoder_hidden_states=(6, 8), global_hidden_states=(1, 8)),
            steps,
            lambda: {"rotary_embedding": (torch.randn(9, 4), torch.randn(9, 4))},
        ),
        **SMALL,
        num_attention_heads=4,
        attention_head_dim=8,
        num_key_value_attention_heads=2,
        sample_size=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=8,
    ),
    dit(
        "Latte",
        "LatteTransformer3DModel",
        _film(),
        in_channels=4,
        cross_attention_dim=32,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=16,
        video_length=2,
    ),
    dit(
        "HunyuanVideo",
        "HunyuanVideoTransformer3DModel",
        _film(mask, normal(pooled_projections=(8,)), values(guidance=[0.3, 0.5])),
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ),
)
