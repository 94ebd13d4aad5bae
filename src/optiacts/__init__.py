"""Activation functions that keep their output, and at most one bit per element, for the backward pass."""

from optiacts.conversion import Conversion, ConversionReport, convert, revert
from optiacts.curves import CurveError
from optiacts.doctor import Diagnosis, doctor
from optiacts.functional import activation, gelu, mish, quick_gelu, silu
from optiacts.functional_dropout import activation_dropout, dropout, gated_dropout
from optiacts.functional_gated import gated, geglu, reglu, swiglu
from optiacts.functional_norm import layer_norm, rms_norm
from optiacts.held.memory import SavedMemory, SavedStorage, saved_memory
from optiacts.nn import GELU, Mish, QuickGELU, SiLU
from optiacts.nn_dropout import ActivationDropout, Dropout, GatedDropout
from optiacts.nn_gated import GEGLU, ReGLU, SwiGLU
from optiacts.nn_norm import LayerNorm, RMSNorm
from optiacts.ops.norm_channels import UnseenChangeError, norm_weights_changed
from optiacts.overwritten import OverwrittenError
from optiacts.reporting import ReportError, report

__version__ = "0.1.0"

__all__ = [
    "GEGLU",
    "GELU",
    "ActivationDropout",
    "Conversion",
    "ConversionReport",
    "CurveError",
    "Diagnosis",
    "Dropout",
    "GatedDropout",
    "LayerNorm",
    "Mish",
    "OverwrittenError",
    "QuickGELU",
    "RMSNorm",
    "ReGLU",
    "ReportError",
    "SavedMemory",
    "SavedStorage",
    "SiLU",
    "SwiGLU",
    "UnseenChangeError",
    "activation",
    "activation_dropout",
    "convert",
    "doctor",
    "dropout",
    "gated",
    "gated_dropout",
    "geglu",
    "gelu",
    "layer_norm",
    "mish",
    "norm_weights_changed",
    "quick_gelu",
    "reglu",
    "report",
    "revert",
    "rms_norm",
    "saved_memory",
    "silu",
    "swiglu",
]
