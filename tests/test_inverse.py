"""The float64 inverse, which tables, float64 gradients and second derivatives rest on."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from optiacts.curves import Curve, CurveError, Unimodal, get
from optiacts.decoders.inverse import _steps, derivative_from_output, inverse
from tests.samples import NAMES

EPS = torch.finfo(torch.float64).eps
FAR_LEFT = -800.0
UNIMODAL = [
    *(name for name in NAMES if isinstance(get(name).decoder, Unimodal)),
    "clipped_gelu",
    "swish(beta=0.25)",
    "swish(beta=3.0)",
]
every_unimodal = pytest.mark.parametrize("name", UNIMODAL)


def inputs(curve: Curve, nearest: float) -> Tensor:
    """From ``nearest`` to the minimum to the far ends of both branches, but where formulas underflow or overflow."""
    reach = torch.cat(
        [torch.logspace(math.log10(nearest), math.log10(-FAR_LEFT), 4001), torch.linspace(0.01, 60, 4001)]
    )
    reach = reach.double() / curve.scale
    x = torch.cat([curve.x_min - reach, curve.x_min + reach, torch.logspace(2, 100, 501, dtype=torch.float64)])
    return x[curve.function(x, torch).abs() >= 1e-300]


def bisected(curve: Curve, y: Tensor, left: Tensor) -> Tensor:
    """The same by the surest way."""
    low = torch.where(left, FAR_LEFT / curve.scale, torch.where(y < 0, curve.x_min, y))
    high = torch.where(left, curve.x_min, low + 2.0 / curve.scale)
    for _ in range(64):
        middle = low / 2 + high / 2
        beyond = (curve.function(middle, torch) > y) == left
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return low


def roundings(curve: Curve, y: Tensor, x: Tensor) -> Tensor:
    """By how much x is uncertain when y, and x itself, are off by a rounding."""
    return EPS * (x.abs() + y.abs() / curve.derivative(x, torch).abs())


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    """x comes back to float64 accuracy wherever y determines it: not near the minimum, not in the far left tail."""
    curve = get(name)
    x = torch.cat([torch.linspace(-6, 8, 4001), torch.linspace(8, 1e6, 101)]).double()
    x = x[(x - curve.x_min).abs() > 1e-2]
    found = inverse(curve, curve.function(x, torch), x < curve.x_min)
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


@every_unimodal
def test_it_is_as_exact_as_bisection(name: str) -> None:
    """Everywhere on both branches, within four roundings of y and x; in the tails too, and beside the minimum."""
    curve = get(name)
    x = inputs(curve, nearest=1e-5)
    y, left = curve.function(x, torch), x < curve.x_min
    told = curve.derivative(x, torch) != 0  # not beyond the end of a curve that has one
    found, reference = (find(curve, y, left)[told] for find in (inverse, bisected))
    allowed = 4 * roundings(curve, y[told], reference)
    assert ((found - reference).abs() <= allowed).all() and ((found - x[told]).abs() <= allowed).all()


@every_unimodal
def test_at_the_minimum_an_output_tells_the_input_to_half_its_digits(name: str) -> None:
    curve = get(name)
    x = inputs(curve, nearest=1e-12)
    x = x[(x - curve.x_min).abs() < 1e-5 / curve.scale]
    left = x < curve.x_min
    found = inverse(curve, curve.function(x, torch), left)
    assert ((found - x).abs() <= 3 * math.sqrt(EPS) / curve.scale).all()
    assert ((found <= curve.x_min) == left)[found != curve.x_min].all()
    at = torch.full((2,), curve.y_min, dtype=torch.float64)
    assert (inverse(curve, at, torch.tensor([True, False])) == curve.x_min).all()


@every_unimodal
def test_few_steps_find_it(name: str) -> None:
    assert _steps(get(name)) <= 6


def misled(share: float) -> Curve:
    """SiLU with so much of its slope."""
    silu = get("silu")
    return dataclasses.replace(
        silu, name="misled", minimum=silu.x_min, derivative=lambda x, m: share * silu.derivative(x, m)
    )


def test_where_newton_overshoots_the_bracket_is_halved() -> None:
    """With 0.4 of the slope each step leads further away."""
    curve = misled(0.4)
    x = torch.linspace(-40, 40, 801, dtype=torch.float64)
    x = x[(x - curve.x_min).abs() > 0.02]
    found = inverse(curve, curve.function(x, torch), x < curve.x_min)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    assert _steps(curve) > 6


def test_a_curve_whose_inputs_are_not_found_is_refused() -> None:
    y = torch.ones(1, dtype=torch.float64)
    with pytest.raises(CurveError, match="misled: its inputs cannot be found from its outputs in 64 steps"):
        inverse(misled(3.0), y, y < 0)


@pytest.mark.parametrize("name", NAMES)
def test_special_outputs(name: str) -> None:
    curve = get(name)
    y = torch.tensor([torch.inf, torch.nan, curve.y_min - 1e-3, curve.y_min - 1e-3, -0.0, 0.0], dtype=torch.float64)
    left = torch.tensor([False, False, True, False, True, False])
    slope = derivative_from_output(curve, y, left)
    assert slope[0] == 1 and slope[1].isnan()
    assert (slope[2:4].abs() < 1e-12).all()  # below the minimum counts as the minimum
    assert slope[4] == 0 and abs(slope[5] - curve.derivative(torch.zeros((), dtype=torch.float64), torch)) < 1e-15


@every_unimodal
def test_inputs_of_special_outputs(name: str) -> None:
    curve = get(name)
    left, right = torch.tensor([True]), torch.tensor([False])

    def found(y: float, side: Tensor) -> float:
        return float(inverse(curve, torch.tensor([y], dtype=torch.float64), side))

    for side in (left, right):
        assert found(curve.y_min - 1e-3, side) == curve.x_min
        assert math.isnan(found(math.nan, side))
    assert found(-0.0, left) == found(0.0, left) == FAR_LEFT / curve.scale
    assert found(-5e-324, left) < -15 / curve.scale and abs(found(0.0, right)) < 1e-15
    if name != "clipped_gelu":
        assert found(math.inf, right) == math.inf and found(1e308, right) == 1e308
    else:
        assert found(10.0, right) >= 10 and abs(found(9.99, right) - 9.99) < 1e-14


def test_small_outputs_keep_their_digits() -> None:
    """Right of 0 and left of it, where f(x) is about x / 2."""
    y = torch.tensor([1e-20, -1e-20, 1e-300, -1e-300], dtype=torch.float64)
    x = inverse(get("silu"), y, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(x[:2], 2 * y[:2], rtol=1e-9, atol=0.0)
    assert (x[2:] - 2 * y[2:]).abs().max() <= 1e-30  # as many steps as there are leave no more of them
