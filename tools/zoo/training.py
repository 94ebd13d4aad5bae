"""Models as they are trained: with adapters, with checkpointing."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.entry import Build, Entry, family, tokens
from zoo.sizes import BERT, LLAMA


def _with_adapters(build: Build, *targets: str) -> Build:
    def adapted() -> nn.Module:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(build(), LoraConfig(r=4, lora_dropout=0.1, target_modules=list(targets)))

    return adapted


def _checkpointed(build: Build) -> Build:
    def checkpointed() -> nn.Module:
        model: Any = build()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    return checkpointed


_LLAMA = family("Llama", **LLAMA)

ENTRIES = (
    Entry(
        "Llama, LoRA on all", _with_adapters(_LLAMA, "q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"), tokens
    ),
    Entry("BERT, LoRA on attention", _with_adapters(family("Bert", **BERT), "query", "value"), tokens),
    Entry("Llama, checkpointed", _checkpointed(_LLAMA), tokens),
)
