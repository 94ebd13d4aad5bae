"""Forward and backward of a norm and the activation after it in one step, over PyTorch's two ops, on a CPU.

    python -m benchmarks.chain_speed                          the table of docs/chains.md
    python -m benchmarks.chain_speed --curve elu --large      another activation, 16 x 64 x 112 x 112

Seconds are the process's CPU time on one thread, taken in turn, A B B A. Printed are the ratio of the least of each,
which is what a busy machine does when nobody disturbs it, the median of the ratios of neighbours, and the upper 95 %
bound of that.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import bound, there_and_back
from optiacts import curves, norm_activation

SIZES = {"8 x 128 x 32 x 32": (8, 128, 32, 32), "16 x 64 x 112 x 112": (16, 64, 112, 112)}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": nn.BatchNorm2d,
    "GroupNorm": lambda c: nn.GroupNorm(32, c),
}


def ratios(norm: str, curve: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool, pairs: int) -> list[float]:
    """Of the least times, the median of the pairs', and the upper 95 % bound of that."""
    torch.manual_seed(0)
    module: Any = NORMS[norm](shape[1]).to(torch.float32 if norm == "BatchNorm" else dtype)
    forward = curves.get(curve).forward
    x = torch.randn(shape).to(dtype)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    weights = torch.randn_like(x)  # a random gradient, in the memory order of the output

    def loss(y: Tensor) -> Tensor:
        x.grad = module.weight.grad = module.bias.grad = None
        return _Gradient.apply(y, weights)

    runs = {
        "ours": lambda: loss(norm_activation(x, module, curve)),
        "PyTorch": lambda: loss(forward(module(x))),
    }
    there_and_back(runs, 3)
    seconds = there_and_back(runs, pairs)
    neighbours = [a / b for a, b in zip(seconds["ours"], seconds["PyTorch"], strict=True)]
    return [min(seconds["ours"]) / min(seconds["PyTorch"]), statistics.median(neighbours), bound(neighbours)]


class _Gradient(torch.autograd.Function):
    """A number with a given gradient, which costs nothing."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", default="silu")
    parser.add_argument("--large", action="store_true", help="16 x 64 x 112 x 112 as well")
    parser.add_argument("--pairs", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size, shape in list(SIZES.items())[: 2 if arguments.large else 1]:
        for norm in NORMS:
            for dtype in (torch.float32, torch.bfloat16):
                for last in (False, True):
                    found = ratios(norm, arguments.curve, shape, dtype, last, arguments.pairs)
                    order = "channels last" if last else "planes"
                    name = str(dtype).removeprefix("torch.")
                    print(f"{size}  {norm} + {arguments.curve}, {name:8} {order:13}", *(f"{r:.2f}" for r in found))


if __name__ == "__main__":
    main()
