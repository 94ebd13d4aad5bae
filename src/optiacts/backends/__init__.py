"""The backends: the same few operations on any device (eager), on CPU (native), on CUDA and ROCm (triton)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from optiacts.backends import (
    eager,
    eager_chain,
    eager_norm,
    native,
    native_chain,
    native_norm,
    triton,
    triton_chain,
    triton_norm,
)
from optiacts.chains import Chain, SavedChain
from optiacts.curves import Curve, get
from optiacts.layouts import Order
from optiacts.norms import Norm, Saved, Statistics


class Backend(Protocol):
    """What a backend module offers.

    ``order`` is the memory order of the dimensions (see ``optiacts.layouts``). ``bits`` are packed along the last
    dimension in that order (see ``optiacts.packing``). Backward gets its tensors permuted into it already. Forward
    does not: on the CPU PyTorch's GELU rounds differently by layout, and only on the layout given are its bits ours.
    """

    name: str
    dtypes: frozenset[torch.dtype]

    def serves(self, curve: Curve, dtype: torch.dtype) -> bool:
        """Whether it has kernels for ``curve`` in one of its dtypes."""

    def unavailable(self, device: torch.device) -> str | None:
        """Why the backend cannot serve ``device``, or None if it can."""

    def activation_forward(self, x: Tensor, curve: Curve, order: Order) -> tuple[Tensor, Tensor]:
        """The output and the packed side bits."""

    def activation_forward_(self, x: Tensor, curve: Curve, order: Order) -> Tensor:
        """Overwrites ``x`` with the output; the packed side bits."""

    def activation_backward(
        self, grad: Tensor, y: Tensor, bits: Tensor, curve: Curve, scale: float | None = None
    ) -> Tensor:
        """``grad`` * f'(x) from the output and the side bits.

        With a ``scale`` a dropout came after: where it kept the output, ``y`` is that times ``scale``; where not,
        ``y`` is 0 with the bit set, as infinitely far left, and the result is 0.
        """

    def gated_forward(
        self, gate: Tensor, up: Tensor, curve: Curve, order: Order = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h = act(gate) * up, the slot and the packed bits; docs/gated.md says what they hold.

        All are contiguous with their dimensions in ``order``, which h is then brought back from.
        """

    def gated_backward(
        self,
        grad: Tensor,
        h: Tensor,
        slot: Tensor,
        bits: Tensor,
        curve: Curve,
        grad_gate: Tensor,
        grad_up: Tensor,
        scale: float | None = None,
    ) -> None:
        """Writes the gradients into ``grad_gate`` and ``grad_up``, whose rows may be halves of longer ones.

        With a ``scale`` a dropout came after, and ``h`` is the product times it; where that is dropped, ``h`` and the
        slot are 0.
        """

    def pack_dropped(self, kept: Tensor) -> Tensor:
        """The packed bits of what a dropout did not keep, from the bools of what it kept."""

    def scale_kept(self, x: Tensor, dropped: Tensor, scale: float) -> Tensor:
        """``x * scale``, and ``x * 0`` where the packed bit is set: a dropout and its gradient."""


BACKENDS: tuple[Backend, ...] = (native, triton, eager)  # fastest first


def select(x: Tensor, curve: Curve) -> Backend:
    """The fastest backend that serves the device and dtype of ``x`` and has a kernel for ``curve``."""
    return _select(x.device, x.dtype, curve)


def select_for_dropout(x: Tensor) -> Backend:
    """The fastest backend that serves the device and dtype of ``x``, or of bools, by itself."""
    return _select(x.device, x.dtype, None)


@functools.cache
def _select(device: torch.device, dtype: torch.dtype, curve: Curve | None) -> Backend:
    fast: Backend = native if device.type == "cpu" else triton
    if curve is None:
        able = dtype in (*fast.dtypes, torch.bool)
    else:
        able = dtype in fast.dtypes and fast.serves(curve, dtype)
    return fast if able and fast.unavailable(device) is None else eager


class NormBackend(Protocol):
    """What a backend for norms offers: see ``optiacts.backends.eager_norm``."""

    name: str

    def norm_statistics(
        self,
        x: Tensor,
        y: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        norm: Norm,
        known: Statistics | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """mean and rstd of x, which may be ``known``, and the remainder bits of y if it has some."""

    def norm_backward(self, grad: Tensor, saved: Saved, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, in ``dtype``, of scale and of shift."""


def select_norm(kept: Tensor, other: Tensor) -> NormBackend:
    """The fastest backend that serves norms of these tensors: the input and the output, or what was kept and grad."""
    found = _select_norm(kept.device, kept.dtype, other.dtype)
    return found if found is not triton_norm or triton_norm.serves(kept.shape[-1]) else eager_norm


def any_bad(scale: Tensor | None, shift: Tensor | None, norm: Norm | Chain, dtype: torch.dtype) -> bool:
    """Whether ``norm.bad`` holds of any channel, on a device where a look at values waits for nothing."""
    given = scale if scale is not None else shift
    if given is None:
        return False
    native_serves = _select_norm(given.device, given.dtype) is native_norm
    return (native_norm if native_serves else eager_norm).any_bad(scale, shift, norm, dtype)


@functools.cache
def _select_norm(device: torch.device, *dtypes: torch.dtype) -> NormBackend:
    fast, kernels = (native, native_norm) if device.type == "cpu" else (triton, triton_norm)
    able = fast.dtypes.issuperset(dtypes) and fast.unavailable(device) is None
    return kernels if able else eager_norm


class ChainBackend(Protocol):
    """What a backend for chains offers: see ``optiacts.backends.eager_chain``."""

    name: str

    def forward(self, z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The activation's own output, and the packed side bits of ``rows(z)``."""

    def excess(self, z: Tensor, furthest: float) -> Tensor:
        """The sum of the squares of how far elements lie left of ``-furthest``."""

    def chain_backward(self, grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, in ``dtype``, of scale and of shift."""


def select_chain(tensor: Tensor, curve: Curve) -> ChainBackend:
    """The fastest backend that serves chains of ``tensor``, the activation's input or output."""
    return _select_chain(tensor.device, tensor.dtype, curve.name)


def has_chain_kernels(device: torch.device) -> bool:
    """Whether chains are as fast as PyTorch there. Elsewhere they take many small steps, which only who asks gets."""
    return device.type == "cpu" or triton.unavailable(device) is None


@functools.cache
def _select_chain(device: torch.device, dtype: torch.dtype, curve: str) -> ChainBackend:
    fast, kernels = (native, native_chain) if device.type == "cpu" else (triton, triton_chain)
    able = dtype in fast.dtypes and kernels.serves(get(curve)) and fast.unavailable(device) is None
    return kernels if able else eager_chain


__all__ = [
    "BACKENDS",
    "Backend",
    "ChainBackend",
    "NormBackend",
    "has_chain_kernels",
    "select",
    "select_chain",
    "select_for_dropout",
    "select_norm",
]
