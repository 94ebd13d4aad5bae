"""Is a curve what it says? Found numerically, in float64, so that no wrong formula gives wrong gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optiacts._torch import undisturbed
from optiacts.curves._curve import FURTHEST_MINIMUM, ClosedForm, Curve, CurveError, Unimodal

FURTHEST_LEFT = -800.0  # a unimodal curve is 0 in float64 before this: where the search for an input begins
FAR = 60.0  # f' of a unimodal curve is settled beyond: 0 on the left, 1 on the right
SETTLED = 1e-8
_STEP = 1e-5  # of the difference quotients
_ROUNDING = 1e-12  # of float64, far out
_EXACT = 1e-6  # what they may be off by, and a forward in float64 may differ from its function


@undisturbed
def check(curve: Curve) -> None:
    """Raises ``CurveError``, with what to do, if the formulas disagree or the decoder does not suit the curve."""
    x = torch.linspace(-FAR, FAR, 9975, dtype=torch.float64) / curve.scale
    for kink in (0.0, *curve.kinks):
        x = x[(x - kink).abs() > 2 * _STEP]
    _check_formulas(curve, x)
    if isinstance(curve.decoder, Unimodal):
        _check_unimodal(curve, x)
    elif isinstance(curve.decoder, ClosedForm):
        _check_closed_form(curve, curve.decoder, x)
    else:
        raise CurveError(
            f"{curve.name} needs a decoder: Unimodal(...) for a curve with one minimum that rises like x, "
            f"ClosedForm(...) where f' is an expression in the output; got {curve.decoder!r}"
        )


def check_fitted(curve: Curve) -> None:
    """Raises ``CurveError`` if a curve that comes at run time does not bring the coefficients that it needs."""
    if isinstance(curve.decoder, Unimodal) and curve.decoder.fitted is None and curve.decoder.scaled is None:
        raise CurveError(
            f"{curve.name} has no coefficients: give Unimodal(tail, fitted=optiacts.decoders.fitting.fit(curve)), "
            f"or make it a file curves/{curve.name}.py and run `make fit ONLY={curve.name}`"
        )


def _check_formulas(curve: Curve, x: Tensor) -> None:
    value, slope = curve.function(x, torch), curve.derivative(x, torch)
    _same(curve, "forward", curve.forward(x), "function", value)
    far = torch.tensor([-1.0, 1.0]) * torch.finfo(torch.float32).max
    if bool(curve.forward(far).isnan().any()):
        raise CurveError(
            f"{curve.name}: forward is NaN for a large finite input, where an intermediate result overflows"
        )
    for name, rate, other, formula in (
        ("derivative", slope, "function", curve.function),
        ("second_derivative", curve.second_derivative(x, torch), "derivative", curve.derivative),
    ):
        quotient = (formula(x + _STEP, torch) - formula(x - _STEP, torch)) / (2 * _STEP)
        _same(curve, name, rate, f"the difference quotient of {other}", quotient)


def _same(curve: Curve, name: str, found: Tensor, other: str, wanted: Tensor) -> None:
    off = (found - wanted).abs() / wanted.abs().clamp(min=1)
    if not bool((off <= _EXACT).all()):
        raise CurveError(f"{curve.name}: {name} is not {other} (off by {float(off.nan_to_num(math.inf).max()):.2g})")


def _check_unimodal(curve: Curve, x: Tensor) -> None:
    assert isinstance(curve.decoder, Unimodal)
    if curve.decoder.ends is not None:
        x = x[x < curve.decoder.ends]
    slope = curve.derivative(x, torch)
    rising = slope[slope.abs() > SETTLED] > 0
    turns = int((rising[1:] != rising[:-1]).sum())
    if turns != 1 or bool(rising[0]):
        raise CurveError(
            f"{curve.name} is not unimodal: a Unimodal curve falls to one minimum and then rises, but its derivative "
            f"changes sign {turns} times{' and starts positive' if bool(rising[0]) else ''}. Give it the decoder "
            "ClosedForm(slope, inverse, left)"
        )
    above = x[x > 0]
    missing = above - curve.function(above, torch)
    needs = {
        "f' is not 1 on the far right": abs(float(slope[-1]) - 1) <= SETTLED,
        "f' is not 0 on the far left": abs(float(slope[0])) <= SETTLED,
        f"f is not 0 at {FURTHEST_LEFT / curve.scale}": abs(
            float(curve.function(x.new_tensor(FURTHEST_LEFT / curve.scale), torch))
        )
        < 1e-300,
        f"its minimum is not between {-FURTHEST_MINIMUM / curve.scale} and 0": float(
            curve.derivative(-FURTHEST_MINIMUM / curve.scale, math)
        )
        < 0
        < float(curve.derivative(0.0, math)),
        "f(x) <= x < f(x) + 1 does not hold for every x > 0": bool(
            ((missing >= -_ROUNDING) & (missing < 1 / curve.scale)).all()
        ),
    }
    for what, holds in needs.items():
        if not holds:
            raise CurveError(f"{curve.name} cannot be decoded as a Unimodal curve: {what}")


def _check_closed_form(curve: Curve, decoder: ClosedForm, x: Tensor) -> None:
    y, slope = curve.function(x, torch), curve.derivative(x, torch)
    if decoder.side_bits not in (0, 1):
        raise CurveError(f"{curve.name}: a ClosedForm has 0 or 1 side bits; got {decoder.side_bits}")
    zero = torch.zeros(1, dtype=torch.float64)
    if decoder.zero_is_flat and bool(decoder.slope(zero, zero == 0) != 0):
        raise CurveError(f"{curve.name}: zero_is_flat, but the slope at an output of 0 on the left is not 0")
    if decoder.survives_dropout and not decoder.zero_is_flat:
        raise CurveError(f"{curve.name}: survives_dropout, but not zero_is_flat")
    left = curve.left(x) if decoder.side_bits else y == 0
    _same(curve, "the decoder's slope", decoder.slope(y, left).double(), "derivative", slope)
    seen = (slope.abs() > 1e-3) & (y.abs() < 1e3)  # elsewhere the output tells nothing about the input
    _same(curve, "the decoder's inverse", decoder.inverse(y, left)[seen], "the input", x[seen])
