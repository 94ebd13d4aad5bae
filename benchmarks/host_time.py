"""What a call costs on the host, where tensors are small: forward + backward of 4 Ki elements, one thread.

Beside PyTorch's op stands the least that Python can do: a bare ``torch.autograd.Function`` around PyTorch's forward
and our two kernels, with nothing checked. What is above that is ours, what is below it is Python's and ctypes'.

    python -m benchmarks.host_time [--seconds 20]
    python -m benchmarks.host_time --cpp        the same bare Function in C++ as well; needs ninja and a compiler
    python -m benchmarks.host_time --converted  converted modules between Linears of 64 features instead

The last one stands for what a compiled extension of autograd, bound to one version of PyTorch, would cost.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.cpp_extension import load
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

import optiacts
from benchmarks.timing import alternate
from optiacts.backends.native_constants import constants_of
from optiacts.backends.native_library import library

ROWS, COLUMNS = 4, 1024
NARROW = 64


class BareSiLU(torch.autograd.Function):
    """SiLU by the same kernels as ``optiacts.silu``, of a contiguous float32 tensor and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        known = constants_of("silu", torch.float32)
        y, bits = functional.silu(x), x.new_empty(ROWS, COLUMNS // 8, dtype=torch.uint8)
        library().optiacts_pack(known.dtype, x.data_ptr(), bits.data_ptr(), ROWS, COLUMNS, known.first, known.span, 1)
        ctx.save_for_backward(y, bits)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        known, (y, bits), out = constants_of("silu", torch.float32), ctx.saved_tensors, torch.empty_like(grad)
        pointers = (grad.data_ptr(), y.data_ptr(), bits.data_ptr(), out.data_ptr())
        library().optiacts_backward(known.dtype, *pointers, ROWS, COLUMNS, known.decoder, 1)
        return out


def _bare_cpp() -> Callable[..., Tensor]:
    """``BareSiLU`` in C++, compiled here: a minute."""
    made = load("optiacts_host_time", [str(Path(__file__).with_suffix(".cpp"))], extra_cflags=["-O2"])
    known, kernels = constants_of("silu", torch.float32), library()
    addresses = [_address(kernels.optiacts_pack), _address(kernels.optiacts_backward), known.decoder]
    made.use(*addresses, known.first, known.span)
    silu: Callable[..., Tensor] = made.silu
    return silu


def _address(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each line")
    parser.add_argument("--cpp", action="store_true", help="the bare Function in C++ as well")
    parser.add_argument("--converted", action="store_true", help="converted modules instead")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    what = "between Linears of 64 features" if chosen.converted else "4 Ki elements"
    table = Table(f"{what}, float32", "PyTorch µs", "OptiActs µs", "more µs", title="forward + backward, medians")
    cases = _converted_cases() if chosen.converted else _cases()
    if chosen.cpp:
        cases = {"silu, a bare Function in C++": ([(ROWS, COLUMNS)], functional.silu, _bare_cpp()), **cases}
    for name, (inputs, theirs, ours) in cases.items():
        leaves = [_leaf(shape) for shape in inputs]
        contenders = {"torch": _step(theirs, leaves), "ours": _step(ours, leaves)}
        times = alternate(contenders, chosen.seconds)
        theirs_us, ours_us = (times[who].median * 1e6 for who in ("torch", "ours"))
        table.add_row(name, *(f"{value:.0f}" for value in (theirs_us, ours_us, ours_us - theirs_us)))
    Console().print(table)


def _leaf(shape: tuple[int, ...]) -> Tensor:
    """An input; or a norm's parameter, near 1 as those are that a norm keeps its output with."""
    values = torch.randn(shape) if len(shape) > 1 else torch.ones(shape)
    return values.requires_grad_()


def _step(op: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    grad = torch.ones(op(*leaves).shape)
    if isinstance(op, nn.Module):  # whose parameters have gradients as well
        return lambda: op(*leaves).backward(grad)
    return lambda: torch.autograd.grad(op(*leaves), leaves, grad)


def _cases() -> dict[str, tuple[list[tuple[int, ...]], Callable[..., Tensor], Callable[..., Tensor]]]:
    """The shapes of the inputs, PyTorch's way and ours."""
    tensor, channels = (ROWS, COLUMNS), (COLUMNS,)
    bare: Callable[..., Tensor] = BareSiLU.apply
    return {
        "silu, the bare Function": ([tensor], functional.silu, bare),
        "silu": ([tensor], functional.silu, optiacts.silu),
        "swiglu": ([tensor, tensor], lambda gate, up: functional.silu(gate) * up, optiacts.swiglu),
        "layer_norm": (
            [tensor, channels, channels],
            lambda x, w, b: functional.layer_norm(x, channels, w, b),
            lambda x, w, b: optiacts.layer_norm(x, channels, w, b),
        ),
        "rms_norm": (
            [tensor, channels],
            lambda x, w: functional.rms_norm(x, channels, w),
            lambda x, w: optiacts.rms_norm(x, channels, w),
        ),
        "dropout": ([tensor], lambda x: functional.dropout(x, 0.1), lambda x: optiacts.dropout(x, 0.1)),
    }


def _converted_cases() -> dict[str, Any]:
    """The same of modules as they are, and converted."""

    def linear() -> nn.Module:
        return nn.Linear(NARROW, NARROW)

    image = 2, 4, 4, 4
    modules = {
        "SiLU": (nn.Sequential(linear(), nn.SiLU(), linear()), (ROWS, NARROW)),
        "LayerNorm": (nn.Sequential(nn.LayerNorm(NARROW), linear()), (ROWS, NARROW)),
        "LlamaRMSNorm": (nn.Sequential(LlamaRMSNorm(NARROW), linear()), (ROWS, NARROW)),
        "Dropout": (nn.Sequential(linear(), nn.Dropout(0.1), linear()), (ROWS, NARROW)),
        "GELU, Dropout": (nn.Sequential(linear(), nn.GELU(), nn.Dropout(0.1), linear()), (ROWS, NARROW)),
        "LlamaMLP": (LlamaMLP(LlamaConfig(hidden_size=NARROW, intermediate_size=NARROW)), (ROWS, NARROW)),
        "Conv, BatchNorm, SiLU": (
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1)), image,
        ),
    }  # fmt: skip
    cases: dict[str, Any] = {}
    for name, (module, shape) in modules.items():
        converted = copy.deepcopy(module)
        optiacts.convert(converted)
        cases[name] = [shape], module, converted
    return cases


if __name__ == "__main__":
    main()
