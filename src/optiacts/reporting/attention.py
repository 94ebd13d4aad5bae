"""The ways of attention: PyTorch's SDPA, plain products, or the flash kernel whatever the model asks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optiacts.held.fake import flash_attention

FLASH = "optiacts_report_fused"


def as_transformers_says(attention: str | None) -> str | None:
    """The name of ``attention`` in transformers. None lets it choose: SDPA where the model has it, else eager."""
    if attention == "flash":
        _register()
        return FLASH
    return attention


def _register() -> None:
    """A stand-in for the flash-attn library, which needs a GPU: no mask is made, and the kernel is always flash.

    (Its name has no "flash" in it: transformers would look for that library.)
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(FLASH, _flash)
    AttentionMaskInterface.register(FLASH, _no_mask)


def _flash(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, dropout: float = 0.0, **more: Any
) -> tuple[Tensor, None]:
    causal = more.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    held = flash_attention(query, key, value, dropout, bool(causal), more.get("scaling"))
    return held.transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None
