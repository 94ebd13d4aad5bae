"""What the tests of the CPU kernels share: curves, dtypes, instruction sets, and equality to the bit."""

import pytest
import torch

from optiacts import curves
from optiacts.backends import native, native_library
from optiacts.decoders.lines import decode_in_lines
from optiacts.decoders.registers import decode_in_registers

CPU = torch.device("cpu")
if native.unavailable(CPU):
    pytest.skip(f"no native kernels here: {native.unavailable(CPU)}", allow_module_level=True)

LEVELS = native_library.LEVELS[: native_library.LEVELS.index(native_library.best_level()) + 1]
CURVES = list(curves.unimodal().values())
HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALVES)
named = {"ids": lambda value: getattr(value, "name", None) or str(value).removeprefix("torch.")}


def decode_float32(y: torch.Tensor, left: torch.Tensor, curve: curves.Curve, level: str) -> torch.Tensor:
    """f' from the coefficients that the kernels of this instruction set read, in plain torch."""
    return (decode_in_registers if level == "avx512" else decode_in_lines)(y, left, curve)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, but for the payload of NaNs."""
    integer = torch.int16 if a.dtype.itemsize == 2 else torch.int32
    numbers = ~a.isnan()
    return torch.equal(numbers, ~b.isnan()) and torch.equal(a[numbers].view(integer), b[numbers].view(integer))
