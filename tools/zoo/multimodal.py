"""Images beside language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.entry import BATCH, LENGTH, VOCABULARY, Entry, chosen, family, image, join, normal, tokens, values
from zoo.sizes import BERT, DECODER, IDS, LLAMA, TOWER, VISION


def _two_towers(name: str, kind: str, **config: Any) -> Entry:
    """Text and image; their embeddings, of which the first output holds the products alone."""
    build = family(kind, text_config=BERT, vision_config=VISION, projection_dim=32, **config)
    return Entry(name, chosen(build, "text_embeds", "image_embeds"), join(tokens, image()))


def _vision(name: str, kind: str, model: str, **config: Any) -> Entry:
    """The vision tower of a language model: two layers over the patches of one image."""
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 4}
    return Entry(name, family(kind, model, **{**sizes, "out_hidden_size": 32, **config}), _patches)


def _patches() -> dict[str, Tensor]:
    return {"hidden_states": torch.randn(16, 96), "grid_thw": torch.tensor([[1, 4, 4]])}


def _image_in_text(image_token: int, patches: int) -> Callable[[], dict[str, Tensor]]:
    def inputs() -> dict[str, Tensor]:
        words = torch.randint(4, VOCABULARY, (BATCH, 8))
        ids = torch.cat([torch.full((BATCH, patches), image_token), words], dim=1)
        return {"input_ids": ids, **image()()}

    return inputs


def _boxes() -> dict[str, Tensor]:
    corner = torch.randint(0, 50, (BATCH, LENGTH, 2))
    return {"bbox": torch.cat([corner, corner + 20], dim=-1)}


ENTRIES = (
    _two_towers("CLIP", "CLIP"),
    _two_towers("SigLIP", "Siglip"),
    _two_towers("AltCLIP", "AltCLIP"),
    _two_towers("Chinese CLIP", "ChineseCLIP"),
    _two_towers("BLIP", "Blip"),
    _two_towers("OWL-ViT", "OwlViT"),
    _two_towers("AIMv2", "Aimv2"),
    Entry(
        "SigLIP 2, vision",
        family("Siglip2Vision", "Siglip2VisionModel", **TOWER, num_patches=16, patch_size=8),
        join(
            normal(pixel_values=(16, 192)),
            values(pixel_attention_mask=[[1] * 16] * BATCH, spatial_shapes=[[4, 4]] * BATCH),
        ),
    ),
    Entry("ViLT", family("Vilt", **{**VISION, **BERT}, max_image_length=-1), join(tokens, image())),
    Entry("GIT", family("Git", **DECODER, vision_config=VISION), join(tokens, image())),
    Entry(
        "LayoutLMv3",
        family("LayoutLMv3", **BERT, coordinate_size=4, shape_size=8, input_size=32, patch_size=8),
        join(tokens, image(), _boxes),
    ),
    Entry(
        "BLIP-2, Q-Former",
        family("Blip2QFormer", **BERT, encoder_hidden_size=32, cross_attention_frequency=2),
        normal(query_embeds=(8, 32), encoder_hidden_states=(12, 32)),
    ),
    Entry(
        "LLaVA",
        family(
            "Llava",
            vision_config={"model_type": "clip_vision_model", **VISION},
            text_config={"model_type": "llama", **LLAMA},
            image_token_id=3,
            vision_feature_layer=-1,
        ),
        _image_in_text(image_token=3, patches=16),
    ),
    Entry(
        "PaliGemma",
        family(
            "PaliGemma",
            vision_config={"model_type": "siglip_vision_model", **VISION},
            text_config={"model_type": "gemma", **LLAMA, "head_dim": 8},
            image_token_id=3,
            projection_dim=32,
        ),
        _image_in_text(image_token=3, patches=16),
    ),
    _vision(
        "Qwen2.5-VL, vision",
        "Qwen2_5_VLVision",
        "Qwen2_5_VisionTransformerPretrainedModel",
        window_size=16,
        fullatt_block_indexes=[1],
    ),
    _vision(
        "Qwen3-VL, vision",
        "Qwen3VLVision",
        "Qwen3VLVisionModel",
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    ),
    _vision("GLM-4V, vision", "Glm4vVision", "Glm4vVisionModel", image_size=16),
    Entry("Pixtral, vision", family("PixtralVision", "PixtralVisionModel", **VISION), image()),
    Entry(
        "Pix2Struct, vision",
        family(
            "Pix2StructVision",
            "Pix2StructVisionModel",
            hidden_size=32,
            d_ff=64,
            d_kv=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            patch_embed_hidden_size=16,
            seq_len=16,
        ),
        lambda: {
            "flattened_patches": torch.cat(
                [torch.randint(1, 8, (BATCH, 12, 2)).float(), torch.randn(BATCH, 12, 16)], dim=-1
            )
        },
    ),
    Entry(
        "X-CLIP",
        chosen(
            family(
                "XCLIP",
                text_config={**IDS, **TOWER, "max_position_embeddings": 64},
                vision_config={**VISION, "mit_hidden_size": 32, "mit_intermediate_size": 64, "num_frames": 2},
                projection_dim=32,
            ),
            "text_embeds",
            "video_embeds",
        ),
        join(tokens, normal(pixel_values=(2, 3, 32, 32))),
    ),
)
