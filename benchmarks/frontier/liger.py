"""Liger-Kernel's kernels where its patch of a Llama puts them: the norms and the gated product."""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor, nn


def use_liger(stack: nn.Module) -> None:
    """Changes the decoder layers of ``stack`` as ``apply_liger_kernel_to_llama`` changes those of transformers."""
    from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction

    def norm(self: Any, x: Tensor) -> Tensor:
        eps = 1e-6 if self.eps is None else self.eps
        y: Tensor = LigerRMSNormFunction.apply(x, self.weight, eps, 0.0, "llama", True, None)
        return y

    def gated(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.down(LigerSiLUMulFunction.apply(self.gate(x), self.up(x)))
        return y

    for module in stack.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = types.MethodType(norm, module)  # type: ignore[method-assign]
        elif all(hasattr(module, name) for name in ("gate", "up", "down")):
            module.forward = types.MethodType(gated, module)
