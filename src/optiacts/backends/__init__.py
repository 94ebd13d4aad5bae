"""The backends: the same few operations on any device (eager), on CPU (native), on GPUs (triton; traced if compiled).

The functions called ``select...`` return the module that serves, chosen at the first use of a kind of kernel:
``selection`` says how, ``proof`` what has to be shown before. Those called ``traced...`` stand for them where a
compiler traces an op on a GPU, and raise ``NotTracedError`` where it shall stay an op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from optiacts import recording
from optiacts._torch import known_to_compilers
from optiacts.backends import (
    eager,
    eager_chain,
    eager_norm,
    native,
    native_chain,
    native_copies,
    native_forward,
    native_norm,
    selection,
    traced,
    traced_chain,
    traced_norm,
    trials,
    trials_chain,
    trials_norm,
    triton,
    triton_chain,
    triton_norm,
)
from optiacts.backends.selection import Family, NotTracedError, choose, chosen
from optiacts.chains import Chain, SavedChain
from optiacts.curves import Curve, get
from optiacts.layouts import Order
from optiacts.norms import Norm, Saved, Statistics

recording.substitutes.update(native_copies.SUBSTITUTES)


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
_ACTIVATIONS = Family(eager=eager, native=native, triton=triton)
_NORMS = Family(eager=eager_norm, native=native_norm, triton=triton_norm)
_CHAINS = Family(eager=eager_chain, native=native_chain, triton=triton_chain)


def select(x: Tensor, curve: Curve, scaled: bool = False) -> Backend:
    """The fastest backend for the activation ``curve`` of tensors like ``x``; ``scaled``: behind it is a dropout."""
    kind = (x.device, x.dtype, curve, scaled)
    return chosen.get(kind) or _for_curve(kind, x, curve, scaled, "activation")


def select_gated(x: Tensor, curve: Curve, scaled: bool = False) -> Backend:
    """The same for gated products."""
    kind = ("gated", x.device, x.dtype, curve, scaled)
    return chosen.get(kind) or _for_curve(kind, x, curve, scaled, "gated product")


def _for_curve(kind: tuple[Any, ...], x: Tensor, curve: Curve, scaled: bool, what: str) -> Any:
    of = (curve, x.dtype, x.device)

    def trial(kernels: Any) -> Any:
        if what == "gated product":
            return trials.gated(kernels, *of, trials.SCALE if scaled else None)
        return (trials.dropped_activation if scaled else trials.activation)(kernels, *of)

    return choose(
        kind,
        f"{curve.name}, {what}{' with dropout' if scaled else ''}, {_name(x.dtype)}",
        x,
        _ACTIVATIONS,
        lambda fast, _: x.dtype in fast.dtypes and fast.serves(curve, x.dtype),
        trial,
        lambda kernels: _unfuse(kernels, curve, x),
    )


def traced_activation(x: Tensor, curve: Curve, scaled: bool = False) -> Any:
    """That for ``select`` and ``select_gated``."""
    _traced(x.dtype)
    if not traced.serves(curve, x.dtype):
        raise NotTracedError
    return traced


def _traced(*dtypes: torch.dtype) -> None:
    if not traced.dtypes.issuperset(dtypes):
        raise NotTracedError


def select_for_dropout(x: Tensor) -> Backend:
    """The fastest backend for dropouts of tensors like ``x``, or for the bools of what one kept."""
    kind = ("dropout", x.device, x.dtype)
    return chosen.get(kind) or choose(
        kind,
        f"dropout, {_name(x.dtype)}",
        x,
        _ACTIVATIONS,
        lambda fast, _: x.dtype in (*fast.dtypes, torch.bool),
        lambda kernels: trials.dropout(kernels, x.dtype, x.device),
    )


def traced_dropout(x: Tensor) -> Any:
    """That for ``select_for_dropout``."""
    return traced


def _name(*dtypes: torch.dtype) -> str:
    return " and ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))


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

    def norm_backward(
        self, grad: Tensor, saved: Saved, dtype: torch.dtype, of_factors: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, in ``dtype``, of scale and of shift, in ``of_factors`` or the precision of arithmetic.

        The last is anything if there is a scale and no shift.
        """


def select_layer_norm(x: Tensor) -> Any:
    """The backend for the forward of LayerNorms of tensors like ``x``, which is PyTorch's own to the bit."""
    kind = ("layer_norm", x.device, x.dtype)
    return chosen.get(kind) or choose(
        kind,
        f"layer norms, forward, {_name(x.dtype)}",
        x,
        _NORMS,
        lambda fast, _: fast is native and x.dtype in fast.dtypes,
        lambda kernels: trials_norm.layer_norm(kernels, x.dtype, x.device),
        lambda _: native_norm.unfuse(x.dtype),
    )


def select_norm_statistics(x: Tensor, y: Tensor, norm: Norm) -> NormBackend:
    """The fastest backend for the statistics of norms like ``norm``, with these tensors."""
    tile = _tile(x.shape[-1])
    kind = ("statistics", x.device, x.dtype, y.dtype, tile, norm.centered, norm.remainder)
    return chosen.get(kind) or choose(
        kind,
        f"statistics of norms, up to {tile} channels, {_name(x.dtype, y.dtype)}",
        x,
        _NORMS,
        lambda fast, kernels: fast.dtypes >= {x.dtype, y.dtype} and kernels.serves(tile),
        lambda kernels: trials_norm.statistics(
            kernels, Norm(norm.centered, 1e-5, remainder=norm.remainder), x.dtype, y.dtype, tile, x.device
        ),
    )


def select_norm_backward(grad: Tensor, saved: Saved, dtype: torch.dtype, guarded: bool = False) -> Any:
    """The fastest backend for the gradients of norms that keep what ``saved`` has.

    ``guarded``: one that ``GUARDS`` the weight and the bias in passing, if there is such a one; else eager's.
    """
    kept = saved.kept
    tile = _tile(kept.shape[-1])
    kind = (
        *("norm", kept.device, kept.dtype, grad.dtype, dtype, tile, saved.centered, saved.output),
        *(saved.mean is None, saved.scale is None, saved.shift is None, saved.columns is None, saved.bits is None),
        guarded,
    )
    return chosen.get(kind) or choose(
        kind,
        f"gradients of norms, up to {tile} channels, {_name(kept.dtype, grad.dtype, dtype)}",
        kept,
        _NORMS,
        lambda fast, kernels: (
            fast.dtypes >= {kept.dtype, grad.dtype, dtype}
            and kernels.serves(tile)
            and (kernels.GUARDS or not guarded)
        ),
        lambda kernels: trials_norm.backward(kernels, saved, grad.dtype, dtype, tile, kept.device, guarded),
    )


def traced_norm_statistics(x: Tensor, y: Tensor, norm: Norm) -> NormBackend:
    """That for ``select_norm_statistics``."""
    _traced(x.dtype, y.dtype)
    return traced_norm


def traced_norm_backward(grad: Tensor, saved: Saved, dtype: torch.dtype) -> NormBackend:
    """That for ``select_norm_backward``."""
    _traced(saved.kept.dtype, grad.dtype, dtype)
    return traced_norm


def _tile(channels: int) -> int:
    """The power of 2 that holds them: what kernels are compiled for."""
    return 1 << max(4, (channels - 1).bit_length())


def any_bad(scale: Tensor | None, shift: Tensor | None, norm: Norm | Chain, dtype: torch.dtype) -> bool:
    """Whether ``norm.bad`` holds of any channel, on a device where a look at values waits for nothing."""
    given = scale if scale is not None else shift
    if given is None:
        return False
    if given.device.type != "cpu":
        return eager_norm.any_bad(scale, shift, norm, dtype)
    kind = ("bad", given.dtype)
    kernels = chosen.get(kind) or choose(
        kind,
        "looks at weights",
        given,
        _NORMS,
        lambda fast, _: fast is native and given.dtype in fast.dtypes,
        lambda kernels: trials_norm.any_bad(kernels, given.device),
    )
    return bool(kernels.any_bad(scale, shift, norm, dtype))


def select_guard(kind: Any, *given: Tensor | None) -> Any:
    """The fastest backend that guards norms or chains like ``kind``: see ``eager_norm.guarded``.

    ``given``: scale, shift, the rescued channels and what is lost, as far as they are there.
    """
    factor = given[0] if given[0] is not None else given[1]
    assert factor is not None
    if factor.device.type == "cpu" or factor.dtype is not torch.float32 or not hasattr(kind, "bounds"):
        return eager_norm
    there = tuple(tensor is not None for tensor in given)
    key = ("guard", factor.device, there)
    return chosen.get(key) or choose(
        key,
        "guards of weights",
        factor,
        _NORMS,
        lambda fast, _: fast is triton,
        lambda kernels: trials_norm.guarded(kernels, there, factor.device),
    )


class ChainBackend(Protocol):
    """What a backend for chains offers: see ``optiacts.backends.eager_chain``."""

    name: str

    def forward(self, z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The activation's own output, and the packed side bits of ``rows(z)``."""

    def forward_(self, z: Tensor, curve: Curve, rows: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The same, where the output may take the place of z."""

    def side_bits(self, rows: Tensor, curve: Curve) -> Tensor:
        """The packed side bits of the activation's input alone."""

    def excess(self, z: Tensor, furthest: float) -> Tensor:
        """The sum of the squares of how far elements lie left of ``-furthest``."""

    def statistics(self, rows: Tensor, kind: Chain, last: bool) -> tuple[Tensor, Tensor]:
        """mean and rstd of what ``rows`` made, on a CPU: see ``Chain.taken``."""

    def chain_backward(self, grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, in ``dtype``, of scale and of shift."""


def select_chain(z: Tensor, curve: Curve) -> ChainBackend:
    """The fastest backend for the forward of chains that end in ``curve``."""
    kind = ("chain", z.device, z.dtype, curve)
    return chosen.get(kind) or choose(
        kind,
        f"{curve.name}, forward after a norm, {_name(z.dtype)}",
        z,
        _CHAINS,
        lambda fast, kernels: z.dtype in fast.dtypes and kernels.serves(curve),
        lambda kernels: trials_chain.forward(kernels, curve, z.dtype, z.device),
        lambda kernels: _unfuse(kernels, curve, z),
    )


def _unfuse(kernels: Any, curve: Curve, x: Tensor) -> bool:
    """Leaves an activation's forward to PyTorch's op; False if it was already."""
    if kernels in (native, native_chain):
        return native_forward.unfuse(curve, x.dtype)
    return kernels in (triton, triton_chain) and triton.unfuse(curve, x.dtype, x.device)


def select_chain_statistics(rows: Tensor, kind: Chain, last: bool) -> ChainBackend:
    """The fastest backend for the statistics of what lies apart in memory, on a CPU."""
    of = ("chain statistics", rows.device, rows.dtype, kind.statistics, kind.centered, last)
    return chosen.get(of) or choose(
        of,
        f"statistics of {kind.statistics}, {_name(rows.dtype)}",
        rows,
        _CHAINS,
        lambda fast, _: fast is native and rows.dtype in fast.dtypes,
        lambda kernels: trials_chain.statistics(kernels, kind, rows.dtype, last, rows.device),
    )


def select_chain_backward(grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> ChainBackend:
    """The fastest backend for the gradients of chains that keep what ``saved`` has."""
    y = saved.y
    kind = (
        *("chain", y.device, y.dtype, grad.dtype, dtype, saved.curve, saved.statistics, saved.centered, saved.last),
        *(saved.last and y.shape[1] == 1, saved.mean is None, saved.columns is None),
    )
    return chosen.get(kind) or choose(
        kind,
        f"{saved.curve}, gradients after a norm of {saved.statistics}, {_name(y.dtype, grad.dtype, dtype)}",
        y,
        _CHAINS,
        lambda fast, kernels: fast.dtypes >= {y.dtype, grad.dtype, dtype} and kernels.serves(get(saved.curve)),
        lambda kernels: trials_chain.backward(kernels, saved, grad.dtype, dtype, y.device),
    )


def traced_chain_backward(grad: Tensor, saved: SavedChain, dtype: torch.dtype) -> Any:
    """That for ``select_chain_backward``."""
    _traced(saved.y.dtype, grad.dtype, dtype)
    if not traced.serves(get(saved.curve), saved.y.dtype):
        raise NotTracedError
    return traced_chain


@known_to_compilers
def has_chain_kernels(device: torch.device) -> bool:
    """Whether chains are as fast as PyTorch there. Elsewhere they take many small steps, which only who asks gets."""
    return device.type == "cpu" or selection.fast(device) is triton


__all__ = [
    "BACKENDS",
    "Backend",
    "ChainBackend",
    "NormBackend",
    "NotTracedError",
    "has_chain_kernels",
    "select",
    "select_chain",
    "select_chain_backward",
    "select_chain_statistics",
    "select_for_dropout",
    "select_gated",
    "select_guard",
    "select_layer_norm",
    "select_norm_backward",
    "select_norm_statistics",
    "traced_activation",
    "traced_chain_backward",
    "traced_dropout",
    "traced_norm_backward",
    "traced_norm_statistics",
]
