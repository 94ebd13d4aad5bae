"""The derivative that the decoders read off an activation's output, and its error in each dtype.

For x in [-6, 6] in float32, bfloat16 and float16: f'(x) from OptiActs (from the output and one bit) and from
PyTorch (from the input), against float64 mathematics. Near the minimum, where a rounded output stands for a
whole interval of inputs, the output knows less than the input; elsewhere the two are alike.

    python examples/decoders.py [FILE.png]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

import optiacts

Function = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


# name: ours, PyTorch's
ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "GELU": (optiacts.gelu, functional.gelu),
    "GELU (tanh)": (
        lambda x: optiacts.gelu(x, approximate="tanh"),
        lambda x: functional.gelu(x, approximate="tanh"),
    ),
    "SiLU": (optiacts.silu, functional.silu),
    "QuickGELU": (optiacts.quick_gelu, quick_gelu),
    "Mish": (optiacts.mish, functional.mish),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def derivative(function: Function, x: Tensor) -> Tensor:
    """f'(x) as backward multiplies with it, in float64 for comparison."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    return slope.double()


def main(file: str) -> None:
    """Prints the largest errors and draws f' and its error."""
    print("largest |error of f'| on [-6, 6]" + "".join(f"{str(dtype)[6:]:>24}" for dtype in DTYPES))
    print(" " * 32 + f"{'OptiActs':>13}{'PyTorch':>11}" * len(DTYPES))
    figure = Figure(figsize=(3.4 * len(ACTIVATIONS), 9), layout="constrained")
    panels = figure.subplots(1 + len(DTYPES), len(ACTIVATIONS), sharex=True, sharey="row")
    for column, (name, (ours, theirs)) in enumerate(ACTIVATIONS.items()):
        x = torch.linspace(-6, 6, 4801, dtype=torch.float64)
        panels[0][column].plot(x, derivative(theirs, x), color="black", linewidth=1)
        panels[0][column].set_title(f"{name}: f'")
        line = f"{name:32}"
        for row, dtype in enumerate(DTYPES, start=1):
            rounded = x.to(dtype)
            exact = derivative(theirs, rounded.double())
            errors = [(derivative(f, rounded) - exact).abs() for f in (theirs, ours)]
            line += f"{errors[1].max():13.1e}{errors[0].max():11.1e}"
            panel = panels[row][column]
            for error, label, colour in zip(errors, ("PyTorch", "OptiActs"), ("#bab0ac", "#e15759"), strict=True):
                panel.semilogy(x, error.clamp(min=1e-10), ".", markersize=1.5, color=colour, label=label)
            panel.set_title(f"{str(dtype)[6:]}: |error of f'|", fontsize=9)
        print(line)
    panels[1][0].legend(markerscale=6, loc="lower left")
    for panel in panels[-1]:
        panel.set_xlabel("x")
    figure.savefig(file, dpi=110)
    print(f"drawn: {file}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "decoders.png")
