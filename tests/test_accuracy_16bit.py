"""The accuracy contract in bfloat16 and float16, over every finite input."""

import json
from pathlib import Path

import pytest
import torch

from optiacts import ops
from optiacts.accuracy import errors_against_floors, exhaustive_errors
from optiacts.curves import get
from optiacts.decoders.rounded import rounded_forward
from tests.samples import NAMES, SIXTEEN_BIT, every_finite, true_derivative

# What the best decoder could reach if the forward rounded f(x) correctly (PyTorch's forwards nearly do), as others
# computed it; curves that are not listed there are held to our own computation.
IDEAL_FLOORS = json.loads((Path(__file__).parent / "data" / "decode_floors.json").read_text())


def ideal_floors(name: str, dtype: torch.dtype) -> dict[str, float]:
    if name in IDEAL_FLOORS:
        return IDEAL_FLOORS[name][str(dtype).removeprefix("torch.")]
    curve, x = get(name), every_finite(dtype)
    y = rounded_forward(curve, x)
    errors = errors_against_floors(curve, x, y, true_derivative(curve, x))
    return {"worst_floor": errors.worst_floor, "rms_floor_normal": errors.rms_floor}


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_decoded_within_the_contract(name: str, dtype: torch.dtype) -> None:
    errors = exhaustive_errors(name, dtype)
    assert errors.worst <= 1.1 * errors.worst_floor
    assert errors.rms <= 1.1 * errors.rms_floor


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if get(name).ops])
def test_floors_are_those_of_a_correctly_rounded_forward(name: str, dtype: torch.dtype) -> None:
    """Also within 1.1 x of the ideal floors. Several ops round several times: QuickGELU's three cost it 1.35 x."""
    ideal, errors = ideal_floors(name, dtype), exhaustive_errors(name, dtype)
    assert errors.worst <= 1.1 * ideal["worst_floor"]
    assert errors.rms <= 1.1 * ideal["rms_floor_normal"]


@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_backward_rounds_the_decode_once(name: str, dtype: torch.dtype) -> None:
    """Through the op, with whichever backend serves this device: the floor and half a unit in the last place."""
    x, curve = every_finite(dtype), get(name)
    y, bits = ops.activation_forward(x, name, [])
    slope = ops.activation_backward(torch.ones_like(y), y, bits, name, [])
    error = (slope.double() - true_derivative(curve, x)).abs()
    half_ulp = slope.double().abs() * torch.finfo(dtype).eps / 2
    assert (error - half_ulp).max() <= 1.1 * exhaustive_errors(name, dtype).worst_floor
