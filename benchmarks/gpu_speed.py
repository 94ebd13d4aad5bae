"""The figures of `make gpu-check`: bandwidth of the kernels, launch cost, whole MLP steps and their memory.

Times are medians of CUDA events over rounds in which the rivals take turns (A B A B), so that clocks and other
drifts hit all alike. Every call works on tensors far larger than the caches. On a CPU (dry run) the clock is the
host's and the sizes are tiny: that only shows that the script runs.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import optiacts
from benchmarks.norm_accuracy import FORMS
from optiacts import functional_norm, ops
from optiacts.curves import unimodal

Report = dict[str, Any]
BITS = 1 / 8  # bytes of side bits per element


def kernels(device: torch.device, dry: bool) -> list[Report]:
    """Forward and backward of every curve in bf16 (and GELU in fp32) beside a copy and PyTorch's own ops."""
    n = 1 << 14 if dry else 1 << 28
    cases = [(name, torch.bfloat16) for name in unimodal()] + [("gelu", torch.float16), ("gelu", torch.float32)]
    return [_kernel(name, dtype, n if dtype.itemsize == 2 else n // 2, device) for name, dtype in cases]


def _kernel(name: str, dtype: torch.dtype, n: int, device: torch.device) -> Report:
    curve = unimodal()[name]
    x, grad = torch.randn(n, device=device).to(dtype), torch.randn(n, device=device).to(dtype)
    y, bits = ops.activation_forward(x, name, [])
    source = x.detach().requires_grad_()
    theirs = curve.forward(source)
    target = torch.empty_like(x)
    seconds = compare(
        device,
        copy=lambda: target.copy_(x),
        forward=lambda: ops.activation_forward(x, name, []),
        backward=lambda: ops.activation_backward(grad, y, bits, name, []),
        torch_forward=lambda: curve.forward(x),
        torch_backward=lambda: torch.autograd.grad(theirs, source, grad, retain_graph=True),
    )
    size = x.element_size()
    rates = {
        "copy": 2 * size * n / seconds["copy"],
        "forward": (2 * size + BITS) * n / seconds["forward"],
        "backward": (3 * size + BITS) * n / seconds["backward"],
    }
    return {
        "curve": name,
        "dtype": str(dtype).removeprefix("torch."),
        "elements": n,
        **{f"{what} GB/s": rate / 1e9 for what, rate in rates.items()},
        "forward / copy bandwidth": rates["forward"] / rates["copy"],
        "backward / copy bandwidth": rates["backward"] / rates["copy"],
        "forward time / PyTorch's": seconds["forward"] / seconds["torch_forward"],
        "backward time / PyTorch's": seconds["backward"] / seconds["torch_backward"],
    }


def gated_kernels(device: torch.device, dry: bool) -> list[Report]:
    """Forward and backward of gated products beside a copy and PyTorch's own expression."""
    rows, columns = (16, 1024) if dry else (1 << 14, 1 << 13)
    cases = [("silu", torch.bfloat16), ("gelu", torch.bfloat16), ("silu", torch.float16), ("silu", torch.float32)]
    return [_gated_kernel(name, dtype, rows, columns, device) for name, dtype in cases]


def _gated_kernel(name: str, dtype: torch.dtype, rows: int, columns: int, device: torch.device) -> Report:
    curve, n = unimodal()[name], rows * columns
    gate, up, grad = (torch.randn(rows, columns, device=device).to(dtype) for _ in range(3))
    saved = ops.gated_forward(gate, up, name)
    sources = gate.detach().requires_grad_(), up.detach().requires_grad_()
    theirs = curve.forward(sources[0]) * sources[1]
    target = torch.empty_like(gate)
    seconds = compare(
        device,
        copy=lambda: target.copy_(gate),
        forward=lambda: ops.gated_forward(gate, up, name),
        backward=lambda: ops.gated_backward(grad, *saved, name),
        torch_forward=lambda: curve.forward(gate) * up,
        torch_backward=lambda: torch.autograd.grad(theirs, sources, grad, retain_graph=True),
    )
    size = gate.element_size()
    copied = 2 * size * n / seconds["copy"]
    return {
        "gate": name,
        "dtype": str(dtype).removeprefix("torch."),
        "elements": n,
        "forward / copy bandwidth": (4 * size + 2 * BITS) * n / seconds["forward"] / copied,
        "backward / copy bandwidth": (5 * size + 2 * BITS) * n / seconds["backward"] / copied,
        "forward time / PyTorch's": seconds["forward"] / seconds["torch_forward"],
        "backward time / PyTorch's": seconds["backward"] / seconds["torch_backward"],
    }


def norm_kernels(device: torch.device, dry: bool) -> list[Report]:
    """Norms in output mode, forward and backward, beside PyTorch's own and a written-out RMSNorm."""
    shapes = [(16, 256)] if dry else [(1 << 15, 4096), (1 << 17, 768)]
    cases = itertools.product(
        ("layer_norm", "rms_norm", "written out (Llama)"), (torch.bfloat16, torch.float32), shapes
    )
    return [_norm_kernel(form, dtype, shape, device) for form, dtype, shape in cases]


def _norm_kernel(form: str, dtype: torch.dtype, shape: tuple[int, int], device: torch.device) -> Report:
    how = FORMS[form]
    x, grad = torch.randn(shape, device=device).to(dtype), torch.randn(shape, device=device).to(dtype)
    weight, bias = (torch.rand(shape[1], device=device).add(0.5).to(dtype).requires_grad_() for _ in range(2))
    x.requires_grad_()
    inputs = (x, weight, bias) if how.biased else (x, weight)

    def plain(t: Tensor) -> Tensor:
        return how.forward(t, weight, bias if how.biased else None)

    def kept(t: Tensor) -> Tensor:
        return functional_norm.norm(t, weight, bias if how.biased else None, how.kind, plain)

    ours, theirs = kept(x), plain(x)
    target = torch.empty_like(x)
    seconds = compare(
        device,
        copy=lambda: target.copy_(x),
        forward=lambda: kept(x),
        backward=lambda: torch.autograd.grad(ours, inputs, grad, retain_graph=True),
        torch_forward=lambda: plain(x),
        torch_backward=lambda: torch.autograd.grad(theirs, inputs, grad, retain_graph=True),
    )
    return {
        "norm": form,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": f"{shape[0]} x {shape[1]}",
        "forward time / PyTorch's": seconds["forward"] / seconds["torch_forward"],
        "backward time / PyTorch's": seconds["backward"] / seconds["torch_backward"],
        "backward / copy": seconds["backward"] / seconds["copy"],
        "both / PyTorch's": (seconds["forward"] + seconds["backward"])
        / (seconds["torch_forward"] + seconds["torch_backward"]),
    }


def chain_kernels(device: torch.device, dry: bool) -> list[Report]:
    """Norm and SiLU in one, forward and backward, beside PyTorch's two ops.

    The backward reads grad, y and the bits twice and writes dx: that is what its bandwidth counts.
    """
    shape = (2, 16, 8, 8) if dry else (32, 256, 64, 64)
    norms: dict[str, Callable[[int], nn.Module]] = {
        "BatchNorm": nn.BatchNorm2d,
        "GroupNorm": lambda channels: nn.GroupNorm(channels // 8, channels),
    }
    layouts = (torch.contiguous_format, torch.channels_last)
    cases = itertools.product(norms, (torch.bfloat16, torch.float16, torch.float32), layouts)
    return [_chain_kernel(norm, norms[norm](shape[1]), dtype, shape, layout, device) for norm, dtype, layout in cases]


def _chain_kernel(
    name: str,
    norm: nn.Module,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: torch.memory_format,
    device: torch.device,
) -> Report:
    norm = norm.to(device, dtype)
    x, grad = (torch.randn(shape, device=device).to(dtype, memory_format=layout) for _ in range(2))
    x.requires_grad_()
    inputs = (x, *norm.parameters())
    ours, theirs = optiacts.norm_activation(x, norm, "silu"), nn.functional.silu(norm(x))
    target = torch.empty_like(x)
    seconds = compare(
        device,
        copy=lambda: target.copy_(x),
        forward=lambda: optiacts.norm_activation(x, norm, "silu"),
        backward=lambda: torch.autograd.grad(ours, inputs, grad, retain_graph=True),
        torch_forward=lambda: nn.functional.silu(norm(x)),
        torch_backward=lambda: torch.autograd.grad(theirs, inputs, grad, retain_graph=True),
    )
    size = x.element_size()
    copied = 2 * size / seconds["copy"]
    return {
        "norm": name,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": str(layout).removeprefix("torch."),
        "shape": " x ".join(map(str, shape)),
        "forward time / PyTorch's": seconds["forward"] / seconds["torch_forward"],
        "backward time / PyTorch's": seconds["backward"] / seconds["torch_backward"],
        "backward / copy bandwidth": (5 * size + 2 * BITS) / seconds["backward"] / copied,
        "both / PyTorch's": (seconds["forward"] + seconds["backward"])
        / (seconds["torch_forward"] + seconds["torch_backward"]),
    }


def launch_cost(device: torch.device, dry: bool) -> list[Report]:
    """Host microseconds per forward + backward of small tensors, the queue never full, beside PyTorch's."""
    x = torch.randn(16, 64, device=device, requires_grad=True)
    up, grad = torch.randn(16, 64, device=device, requires_grad=True), torch.randn(16, 64, device=device)
    batch_norm = nn.BatchNorm1d(64).to(device)

    def host_microseconds(call: Callable[[Tensor], Tensor]) -> float:
        rounds = []
        for _ in range(3 if dry else 30):
            _wait(device)
            start = time.perf_counter()
            for _ in range(20):
                call(x).backward(grad)
            rounds.append((time.perf_counter() - start) / 20 * 1e6)
        return statistics.median(rounds)

    calls: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "GELU": (optiacts.gelu, nn.functional.gelu),
        "SwiGLU": (lambda t: optiacts.swiglu(t, up), lambda t: nn.functional.silu(t) * up),
        "LayerNorm": (optiacts.LayerNorm(64, device=device), nn.LayerNorm(64, device=device)),
        "RMSNorm": (optiacts.RMSNorm(64, device=device), nn.RMSNorm(64, device=device)),
        "dropout": (optiacts.Dropout(0.1), nn.Dropout(0.1)),
        "BatchNorm, SiLU": (
            lambda t: optiacts.norm_activation(t, batch_norm, "silu"),
            lambda t: nn.functional.silu(batch_norm(t)),
        ),
    }
    return [
        {"call": name, "optiacts µs": host_microseconds(ours), "PyTorch µs": host_microseconds(theirs)}
        for name, (ours, theirs) in calls.items()
    ]


class Mlp(nn.Module):
    """A transformer's MLP, plain, or gated with the activation alone replaced."""

    def __init__(self, hidden: int, inner: int, activation: nn.Module, gated: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, inner, bias=not gated) if gated else None
        self.up = nn.Linear(hidden, inner, bias=not gated)
        self.activation = activation
        self.down = nn.Linear(inner, hidden, bias=not gated)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


def steps(device: torch.device, dry: bool) -> list[Report]:
    """Forward and backward of an MLP in bf16, eager and compiled: time, and peak memory above the parameters."""
    shrink = 64 if dry else 1
    sizes = {
        "BERT-large, GELU": (16 * 512, 1024, 4096, nn.GELU, optiacts.GELU, False),
        "Llama 8B, SiLU": (8192, 4096, 14336, nn.SiLU, optiacts.SiLU, True),
    }
    reports = []
    for label, (tokens, hidden, inner, theirs, ours, gated) in sizes.items():
        x = torch.randn(tokens // shrink, hidden // shrink, device=device, dtype=torch.bfloat16)
        for mode in ("eager", "compiled"):
            if dry and mode == "compiled":
                continue  # needs a compiler for the CPU, and shows nothing about the GPU
            calls, peaks = {}, {}
            for who, activation in (("torch", theirs), ("optiacts", ours)):
                model = Mlp(hidden // shrink, inner // shrink, activation(), gated).to(device, torch.bfloat16)
                calls[who] = _step(torch.compile(model) if mode == "compiled" else model, x)
                calls[who]()
                peaks[who] = _peak(device, calls[who])
            seconds = compare(device, **calls)
            reports.append(
                {
                    "model": label,
                    "mode": mode,
                    "tokens": x.shape[0],
                    "PyTorch ms": seconds["torch"] * 1e3,
                    "time / PyTorch's": seconds["optiacts"] / seconds["torch"],
                    "PyTorch peak MiB": peaks["torch"] / 2**20,
                    "optiacts peak MiB": peaks["optiacts"] / 2**20,
                }
            )
    return reports


def _step(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    x = x.detach().requires_grad_()

    def step() -> None:
        x.grad = None
        model(x).sum().backward()

    return step


def _peak(device: torch.device, call: Callable[[], None]) -> float:
    """The most memory a call takes beyond what is there before it."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def sweep(device: torch.device, dry: bool) -> list[Report]:
    """Other tile sizes and warps than launch.py has, to see whether it should change."""
    from optiacts.backends.triton import launch

    n = 1 << 14 if dry else 1 << 28
    x = torch.randn(n, device=device).to(torch.bfloat16)
    y, bits = ops.activation_forward(x, "gelu", [])
    reports, chosen = [], (launch.BYTES_PER_PROGRAM, launch.WARPS)
    for per_program in (2048, 4096, 8192, 16384):
        for warps in (2, 4, 8):
            launch.BYTES_PER_PROGRAM, launch.WARPS = per_program, warps
            seconds = compare(
                device,
                forward=lambda: ops.activation_forward(x, "gelu", []),
                backward=lambda: ops.activation_backward(x, y, bits, "gelu", []),
            )
            reports.append(
                {
                    "bytes per program": per_program,
                    "warps": warps,
                    "forward GB/s": (4 + BITS) * n / seconds["forward"] / 1e9,
                    "backward GB/s": (6 + BITS) * n / seconds["backward"] / 1e9,
                }
            )
    launch.BYTES_PER_PROGRAM, launch.WARPS = chosen
    return reports


def compare(device: torch.device, **calls: Callable[[], Any]) -> dict[str, float]:
    """The median seconds of each call, taken in turns."""
    rounds = 25 if device.type == "cuda" else 2
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(device, call))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(device: torch.device, call: Callable[[], Any]) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(2_000_000)  # a millisecond, in which the host queues the call: only the GPU's time counts
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
