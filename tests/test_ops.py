"""The low-level ops reject what a backend could read out of bounds."""

import pytest
import torch

from optiacts import ops
from optiacts.packing import pack, packed_shape, unpack


def saved() -> tuple[torch.Tensor, torch.Tensor]:
    return ops.activation_forward(torch.randn(3, 20), "gelu", [])


@pytest.mark.parametrize(
    "wrong", [lambda b: b[:, :2], lambda b: b[:2], lambda b: b.int(), lambda b: b.flatten(), lambda b: b.bool()]
)
def test_mismatched_bits(wrong) -> None:  # type: ignore[no-untyped-def]
    y, bits = saved()
    with pytest.raises(ValueError, match=r"bits must be uint8 of shape \(3, 3\)"):
        ops.activation_backward(torch.ones_like(y), y, wrong(bits), "gelu", [])


def test_mismatched_grad() -> None:
    y, bits = saved()
    with pytest.raises(ValueError, match=r"grad must have the shape of y, \(3, 20\); got \(3, 19\)"):
        ops.activation_backward(torch.ones(3, 19), y, bits, "gelu", [])
    with pytest.raises(ValueError, match="one device"):
        ops.activation_backward(torch.ones(3, 20, device="meta"), y, bits, "gelu", [])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 17), (2, 0), (0, 5), (2, 3, 64)])
def test_bits_round_trip(shape: tuple[int, ...]) -> None:
    flags = torch.rand(shape) < 0.5
    packed = pack(flags)
    assert packed.dtype == torch.uint8 and packed.shape == packed_shape(shape)
    assert torch.equal(unpack(packed, flags.shape), flags)


def test_lowest_bit_comes_first_and_padding_is_zero() -> None:
    assert pack(torch.tensor([True, False, False, True, False, False, False, False, True])).tolist() == [9, 1]
