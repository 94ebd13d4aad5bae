"""Activation functions that keep their output, and at most one bit per element, for the backward pass."""

from optiacts.doctor import Diagnosis, doctor
from optiacts.functional import gelu, mish, quick_gelu, silu
from optiacts.memory import SavedMemory, SavedStorage, saved_memory
from optiacts.nn import GELU, Mish, QuickGELU, SiLU

__version__ = "0.1.0"

__all__ = [
    "GELU",
    "Diagnosis",
    "Mish",
    "QuickGELU",
    "SavedMemory",
    "SavedStorage",
    "SiLU",
    "doctor",
    "gelu",
    "mish",
    "quick_gelu",
    "saved_memory",
    "silu",
]
