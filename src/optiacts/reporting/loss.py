"""What a step differentiates."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from optiacts.reporting.errors import ReportError


def scalar(output: Any) -> Tensor:
    """The loss of a model's output, or the mean of its first tensor if it has none."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not tensors:
        raise ReportError("the model's output has nothing to differentiate; check that something in it is trained")
    return tensors[0].float().mean()
