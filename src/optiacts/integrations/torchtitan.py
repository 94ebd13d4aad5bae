"""torchtitan: overrides of its layers, and what its selective checkpointing saves.

    torchtitan_train ... --override.imports \
        optiacts.integrations.torchtitan.feed_forward,optiacts.integrations.torchtitan.rms_norm

torchtitan builds models from configurations and applies overrides before it builds, so before FSDP, tensor
parallelism and compilation. With ``selective_checkpointing`` in that list as well, selective checkpointing saves the
gated product with what its backward needs, instead of computing it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchtitan.config import derive, override
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.nn_modules import RMSNorm

import optiacts


class OptiActsFeedForward(FeedForward):  # type: ignore[misc]
    """w2(silu(w1 x) * w3 x), whose product keeps two tensors and two bits per element instead of four tensors."""

    @dataclass(kw_only=True, slots=True)
    class Config(FeedForward.Config):  # type: ignore[misc]
        """That of torchtitan's FeedForward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(optiacts.swiglu(self.w1(x), self.w3(x)))


class OptiActsRMSNorm(RMSNorm):  # type: ignore[misc]
    """RMSNorm that keeps its output, which the Linears after it keep anyway."""

    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):  # type: ignore[misc]
        """That of torchtitan's RMSNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return optiacts.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class OptiActsSelectiveAC(SelectiveAC):  # type: ignore[misc]
    """Selective checkpointing that saves what our ops return, besides what torchtitan saves."""

    @dataclass(kw_only=True, slots=True)
    class Config(SelectiveAC.Config):  # type: ignore[misc]
        """That of torchtitan's SelectiveAC."""

    def get_save_ops(self) -> set[Any]:
        """torchtitan's ops and ours."""
        return super().get_save_ops() | optiacts.checkpoint_ops()


@override(target=FeedForward.Config, exact=True, description="SwiGLU that keeps its output")
def feed_forward(cfg: Any) -> Any:
    """The override of ``FeedForward``."""
    return derive(cfg, OptiActsFeedForward.Config)


@override(target=RMSNorm.Config, exact=True, description="RMSNorm that keeps its output")
def rms_norm(cfg: Any) -> Any:
    """The override of ``RMSNorm``."""
    return derive(cfg, OptiActsRMSNorm.Config)


@override(target=SelectiveAC.Config, exact=True, description="selective checkpointing that saves OptiActs' ops")
def selective_checkpointing(cfg: Any) -> Any:
    """The override of ``SelectiveAC``."""
    return derive(cfg, OptiActsSelectiveAC.Config)
