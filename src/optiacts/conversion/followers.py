"""What torch's own modules do with their input: keep it for backward, pass it on, or only change its size."""

from __future__ import annotations

import sys
import types

from torch import nn
from torch.nn import Module

from optiacts.conversion.values import Follower

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, *_DROPOUTS)
_LINEAR = (
    nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
)  # fmt: skip
# what keeps its input for the gradient of its weight alone
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def follower_of(module: Module) -> Follower | None:
    """How a module treats its input: a dropout keeps a mask, most others keep it, some only pass it on (None)."""
    name = f"{type(module).__name__}"
    if isinstance(module, _DROPOUTS):
        return Follower(name, False) if module.p > 0 else None
    if isinstance(module, PASSING):
        return None
    if isinstance(module, _WEIGHTED) and _frozen(module):
        return Follower(f"a frozen {name}", False, frozen=True)
    return Follower(name, not isinstance(module, _LINEAR))


def is_linear(module: Module) -> bool:
    """Whether all that a module does with its input is a matrix product, for which autocast casts it."""
    forward = getattr(type(module), "forward", None)
    others = sys.modules.get("transformers.pytorch_utils")  # GPT-2's Linear
    known = (nn.Linear.forward, getattr(getattr(others, "Conv1D", None), "forward", None))
    changed = "forward" in module.__dict__ or "parametrizations" in module._modules
    return isinstance(forward, types.FunctionType) and forward in known and not changed


def _frozen(module: Module) -> bool:
    """Whether a weight is no longer trained. That of a parametrised module is not asked for, since that runs code."""
    own = dict(module._parameters.items())
    weight = own.get("weight")
    return weight is not None and not weight.requires_grad


def described(module: Module) -> str:
    return f"the {type(module).__name__} after it"
