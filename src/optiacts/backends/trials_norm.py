"""The trials of norms: see ``optiacts.backends.proof``.

Statistics and gradients are sums in float32 over a row, or over rows, of which two backends may differ by ``SUMS``
in the Euclidean norm, and by one rounding of what is returned in 16 bits. Rows are of a whole tile (a power of 2) and
of an odd length in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from optiacts.backends import eager_norm
from optiacts.backends.proof import Claim
from optiacts.backends.trials import normal, same
from optiacts.chains import Chain
from optiacts.norms import Guard, Norm, Saved

SUMS = 2e-6  # 16 float32 roundings of either backend: of pairs of pairs, as long as the longest rows are
QUARTER = 4.0  # roundings of float32 that an unrounded output may be off when its quarter is told


def layer_norm(kernels: Any, dtype: torch.dtype, device: torch.device) -> Iterator[Claim]:
    """Outputs, means and rstds to the bit: of a few vectors, and of more than are added up in one go."""
    for width in _WHOLE_VECTORS:
        x = (2 + 3 * normal((19, width), device, 2)).to(dtype)
        for row, number in enumerate((0.0, 1e4, torch.inf, torch.nan)):
            x[row, : width // (row + 1)] = number
        weight, bias = 1 + 0.2 * normal((width,), device, 3), 0.2 * normal((width,), device, 4)
        given = x, (width,), weight, bias, 1e-5
        for what, *found in zip(
            ("outputs", "means", "rstds"), kernels.layer_norm(*given), eager_norm.layer_norm(*given), strict=True
        ):
            yield Claim(f"{what} of layer norms of {width}", same(*found))


_WHOLE_VECTORS = 16, 144, 272, 1024, 1296, 8208


def statistics(
    kernels: Any, norm: Norm, dtype: torch.dtype, y_dtype: torch.dtype, columns: int, device: torch.device
) -> Iterator[Claim]:
    """mean and rstd; the remainder bits, also where the statistics are known."""
    for width in _widths(columns):
        x, y, scale, shift = _data(norm, dtype, y_dtype, width, device)
        mean, rstd, _ = eager_norm.norm_statistics(x, y, scale, shift, norm)
        for known in (None, (mean, rstd)):
            found = kernels.norm_statistics(x, y, scale, shift, norm, known)
            yield Claim(f"rstd of {width}", near(found[1], rstd, SUMS))
            yield Claim(f"mean of {width}", ((found[0] - mean).abs() * rstd <= SUMS * (1 + mean.abs() * rstd)).all())
            if norm.remainder and y_dtype.itemsize == 2:
                yield Claim(f"remainder bits of {width}", _tell_quarters(found[2], x, y, scale, shift, norm))


def backward(
    kernels: Any,
    of: Saved,
    grad_dtype: torch.dtype,
    dtype: torch.dtype,
    columns: int,
    device: torch.device,
    guarded: bool = False,
) -> Iterator[Claim]:
    """The gradients from what is kept as in ``of``: the output or the input, with the same extras.

    ``guarded``: with a ``Guard``, which changes nothing but where it has to.
    """
    kind = Norm(of.centered, 1e-5, remainder=of.bits is not None)
    for width in _widths(columns):
        x, y, scale, shift = _data(kind, of.kept.dtype, of.kept.dtype, width, device)
        mean, rstd, bits = eager_norm.norm_statistics(x, y, scale, shift, kind)
        chosen = None if of.columns is None else torch.tensor([1, width - 1], device=device)
        rescued = None if chosen is None else x.index_select(-1, chosen)
        saved = Saved(
            y if of.output else x, None if of.mean is None else mean, rstd, None if of.scale is None else scale,
            None if of.shift is None else shift, chosen, rescued, bits, of.centered, of.output,
        )  # fmt: skip
        grad = normal(tuple(x.shape), device, 5).to(grad_dtype)
        rounding = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
        poisoned = torch.zeros((), dtype=torch.bool, device=device)
        guard = Guard(poisoned, kind.bounds(of.kept.dtype, width))
        for of_factors, once in ((None, 0.0), (dtype, rounding)):
            theirs = eager_norm.norm_backward(grad, saved, dtype, of_factors)
            ours = kernels.norm_backward(grad, saved, dtype, of_factors, *([guard] if guarded else []))
            yield Claim(f"gradients of inputs of {width}", near(ours[0], theirs[0], SUMS + rounding))
            yield Claim(f"gradients of weights of {width}", near(ours[1], theirs[1], SUMS + once))
            if of.shift is not None or of.scale is None:
                yield Claim(f"gradients of biases of {width}", near(ours[2], theirs[2], SUMS + once))
        if guarded:
            yield Claim(f"no channel of {width} is bad", ~poisoned)
            yield from _poisoned(kernels, grad, saved, dtype, guard)


def _poisoned(kernels: Any, grad: Tensor, saved: Saved, dtype: torch.dtype, guard: Guard) -> Iterator[Claim]:
    """What a ``Guard`` does of a bad channel that nobody rescued, be it the first, and of one that is rescued."""
    width = grad.shape[-1]
    for place in (0, width - 2, *([] if saved.columns is None else [width - 1])):
        factors = [None if factor is None else factor.clone() for factor in (saved.scale, saved.shift)]
        for factor, number in zip(factors, (0.0, 1e6), strict=True):
            if factor is not None:
                factor[place] = number
                break
        poisoned = torch.zeros_like(guard.poisoned)
        given = saved._replace(scale=factors[0], shift=factors[1])
        dx, by_scale, _ = kernels.norm_backward(grad, given, dtype, None, Guard(poisoned, guard.bounds))
        if place == width - 1:
            yield Claim(f"what is rescued of {width} channels is not bad", ~poisoned & ~dx.isnan().any())
        else:
            by_scale = by_scale if saved.columns is None else by_scale.index_fill(0, saved.columns, torch.nan)
            yield Claim(f"what is bad of {width} channels", poisoned & dx.isnan().all() & by_scale.isnan().all())


def any_bad(kernels: Any, device: torch.device) -> Iterator[Claim]:
    """Whether a weight or a bias is found that an output does not tell."""
    norm = Norm(centered=True, eps=1e-5)
    for width in (16, 37):
        fine = 1 + 0.1 * normal((width,), device, 6)
        for worse in (1.0, 0.0, 1e-39, 1e38, torch.nan):
            scale = fine.clone()
            scale[width - 1] = worse
            for shift in (None, 0.1 * fine, 9 * scale):
                ours, theirs = (b.any_bad(scale, shift, norm, torch.float32) for b in (kernels, eager_norm))
                yield Claim(f"which weights of {width} are bad", torch.tensor(ours == theirs, device=device))


def guarded(kernels: Any, given: tuple[bool, ...], device: torch.device) -> Iterator[Claim]:
    """What is poisoned, and by what: a weight or a bias that an output does not tell, unless rescued; what is lost.

    ``given``: whether there are a scale, a shift, rescued channels, something lost.
    """
    kinds: tuple[Norm | Chain, ...] = (Norm(True, 1e-5), Chain("BatchNorm", "silu", "batch", 1e-5))
    some = torch.tensor([False, True], device=device)
    for width, place in ((37, 36), (5000, 4321)):
        fine, of = 1 + 0.1 * normal((width,), device, 6), torch.tensor([3, place], device=device)
        for number in (1.0, 0.0, 1e-39, 30.0, 1e38, torch.nan):
            other = fine.clone()
            other[place] = number
            for norm, (scale, shift), lost in itertools.product(kinds, ((other, 0.1 * fine), (fine, other)), some):
                found = []
                for backend in (kernels, eager_norm):
                    copies = scale.clone(), shift.clone(), of, lost
                    arguments = [t if there else None for t, there in zip(copies, given, strict=True)]
                    poisoned = torch.zeros((), dtype=torch.bool, device=device)
                    factors = backend.guarded(*arguments[:3], norm, torch.float32, poisoned, arguments[3])
                    found.append((poisoned, [factor for factor in factors if factor is not None]))
                (ours, mine), (theirs, due) = found
                yield Claim(f"what is bad of {width} channels", ours == theirs)
                for a, b in zip(mine, due, strict=True):
                    yield Claim(f"factors of {width} channels", ((a == b) | (a.isnan() & b.isnan())).all())


def near(ours: Tensor, theirs: Tensor, allowed: float) -> Tensor:
    """Whether they differ by no more than ``allowed``, relative, in the Euclidean norm."""
    a, b = ours.float(), theirs.float()
    return (a - b).norm() <= allowed * b.norm() if a.shape == b.shape else torch.tensor(False, device=b.device)


def _widths(columns: int) -> tuple[int, int]:
    return columns, columns - 3


def _data(
    norm: Norm, dtype: torch.dtype, y_dtype: torch.dtype, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An input, its norm's output, weight and bias; an odd number of rows."""
    x = (2 + 3 * normal((67 if width <= 1024 else 11, width), device, 2)).to(dtype)
    scale, shift = 1 + 0.2 * normal((width,), device, 3), 0.2 * normal((width,), device, 4)
    mean, rstd = norm.statistics(x)
    return x, ((x.float() - mean) * rstd * scale + shift).to(y_dtype), scale, shift


def _tell_quarters(bits: Tensor | None, x: Tensor, y: Tensor, scale: Tensor, shift: Tensor, norm: Norm) -> Tensor:
    """Whether the unrounded output lies in the quarter that ``bits`` name, or next to it by a few roundings."""
    if bits is None:
        return torch.tensor(False, device=y.device)
    device = y.device
    x, y, scale, shift, bits = (t.cpu() for t in (x, y, scale, shift, bits))
    mean, rstd = norm.statistics(x.double())
    exact = (x.double() - mean) * rstd * scale + shift
    eighth = (eager_norm.refined(y, torch.zeros_like(bits)) - y.float()).abs() / 3  # its middle is 3 eighths away
    beyond = (eager_norm.refined(y, bits).double() - exact).abs() - eighth
    rounding = torch.finfo(torch.float32).eps * ((x.double().abs() + mean.abs()) * rstd * scale.abs() + shift.abs())
    return (beyond <= QUARTER * rounding).all().to(device)
