"""How far the gradients of a norm and the activation after it are from float64 mathematics, beside PyTorch's own.

    python -m benchmarks.chain_accuracy                       the table of docs/chains.md
    python -m benchmarks.chain_accuracy --device cuda         on a GPU

An error is the Euclidean norm of the difference, divided by that of the exact gradient.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optiacts import curves, functional_chain

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CHANNELS, SIZE = 64, 24
NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: nn.BatchNorm2d(CHANNELS),
    "GroupNorm": lambda: nn.GroupNorm(8, CHANNELS),
    "InstanceNorm": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "LayerNorm": lambda: nn.LayerNorm(CHANNELS),
    "RMSNorm": lambda: nn.RMSNorm(CHANNELS, eps=1e-5),
}


@dataclass(frozen=True)
class Data:
    """What a chain is measured on.

    ``correlation`` is that of the gradient with the norm's input, in units of its own noise; weights are ``weight``
    times 1 ± 0.2, biases ``bias`` times that times N(0, 1).
    """

    batch: int = 8
    correlation: float = 0.0
    weight: float = 1.0
    bias: float = 0.3


DATA = {
    "N(0, 1)": Data(),
    "one sample": Data(batch=1),
    "64 samples": Data(batch=64),
    "gradient correlated 0.3": Data(correlation=0.3),
    "gradient correlated 1": Data(correlation=1.0),
    "weights of 0.006": Data(weight=0.006, bias=0.0),
}


@dataclass(frozen=True)
class Errors:
    """Of the gradients of the input, the weight and the bias, as far as there are such."""

    ours: tuple[float, ...]
    pytorch: tuple[float, ...]


def errors(
    norm: str, curve: str, data: Data, dtype: torch.dtype, device: str = "cpu", seed: int = 0, size: int = SIZE
) -> Errors:
    """Of one kind of norm with one activation after it."""
    torch.manual_seed(seed)
    module: Any = NORMS[norm]()
    with torch.no_grad():
        module.weight.copy_(data.weight * (1 + 0.2 * torch.randn(CHANNELS)))
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(data.weight * data.bias * torch.randn(CHANNELS))
    module = module.to(device, dtype)
    rows = norm in ("LayerNorm", "RMSNorm")
    shape = (data.batch * size * size // 8, CHANNELS) if rows else (data.batch, CHANNELS, size, size)
    x = torch.randn(shape).to(device, dtype)
    grad = (torch.randn(shape, device=device) + data.correlation * x.float()).to(dtype)

    def gradients(wide: bool, fused: bool) -> tuple[Tensor, ...]:
        own = NORMS[norm]().to(device, torch.float64 if wide else dtype)
        own.load_state_dict(module.state_dict())
        given = (x.double() if wide else x).detach().requires_grad_()
        y = functional_chain.norm_activation(given, own, curve) if fused else curves.get(curve).forward(own(given))
        if fused and "Chain" not in type(y.grad_fn).__name__:
            raise RuntimeError(f"{norm} and {curve} were not differentiated as one")
        return torch.autograd.grad(y, [given, *own.parameters()], grad.to(y.dtype))

    exact = gradients(wide=True, fused=False)

    def off(found: tuple[Tensor, ...]) -> tuple[float, ...]:
        return tuple(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))

    return Errors(off(gradients(wide=False, fused=True)), off(gradients(wide=False, fused=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--curves", nargs="+", default=[name for name, c in curves.CURVES.items() if c.tells_input])
    chosen = parser.parse_args()
    print("| norm | activation | data | dtype | dx | dw | db |\n|---|---|---|---|---|---|---|")
    for curve in chosen.curves:
        for norm in NORMS:
            for name, data in DATA.items():
                for dtype in DTYPES:
                    found = errors(norm, curve, data, DTYPES[dtype], chosen.device)
                    cells = [f"{a:.1e} / {b:.1e}" for a, b in zip(found.ours, found.pytorch, strict=True)]
                    print(f"| {norm} | {curve} | {name} | {dtype} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
