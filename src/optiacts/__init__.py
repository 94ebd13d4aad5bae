"""Activation functions that keep their output, and at most one bit per element, for the backward pass."""

from optiacts.functional import gelu, mish, quick_gelu, silu
from optiacts.functional_gated import gated, geglu, reglu, swiglu
from optiacts.memory import SavedMemory, SavedStorage, saved_memory
from optiacts.nn import GELU, Mish, QuickGELU, SiLU
from optiacts.nn_gated import GEGLU, ReGLU, SwiGLU

__version__ = "0.1.0"

__all__ = [
    "GEGLU",
    "GELU",
    "Mish",
    "QuickGELU",
    "ReGLU",
    "SavedMemory",
    "SavedStorage",
    "SiLU",
    "SwiGLU",
    "gated",
    "geglu",
    "gelu",
    "mish",
    "quick_gelu",
    "reglu",
    "saved_memory",
    "silu",
    "swiglu",
]
