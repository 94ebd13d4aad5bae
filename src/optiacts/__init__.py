"""Activation functions that keep their output, and at most one bit per element, for the backward pass."""

from optiacts.convert import Conversion, ConversionReport, convert, revert
from optiacts.functional import gelu, mish, quick_gelu, silu
from optiacts.memory import SavedMemory, SavedStorage, saved_memory
from optiacts.nn import GELU, Mish, QuickGELU, SiLU
from optiacts.report import report

__version__ = "0.1.0"

__all__ = [
    "GELU",
    "Conversion",
    "ConversionReport",
    "Mish",
    "QuickGELU",
    "SavedMemory",
    "SavedStorage",
    "SiLU",
    "convert",
    "gelu",
    "mish",
    "quick_gelu",
    "report",
    "revert",
    "saved_memory",
    "silu",
]
