"""The committed coefficients, and the definitions they come from."""

import mpmath
import pytest
import torch

from optiacts.curves import CURVES, get
from optiacts.decoders.polynomials import DEGREE, PIECES, coefficients
from tests.samples import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_fit_errors_leave_room_for_float32(name: str) -> None:
    """The contract's 2e-6 less float32's own rounding; achieved errors are between 3e-7 and 1.2e-6."""
    c = coefficients(get(name))
    assert max(c.errors) <= 1.2e-6
    assert len(c.polynomials) == DEGREE + 1
    assert all(len(row) == PIECES for row in (c.scale, c.shift, c.errors, *c.polynomials))


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_exact_float32(name: str) -> None:
    c = coefficients(get(name))
    constants = [
        c.y_min_high,
        c.y_min_low,
        c.least,
        *c.limits,
        *c.breaks,
        *c.scale,
        *c.shift,
        *sum(c.polynomials, ()),
    ]
    assert torch.tensor(constants, dtype=torch.float64).float().double().tolist() == constants


@pytest.mark.parametrize("name", NAMES)
def test_formulas_are_each_others_derivatives(name: str) -> None:
    """With 40 digits, by mpmath's numerical differentiation."""
    curve, mp = CURVES[name], mpmath.mp.clone()
    mp.dps = 40
    for point in (-9, -3.3, -1.2, -0.75, -0.1, 0, 0.3, 1.4, 5, 20):
        x = mp.mpf(point)
        assert abs(mp.diff(lambda t: curve.function(t, mp), x) - curve.derivative(x, mp)) < 1e-12
        assert abs(mp.diff(lambda t: curve.derivative(t, mp), x) - curve.second_derivative(x, mp)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_is_what_pytorch_computes(name: str) -> None:
    x = torch.linspace(-20, 20, 10_001, dtype=torch.float64)
    torch.testing.assert_close(CURVES[name].forward(x), CURVES[name].function(x, torch), rtol=1e-12, atol=2e-15)


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_is_where_the_derivative_vanishes(name: str) -> None:
    curve = get(name)
    x = torch.tensor(curve.x_min, dtype=torch.float64)
    assert curve.derivative(x, torch).abs() < 1e-15
    assert (curve.function(x, torch) - curve.y_min).abs() < 1e-16


def test_an_unknown_curve_is_named() -> None:
    with pytest.raises(ValueError, match=r"curve must be one of .*gelu, .*; got 'relu7'"):
        get("relu7")
