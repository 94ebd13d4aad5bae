"""The norms' CPU backend: the kernels of csrc/norms.cpp, called with ctypes; see ``optiacts.backends.native``.

Each row is read once from memory, and worked on in the cache. Results are those of ``optiacts.backends.eager_norm``
within the rounding of float32; the weight's and the bias's may differ in it by the number of threads. What has no
kernel (float64, a rare mixture of dtypes, nothing to compute) is left to eager.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optiacts import replay
from optiacts.backends import eager_norm, native, native_library
from optiacts.backends.native_constants import DTYPES
from optiacts.backends.native_library import run
from optiacts.chains import Chain
from optiacts.norms import Norm, Saved, Statistics
from optiacts.packing import packed_shape

name = "native"

_ELEMENTS_PER_THREAD = 1 << 14  # take it about 10 µs


def serves(channels: int) -> bool:
    """Whether there are kernels for rows so long: for all."""
    return True


_VECTOR = 16  # numbers: what PyTorch takes at once, on any CPU; of rows that are no multiple it takes the rest apart
_CACHED = 4 << 20  # bytes of what stays in a cache; of more PyTorch's op waits less for memory, in small pages
_unfused: set[torch.dtype] = set()


def unfuse(dtype: torch.dtype) -> bool:
    """Leaves LayerNorm's forward to PyTorch's op, whose bits are others here; False if it was already."""
    if dtype in _unfused:
        return False
    _unfused.add(dtype)
    replay.forget()
    return True


def layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``eager_norm.layer_norm``: a kernel, where it has PyTorch's bits, which the trial at first use confirms."""
    if weight is None or bias is None or not _is_fused(x, shape, weight, bias):
        return eager_norm.layer_norm(x, shape, weight, bias, eps)
    rows, cols = native.rows_and_columns(x)
    y = x.new_empty(x.shape)
    native.ask_for_huge_pages(y, y.nbytes)
    mean = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    weight, bias = weight.contiguous(), bias.contiguous()
    run(
        "layer_norm", DTYPES.index(x.dtype), x.data_ptr(), weight.data_ptr(), bias.data_ptr(), eps, mean.data_ptr(),
        rstd.data_ptr(), y.data_ptr(), rows, cols, native_library.threads(),
    )  # fmt: skip
    return y, mean, rstd


def _is_fused(x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor) -> bool:
    if x.dtype in _unfused or not x.numel() or not x.is_contiguous() or not native.are_single(weight, bias):
        return False
    if _CACHED < x.nbytes < native.HUGE_PAGES_FROM:
        return False
    fits = weight.shape == bias.shape == shape == x.shape[-1:] and x.shape[-1] % _VECTOR == 0
    return fits and bool(native_library.function("level")())  # without AVX2 there are other bits


def norm_statistics(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm,
    known: Statistics | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean and rstd of x, unless they are ``known``, and the remainder bits of y if it has some, row by row."""
    remainder = norm.remainder and y.element_size() <= 2
    if not x.numel() or not native.are_single(scale, shift, *(known or ())) or (remainder and y.dtype != x.dtype):
        return eager_norm.norm_statistics(x, y, scale, shift, norm, known)
    row = (*x.shape[:-1], 1)
    if known is None:
        rstd = x.new_empty(row, dtype=torch.float32)
        mean = torch.empty_like(rstd) if norm.centered else rstd.new_zeros(())
    else:
        mean, rstd = (each.contiguous() for each in known)
        _expect_shape("rstd", rstd, row)
        if norm.centered:
            _expect_shape("mean", mean, row)
    rows, cols = native.rows_and_columns(x)
    x = x.contiguous()
    bits = None
    if remainder:
        _expect_shape("y", y, x.shape)
        y, scale, shift = y.contiguous(), _factors(scale, rstd, cols, 1.0), _factors(shift, rstd, cols, 0.0)
        bits = x.new_empty(*packed_shape(x.shape, 2), dtype=torch.uint8)
    run(
        "norm_statistics", DTYPES.index(x.dtype), x.data_ptr(), y.data_ptr(), _address(scale), _address(shift),
        norm.eps, known is not None, mean.data_ptr() if norm.centered else None, rstd.data_ptr(), _address(bits),
        rows, cols, native_library.threads(),
    )  # fmt: skip
    return mean, rstd, bits


GUARDS = False  # see eager_norm


def norm_backward(
    grad: Tensor, saved: Saved, dtype: torch.dtype, of_factors: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """All three gradients in one pass over ``grad`` and what was kept; see ``eager_norm.norm_backward``."""
    kept, mean, rstd, scale, shift, columns, rescued, bits, centered, output = saved
    formats = [grad.dtype, kept.dtype, dtype] if rescued is None else [grad.dtype, kept.dtype, dtype, rescued.dtype]
    fits = native.dtypes.issuperset(formats) and (bits is None or kept.element_size() == 2)
    if not fits or not kept.numel() or not native.are_single(mean, rstd, scale, shift):
        return eager_norm.norm_backward(grad, saved, dtype, of_factors)
    rows, cols = native.rows_and_columns(kept)
    row = (*kept.shape[:-1], 1)
    _expect_shape("rstd", rstd, row)
    if mean is not None:
        _expect_shape("mean", mean, row)
        mean = mean.contiguous()
    if bits is not None:
        _expect_shape("bits", bits, packed_shape(kept.shape, 2))
        bits = bits.contiguous()
    rescues = 0
    if output and columns is not None and rescued is not None:
        rescues = columns.numel()
        _expect_shape("rescued", rescued, (*kept.shape[:-1], rescues))
        columns, rescued = columns.long().contiguous(), rescued.contiguous()
    grad, kept, rstd = grad.contiguous(), kept.contiguous(), rstd.contiguous()
    scale, shift = _factors(scale, rstd, cols, 1.0), _factors(shift, rstd, cols, 0.0)
    threads = min(native_library.threads(), rows * cols // _ELEMENTS_PER_THREAD + 1, rows)
    by_scale, by_shift = rstd.new_empty(cols), rstd.new_empty(cols)
    dx = torch.empty_like(grad, dtype=dtype)
    native.ask_for_huge_pages(dx, dx.nbytes)
    numbers = DTYPES.index
    refused = run(
        "norm_backward", numbers(grad.dtype), grad.data_ptr(), numbers(kept.dtype), kept.data_ptr(), output,
        _address(mean), rstd.data_ptr(), scale.data_ptr(), shift.data_ptr(),
        numbers((kept if rescued is None else rescued).dtype), _address(rescued), _address(columns), rescues,
        _address(bits if output else None), centered, numbers(dtype), dx.data_ptr(),
        by_scale.data_ptr(), by_shift.data_ptr(), rows, cols, threads,
    )  # fmt: skip
    if refused == -2:
        raise MemoryError("optiacts: too little memory for the sums of a norm's gradients")
    if refused:
        raise IndexError(f"columns must lie in 0 to {cols - 1}; got {columns}")
    if of_factors in (None, torch.float32):
        return dx, by_scale, by_shift
    return dx, by_scale.to(of_factors), by_shift.to(of_factors)


def any_bad(scale: Tensor | None, shift: Tensor | None, norm: Norm | Chain, dtype: torch.dtype) -> bool:
    """Whether any channel is bad: see ``optiacts.norms.Norm.bad``."""
    given = scale if scale is not None else shift
    if given is None or not native.are_single(scale, shift):
        return eager_norm.any_bad(scale, shift, norm, dtype)
    if scale is not None and shift is not None:
        _expect_shape("shift", shift, scale.shape)
    scale = None if scale is None else scale.contiguous()
    shift = None if shift is None else shift.contiguous()
    limits = norm.limits(dtype, given.shape[-1])
    return bool(run("norm_any_bad", _address(scale), _address(shift), *limits, given.numel()))


def _factors(given: Tensor | None, like: Tensor, cols: int, missing: float) -> Tensor:
    """The scale or the shift of each channel; of one that is not there, ``missing``."""
    if given is None:
        return like.new_full((cols,), missing)
    _expect_shape("scale" if missing else "shift", given, (cols,))
    return given.contiguous()


def _expect_shape(argument: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The kernels go by address: nothing but the right shape may reach them."""
    if tensor.shape != shape:
        raise ValueError(f"{argument} must have shape {tuple(shape)}; got {tuple(tensor.shape)}")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
