"""Encoders of language, BERT's kin; BERT itself with most activations that transformers knows."""

from __future__ import annotations

from typing import Any

from zoo.entry import LENGTH, VOCABULARY, Entry, family, join, normal, tokens
from zoo.sizes import BERT


def _text(name: str, kind: str, **config: Any) -> Entry:
    return Entry(name, family(kind, **{**BERT, **config}), tokens)


_ACTIVATIONS = (
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "gelu_python",
    "gelu_10",
    "gelu_accurate",
    "quick_gelu",
    "silu",
    "mish",
    "laplace",
    "relu2",
    "relu6",
    "leaky_relu",
    "sigmoid",
)

ENTRIES = (
    _text("BERT", "Bert"),
    *(_text(f"BERT ({activation})", "Bert", hidden_act=activation) for activation in _ACTIVATIONS),
    _text("BERT, feed-forward in chunks", "Bert", chunk_size_feed_forward=8),
    _text("RoBERTa", "Roberta"),
    _text("RoBERTa, norm first", "RobertaPreLayerNorm"),
    _text("XLM-RoBERTa-XL", "XLMRobertaXL"),
    _text("ALBERT", "Albert", embedding_size=16),
    _text("ELECTRA", "Electra", embedding_size=16),
    _text("DeBERTa", "Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _text("DeBERTa v2", "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], conv_kernel_size=3),
    _text("DistilBERT", "DistilBert", dim=32, hidden_dim=128, n_layers=2, n_heads=4),
    _text("MPNet", "MPNet"),
    _text("ConvBERT", "ConvBert", embedding_size=16),
    _text("SqueezeBERT", "SqueezeBert", embedding_size=32),
    _text("MobileBERT", "MobileBert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    _text("Nystromformer", "Nystromformer", num_landmarks=4, segment_means_seq_len=LENGTH),
    _text("BigBird", "BigBird", block_size=2, num_random_blocks=1),
    _text("Longformer", "Longformer", attention_window=8),
    _text("FNet", "FNet"),
    Entry(
        "Funnel",
        family(
            "Funnel",
            "FunnelModel",
            vocab_size=VOCABULARY,
            block_sizes=[1, 1],
            d_model=32,
            n_head=4,
            d_head=8,
            d_inner=128,
        ),
        tokens,
    ),
    _text("XLM", "XLM", emb_dim=32, n_layers=2, n_heads=4),
    _text("FlauBERT", "Flaubert", emb_dim=32, n_layers=2, n_heads=4, gelu_activation=True),
    Entry("XLNet", family("XLNet", vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=128), tokens),
    _text("ModernBERT", "ModernBert", cls_token_id=1, sep_token_id=2),
    _text("EuroBERT", "EuroBert"),
    _text("NomicBERT", "NomicBert"),
    _text("GTE", "Gte"),
    _text("ESM", "Esm", mask_token_id=4),
    _text("I-BERT", "IBert"),
    _text("MegatronBERT", "MegatronBert"),
    _text("RemBERT", "RemBert", input_embedding_size=16, output_embedding_size=16),
    _text("RoFormer", "RoFormer", embedding_size=16),
    _text("X-MOD", "Xmod", languages=["en_XX"], default_language="en_XX"),
    _text("YOSO", "Yoso"),
    _text("DPR", "DPR"),
    Entry(
        "VisualBERT",
        family("VisualBert", **BERT, visual_embedding_dim=16),
        join(tokens, normal(visual_embeds=(4, 16))),
    ),
    Entry(
        "LXMERT",
        family("Lxmert", **BERT, l_layers=1, x_layers=1, r_layers=1, visual_feat_dim=16),
        join(tokens, normal(visual_feats=(4, 16), visual_pos=(4, 4))),
    ),
)
