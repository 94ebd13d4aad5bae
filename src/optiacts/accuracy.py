"""How exact the derivative is that can be had from the output: measured errors and the floors below them.

`python -m optiacts.accuracy` prints the table of docs/accuracy.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optiacts.backends import select
from optiacts.curves import Curve, every_name, get
from optiacts.decoders import decode, derivative_from_output
from optiacts.decoders.table import every_value, normal_mass, table_index, told


@dataclass(frozen=True)
class Errors:
    """|decode - f'(x)|: the worst over all finite inputs, the RMS for x ~ N(0, 1), and the floors of both.

    The floors are the best any decoder can do from (PyTorch's output, one side bit): half the spread of f'
    over the inputs that share an output, and its standard deviation.
    """

    worst: float
    worst_floor: float
    rms: float
    rms_floor: float


@functools.cache
def exhaustive_errors(name: str, dtype: torch.dtype) -> Errors:
    """The errors of curve ``name`` in a 16-bit ``dtype``, by going through every finite input but its kinks."""
    curve = get(name)
    x = told(curve, every_value(dtype))
    y = curve.forward(x)
    return errors_against_floors(curve, x, y, decode(y, curve.left(x), curve))


def errors_against_floors(curve: Curve, x: Tensor, y: Tensor, decoded: Tensor) -> Errors:
    """The errors of derivatives ``decoded`` from the outputs ``y`` of all finite 16-bit inputs ``x``; CPU tensors."""
    seen = y.isfinite()  # elsewhere the forward has overflowed
    x, y, decoded = x[seen], y[seen], decoded[seen]
    left = curve.left(x) if curve.decoder.side_bits else None
    slope, mass = curve.derivative(x.double(), torch), normal_mass(x)
    error = (decoded.double() - slope).abs()

    group = table_index(y, left).long()
    zeros = torch.zeros(2 << 16, dtype=torch.float64)
    lowest = zeros.scatter_reduce(0, group, slope, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, group, slope, "amax", include_self=False)
    mean = zeros.index_add(0, group, slope * mass) / zeros.index_add(0, group, mass).clamp(min=1e-300)

    def rms(deviation: Tensor) -> float:
        return float(((deviation**2 * mass).sum() / mass.sum()).sqrt())

    return Errors(
        worst=float(error.max()),
        worst_floor=float((highest - lowest).max() / 2),
        rms=rms(error),
        rms_floor=rms(slope - mean[group]),
    )


@dataclass(frozen=True)
class Float32Errors:
    """|f' error| in float32, more than 0.1 away from the minimum, if there is one, and anywhere.

    ``decode_far`` is the decoder's own error against exact inversion of the output; the others include what
    PyTorch's rounding of the output has lost: ``far`` and ``anywhere`` for our decode, ``exact_far`` and
    ``exact_anywhere`` for an exact inversion of the same output.
    """

    decode_far: float
    far: float
    exact_far: float
    anywhere: float
    exact_anywhere: float


def float32_errors(curve: Curve, x: Tensor) -> Float32Errors:
    """The errors of ``curve`` at the float32 inputs ``x``."""
    y, left = curve.forward(x), curve.left(x)
    slope, far = curve.derivative(x.double(), torch), torch.ones_like(x, dtype=torch.bool)
    if curve.decoder.side_bits:
        far = (x.double() - curve.x_min).abs() > 0.1
    decoded, exact = decode(y, left, curve).double(), derivative_from_output(curve, y.double(), left)
    error, exact_error = (decoded - slope).abs(), (exact - slope).abs()
    return Float32Errors(
        decode_far=float((decoded - exact).abs()[far].max()),
        far=float(error[far].max()),
        exact_far=float(exact_error[far].max()),
        anywhere=float(error.max()),
        exact_anywhere=float(exact_error.max()),
    )


def over_pytorch(curve: Curve, x: Tensor, weight: Tensor | None = None) -> float:
    """The RMS error of our gradient at ``x`` over that of PyTorch's own, for grad ~ N(0, 1).

    Infinite if only ours errs. ``weight`` tells how often each element of ``x``, a CPU tensor, occurs: once if there
    is none.
    """
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    leaf = x.detach().clone().requires_grad_()
    y = curve.forward(leaf)
    (theirs,) = torch.autograd.grad(y, leaf, grad)
    backend = select(x, curve)
    y, bits = backend.activation_forward(x, curve, ())
    ours = backend.activation_backward(grad, y, bits, curve)
    exact = grad.double() * curve.derivative(x.double(), torch)
    seen = y.isfinite() & theirs.isfinite()
    weight = torch.ones_like(exact) if weight is None else weight

    def squared(found: Tensor) -> float:
        return float(((found.double() - exact) ** 2 * weight)[seen].sum())

    if squared(theirs) == 0:
        return 1.0 if squared(ours) == 0 else math.inf
    return math.sqrt(squared(ours) / squared(theirs))


def _share(error: float, floor: float) -> str:
    return f"{error / floor:.3f}" if floor > 1e-8 else "exact"


def main() -> None:
    """Prints both tables as markdown."""
    print("| curve | dtype | worst | floor | ratio | RMS, N(0, 1) | floor | ratio | gradient over PyTorch's |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in every_name():
        for dtype in (torch.bfloat16, torch.float16):
            e = exhaustive_errors(name, dtype)
            x = told(get(name), every_value(dtype))
            print(
                f"| {name} | {str(dtype).removeprefix('torch.')} | {e.worst:.6f} | {e.worst_floor:.6f} "
                f"| {_share(e.worst, e.worst_floor)} | {e.rms:.6f} | {e.rms_floor:.6f} "
                f"| {_share(e.rms, e.rms_floor)} | {over_pytorch(get(name), x, normal_mass(x)):.2f} |"
            )
    columns = ("decoder alone, far", "far", "exact inversion, far", "anywhere", "exact inversion, anywhere")
    print("\n| curve | " + " | ".join(columns) + " | gradient over PyTorch's |")
    print("|---|---|---|---|---|---|---|")
    for name in every_name():
        curve = get(name)
        x = torch.linspace(-15, 15, 1_000_001)
        if curve.decoder.side_bits:
            x = torch.cat([x, torch.linspace(curve.x_min - 2e-3, curve.x_min + 2e-3, 100_001)])
        for kink in curve.kinks:
            x = x[(x - kink).abs() > 1e-6 * abs(kink)]
        f = float32_errors(curve, x)
        figures = (f.decode_far, f.far, f.exact_far, f.anywhere, f.exact_anywhere)
        drawn = torch.randn(1 << 18, generator=torch.Generator().manual_seed(2))
        ratio = over_pytorch(curve, drawn)
        print(f"| {name} | " + " | ".join(f"{figure:.2e}" for figure in figures) + f" | {ratio:.2f} |")


if __name__ == "__main__":
    main()
