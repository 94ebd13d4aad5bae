"""U-Nets and autoencoders of diffusers."""

from __future__ import annotations

from typing import Any

import torch

from zoo.entry import BATCH, Entry, Inputs, diffuser, join, normal, values

_SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
_CROSS: dict[str, Any] = {
    **_SMALL,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
}
_SIMPLE: dict[str, Any] = {
    **_CROSS,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
_timestep = values(timestep=[3, 5])
_conditioned = join(normal(sample=(4, 8, 8), encoder_hidden_states=(6, 16)), _timestep)
_frames = join(normal(sample=(4, 2, 8, 8), encoder_hidden_states=(6, 16)), _timestep)


def _vae(name: str, model: str, inputs: Inputs, **config: Any) -> Entry:
    return Entry(name, diffuser(model, **config), inputs)


_CODER: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
}
_picture = normal(sample=(3, 16, 16))
_film = normal(sample=(3, 5, 16, 16))

ENTRIES = (
    Entry("UNet (diffusers)", diffuser("UNet2DConditionModel", **_CROSS), _conditioned),
    *(
        Entry(f"UNet, {act_fn} (diffusers)", diffuser("UNet2DConditionModel", **_CROSS, act_fn=act_fn), _conditioned)
        for act_fn in ("gelu", "mish", "relu")
    ),
    Entry("UNet, simple attention (diffusers)", diffuser("UNet2DConditionModel", **_SIMPLE), _conditioned),
    Entry(
        "UNet, unconditional (diffusers)",
        diffuser(
            "UNet2DModel",
            **_SMALL,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            resnet_time_scale_shift="scale_shift",
        ),
        join(normal(sample=(3, 8, 8)), _timestep),
    ),
    Entry(
        "UNet 1D, planner (diffusers)",
        diffuser(
            "UNet1DModel",
            sample_size=16,
            in_channels=4,
            out_channels=4,
            time_embedding_type="positional",
            use_timestep_embedding=True,
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
            up_block_types=("UpResnetBlock1D",),
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
            block_out_channels=(16, 32),
            act_fn="mish",
        ),
        join(normal(sample=(4, 16)), _timestep),
    ),
    Entry(
        "UNet 1D, audio (diffusers)",
        diffuser("UNet1DModel", sample_size=64, extra_in_channels=64, block_out_channels=(32, 32, 64)),
        join(normal(sample=(2, 64)), _timestep),
    ),
    Entry(
        "UNet 3D (diffusers)",
        diffuser(
            "UNet3DConditionModel",
            **_SMALL,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=16,
            attention_head_dim=8,
        ),
        _frames,
    ),
    Entry(
        "UNet, motion (diffusers)",
        diffuser(
            "UNetMotionModel",
            **_SMALL,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            cross_attention_dim=16,
            num_attention_heads=2,
            motion_num_attention_heads=2,
        ),
        join(_frames, lambda: {"encoder_hidden_states": torch.randn(2 * BATCH, 6, 16)}),  # for each frame
    ),
    Entry(
        "Stable Video Diffusion (diffusers)",
        diffuser(
            "UNetSpatioTemporalConditionModel",
            sample_size=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=16,
            num_attention_heads=(2, 4),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            num_frames=2,
        ),
        join(normal(sample=(2, 8, 8, 8), encoder_hidden_states=(1, 16), added_time_ids=(3,)), _timestep),
    ),
    Entry(
        "Stable Cascade (diffusers)",
        diffuser(
            "StableCascadeUNet",
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=16,
            conditioning_dim=16,
            block_out_channels=(16, 16),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_text_in_channels=16,
            clip_text_pooled_in_channels=16,
            clip_image_in_channels=16,
            clip_seq=2,
            switch_level=[False],
            timestep_conditioning_type=(),
        ),
        join(
            normal(sample=(4, 8, 8), clip_text_pooled=(1, 16), clip_text=(4, 16), clip_img=(1, 16)),
            values(timestep_ratio=[0.3, 0.5]),
        ),
    ),
    Entry(
        "UViT (diffusers)",
        diffuser(
            "UVit2DModel",
            hidden_size=32,
            cond_embed_dim=32,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=32,
            vocab_size=32,
            codebook_size=32,
            in_channels=32,
            block_out_channels=32,
            num_res_blocks=1,
            downsample=True,
            upsample=True,
            block_num_heads=4,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
        ),
        join(
            normal(encoder_hidden_states=(6, 32), pooled_text_emb=(32,), micro_conds=(5,)),
            values(input_ids=[[[1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [4, 8, 12, 16]]] * BATCH),
        ),
    ),
    Entry(
        "ControlNet (diffusers)",
        diffuser(
            "ControlNetModel",
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            conditioning_embedding_out_channels=(8, 16),
        ),
        join(_conditioned, normal(controlnet_cond=(3, 16, 16))),
    ),
    _vae("AutoencoderKL (diffusers)", "AutoencoderKL", _picture, **_CODER),
    _vae("VQModel (diffusers)", "VQModel", _picture, **_CODER, num_vq_embeddings=32),
    _vae(
        "AutoencoderKL, temporal (diffusers)",
        "AutoencoderKLTemporalDecoder",
        join(_picture, values(num_frames=BATCH)),
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
    ),
    _vae(
        "AutoencoderDC (diffusers)",
        "AutoencoderDC",
        _picture,
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    ),
    _vae(
        "Wan's autoencoder (diffusers)",
        "AutoencoderKLWan",
        _film,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
    ),
    _vae(
        "CogVideoX's autoencoder (diffusers)",
        "AutoencoderKLCogVideoX",
        _film,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    ),
    _vae(
        "Oobleck (diffusers)",
        "AutoencoderOobleck",
        normal(sample=(2, 64)),
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
    ),
)
