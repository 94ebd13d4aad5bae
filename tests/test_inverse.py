"""The float64 inverse, which tables, float64 gradients and second derivatives rest on."""

import pytest
import torch

from optiacts.curves import get
from optiacts.decoders.inverse import derivative_from_output, inverse
from tests.samples import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    """x comes back to float64 accuracy wherever y determines it: not near the minimum, not in the far left tail."""
    curve = get(name)
    x = torch.cat([torch.linspace(-6, 8, 4001), torch.linspace(8, 1e6, 101)]).double()
    x = x[(x - curve.x_min).abs() > 1e-2]
    found = inverse(curve, curve.function(x, torch), x < curve.x_min)
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_special_outputs(name: str) -> None:
    curve = get(name)
    y = torch.tensor([torch.inf, torch.nan, curve.y_min - 1e-3, curve.y_min - 1e-3, -0.0, 0.0], dtype=torch.float64)
    left = torch.tensor([False, False, True, False, True, False])
    slope = derivative_from_output(curve, y, left)
    assert slope[0] == 1 and slope[1].isnan()
    assert (slope[2:4].abs() < 1e-12).all()  # below the minimum counts as the minimum
    assert slope[4] == 0 and abs(slope[5] - curve.derivative(torch.zeros((), dtype=torch.float64), torch)) < 1e-15
