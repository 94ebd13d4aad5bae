"""Transformers of diffusers for images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.entry import BATCH, Build, Entry, Inputs, diffuser, join, normal, ones, values


def dit(name: str, model: str, inputs: Inputs, **config: Any) -> Entry:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16}
    return Entry(f"{name} (diffusers)", diffuser(model, **{**heads, **config}), inputs)


def _initialised(build: Build, name: str) -> Build:
    """The model, with a parameter that it leaves to chance."""

    def build_and_fill() -> nn.Module:
        model = build()
        nn.init.normal_(model.get_parameter(name))
        return model

    return build_and_fill


def _positions() -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {"image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 8, 8)}


steps = values(timestep=[3, 5])
times = values(timestep=[0.3, 0.5])
mask = ones(encoder_attention_mask=(6,))


def _picture(text: int = 16, *more: Inputs) -> Inputs:
    return join(normal(hidden_states=(4, 8, 8), encoder_hidden_states=(6, text)), *more)


def _packed(axes: int, channels: int = 4, *more: Inputs) -> Inputs:
    """Patches of 4 x 4 in a row, with their positions, beside the text's."""

    def positions() -> dict[str, Any]:
        return {"img_ids": torch.randint(0, 4, (16, axes)).float(), "txt_ids": torch.zeros(6, axes)}

    return join(normal(hidden_states=(16, channels), encoder_hidden_states=(6, 32)), times, positions, *more)


SMALL: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "num_layers": 2}
_MIXED: dict[str, Any] = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 32}
_sizes = values(
    original_size=[[8.0, 8.0]] * BATCH, target_size=[[8.0, 8.0]] * BATCH, crop_coords=[[0.0, 0.0]] * BATCH
)

ENTRIES = (
    dit(
        "DiT",
        "DiTTransformer2DModel",
        join(normal(hidden_states=(4, 8, 8)), steps, values(class_labels=[1, 2])),
        in_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    ),
    dit(
        "PixArt",
        "PixArtTransformer2DModel",
        _picture(16, steps, values(added_cond_kwargs={"resolution": None, "aspect_ratio": None})),
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        caption_channels=16,
        use_additional_conditions=False,
    ),
    dit(
        "Stable Diffusion 3",
        "SD3Transformer2DModel",
        _picture(16, steps, normal(pooled_projections=(16,))),
        **SMALL,
        sample_size=8,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ),
    dit(
        "Flux",
        "FluxTransformer2DModel",
        _packed(3, 4, normal(pooled_projections=(16,))),
        **_MIXED,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ),
    dit(
        "Flux 2",
        "Flux2Transformer2DModel",
        _packed(4, 4, values(guidance=[0.3, 0.5])),
        **_MIXED,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    ),
    dit(
        "Chroma",
        "ChromaTransformer2DModel",
        _packed(3),
        **_MIXED,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    ),
    dit(
        "AuraFlow",
        "AuraFlowTransformer2DModel",
        _picture(32, times),
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=16,
    ),
    dit(
        "Hunyuan-DiT",
        "HunyuanDiT2DModel",
        join(
            _picture(8, times),
            normal(encoder_hidden_states=(4, 8), encoder_hidden_states_t5=(4, 8)),
            ones(text_embedding_mask=(4,), text_embedding_mask_t5=(4,), image_meta_size=(6,)),
            values(style=[0, 0]),
            lambda: {"image_rotary_emb": [torch.ones(16, 16), torch.zeros(16, 16)]},
        ),
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=4,
        text_len=4,
        text_len_t5=4,
    ),
    dit(
        "CogView 3+",
        "CogView3PlusTransformer2DModel",
        _picture(16, steps, _sizes),
        **SMALL,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    ),
    dit(
        "CogView 4",
        "CogView4Transformer2DModel",
        _picture(16, steps, _sizes),
        **SMALL,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    ),
    dit(
        "Sana",
        "SanaTransformer2DModel",
        _picture(16, steps),
        **SMALL,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=8,
    ),
    Entry(
        "Lumina-Next (diffusers)",
        _initialised(
            diffuser(
                "LuminaNextDiT2DModel",
                sample_size=8,
                hidden_size=24,
                num_layers=2,
                num_attention_heads=3,
                num_kv_heads=1,
                multiple_of=16,
                ffn_dim_multiplier=1.0,
                cross_attention_dim=32,
            ),
            "pad_token",
        ),
        _picture(32, times, ones(encoder_mask=(6,)), values(cross_attention_kwargs={}), _positions),
    ),
    Entry(
        "Lumina 2 (diffusers)",
        diffuser(
            "Lumina2Transformer2DModel",
            sample_size=8,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(128, 128, 128),
            cap_feat_dim=16,
        ),
        _picture(16, times, values(encoder_attention_mask=[[True] * 6] * BATCH)),
    ),
    dit(
        "Kandinsky's prior",
        "PriorTransformer",
        join(normal(hidden_states=(16,), proj_embedding=(16,), encoder_hidden_states=(5, 16)), steps),
        num_layers=2,
        embedding_dim=16,
        num_embeddings=5,
    ),
    dit(
        "Transformer 2D",
        "Transformer2DModel",
        normal(hidden_states=(32, 4, 4), encoder_hidden_states=(6, 16)),
        in_channels=32,
        norm_num_groups=8,
        cross_attention_dim=16,
    ),
    dit(
        "Qwen-Image",
        "QwenImageTransformer2DModel",
        join(
            normal(hidden_states=(16, 16), encoder_hidden_states=(6, 16)),
            times,
            values(encoder_hidden_states_mask=[[1] * 6] * BATCH),
            lambda: {"img_shapes": [(1, 4, 4)] * BATCH},
        ),
        in_channels=16,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ),
    dit(
        "HiDream",
        "HiDreamImageTransformer2DModel",
        join(
            normal(hidden_states=(4, 8, 8), encoder_hidden_states_t5=(6, 32), pooled_embeds=(16,)),
            values(timesteps=[0.3, 0.5]),
            lambda: {"encoder_hidden_states_llama3": torch.randn(2, BATCH, 6, 16)},
        ),
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        patch_size=2,
        num_attention_heads=4,
        attention_head_dim=8,
        caption_channels=[32, 16],
        text_emb_dim=16,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    ),
    Entry(
        "Z-Image (diffusers)",
        diffuser(
            "ZImageTransformer2DModel",
            in_channels=16,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        lambda: {
            "x": [torch.randn(16, 1, 8, 8) for _ in range(BATCH)],
            "t": torch.tensor([0.3, 0.5]),
            "cap_feats": [torch.randn(6, 16) for _ in range(BATCH)],
        },
    ),
)
