"""How a model is trained, as far as it is said, and a model that is built so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from optiacts.reporting import names
from optiacts.reporting.errors import ReportError
from optiacts.reporting.lora import Lora
from optiacts.reporting.names import ADAPTED, ATTENTIONS

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in names.DTYPES}
LONGEST_DEFAULT = 4096  # tokens, where the model allows more


@dataclass(frozen=True)
class Setting:
    """How the model is trained. None is not said: then it is what the properties say, or the function's own default.

    ``seq``: as many tokens as the model allows, at most 4096. ``attention``: SDPA where the model has it, else eager.
    """

    batch: int | None = None
    seq: int | None = None
    dtype: str | None = None
    attention: str | None = None
    train_mode: str = "full"
    loss: bool = True
    autocast: bool = False  # in bfloat16, with the weights in dtype
    overrides: Mapping[str, Any] = field(default_factory=dict)  # entries of the config to change
    lora: Lora = field(default_factory=Lora)  # of the train modes lora and qlora
    tokens: int | None = None  # in one row, of sequences of ``seq`` tokens side by side, without padding
    image_size: int | None = None  # pixels each way; what the config has, if not said

    def __post_init__(self) -> None:
        numbers = {"batch": self.batch, "seq": self.seq, "tokens": self.tokens, "image-size": self.image_size}
        for name, number in numbers.items():
            if number is None:
                continue
            if not isinstance(number, int) or isinstance(number, bool):
                raise ReportError(f"--{name} must be a whole number; got {number!r}")
            if number < 1:
                raise ReportError(f"--{name} must be at least 1; got {number}")
        if self.tokens is not None and (self.batch is not None or self.attention not in (None, "flash")):
            raise ReportError(
                "--tokens packs one row, and only flash attention keeps its sequences apart without a mask of its "
                "square; leave --batch and --attention out"
            )
        for name, choice, known in (("dtype", self.dtype, DTYPES), ("attention", self.attention, ATTENTIONS)):
            if choice is not None and choice not in known:
                raise ReportError(f"--{name} must be one of {', '.join(known)}; got {choice!r}")
        if (self.tokens is not None or self.attention == "flash") and self.weights == "float32" and not self.autocast:
            raise ReportError("flash attention takes 16-bit numbers; give --dtype bfloat16, or --autocast")

    @property
    def samples(self) -> int:
        """One, if nothing is said."""
        return self.batch or 1

    @property
    def weights(self) -> str:
        """The dtype of the weights: what is said; float32 under autocast, which is what it is for; else bfloat16."""
        return self.dtype or ("float32" if self.autocast else "bfloat16")

    @property
    def training(self) -> str:
        """The train mode in words."""
        adapters = self.train_mode in ADAPTED
        if not adapters and self.lora == Lora():
            return self.train_mode
        words = [self.train_mode if adapters else f"{self.train_mode}; of the choices LoRA"]
        words[0] += f" of rank {self.lora.rank}"
        words += [f"on {', '.join(self.lora.targets)}"] if self.lora.targets else []
        words += [f"dropout {self.lora.dropout}"] if self.lora.dropout else []
        if self.lora.dtype is not torch.float32:
            words += [f"adapters in {str(self.lora.dtype or self.weights).removeprefix('torch.')}"]
        return ", ".join(words)


@dataclass(frozen=True)
class Built:
    """A model in training mode, its inputs, and the setting in words."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    setting: dict[str, str]


def brief(error: BaseException) -> str:
    """The class of ``error`` and its whole message in one line, unless it is very long."""
    words = " ".join(str(error).split())
    words = words.partition(" Exception raised from ")[0].rstrip(".")  # PyTorch's own stack follows
    short = words if len(words) <= 300 else f"{words[:300]} ..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
