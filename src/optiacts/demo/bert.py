"""BERT-base at full size on fake tensors: the published setting, without the memory."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import optiacts
from optiacts.memory import saved_memory

BATCH, SEQUENCE = 16, 512


def saved_bytes(with_optiacts: bool) -> int:
    """What autograd holds after a training forward of BERT-base in float32 on 16 x 512 tokens.

    Attention is PyTorch's fused one, without dropout inside, which on a CPU would keep the attention matrix.
    """
    from transformers import BertConfig, BertModel

    with FakeTensorMode():
        model = BertModel(BertConfig(attn_implementation="sdpa", attention_probs_dropout_prob=0.0)).train()
        if with_optiacts:
            for parent in list(model.modules()):
                for name, child in parent.named_children():
                    if type(child).__name__ == "GELUActivation":
                        setattr(parent, name, optiacts.GELU())
        tokens = torch.zeros(BATCH, SEQUENCE, dtype=torch.long)
        return saved_memory(_Call(model), tokens).bytes


class _Call(nn.Module):
    """Ids in, hidden states out: no dictionary that fake tensors might trip over."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).last_hidden_state
