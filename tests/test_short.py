"""The decoders of 16-bit outputs in arithmetic (decoders/short.py), evaluated here as the GPU kernels do it."""

import pytest
import torch

from optiacts import curves
from optiacts.accuracy import errors_against_floors
from optiacts.decoders.short import short_decoder
from tests.samples import NAMES, SIXTEEN_BIT, every_finite, true_derivative


def _polynomial(v, coefficients):
    value = torch.full_like(v, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * v + c
    return value


def _decoded(curve, x):
    s, y, left = short_decoder(curve, x.dtype), curve.forward(x).float(), curve.left(x)
    above = (y - s.y_min).clamp(s.least, s.most)
    v = torch.where(left, -torch.log2((y * s.scale).clamp(s.smallest, s.largest)), above).sqrt()
    fall = torch.exp2(above * _polynomial(above, s.envelope))
    return torch.where(left, y * _polynomial(v, s.left), 1 + fall * _polynomial(v, s.right))


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_errors_are_within_the_contract(name, dtype):
    curve, x = curves.get(name), every_finite(dtype)
    e = errors_against_floors(curve, x, curve.forward(x), _decoded(curve, x))
    assert e.worst <= 1.3 * e.worst_floor
    assert e.rms <= 1.3 * e.rms_floor


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_large_outputs_lose_no_more_than_rounding_does(name, dtype):
    """Outliers carry a norm. The gradient's own rounding costs half a unit in the last place."""
    curve, x = curves.get(name), every_finite(dtype)
    x = x[x >= 3]
    decoded, half_unit = _decoded(curve, x).double(), torch.finfo(dtype).eps / 2
    error = (decoded - true_derivative(curve, x)).abs()
    assert error.max() <= 1.2 * half_unit
    assert error[x >= 13].max() <= 0.1 * half_unit
