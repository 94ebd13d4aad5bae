"""Sizes of the small models, by the names that the families give them; what a family does not know it ignores."""

from typing import Any

from zoo.entry import VOCABULARY

IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
VISION: dict[str, Any] = dict(**TOWER, image_size=32, patch_size=8)
BERT: dict[str, Any] = dict(**IDS, **TOWER, max_position_embeddings=64)
DECODER: dict[str, Any] = dict(**BERT, use_cache=False)
LLAMA: dict[str, Any] = dict(**DECODER, num_key_value_heads=2)
GEMMA: dict[str, Any] = dict(**LLAMA, head_dim=8)
GPT2: dict[str, Any] = dict(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False)
# families count their experts by different names
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 48,
}
# multi-head latent attention, and the first layer dense
LATENT: dict[str, Any] = {
    **DECODER,
    **EXPERTS,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "pad_token_id": 0,
}
LAYERS: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
SEQ2SEQ: dict[str, Any] = dict(**IDS, **LAYERS, d_model=32, decoder_start_token_id=2, use_cache=False)
