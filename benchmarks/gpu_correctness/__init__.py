"""The checks of `make gpu-check`. Each returns what it measured, or raises ``BrokenPromiseError`` with it.

In a dry run they go through Triton's interpreter on a CPU, where elementary functions are numpy's: outputs then
only nearly equal PyTorch's, and what needs a GPU is skipped.
"""

from __future__ import annotations

from .activations import (
    autograd,
    beyond_32_bits,
    decode_16_bit,
    decode_float32,
    forward_is_exact,
    forward_is_pytorchs,
    layouts,
)
from .chains import chains, chains_are_exact, chains_lose_alike
from .closed_forms import closed_forms
from .common import BrokenPromiseError
from .device import graph_capture, no_synchronisation, other_device, streams
from .dropouts import dropout_draws_as_pytorch, dropout_kernels
from .gated import gated
from .models import conversion
from .norms import norms, norms_are_exact_or_an_error, norms_compiled
from .proof import first_use_proof

CHECKS = (
    first_use_proof,
    forward_is_pytorchs,
    forward_is_exact,
    decode_16_bit,
    decode_float32,
    layouts,
    gated,
    closed_forms,
    norms,
    norms_are_exact_or_an_error,
    norms_compiled,
    chains,
    chains_are_exact,
    chains_lose_alike,
    dropout_kernels,
    dropout_draws_as_pytorch,
    beyond_32_bits,
    autograd,
    conversion,
    graph_capture,
    streams,
    other_device,
    no_synchronisation,
)

__all__ = ["CHECKS", "BrokenPromiseError"]
