"""The valley around the minimum, where a gated product saves gate itself: its borders and its polynomials."""

import pytest
import torch

from optiacts import curves, ops
from optiacts.decoders import valley
from optiacts.decoders.table import slot_table
from tests.samples import DTYPES, EVERY, NAMES, SIXTEEN_BIT, around_minimum, every_finite, float32_bit_space

UNIMODAL = [name for name in EVERY if isinstance(curves.get(name).decoder, curves.Unimodal)]


def _every(dtype):
    if dtype in SIXTEEN_BIT:
        return every_finite(dtype)
    near = [around_minimum(curves.get(name), dtype) for name in NAMES]
    return torch.cat([float32_bit_space().to(dtype), *near])


def _inside(curve, dtype, count=10_001):
    low, high = valley.borders(curve, dtype)
    gate = torch.linspace(low, high, count, dtype=torch.float64)
    return gate.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UNIMODAL)
def test_no_output_lies_at_or_below_the_border(name, dtype):
    """Else it would be read as a gate. The border itself is below the minimum, x_min in the valley."""
    curve = curves.get(name)
    low, border = valley.borders(curve, dtype)
    y = curve.forward(_every(dtype))
    assert bool((y > border).all())
    assert low < curve.x_min < border < curve.y_min


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UNIMODAL)
def test_the_slot_is_gate_in_the_valley_and_the_output_outside(name, dtype):
    curve, gate = curves.get(name), _every(dtype)
    h, slot, _ = ops.gated_forward(gate, torch.ones_like(gate), name)
    in_valley, normal = valley.contains(curve, gate), h.abs() >= torch.finfo(dtype).tiny
    assert in_valley.sum() > 50
    assert torch.equal(slot[in_valley], gate[in_valley])
    assert torch.equal(slot[normal & ~in_valley], curve.forward(gate)[normal & ~in_valley])


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BIT], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_polynomials_are_the_mathematics(name, dtype):
    """In float32, the arithmetic of the kernels. In 16 bits their error is lost in the rounding that follows."""
    curve = curves.get(name)
    around, gate = valley.polynomials(curve, dtype), _inside(curve, dtype)
    t = gate.float() - around.centre

    def polynomial(coefficients):
        value = torch.full_like(t, coefficients[-1])
        for c in reversed(coefficients[:-1]):
            value = value * t + c
        return value.double()

    exact = curve.function(gate.double(), torch)
    half = torch.finfo(dtype).eps / 2
    half_ulp = half * torch.exp2(torch.floor(torch.log2(exact.abs())))
    output = ((polynomial(around.output) - exact).abs() / half_ulp).max()
    slope = (polynomial(around.slope) - curve.derivative(gate.double(), torch)).abs().max() / half
    # float32: PyTorch's own forward is off by 4 to 16 half units there
    assert output <= (8 if dtype is torch.float32 else 0.05)
    assert slope <= (2 if dtype is torch.float32 else 0.1)


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_tables_hold_the_mathematics(name, dtype):
    curve, gate = curves.get(name), _inside(curves.get(name), dtype).unique()
    left, right, output = slot_table(name, dtype).reshape(3, 65536)
    index = gate.view(torch.int16).long() & 0xFFFF
    slope = curve.derivative(gate.double(), torch).float()
    assert torch.equal(left[index], slope) and torch.equal(right[index], slope)
    assert torch.equal(output[index], curve.forward(gate).float())
