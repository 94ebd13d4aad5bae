"""Whether an installed package works: numbers, saved bytes, and the backend that this system's wheel is for.

python tools/smoke.py [native | eager]      which backend serves the CPU; else the one that a released wheel brings
"""

from __future__ import annotations

import copy
import platform
import sys
from pathlib import Path

import torch
from torch import nn

import optiacts

KERNELS_BUILT_FOR = {("Linux", "x86_64"), ("Linux", "aarch64")}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(64), nn.GELU()
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.act(self.first(self.norm(x))))


def _gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def main() -> None:
    print(optiacts.doctor())
    if Path(__file__).parents[1] in Path(optiacts.__file__).parents:
        sys.exit(f"this is the source tree, not an installed package: {optiacts.__file__}")
    built = (platform.system(), platform.machine()) in KERNELS_BUILT_FOR
    expected = sys.argv[1] if len(sys.argv) > 1 else "native" if built else "eager"
    serving = optiacts.doctor().devices[0].backend
    if serving != expected:
        sys.exit(f"the CPU is served by {serving}, not {expected}")
    torch.manual_seed(0)
    plain = nn.Sequential(Block(), Block())
    ours = copy.deepcopy(plain)
    optiacts.convert(ours)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(8, 32, 64).to(dtype)
        due, found = (optiacts.saved_memory(model.to(dtype), x) for model in (plain, ours))
        exact, y = copy.deepcopy(plain).double(), ours(x)
        (y.float() ** 2).sum().backward()
        (exact(x.double()) ** 2).sum().backward()
        truth, grad = (_gradient(m) for m in (exact, ours))
        error = float((grad - truth).norm() / truth.norm())
        print(f"{dtype}: {due.bytes} -> {found.bytes} bytes, gradients' error {error:.1e}")
        if not torch.equal(due.output, found.output) or found.bytes > 0.8 * due.bytes:
            sys.exit("the forward is another, or holds too much")
        if not error < (1e-5 if dtype == torch.float32 else 2e-2):
            sys.exit("the gradients are wrong")
        ours.zero_grad()
    print("works")


if __name__ == "__main__":
    main()
