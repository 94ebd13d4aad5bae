"""The coefficients of f(x) = g(k x) / k from those of g: f'(x) = g'(k x), so an output y of f is read as k y of g.

Each part's formulas (polynomials.py, short.py, valley.py) stay what they are; their numbers are multiplied by powers
of k. Only what stands for the rounding of outputs at the minimum is made anew, since that does not scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from optiacts.curves._curve import rounded

# Near the minimum a float32 output stands for an interval of inputs, and the middle of f' over it belongs to a
# smaller d than y - y_min. In half units in the last place of y_min: how much smaller, and the least d. Chosen
# where the worst error over all inputs near the minimum, with PyTorch's own forwards, is least.
BIAS, LEAST = 1.2, 0.8


def scaled(parts: Mapping[str, Any], k: float, y_min: float) -> dict[str, Any]:
    """The coefficients, in the parts that there are. ``y_min`` is f's."""
    found: dict[str, Any] = {}
    if "polynomials" in parts:
        found["polynomials"] = _polynomials(parts["polynomials"], k, y_min)
    for part, scale in (("short", _short), ("valley", _valley)):
        if part in parts:
            found[part] = {dtype: scale(numbers, k) for dtype, numbers in parts[part].items()}
    return found


def _polynomials(of: Mapping[str, Any], k: float, y_min: float) -> dict[str, Any]:
    root, high = math.sqrt(k), single(y_min)
    half_unit = 2.0 ** (math.frexp(abs(high))[1] - 25)
    left, *right = zip(*of["polynomials"], strict=True)  # by pieces
    columns = [[single(k * c) for c in left], *right]
    return {
        "y_min_high": high,
        "y_min_low": single(y_min - high + BIAS * half_unit),
        "least": single(LEAST * half_unit),
        "limits": (of["limits"][0], single(of["limits"][1] / root)),
        "breaks": tuple(single(b / root) for b in of["breaks"]),
        "scale": (of["scale"][0], *(single(s * root) for s in of["scale"][1:])),
        "shift": of["shift"],
        "polynomials": tuple(zip(*columns, strict=True)),
        "errors": of["errors"],
    }


def _short(of: Mapping[str, Any], k: float) -> dict[str, Any]:
    return {
        **of,
        **{key: single(of[key] / k) for key in ("y_min", "least", "most")},
        "scale": single(of["scale"] * k),
        "left": tuple(single(c * k) for c in of["left"]),
        "right": tuple(single(c * k ** (power / 2)) for power, c in enumerate(of["right"])),
        "envelope": tuple(single(c * k**power) for power, c in enumerate(of["envelope"], start=1)),
    }


def _valley(of: Mapping[str, Any], k: float) -> dict[str, Any]:
    return {
        "centre": single(of["centre"] / k),
        "output": tuple(single(c * k ** (power - 1)) for power, c in enumerate(of["output"])),
        "slope": tuple(single(c * k**power) for power, c in enumerate(of["slope"])),
    }


def single(value: float) -> float:
    """``value`` rounded to float32."""
    return rounded(value, torch.float32)
