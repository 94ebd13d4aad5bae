"""What a process finds in which transformers takes the installed ``kernels``, whatever version it asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers.utils
import transformers.utils.import_utils

# before anything of transformers reads it
transformers.utils.is_kernels_available = lambda *versions: True
transformers.utils.import_utils.is_kernels_available = lambda *versions: True

import optiacts  # noqa: E402

Found = dict[Any, Any]


def example() -> Found:
    """examples/trainers/use_kernels.py"""
    import use_kernels

    return use_kernels.main()


def classes_of_mlps() -> str:
    from optiacts.integrations import hf_kernels

    try:
        hf_kernels.register("LlamaMLP")  # type: ignore[arg-type]
    except TypeError as error:
        return str(error)
    return "no error"


def layers() -> Found:
    """Each layer as it is and mapped: whether its results are the same bits, and the bytes held by both."""
    from kernels import Mode, kernelize
    from transformers import activations as acts
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from optiacts.integrations import hf_kernels

    hf_kernels.register()

    def mapped(layer: torch.nn.Module) -> torch.nn.Module:
        return kernelize(layer, mode=Mode.TRAINING, device="cpu")

    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "SiLU": acts.SiLUActivation,
        "GELU": acts.GELUActivation,
        "GELU in Python": lambda: acts.GELUActivation(True),
        "tanh": acts.GELUTanh,
        "tanh in Python": lambda: acts.GELUTanh(True),
        "NewGELU": acts.NewGELUActivation,
        "FastGELU": acts.FastGELUActivation,
        "QuickGELU": acts.QuickGELUActivation,
        "RMSNorm": lambda: LlamaRMSNorm(64),
    }
    found = {}
    for name, make in makers.items():
        for dtype in (torch.float32, torch.bfloat16):
            own, ours = (
                torch.nn.Sequential(torch.nn.Linear(64, 64), make(), torch.nn.Linear(64, 64)).to(dtype) for _ in "12"
            )
            ours.load_state_dict(own.state_dict())
            x = torch.randn(32, 64, dtype=dtype)
            mapped(ours)(x)
            before, after = optiacts.saved_memory(own, x), optiacts.saved_memory(ours, x)
            found[name, str(dtype)] = torch.equal(before.output, after.output), before.bytes, after.bytes
    model = mapped(torch.nn.Sequential(torch.nn.Linear(64, 64), acts.SiLUActivation(), torch.nn.Linear(64, 64)))
    x = torch.randn(32, 64)
    plain = torch.nn.functional.linear(torch.nn.functional.silu(model[0](x)), model[2].weight, model[2].bias)
    compiled = optiacts.saved_memory(torch.compile(model, backend="aot_eager", fullgraph=True), x)
    found["SiLU", "compiled"] = torch.allclose(plain, compiled.output), 3 * 32 * 64 * 4, compiled.bytes
    return found


def mapping() -> Found:
    """What stands for a layer, a device and a mode: before us, after us, and once transformers registered again."""
    from kernels import Mode
    from kernels.layer import repos
    from kernels.layer.globals import _KERNEL_MAPPING
    from transformers.integrations.hub_kernels import register_kernel_mapping_transformers

    from optiacts.integrations import hf_kernels

    _KERNEL_MAPPING.set({})
    found = {}
    for when in ("before", "after", "again"):
        register_kernel_mapping_transformers()
        if when == "after":
            hf_kernels.register()
        for capability in (75, 80, 100):
            repos._find_capability = lambda capability=capability: capability
            for name in ("SiLU", "GeluTanh", "RMSNorm"):
                for device in ("cuda", "rocm", "cpu"):
                    entry = _KERNEL_MAPPING.get().get(name, {}).get(device)
                    for mode in (Mode.TRAINING, Mode.INFERENCE, Mode.TRAINING | Mode.TORCH_COMPILE):
                        chosen = repos._select_repository(entry.repos, mode=mode) if entry and entry.repos else None
                        kind = "" if chosen is None else type(chosen[0]).__name__
                        found[when, capability, name, device, mode.value] = kind
    return found


def main(examples: str) -> None:
    sys.path.insert(0, examples)
    torch.set_num_threads(1)
    results = {room.__name__: room() for room in (classes_of_mlps, layers, example, mapping)}
    print("\n" + repr(results))
