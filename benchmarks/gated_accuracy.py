"""How far the gradients of gated products are from float64 mathematics, beside those of PyTorch's expression.

    python -m benchmarks.gated_accuracy                      the tables of docs/gated.md
    python -m benchmarks.gated_accuracy --device cuda        the kernels that serve a GPU
    TRITON_INTERPRET=1 python -m benchmarks.gated_accuracy --backend triton --dtypes float16 --elements 524288
                                                             the same kernels on a CPU: half a minute per line

An error is the Euclidean norm of the difference, divided by that of the exact gradient.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import optiacts
from optiacts import curves
from optiacts.backends import eager

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator, dtype=torch.float64)


def _student(count: int, generator: torch.Generator) -> Tensor:
    """Three degrees of freedom."""
    spread = sum((_normal(count, generator) ** 2 for _ in range(3)), torch.zeros(count, dtype=torch.float64))
    return _normal(count, generator) / (spread / 3).sqrt()


def _outliers(count: int, generator: torch.Generator, share: float = 1e-2) -> Tensor:
    """One in a hundred is a hundred times as large."""
    larger = torch.rand(count, generator=generator) < share
    return torch.where(larger, 100.0, 1.0) * _normal(count, generator)


def _rare(count: int, generator: torch.Generator) -> Tensor:
    """One in a thousand: of 2^19 elements a few hundred make the norm."""
    return _outliers(count, generator, share=1e-3)


DATA: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": _normal,
    "student": _student,
    "outliers": _outliers,
    "rare": _rare,
}


@dataclass(frozen=True)
class Errors:
    """Of the gradients of gate and up, ours and PyTorch's.

    Elements where PyTorch's gradient of gate is not finite are left out of the errors of gate: of tanh-GELU written
    out in float16 that of an outlier is NaN. ``finite`` is the share of the others; ours must be finite everywhere.
    """

    gate: float
    pytorch_gate: float
    up: float
    pytorch_up: float
    finite: float


def inputs(kind: str, dtype: torch.dtype, count: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """gate and up of one kind of data, and an incoming gradient ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    gate, up, grad = DATA[kind](count, generator), DATA[kind](count, generator), _normal(count, generator)
    return gate.to(dtype), up.to(dtype), grad.to(dtype)


def errors(curve: str, kind: str, dtype: torch.dtype, count: int, backend: Any = None, device: str = "cpu") -> Errors:
    """The errors of the public function, or of ``backend``, one of the modules in optiacts.backends."""
    known, (gate, up, grad) = curves.get(curve), (tensor.to(device) for tensor in inputs(kind, dtype, count))
    if backend is None:
        ours = _gradients(lambda g, u: optiacts.gated(g, u, curve), gate, up, grad)
    else:
        serving = backend if type(known.decoder) in backend.kinds else eager
        h, slot, bits = serving.gated_forward(gate, up, known)
        ours = torch.empty_like(h), torch.empty_like(h)
        serving.gated_backward(grad, h, slot, bits, known, *ours)
    if not all(bool(gradient.isfinite().all()) for gradient in ours):
        raise ArithmeticError(f"{curve} {kind} {dtype}: a gradient is not finite")
    theirs = _gradients(lambda g, u: known.forward(g) * u, gate, up, grad)
    x, u, g = gate.double(), up.double(), grad.double()
    exact_gate, exact_up = g * u * known.derivative(x, torch), g * known.function(x, torch)
    finite = theirs[0].isfinite()
    return Errors(
        gate=_error(ours[0][finite], exact_gate[finite]),
        pytorch_gate=_error(theirs[0][finite], exact_gate[finite]),
        up=_error(ours[1], exact_up),
        pytorch_up=_error(theirs[1], exact_up),
        finite=float(finite.double().mean()),
    )


def _gradients(fn: Callable[[Tensor, Tensor], Tensor], gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    gate, up = gate.clone().requires_grad_(), up.clone().requires_grad_()
    return torch.autograd.grad(fn(gate, up), (gate, up), grad)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def main() -> None:
    """Prints a markdown table for each kind of data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["eager", "native", "triton"], help="instead of the public function")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--elements", type=int, default=1 << 20)
    arguments = parser.parse_args()
    backend = importlib.import_module(f"optiacts.backends.{arguments.backend}") if arguments.backend else None
    for kind in DATA:
        heads = (f"{name} gate | PyTorch | ratio | up, ratio" for name in arguments.dtypes)
        print(f"\n| {kind} | {' | '.join(heads)} |\n|---|{'---|' * 4 * len(arguments.dtypes)}")
        for curve in (*curves.unimodal(), "relu", "relu_squared", "sigmoid"):
            settings = (arguments.elements, backend, arguments.device)
            found = [errors(curve, kind, DTYPES[name], *settings) for name in arguments.dtypes]
            cells = (
                f"{e.gate:.2e} | {e.pytorch_gate:.2e} | {e.gate / e.pytorch_gate:.2f} | {e.up / e.pytorch_up:.3f}"
                for e in found
            )
            print(f"| {curve} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
