"""What the rest of the library knows about one activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optiacts._torch import once
from optiacts.curves._format import Coefficients, load
from optiacts.curves.valley import Valley, load_valleys

# The upper border of the valley in units of y_min: below every output, and above x_min for every curve.
BORDER = 1.5

# A formula takes the point and a namespace with exp, erfc, tanh and log1p: `torch` for tensors,
# `mpmath.mp` for the fitting tool. One text therefore defines the mathematics everywhere.
Formula = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Curve:
    """A unimodal activation: falls from 0 to its only minimum, then rises to infinity like x.

    ``forward`` and ``forward_`` are PyTorch's own ops (out of place, in place): the forward is theirs
    to the bit. ``function``, ``derivative`` and ``second_derivative`` are the mathematics.
    The one curve with ``unimodal=False``, ReLU, has no coefficients; its left branch is where it is 0.
    ``forward_out(x, y)`` is the same forward into ``y``, of the layout of ``x``; it returns ``y``.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    forward_: Callable[[Tensor], Tensor]
    function: Formula
    derivative: Formula
    second_derivative: Formula
    unimodal: bool = True
    forward_out: Callable[[Tensor, Tensor], Tensor] | None = None
    fit: str | None = None  # a variant (see _variant.py) is decoded by the coefficients of the curve called so

    @property
    def coefficients(self) -> Coefficients:
        """The generated decoder of this curve."""
        return load()[self.fit or self.name]

    @property
    def x_min(self) -> float:
        """Where the minimum lies: the border between the left and the right branch."""
        return self.coefficients.x_min

    @property
    def y_min(self) -> float:
        """The value at the minimum."""
        return self.coefficients.y_min

    def threshold(self, dtype: torch.dtype) -> float:
        """``x_min`` rounded to ``dtype``: the side bit of an element is ``x < threshold``."""
        return _rounded(self.x_min, dtype)

    def valley(self, dtype: torch.dtype) -> tuple[float, float]:
        """The interval around the minimum in which a gated product saves gate itself: see curves/valley.py."""
        border = BORDER * self.y_min
        return _rounded(2 * self.x_min - border, dtype), _rounded(border, dtype)

    def in_valley(self, x: Tensor) -> Tensor:
        """Which elements lie in the valley (bool)."""
        low, high = self.valley(x.dtype)
        return (x >= low) & (x <= high)

    def valley_polynomials(self, dtype: torch.dtype) -> Valley:
        """act(gate) and f'(gate) there, for float32, bfloat16 or float16 gates."""
        return load_valleys()[self.fit or self.name][str(dtype).removeprefix("torch.")]

    def left(self, x: Tensor) -> Tensor:
        """Which elements lie on the left branch: their side bits (bool)."""
        return x < self.threshold(x.dtype) if self.unimodal else x <= 0


@once
def _rounded(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))
