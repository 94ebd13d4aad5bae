"""The models one can name: their config.json, without what does not change a size or a layer's type.

Those with a ``model_type`` are of transformers, those with a ``_class_name`` of diffusers; ``DETECTOR`` is the one
model of our own, see ``detector.py``.
"""

from __future__ import annotations

from typing import Any


def _bert(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": 30522,
    }


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": 50257,
    }


def _decoder(
    kind: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    names = {"gemma2": "Gemma2"}
    return {
        "model_type": kind,
        "architectures": [f"{names.get(kind, kind.capitalize())}ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        **more,
    }


def _vit(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "image_size": 224,
        "patch_size": 16,
        "num_labels": 1000,
    }


def _efficientnet(width: float, depth: float, side: int, features: int) -> dict[str, Any]:
    return {
        "model_type": "efficientnet",
        "architectures": ["EfficientNetForImageClassification"],
        "image_size": side,
        "width_coefficient": width,
        "depth_coefficient": depth,
        "hidden_dim": features,
        "num_labels": 1000,
    }


DETECTOR = "yolov8-like"


def _detector(depth: float, width: float, most_channels: int) -> dict[str, Any]:
    return {
        "model_type": DETECTOR,
        "depth": depth,
        "width": width,
        "most_channels": most_channels,
        "classes": 80,
        "image_size": 640,
    }


_SD_BLOCKS = (128, 256, 512, 512)  # of Stable Diffusion's autoencoder

PRESETS: dict[str, dict[str, Any]] = {
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "mistral-7b": _decoder(
        "mistral", 4096, 14336, 32, 32, 8, 32000, max_position_embeddings=32768, sliding_window=None
    ),
    "llama-3-8b": _decoder("llama", 4096, 14336, 32, 32, 8, 128256, max_position_embeddings=8192),
    "llama-3-70b": _decoder("llama", 8192, 28672, 80, 64, 8, 128256, max_position_embeddings=8192),
    "qwen3-8b": _decoder("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128, max_position_embeddings=40960),
    "gemma-2-9b": _decoder(
        "gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256, max_position_embeddings=8192,
        query_pre_attn_scalar=256, tie_word_embeddings=True,
    ),
    "vit-base": _vit(768, 12, 12),
    "vit-large": _vit(1024, 24, 16),
    "efficientnet-b0": _efficientnet(1.0, 1.0, 224, 1280),
    "efficientnet-b4": _efficientnet(1.4, 1.8, 380, 1792),
    "yolov8s-like": _detector(0.33, 0.5, 1024),
    "yolov8m-like": _detector(0.67, 0.75, 768),
    "sd-1.5-unet": {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768},
    "sd-vae": {
        "_class_name": "AutoencoderKL", "sample_size": 256, "block_out_channels": _SD_BLOCKS, "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "dit-xl-2": {"_class_name": "DiTTransformer2DModel", "sample_size": 32, "out_channels": 8},
}  # fmt: skip
