"""Small instances of well-known models, built from their configurations: for the tests and for model_table.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, BATCH, LENGTH = 96, 2, 24


@dataclass(frozen=True)
class Entry:
    """One model: how to build it, and its inputs (float ones in float32)."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]


def _transformers(kind: str, **config: Any) -> Callable[[], nn.Module]:
    """The base model of the family ``kind`` with that configuration; unknown sizes are left out by name."""

    def build() -> nn.Module:
        import transformers

        configuration = getattr(transformers, f"{kind}Config")(**config)
        return transformers.AutoModel.from_config(configuration)

    return build


def _tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH))}


def _pair() -> dict[str, Tensor]:
    return {**_tokens(), "decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH))}


def _image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 32, 32)}


def _tokens_and_image() -> dict[str, Tensor]:
    return {**_tokens(), **_image()}


def _whisper() -> dict[str, Tensor]:
    features = torch.randn(BATCH, 16, 2 * LENGTH)
    return {"input_features": features, "decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH))}


def _speech() -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, 1600)}


_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT: dict[str, Any] = dict(
    **_IDS,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=64,
)
_LLAMA: dict[str, Any] = dict(**_BERT, num_key_value_heads=2, use_cache=False)
_GEMMA: dict[str, Any] = dict(**_LLAMA, head_dim=8)
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "pad_token_id": 0,
}
_SEQ2SEQ: dict[str, Any] = dict(
    **_IDS,
    decoder_start_token_id=2,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
    use_cache=False,
)
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_VISION: dict[str, Any] = dict(**_TOWER, image_size=32, patch_size=8)
_TEXT: dict[str, Any] = dict(**_IDS, **_TOWER, max_position_embeddings=64)


class _TwoTowers(nn.Module):
    """CLIP and SigLIP return structures of structures; this keeps the two embeddings."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return torch.cat([output.text_embeds, output.image_embeds], dim=-1)


def _two_towers(kind: str) -> Callable[[], nn.Module]:
    build = _transformers(kind, text_config=_TEXT, vision_config=_VISION)
    return lambda: _TwoTowers(build())


def _unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _unet_inputs() -> dict[str, Any]:
    return {
        "sample": torch.randn(BATCH, 4, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "encoder_hidden_states": torch.randn(BATCH, 6, 16),
    }


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def _dit_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, 4, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "class_labels": torch.tensor([1, 2]),
    }


def _diffusers_block(feed_forward: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers.models.attention import BasicTransformerBlock

        return BasicTransformerBlock(32, 4, 8, activation_fn=feed_forward)

    return build


def _hidden() -> dict[str, Tensor]:
    return {"hidden_states": torch.randn(BATCH, LENGTH, 32)}


ZOO: tuple[Entry, ...] = (
    Entry("BERT", _transformers("Bert", **_BERT), _tokens),
    Entry("RoBERTa", _transformers("Roberta", **_BERT), _tokens),
    Entry(
        "DistilBERT",
        _transformers(
            "DistilBert",
            vocab_size=VOCABULARY,
            dim=32,
            hidden_dim=128,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=64,
        ),
        _tokens,
    ),
    Entry(
        "GPT-2",
        _transformers("GPT2", **_IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False),
        _tokens,
    ),
    Entry("GPT-NeoX", _transformers("GPTNeoX", **_BERT, use_cache=False), _tokens),
    Entry("Falcon", _transformers("Falcon", **_BERT, use_cache=False), _tokens),
    Entry("Phi", _transformers("Phi", **_BERT, use_cache=False), _tokens),
    Entry("Phi-3", _transformers("Phi3", **_LLAMA), _tokens),
    Entry("Llama", _transformers("Llama", **_LLAMA), _tokens),
    Entry("Mistral", _transformers("Mistral", **_LLAMA), _tokens),
    Entry("Mixtral", _transformers("Mixtral", **_LLAMA, num_local_experts=4, num_experts_per_tok=2), _tokens),
    Entry("Qwen2", _transformers("Qwen2", **_LLAMA), _tokens),
    Entry("Qwen3", _transformers("Qwen3", **_GEMMA), _tokens),
    Entry("Qwen3-MoE", _transformers("Qwen3Moe", **_GEMMA, **_MOE, num_experts=4), _tokens),
    Entry("Gemma", _transformers("Gemma", **_GEMMA), _tokens),
    Entry("Gemma 2", _transformers("Gemma2", **_GEMMA), _tokens),
    Entry("Gemma 3", _transformers("Gemma3Text", **_GEMMA), _tokens),
    Entry("OLMo", _transformers("Olmo", **_LLAMA), _tokens),
    Entry("StableLM", _transformers("StableLm", **_LLAMA), _tokens),
    Entry("Starcoder2", _transformers("Starcoder2", **_LLAMA), _tokens),
    Entry("T5 (ReLU)", _transformers("T5", **_T5, feed_forward_proj="relu"), _pair),
    Entry("T5 v1.1 (gated GELU)", _transformers("T5", **_T5, feed_forward_proj="gated-gelu"), _pair),
    Entry("T5 (gated ReLU)", _transformers("T5", **_T5, feed_forward_proj="gated-relu"), _pair),
    Entry("BART", _transformers("Bart", **_SEQ2SEQ, max_position_embeddings=64), _pair),
    Entry("ViT", _transformers("ViT", **_VISION), _image),
    Entry("CLIP", _two_towers("CLIP"), _tokens_and_image),
    Entry("SigLIP", _two_towers("Siglip"), _tokens_and_image),
    Entry(
        "Whisper",
        _transformers("Whisper", **_SEQ2SEQ, num_mel_bins=16, max_source_positions=LENGTH, max_target_positions=64),
        _whisper,
    ),
    Entry(
        "Wav2Vec2",
        _transformers(
            "Wav2Vec2",
            **_TOWER,
            conv_dim=(32, 32),
            conv_stride=(5, 4),
            conv_kernel=(10, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            mask_time_prob=0.0,
            layerdrop=0.0,
        ),
        _speech,
    ),
    Entry("UNet (diffusers)", _unet, _unet_inputs),
    Entry("DiT (diffusers)", _dit, _dit_inputs),
    Entry("block, GEGLU (diffusers)", _diffusers_block("geglu"), _hidden),
    Entry("block, SwiGLU (diffusers)", _diffusers_block("swiglu"), _hidden),
    Entry("block, ApproximateGELU (diffusers)", _diffusers_block("geglu-approximate"), _hidden),
)


def build(entry: Entry, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with weights from a fixed seed."""
    torch.manual_seed(0)
    return entry.build().to(dtype)


def inputs(entry: Entry, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Its inputs from a fixed seed, floating ones in ``dtype``."""
    torch.manual_seed(1)
    values = entry.inputs()
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in values.items()}


def first_tensor(output: Any) -> Tensor:
    """The main tensor of whatever a model returns."""
    return output if isinstance(output, Tensor) else output[0]
