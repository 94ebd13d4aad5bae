"""transformers with ``use_kernels=True``: its layers by name, mapped to ones that keep their output.

    from optiacts.integrations import hf_kernels

    hf_kernels.register(LlamaMLP)  # once, before the model is made
    model = AutoModelForCausalLM.from_pretrained(name, use_kernels=True)

For where a model is made out of sight, as by ``SFTTrainer("name", args=SFTConfig(model_init_kwargs={"use_kernels":
True}))``. With the model at hand ``optiacts.convert(model)`` does more: all gated MLPs, dropouts, any norm.

What is mapped, for training on CUDA, ROCm and CPU: ``SiLU``, ``GeLU``, ``GeluTanh``, ``NewGELU``, ``FastGELU``,
``QuickGELU``; ``RMSNorm``; and the MLP classes that are given to ``register``. Inference keeps what transformers
maps. transformers registers its own mapping again whenever a model changes between training and evaluation. That
replaces what stands for the same device and range of capabilities; ours stands for a narrower range, which wins.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from kernels import (
    CUDAProperties,
    Device,
    Mode,
    ROCMProperties,
    register_kernel_mapping,
    replace_kernel_forward_from_hub,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import activations
from transformers.integrations import hub_kernels

import optiacts

_GATED = "OptiActsGatedMLP"
_TRAINING = Mode.TRAINING | Mode.TORCH_COMPILE


def register(*mlps: type[nn.Module]) -> None:
    """Maps transformers' activations and norms, and these classes of MLPs, to ours.

    Args:
        mlps: classes whose forward multiplies an activation's output, ``LlamaMLP`` for instance. Each keeps its own
            code, converted as by ``optiacts.convert``. A class that transformers maps to another kernel loses that.

    Saved for backward is what ``optiacts.convert`` saves for these layers. The results do not change, bit for bit.
    Activations work under ``torch.compile``. A norm or MLP is converted in its first eager training step; compiled
    before that it runs its own code as it stands, so for compiled models use ``optiacts.convert``.

    Raises:
        TypeError: one of ``mlps`` is no module class.
    """
    for mlp in mlps:
        if not (isinstance(mlp, type) and issubclass(mlp, nn.Module)):
            raise TypeError(f"mlps must be classes of modules; got {mlp!r}")
        replace_kernel_forward_from_hub(mlp, _GATED)
    known = hub_kernels.get_kernel_mapping_transformers()
    register_kernel_mapping({name: _devices(layer, known.get(name, {})) for name, layer in _LAYERS.items()})


@dataclass(frozen=True)
class _Layer:
    """What ``kernels`` calls a repository: something hashable that has a layer class."""

    name: str
    mode: Mode

    def load(self) -> type[nn.Module]:
        forward = _forward(self.name)
        members = {"forward": forward, "can_torch_compile": Mode.TORCH_COMPILE in self.mode}
        return type(f"OptiActs{self.name}", (nn.Module,), members)


def _devices(layer: _Layer, known: Mapping[Any, Any]) -> dict[Device | str, dict[Mode, Any]]:
    """Ours for training and what ``known`` has for inference, in ranges narrower than those of plain devices."""
    all_but_one = {"min_capability": 1, "max_capability": sys.maxsize}
    devices = {
        "cuda": Device("cuda", CUDAProperties(**all_but_one)),
        "rocm": Device("rocm", ROCMProperties(**all_but_one)),
        "cpu": Device("cpu"),
    }
    return {device: {**_inference(known.get(name)), layer.mode: layer} for name, device in devices.items()}


def _inference(entry: Any) -> dict[Mode, Any]:
    if entry is None:
        return {}
    if not isinstance(entry, Mapping):
        return {Mode.INFERENCE | Mode.TORCH_COMPILE: entry, Mode.INFERENCE: entry}
    return {mode: repository for mode, repository in entry.items() if Mode.INFERENCE in mode}


def _forward(name: str) -> Callable[..., Tensor]:
    """The forward of the layer ``name``: a function with the arguments of the one that it replaces."""
    if name in _WRITTEN_OUT:
        own = optiacts.define(_WRITTEN_OUT[name]())

        def written_out(self: nn.Module, input: Tensor) -> Tensor:
            return own(input)

        return written_out
    return _FORWARDS[name]


def _silu(self: nn.Module, input: Tensor) -> Tensor:
    return optiacts.silu(input)


def _gelu(self: Any, input: Tensor) -> Tensor:
    return optiacts.gelu(input) if self.act is functional.gelu else self.act(input)


def _gelu_tanh(self: Any, input: Tensor) -> Tensor:
    if not isinstance(self.act, functools.partial):  # written out in Python
        return self.act(input)
    return optiacts.gelu(input, **self.act.keywords)


def _converting_norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return _converted(self)(hidden_states)


def _converting_mlp(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return _converted(self)(hidden_states)


def _converted(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward of ``module``, which is converted first; while a compiler traces it stays what it is."""
    if torch.compiler.is_compiling():
        return functools.partial(type(module).forward, module)
    for one in module.modules():
        put_there = getattr(one.__dict__.get("forward"), "__func__", None)
        if put_there in _OURS or one is module:
            one.__dict__.pop("forward", None)
    optiacts.convert(module)
    return module.forward


_WRITTEN_OUT: dict[str, Callable[[], nn.Module]] = {
    "NewGELU": activations.NewGELUActivation,
    "FastGELU": activations.FastGELUActivation,
    "QuickGELU": activations.QuickGELUActivation,
}
_FORWARDS: dict[str, Callable[..., Tensor]] = {
    "SiLU": _silu,
    "GeLU": _gelu,
    "GeluTanh": _gelu_tanh,
    "RMSNorm": _converting_norm,
    _GATED: _converting_mlp,
}
_OURS = frozenset(_FORWARDS.values())
_EAGER = ("RMSNorm", _GATED)
_LAYERS = {name: _Layer(name, Mode.TRAINING if name in _EAGER else _TRAINING) for name in (*_WRITTEN_OUT, *_FORWARDS)}
