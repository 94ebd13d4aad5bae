"""Models and layers of torch, transformers and diffusers as they are."""

import copy
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from tests.behaviour.case import add, sample
from tests.behaviour.effects import note

SEQUENCE = partial(sample, 2, 9, 32)
FFN = 2 * 9 * 64 * 4


def _layer(kind, **options):
    return kind(32, 4, 64, batch_first=True, **copy.deepcopy(options))


for first in (False, True):
    for act in ("gelu", F.gelu, F.silu, nn.GELU(), "relu"):
        name = getattr(act, "__name__", act)
        add(
            f"stock: TransformerEncoderLayer {name}{' norm first' * first}",
            partial(_layer, nn.TransformerEncoderLayer, dropout=0.0, activation=act, norm_first=first),
            inputs=lambda: (SEQUENCE(),),
            saves=0 if act == "relu" else 1,
            hidden=FFN,
            tools=act == "gelu" and not first,
        )
add(
    "stock: TransformerEncoderLayer with dropout",
    partial(_layer, nn.TransformerEncoderLayer, activation="gelu"),
    inputs=lambda: (SEQUENCE(),),
)
for act in ("gelu", F.silu):
    add(
        f"stock: TransformerDecoderLayer {getattr(act, '__name__', act)}",
        partial(_layer, nn.TransformerDecoderLayer, dropout=0.0, activation=act),
        inputs=lambda: (SEQUENCE(), sample(2, 5, 32)),
        saves=1,
        hidden=FFN,
    )
add(
    "stock: TransformerEncoder",
    lambda: nn.TransformerEncoder(
        _layer(nn.TransformerEncoderLayer, dropout=0.0, activation="gelu"), 2, enable_nested_tensor=False
    ),
    inputs=lambda: (SEQUENCE(),),
    saves=2,
    hidden=FFN,
)
add(
    "stock: Transformer",
    lambda: nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, activation=F.gelu, batch_first=True),
    inputs=lambda: (SEQUENCE(), sample(2, 5, 32)),
    saves=1,
    hidden=FFN,
)


class Tokens(nn.Module):
    """A model of transformers behind plain arguments and outputs."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, ids):
        note("forward")
        return self.model(input_ids=ids, use_cache=False, return_dict=False, **self.options)[0]


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
}
STATE = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}


def _hf(name, **options):
    import transformers

    config = getattr(transformers, f"{name}Config")(**options, pad_token_id=0)
    return Tokens(getattr(transformers, f"{name}Model")(config))


def _ids():
    return (torch.arange(32).reshape(2, 16) % 49 + 1,)


IDS_FFN = 2 * 16 * 64 * 4
quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
for name, options, saves in [
    ("Llama", SIZES | {"num_key_value_heads": 2}, 4),
    ("Phi3", SIZES | {"num_key_value_heads": 2}, 4),
    ("Mixtral", SIZES | {"num_key_value_heads": 2, "num_local_experts": 2, "experts_implementation": "eager"}, 4),
    ("Bert", SIZES | quiet, 2),
    ("Esm", SIZES | quiet | {"mask_token_id": 3}, 2),
    (
        "Bloom",
        {
            "hidden_size": 16,
            "n_layer": 2,
            "n_head": 2,
            "vocab_size": 50,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        2,
    ),
    (
        "GPT2",
        {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "vocab_size": 50,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        2,
    ),
    ("Mamba", STATE, 1),
    ("Mamba2", STATE | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}, 1),
]:
    add(
        f"stock: {name}",
        partial(_hf, name, **options),
        inputs=_ids,
        saves=saves,
        hidden=IDS_FFN,
        tools=name == "Llama",
    )


def _diffusers(name):
    from diffusers.models import activations, attention

    return getattr(activations, name, None) or getattr(attention, name)


for name, args, options, saves in [
    ("GEGLU", (16, 32), {}, 1),
    ("SwiGLU", (16, 32), {}, 1),
    ("GELU", (16, 32), {}, 1),
    ("ApproximateGELU", (16, 32), {}, 1),
    ("FeedForward", (16,), {"mult": 2}, 1),
]:
    add(
        f"stock: diffusers {name}",
        lambda name=name, args=args, options=options: nn.Sequential(
            _diffusers(name)(*args, **options), nn.Linear(16 if name == "FeedForward" else 32, 16)
        ),
        saves=saves,
    )
