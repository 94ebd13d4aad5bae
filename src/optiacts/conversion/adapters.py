"""PEFT's LoRA layers: their first Linears keep the input that all of them share, not a cast and dropped copy each.

A LoRA layer computes ``base(x) + B(A(dropout(cast(x)))) * scaling``. Three modules take part: the layer, which notes
its cast, the dropout, which notes what it dropped, and A, which keeps what its input was derived from
(``optiacts.ops.derived``). Elsewhere, compiled for instance, each does what it did.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from optiacts import casts, functional_dropout
from optiacts.conversion.followers import is_linear
from optiacts.conversion.known import intercepted
from optiacts.ops import derived

LAYER, DROPOUT, FIRST, SHARING = "adapter", "adapter's dropout", "adapter's first Linear", "the same, sharing casts"
NOTE = "keeps the input that adapters share, no cast or dropped copy"
_CAST = "_cast_input_dtype"
_DEFINED_IN = ("peft.tuners.tuners_utils", "optiacts.reporting.lora")  # the report stands in for PEFT


def parts(layer: Module, autocast: bool) -> list[tuple[Module, str]]:
    """The modules of a LoRA layer that take part, itself first, each with its role.

    None if it is no such layer, or its adapters take the input as it is. ``autocast``: Linears share casts.
    """
    cast = getattr(type(layer), _CAST, None)
    if getattr(cast, "__module__", "") not in _DEFINED_IN or "forward" in layer.__dict__:
        return []
    firsts, dropouts = (getattr(layer, name, None) for name in ("lora_A", "lora_dropout"))
    if not isinstance(firsts, nn.ModuleDict) or not isinstance(dropouts, nn.ModuleDict):
        return []
    linears = [one for one in firsts.values() if type(one) is nn.Linear and is_linear(one)]
    dropping = [one for one in dropouts.values() if type(one) is nn.Dropout]
    if not linears or not (dropping or _casts(layer, linears)):
        return []
    first = SHARING if autocast else FIRST
    return [(layer, LAYER), *((one, DROPOUT) for one in dropping), *((one, first) for one in linears)]


def _casts(layer: Module, linears: list[nn.Linear]) -> bool:
    """Whether the adapters' weights are wider than what they adapt, whose dtype the input has."""
    base = [p for name, p in layer.named_parameters() if not name.startswith("lora_")]
    return any(one.weight.dtype.itemsize > p.dtype.itemsize for one in linears for p in base)


def methods(original: type[Module], role: str) -> dict[str, Any]:
    """What a module in that role does instead of its class's methods."""
    if role == LAYER:
        return {"forward": _layer_forward(original), _CAST: _cast(original)}
    if role == DROPOUT:
        return {"forward": _dropout_forward(original)}
    return {"forward": _first_forward(original, role == SHARING)}


def _layer_forward(original: type[Module]) -> Any:
    @functools.wraps(original.forward)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original.forward(self, *args, **kwargs)
        with derived.collecting():
            return original.forward(self, *args, **kwargs)

    return forward


def _cast(original: Any) -> Any:
    @functools.wraps(getattr(original, _CAST))
    def cast(self: Module, x: Any, dtype: torch.dtype) -> Any:
        result = getattr(original, _CAST)(self, x, dtype)
        if result is not x and isinstance(x, Tensor) and not torch.compiler.is_compiling():
            derived.note_cast(x, result)
        return result

    return cast


def _dropout_forward(original: type[Module]) -> Any:
    forward = original.forward

    @functools.wraps(forward)
    def dropout(self: Any, input: Tensor) -> Any:
        if original.forward is not forward or intercepted():
            return original.forward(self, input)
        noted = not torch.compiler.is_compiling() and not self.inplace and derived.may_note(input)
        if noted and functional_dropout.drops(input, self.p, self.training):
            return derived.dropout(input, self.p)
        return functional_dropout.dropout(input, self.p, self.training, self.inplace)

    return dropout


def _first_forward(original: type[Module], shares_casts: bool) -> Any:
    forward = original.forward

    @functools.wraps(forward)
    def first(self: Any, input: Tensor) -> Any:
        if original.forward is not forward or intercepted() or "parametrizations" in self._modules:
            return original.forward(self, input)
        result = derived.linear(input, self.weight, self.bias)
        if result is not None:
            return result
        return original.forward(self, casts.shared(input) if shares_casts else input)

    return first
