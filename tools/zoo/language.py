"""Decoders of language: feed-forwards gated and plain, mixtures of experts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import VOCABULARY, Entry, family, tokens
from zoo.sizes import DECODER, DELTA, EXPERTS, GEMMA, GPT2, IDS, LATENT, LLAMA


def _text(name: str, kind: str, sizes: dict[str, Any], **config: Any) -> Entry:
    return Entry(name, family(kind, **{**sizes, **config}), tokens)


_MOE = GEMMA | EXPERTS

_FLASH = {"num_layers": 1, "head_dim": 8, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 48, "moe_topk": 2}

_DENSE = (
    _text("GPT-2", "GPT2", GPT2),
    _text("GPT-2 (tanh GELU)", "GPT2", GPT2, activation_function="gelu_pytorch_tanh"),
    _text("OpenAI GPT", "OpenAIGPT", GPT2),
    _text("ImageGPT", "ImageGPT", GPT2),
    _text("GPT-BigCode", "GPTBigCode", GPT2),
    _text("GPT-J", "GPTJ", GPT2, rotary_dim=4),
    _text("CodeGen", "CodeGen", GPT2, rotary_dim=4),
    _text("CTRL", "CTRL", GPT2, dff=128),
    _text("GPT-Neo", "GPTNeo", DECODER, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    _text("GPT-NeoX", "GPTNeoX", DECODER),
    _text("GPT-NeoX Japanese", "GPTNeoXJapanese", DECODER),
    _text("BLOOM", "Bloom", DECODER),
    _text("MPT", "Mpt", IDS, d_model=32, n_heads=4, n_layers=2, expansion_ratio=4, max_seq_len=64, use_cache=False),
    _text("OPT", "OPT", DECODER, ffn_dim=128, word_embed_proj_dim=32),
    _text("OPT (GELU)", "OPT", DECODER, ffn_dim=128, word_embed_proj_dim=32, activation_function="gelu"),
    _text("BioGPT", "BioGpt", DECODER),
    _text("Falcon", "Falcon", DECODER),
    _text("Falcon (new decoder)", "Falcon", DECODER, new_decoder_architecture=True, num_kv_heads=2),
    _text("Phi", "Phi", DECODER),
    _text("Persimmon", "Persimmon", DECODER),
    _text("Nemotron", "Nemotron", LLAMA),
    _text("NanoChat", "NanoChat", LLAMA),
    _text("Jais 2", "Jais2", LLAMA),
    _text("Arcee", "Arcee", LLAMA),
    _text("Starcoder2", "Starcoder2", LLAMA),
    _text("Apertus", "Apertus", LLAMA),
    _text("ModernBERT decoder", "ModernBertDecoder", DECODER),
)

_GATED = (
    _text("Llama", "Llama", LLAMA),
    _text("Llama (GELU)", "Llama", LLAMA, hidden_act="gelu"),
    _text("Llama (tanh GELU in Python)", "Llama", LLAMA, hidden_act="gelu_new"),
    _text("Llama (QuickGELU)", "Llama", LLAMA, hidden_act="quick_gelu"),
    _text("Llama (Mish)", "Llama", LLAMA, hidden_act="mish"),
    _text("Llama (ReLU)", "Llama", LLAMA, hidden_act="relu"),
    _text("Mistral", "Mistral", LLAMA),
    _text("Ministral 3", "Ministral3", LLAMA),
    _text("Qwen2", "Qwen2", LLAMA),
    _text("Qwen3", "Qwen3", GEMMA),
    _text("Gemma", "Gemma", GEMMA),
    _text("Gemma 2", "Gemma2", GEMMA),
    _text("Gemma 3", "Gemma3Text", GEMMA),
    _text(
        "Gemma 3n",
        "Gemma3nText",
        GEMMA,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        intermediate_size=[64, 64, 64],
        activation_sparsity_pattern=[0.95, 0.0, 0.0],
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        laurel_rank=8,
    ),
    _text("Gemma 4", "Gemma4Text", GEMMA, vocab_size_per_layer_input=96, hidden_size_per_layer_input=8),
    _text("VaultGemma", "VaultGemma", GEMMA),
    _text("Helium", "Helium", GEMMA),
    _text("Phi-3", "Phi3", LLAMA),
    _text("OLMo", "Olmo", LLAMA),
    _text("OLMo 2", "Olmo2", LLAMA),
    _text("OLMo 3", "Olmo3", LLAMA),
    _text("Cohere", "Cohere", LLAMA),
    _text("Cohere 2", "Cohere2", LLAMA),
    _text("GLM", "Glm", GEMMA),
    _text("GLM-4", "Glm4", GEMMA),
    _text("Granite", "Granite", LLAMA),
    _text("StableLM", "StableLm", LLAMA),
    _text("BitNet", "BitNet", LLAMA),
    _text("SmolLM3", "SmolLM3", LLAMA),
    _text("ERNIE 4.5", "Ernie4_5", GEMMA),
    _text("Hunyuan", "HunYuanDenseV1", GEMMA),
    _text("Seed-OSS", "SeedOss", GEMMA),
    _text("EXAONE 4", "Exaone4", LLAMA),
    _text("DiffLlama", "DiffLlama", LLAMA),
    _text("HyperCLOVA X", "HyperCLOVAX", LLAMA),
    _text("Doge", "Doge", LLAMA),
    _text("MiniCPM3", "MiniCPM3", LATENT),
)

_EXPERTS = (
    _text("Mixtral", "Mixtral", LLAMA, num_local_experts=4, num_experts_per_tok=2),
    _text("Qwen2-MoE", "Qwen2Moe", _MOE),
    _text("Qwen3-MoE", "Qwen3Moe", _MOE),
    _text("Qwen3-Next", "Qwen3Next", _MOE | DELTA),
    _text("Qwen3.5", "Qwen3_5Text", GEMMA | DELTA),
    _text("OLMoE", "Olmoe", _MOE),
    _text("OLMo hybrid", "OlmoHybrid", GEMMA),
    _text("FlexOlmo", "FlexOlmo", _MOE),
    _text("Phi-3.5-MoE", "Phimoe", LLAMA | EXPERTS),
    _text("GPT-OSS", "GptOss", _MOE),
    _text("Granite-MoE", "GraniteMoe", LLAMA | EXPERTS),
    _text("Granite-MoE, shared", "GraniteMoeShared", LLAMA | EXPERTS, shared_intermediate_size=64),
    _text("ERNIE 4.5-MoE", "Ernie4_5_Moe", _MOE, moe_layer_start_index=0),
    _text("Hunyuan-MoE", "HunYuanMoEV1", _MOE, moe_topk=2),
    _text("MiniMax", "MiniMax", _MOE),
    _text("MiniMax M2", "MiniMaxM2", _MOE),
    _text("DeepSeek V2", "DeepseekV2", LATENT),
    _text("DeepSeek V3", "DeepseekV3", LATENT),
    _text("LongCat-Flash", "LongcatFlash", LATENT | _FLASH),
    _text("GLM-4-MoE", "Glm4Moe", LATENT, head_dim=8),
    _text("Llama 4", "Llama4Text", _MOE, intermediate_size_mlp=64),
    _text("AFMoE", "Afmoe", _MOE),
    _text("JetMoE", "JetMoe", _MOE),
    _text("dots.llm1", "Dots1", LATENT, head_dim=8),
    _text(
        "DBRX",
        "Dbrx",
        IDS,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        use_cache=False,
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    ),
)


class SpeedrunBlock(nn.Module):
    """A layer as nanoGPT speedruns write it: norms without weights, ReLU² written out, no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._mlp(self._attention(x))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(norm(q), norm(k), v, is_causal=True)
        return x + self.c_proj(found.transpose(1, 2).flatten(-2))

    def _mlp(self, x: Tensor) -> Tensor:
        h = self.c_fc(norm(x))
        h = F.relu(h).square()
        return x + self.mlp_proj(h)


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Speedrun(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, 32)
        self.h = nn.ModuleList(SpeedrunBlock(32, 4) for _ in range(2))
        self.lm_head = nn.Linear(32, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = norm(self.wte(input_ids))
        for block in self.h:
            x = block(x)
        return self.lm_head(norm(x))


ENTRIES = (*_DENSE, *_GATED, *_EXPERTS, Entry("nanoGPT speedrun (ReLU²)", Speedrun, tokens))
