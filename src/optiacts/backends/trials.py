"""The trials of activations, gated products and dropouts: see ``optiacts.backends.proof``.

Inputs are all 65,536 values of a 16-bit dtype, or some thousand float32 numbers (on a GPU 2^20, since a forward of
its own must be PyTorch's to the bit): of all exponents and of N(0, 3²), next to where branches meet and slopes jump,
both zeros, the infinities and NaN. All come in an even length and in rows of an odd one.

What is allowed follows from the accuracy contract (docs/accuracy.md). Backends read the same saved tensors, so two of
them differ by no more than their errors together. In 16 bits eager's error is the least that is possible, and another
backend's may be ``SLACK`` times that, at worst and in root mean square; each result is rounded once. In float32
either may err by ``FAR``, and by ``NEAR`` around the minimum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from optiacts.backends import eager
from optiacts.backends.proof import Claim
from optiacts.curves import Curve, Unimodal
from optiacts.decoders import valley
from optiacts.decoders.table import every_value, normal_mass
from optiacts.packing import pack, packed_shape, unpack_planes

SLACK = 1.3  # on the least possible error in 16 bits, of a GPU; a CPU has 1.1, and in fact eager's own bits
DROPPED = 1.6  # what a dropout behind an activation may make of the worst error
FAR, NEAR, NEIGHBOURHOOD = 2e-6, 1.2e-4, 0.1  # of f' in float32
PRODUCT = 1e-6  # of a gated product's float32 gradients
ROWS, COLUMNS = 31, 131  # odd ones
SCALE = 1 / (1 - 0.1)  # of a dropout
_ON_CPU, _ELSEWHERE = 1 << 12, 1 << 20  # float32 inputs


def activation(kernels: Any, curve: Curve, dtype: torch.dtype, device: torch.device) -> Iterator[Claim]:
    """The forward to the bit, also in place; the side bits; the gradient."""
    for x, shape in _shapes(inputs(curve, dtype, device)):
        expected_y, expected_bits = eager.activation_forward(x, curve, ())
        y, bits = kernels.activation_forward(x, curve, ())
        yield Claim(f"outputs of {shape}", same(y, expected_y))
        yield Claim(f"side bits of {shape}", (bits == expected_bits).all())
        overwritten, expected = x.clone(), x.clone()
        bits = kernels.activation_forward_(overwritten, curve, ())
        eager.activation_forward_(expected, curve, ())
        yield Claim(f"outputs in place of {shape}", same(overwritten, expected))
        yield Claim(f"side bits in place of {shape}", (bits == expected_bits).all())
        yield from _gradients(kernels, curve, x, expected_y, expected_bits, shape)


def dropped_activation(kernels: Any, curve: Curve, dtype: torch.dtype, device: torch.device) -> Iterator[Claim]:
    """The gradient behind a dropout."""
    for x, shape in _shapes(inputs(curve, dtype, device)):
        y, bits = eager.activation_forward(x, curve, ())
        dropped = drawn(x) < -1.0
        y = torch.where(dropped, 0.0, (y.float() * SCALE).to(dtype))
        if curve.decoder.side_bits:
            bits = bits | pack(dropped)
        yield from _gradients(kernels, curve, x, y, bits, shape, SCALE)


def _gradients(
    kernels: Any, curve: Curve, x: Tensor, y: Tensor, bits: Tensor, shape: str, scale: float | None = None
) -> Iterator[Claim]:
    exact, judged = slopes(curve, x)
    judged &= y.isfinite()  # a forward that has overflowed tells nothing
    size = exact.abs().clamp(min=1.0) * (scale or 1.0)
    one, some = torch.ones_like(x), drawn(x)
    ours, theirs = (b.activation_backward(one, y, bits, curve, scale) for b in (kernels, eager))
    if x.dtype is torch.float32:
        allowed = 2 * FAR * torch.ones_like(x)
        if _has_valley(curve):
            allowed = torch.where((x - curve.x_min).abs() <= NEIGHBOURHOOD, 2 * NEAR, allowed)
    else:
        allowed = (1 + SLACK) * _worst(theirs, exact, size, judged)
        if scale is None:
            share = torch.where(judged, normal_mass(x.cpu()).float().to(x.device), 0.0)
            errors = (torch.where(share > 0, slope.float() - exact, 0.0) for slope in (ours, theirs))
            squares = [(error * error * share).sum() for error in errors]
            share = share.sum()
            yield Claim(f"mean error of gradients of {shape}", squares[0] <= SLACK**2 * squares[1] + 1e-12 * share)
    allowed = (allowed + torch.finfo(x.dtype).eps) * size
    yield Claim(f"gradients of {shape}", _agree(ours, theirs, allowed, judged))
    ours, theirs = (b.activation_backward(some, y, bits, curve, scale) for b in (kernels, eager))
    yield Claim(f"gradients of {shape}", _agree(ours, theirs, allowed * some.float().abs(), judged))


def gated(
    kernels: Any, curve: Curve, dtype: torch.dtype, device: torch.device, scale: float | None = None
) -> Iterator[Claim]:
    """The product to the bit; slot and bits; both gradients. Of tensors, and of halves of odd rows."""
    every = inputs(curve, dtype, device)
    error = _slope_error(curve, every)
    factors = torch.where(drawn(every) < 0.0, torch.ones_like(every), drawn(every, seed=3))
    corners = _corners(dtype, device)
    for (gate, up), shape in (
        ((every, factors), "an even length"),
        (_halves(every, factors), "an odd length"),
        (_halves(every, factors, columns=128), "halves of rows"),
        (corners, "zeros, infinities and NaN"),
    ):
        theirs = eager.gated_forward(gate, up, curve)
        if scale is None:
            s, ours = curve.forward(gate), kernels.gated_forward(gate, up, curve)
            yield Claim(f"products of {shape}", same(ours[0], s * up))
            # where act(gate) is 0 backends may keep either factor; what comes back tells whether that was right
            yield Claim(
                f"slots of {shape}", same(torch.where(s == 0, 0.0, ours[1]), torch.where(s == 0, 0.0, theirs[1]))
            )
            *sides, holds_up = _planes(ours[2], curve, gate)
            *due_sides, due_holds_up = _planes(theirs[2], curve, gate)
            agree = [(a == b).all() for a, b in zip(sides, due_sides, strict=True)]
            agree.append(((holds_up == due_holds_up) | (s == 0)).all())
            yield Claim(f"bits of {shape}", torch.stack(agree).all())
        else:
            ours = theirs = _dropped(theirs, gate, scale)
        yield from _product_gradients(kernels, curve, (gate, up), (ours, theirs), error, shape, scale)


Saved = tuple[Tensor, Tensor, Tensor]  # of a gated product: h, slot and bits


def _planes(bits: Tensor, curve: Curve, gate: Tensor) -> tuple[Tensor, ...]:
    return unpack_planes(bits, gate.shape, curve.decoder.side_bits + 1)


def _dropped(saved: Saved, gate: Tensor, scale: float) -> Saved:
    """The same behind a dropout: see ``optiacts.ops.dropout``."""
    h, slot, bits = saved
    dropped = drawn(gate, seed=4) < -1.0
    bits = bits.clone()
    bits[..., -packed_shape(gate.shape)[-1] :] |= pack(dropped)
    return torch.where(dropped, 0.0, (h.float() * scale).to(h.dtype)), torch.where(dropped, 0.0, slot), bits


def _product_gradients(
    kernels: Any,
    curve: Curve,
    factors: tuple[Tensor, Tensor],
    saved: tuple[Saved, Saved],
    error: Tensor,
    shape: str,
    scale: float | None,
) -> Iterator[Claim]:
    gate, up = factors
    exact, judged = slopes(curve, gate)
    kind = saved[0][0].dtype  # kernels read by address: a forward that widens has wider gradients too
    grad = drawn(gate, seed=5).to(kind)
    found = []
    for backend, kept in zip((kernels, eager), saved, strict=True):
        into = torch.empty((*gate.shape[:-1], 2 * gate.shape[-1]), dtype=kind, device=gate.device)
        by_gate, by_up = into.chunk(2, dim=-1)
        backend.gated_backward(grad, *kept, curve, by_gate, by_up, scale)
        found.append((by_gate, by_up))
    (by_gate, by_up), (expected_gate, expected_up) = found
    relative = 2 * PRODUCT if gate.dtype is torch.float32 else 2 * torch.finfo(gate.dtype).eps
    grad = grad.float().abs() * (scale or 1.0)
    allowed = (error * (DROPPED if scale else 1.0) * exact.abs().clamp_(min=1.0)) * grad * up.float().abs()
    allowed = allowed + relative * expected_gate.float().abs()
    # what has overflowed tells no gate, and a slope next to 0 times an infinity may be anything
    overflown = ~by_gate.isfinite() & ~expected_gate.isfinite()
    good = close(by_gate, expected_gate, allowed) | overflown | ~judged
    yield Claim(f"gradients of the gate, {shape}", good.all())
    # about the minimum, act(gate) comes from polynomials over the valley, which is never narrower than 1e-3
    least = max(abs(curve.y_min), 1e-3) if curve.decoder.side_bits else 0.0
    allowed = relative * torch.maximum(expected_up.float().abs(), grad * least)
    yield Claim(f"gradients of the other factor, {shape}", (close(by_up, expected_up, allowed) | ~judged).all())


def dropout(kernels: Any, dtype: torch.dtype, device: torch.device) -> Iterator[Claim]:
    """The packed bits of what was dropped, and what they scale."""
    values = torch.ones(1 << 12) if dtype is torch.bool else _common(dtype)
    for x, shape in _shapes(values.to(device)):
        kept = drawn(x.float()) > -1.0
        bits = eager.pack_dropped(kept)
        yield Claim(f"bits of {shape}", (kernels.pack_dropped(kept) == bits).all())
        if dtype is not torch.bool:
            ours, theirs = (b.scale_kept(x, bits, SCALE) for b in (kernels, eager))
            yield Claim(
                f"results of {shape}", close(ours, theirs, torch.finfo(dtype).eps * theirs.float().abs()).all()
            )


# Inputs


def inputs(curve: Curve, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a curve is tried on, in an order that mixes all kinds: one dimension, of a multiple of 64."""
    x = _common(dtype, _ON_CPU if device.type == "cpu" else _ELSEWHERE)
    if dtype is torch.float32:
        edges = [0.0, *curve.kinks]
        if curve.decoder.side_bits:
            edges += [curve.x_min, *valley.borders(curve, dtype)]
        edges += [curve.decoder.ends] if isinstance(curve.decoder, Unimodal) and curve.decoder.ends else []
        at = torch.tensor(edges, dtype=torch.float64).unsqueeze(-1)
        steps = torch.linspace(-1, 1, 65, dtype=torch.float64)
        around = torch.cat([at + NEIGHBOURHOOD * steps, at * (1 + 1e-7 * steps), at.expand(-1, 65)])
        x = torch.cat([x, around.float().flatten()])
    x = torch.cat([x, torch.zeros(-len(x) % 64, dtype=dtype)])
    return x[torch.randperm(len(x), generator=generator(1))].to(device)


def _common(dtype: torch.dtype, count: int = _ON_CPU) -> Tensor:
    """All values of a 16-bit dtype; of float32, ``count`` of all exponents, and others."""
    if dtype is not torch.float32:
        return every_value(dtype)
    patterns = torch.arange(-(2**31), 2**31, 2**32 // count, dtype=torch.int64) + 1365  # odd: full mantissas
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -1.0])
    normal = 3 * torch.randn(1 << 11, generator=generator(2), dtype=torch.float32)
    return torch.cat([patterns.to(torch.int32).view(torch.float32), special.float(), normal])


def _shapes(x: Tensor) -> Iterator[tuple[Tensor, str]]:
    yield x, "an even length"
    yield x[: ROWS * COLUMNS].view(ROWS, COLUMNS), "an odd length"


def _halves(gate: Tensor, up: Tensor, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """Rows side by side in one tensor."""
    both = torch.cat([t[: ROWS * columns].view(ROWS, columns) for t in (gate, up)], dim=-1)
    gate, up = both.chunk(2, dim=-1)
    return gate, up


def _corners(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    numbers = [0.0, -0.0, 1e-30, -1e-6, 0.5, -0.75, -40, 300, 6e4, torch.nan, 3e38, -3e38, torch.inf]
    corners = torch.tensor(numbers, dtype=torch.float32)
    gates = corners[:10]  # beyond, PyTorch's own GELU differs by device
    grid = torch.cartesian_prod(gates, corners).to(dtype).to(device)
    return grid[:, 0].contiguous(), grid[:, 1].contiguous()


def normal(shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    """float32 of N(0, 1), the same on every device."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float32).to(device)


def drawn(like: Tensor, seed: int = 2) -> Tensor:
    """The same, with shape, dtype and device of ``like``."""
    return normal(tuple(like.shape), like.device, seed).to(like.dtype)


def generator(seed: int) -> torch.Generator:
    """Not PyTorch's own, whose state is the user's."""
    return torch.Generator().manual_seed(seed)


# What is allowed


def slopes(curve: Curve, x: Tensor) -> tuple[Tensor, Tensor]:
    """f'(x), float32, and where it is judged: not where x is rounded to where the slope jumps."""
    wide = x.cpu().double()  # where every device can compute in float64
    judged = wide.isfinite()
    for kink in curve.kinks:
        judged &= (wide - kink).abs() > abs(kink) * torch.finfo(x.dtype).eps
    exact = curve.derivative(wide, torch).float().nan_to_num_(1.0, 1.0, 1.0)
    return exact.to(x.device), judged.to(x.device)


def _worst(slope: Tensor, exact: Tensor, size: Tensor, judged: Tensor) -> Tensor:
    """The largest error of f', in units of it where it is above 1."""
    return torch.where(judged, (slope.float() - exact).abs() / size, 0.0).max()


def _slope_error(curve: Curve, x: Tensor) -> Tensor:
    """By how much two backends may differ in f' of an output, in units of it where it is above 1."""
    if x.dtype is torch.float32:
        return torch.tensor(2 * FAR, device=x.device)
    y, bits = eager.activation_forward(x, curve, ())
    exact, judged = slopes(curve, x)
    slope = eager.activation_backward(torch.ones_like(x), y, bits, curve)
    return (1 + SLACK) * _worst(slope, exact, exact.abs().clamp(min=1.0), judged & y.isfinite())


def _has_valley(curve: Curve) -> bool:
    return bool(curve.decoder.side_bits) and curve.y_min != 0


# Comparing


def same(ours: Tensor, theirs: Tensor) -> Tensor:
    """Equal to the bit, but for what is in a NaN."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return torch.tensor(False, device=theirs.device)
    integer = torch.int16 if ours.dtype.itemsize == 2 else torch.int32
    equal = ours.contiguous().view(integer) == theirs.contiguous().view(integer)
    return (equal | (ours.isnan() & theirs.isnan())).all()


def _agree(ours: Tensor, theirs: Tensor, allowed: Tensor, judged: Tensor) -> Tensor:
    """Close where they are judged; elsewhere NaN for NaN."""
    return torch.where(judged, close(ours, theirs, allowed), ours.isnan() == theirs.isnan()).all()


def close(ours: Tensor, theirs: Tensor, allowed: Tensor) -> Tensor:
    """Where (bool) they differ by no more than ``allowed``; next to the largest number one may be infinite."""
    a, b = ours.float(), theirs.float()
    huge = torch.finfo(ours.dtype).max / 2
    overflows = (a.abs() > huge) & (b.abs() > huge) & (a.sign() == b.sign())
    return (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= allowed) | overflows
