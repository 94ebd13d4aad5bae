"""The accuracy contract in float32, over bit space and around the minimum."""

import pytest
import torch

from optiacts.accuracy import float32_errors
from optiacts.curves import get
from optiacts.decoders import decode
from tests.samples import NAMES, around_minimum, float32_bit_space, true_derivative


def sample(name: str) -> torch.Tensor:
    return torch.cat(
        [float32_bit_space(20011), torch.linspace(-15, 15, 200_001), around_minimum(get(name), width=20_000)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_adds_less_than_the_contract_allows(name: str) -> None:
    """Against an exact inversion of PyTorch's own output: 2e-6 away from the minimum."""
    assert float32_errors(get(name), sample(name)).decode_far <= 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_total_error_of_the_gradient(name: str) -> None:
    """2e-6 far and 1.2e-4 anywhere, unless PyTorch's rounding of the output alone has already lost more."""
    errors = float32_errors(get(name), sample(name))
    assert errors.far <= max(2e-6, 1.2 * errors.exact_far)
    assert errors.anywhere <= max(1.2e-4, errors.exact_anywhere)


@pytest.mark.parametrize("name", NAMES)
def test_contract_as_written_for_a_correctly_rounded_output(name: str) -> None:
    """With f(x) rounded once, no allowance is needed."""
    curve, x = get(name), sample(name)
    y = curve.function(x.double(), torch).float()
    slope = decode(y, x < curve.threshold(x.dtype), curve).double()
    error = (slope - true_derivative(curve, x)).abs()
    assert error.max() <= 1.2e-4
    assert error[(x.double() - curve.x_min).abs() > 0.1].max() <= 2e-6
