"""Language models with convolutions, recurrences and state spaces."""

from __future__ import annotations

from zoo.entry import Entry, family, tokens
from zoo.sizes import DECODER, EXPERTS, GEMMA, IDS, LLAMA, MAMBA2

_MAMBA = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}

ENTRIES = (
    Entry("Mamba", family("Mamba", **_MAMBA), tokens),
    Entry("Falcon-Mamba", family("FalconMamba", **_MAMBA), tokens),
    Entry("Mamba-2", family("Mamba2", **_MAMBA, num_heads=8, head_dim=8, n_groups=2, chunk_size=8), tokens),
    Entry("Bamba", family("Bamba", **LLAMA, **MAMBA2, attn_layer_indices=[1]), tokens),
    Entry(
        "Jamba",
        family("Jamba", **LLAMA, **EXPERTS, mamba_d_state=8, attn_layer_period=2, attn_layer_offset=1),
        tokens,
    ),
    Entry(
        "Zamba2",
        family(
            "Zamba2",
            **LLAMA,
            mamba_d_state=8,
            n_mamba_heads=8,
            mamba_ngroups=2,
            chunk_size=8,
            layers_block_type=["mamba", "hybrid"],
            num_mem_blocks=1,
        ),
        tokens,
    ),
    Entry("Falcon-H1", family("FalconH1", **GEMMA, **MAMBA2, mamba_d_ssm=64), tokens),
    Entry(
        "Granite-MoE hybrid",
        family(
            "GraniteMoeHybrid",
            **LLAMA,
            **EXPERTS,
            **MAMBA2,
            shared_intermediate_size=64,
            layer_types=["mamba", "attention"],
        ),
        tokens,
    ),
    Entry(
        "Nemotron-H",
        family(
            "NemotronH",
            **GEMMA,
            layers_block_type=["mamba", "attention", "mlp"],
            mamba_num_heads=8,
            mamba_head_dim=8,
            ssm_state_size=8,
            n_groups=2,
            chunk_size=8,
        ),
        tokens,
    ),
    Entry(
        "RecurrentGemma",
        family(
            "RecurrentGemma",
            **GEMMA,
            lru_width=32,
            attention_window_size=8,
            block_types=["recurrent", "attention"],
        ),
        tokens,
    ),
    Entry("RWKV", family("Rwkv", **DECODER, attention_hidden_size=32, context_length=64), tokens),
    Entry("LFM2", family("Lfm2", **LLAMA, block_ff_dim=64, layer_types=["conv", "full_attention"]), tokens),
    Entry(
        "xLSTM",
        family(
            "xLSTM",
            **IDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=4,
            chunk_size=8,
            return_last_states=False,
            use_cache=False,
        ),
        tokens,
    ),
)
