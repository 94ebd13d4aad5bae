"""The error of the gradient beside that of PyTorch's own op: ``python -m benchmarks.gradient_accuracy``.

x ~ N(0, 1) times a scale, grad ~ N(0, 1), both rounded to the dtype; exact is float64. A figure is the RMS error of
our gradient over that of PyTorch's. Gated products have a table of their own (``benchmarks.gated_accuracy``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import optiacts
from optiacts import curves

COUNT = 2**20
SCALES = (0.1, 1.0, 3.0, 10.0)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def ratio(name: str, dtype: torch.dtype, scale: float, count: int = COUNT, seed: int = 1) -> tuple[float, float]:
    """The RMS error of our gradient over that of PyTorch's, and its own size; 0 over 0 is 0."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = ((torch.randn(count, generator=generator) * s).to(dtype) for s in (scale, 1.0))
    curve = curves.get(name)
    exact = _gradient(curve.forward, x.double(), grad.double())
    ours = _error(_gradient(lambda t: optiacts.activation(t, name), x, grad), exact)
    theirs = _error(_gradient(curve.forward, x, grad), exact)
    return ours / theirs if theirs else float(ours > 0), ours


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    x = x.requires_grad_()
    return torch.autograd.grad(function(x), x, grad)[0]


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())


def main() -> None:
    """Prints the table of docs/accuracy.md as markdown."""
    print("| curve | dtype | " + " | ".join(f"x ~ N(0, {scale:g}²)" for scale in SCALES) + " | largest error |")
    print("|---|---|" + "---:|" * (len(SCALES) + 1))
    for name in curves.every_name():
        for dtype in DTYPES:
            rows = [ratio(name, dtype, scale) for scale in SCALES]
            figures = " | ".join(f"{relative:.2f}" for relative, _ in rows)
            print(f"| {name} | {str(dtype).removeprefix('torch.')} | {figures} | {max(e for _, e in rows):.1e} |")


if __name__ == "__main__":
    main()
