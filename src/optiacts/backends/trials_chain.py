"""The trials of chains, a norm and the activation after it: see ``optiacts.backends.proof``.

Each gradient's error is bounded by the accuracy contract, as a multiple of PyTorch's own (docs/chains.md): 2.0 in
bfloat16, 3.5 in float16, 5e-6 in float32. Two backends may differ by both errors together, in the Euclidean norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from optiacts.backends import eager_chain, native_forward
from optiacts.backends.proof import Claim
from optiacts.backends.trials import drawn, inputs, normal, same
from optiacts.backends.trials_norm import near
from optiacts.chains import Chain, SavedChain
from optiacts.curves import Curve, get

ALLOWED = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 1e-5}
SUMS = 1e-5  # of squares, in float32
CHANNELS = 16


def forward(kernels: Any, curve: Curve, dtype: torch.dtype, device: torch.device) -> Iterator[Claim]:
    """The activation to the bit, its side bits, and how far inputs lie too far left."""
    every = inputs(curve, dtype, device)
    for z in (every.view(-1, CHANNELS, 4), every[: 31 * CHANNELS * 7].view(31, CHANNELS, 7)):
        y, bits = kernels.forward(z, curve, torch.Tensor.contiguous)
        expected_y, expected_bits = eager_chain.forward(z, curve, torch.Tensor.contiguous)
        yield Claim(f"outputs of rows of {z.shape[2]}", same(y, expected_y))
        yield Claim(f"side bits of rows of {z.shape[2]}", (bits == expected_bits).all())
    if device.type == "cpu":
        z = _of_whole_vectors(every).view(-1, CHANNELS, 4)
        expected_y, expected_bits = eager_chain.forward(z, curve, torch.Tensor.contiguous)
        for where, forward in (("in place", kernels.forward_), ("elsewhere", kernels.forward)):
            y, bits = forward(z.clone(), curve, torch.Tensor.contiguous)
            yield Claim(f"outputs {where}", same(y, expected_y))
            yield Claim(f"side bits of outputs {where}", (bits == expected_bits).all())
    for count in (1 << 12, 5001):
        z = 3 * drawn(torch.empty(count, dtype=dtype, device=device))
        z[count // 2] = torch.nan
        ours, theirs = (b.excess(z, 1.5) for b in (kernels, eager_chain))
        yield Claim("how far inputs lie left", ((ours - theirs).abs() <= SUMS * theirs).to(device))


def _of_whole_vectors(every: Tensor) -> Tensor:
    """So many of ``every``, again and again, that all of PyTorch's threads have work, and none has half a vector."""
    threads = torch.get_num_threads()
    unit = native_forward.WHOLE_VECTORS * threads
    count = -(-max(len(every), native_forward.GRAIN * threads) // unit) * unit
    return every.repeat(-(-count // len(every)))[:count]


def statistics(kernels: Any, of: Chain, dtype: torch.dtype, last: bool, device: torch.device) -> Iterator[Claim]:
    """mean and rstd, of inputs far from 0 as well, and of one that is not."""
    for samples, positions, groups in ((1, 37, 4), (5, 1, 4), (3, 530, 1)):
        shape = (samples, positions, CHANNELS) if last else (samples, CHANNELS, positions)
        kind = dataclasses.replace(of, groups=groups if of.statistics == "rows" else 1)
        for away in (0.0, 1000.0):
            x = (away + 3 * normal(shape, device, 2)).to(dtype)
            ours, theirs = kernels.statistics(x, kind, last), kind.taken(x.double(), last)
            for what, a, b in zip(("mean", "rstd"), ours, theirs, strict=True):
                yield Claim(f"{what} of {samples} x {positions}, {away:g} away", near(a, b, SUMS))


def backward(
    kernels: Any, of: SavedChain, grad_dtype: torch.dtype, dtype: torch.dtype, device: torch.device
) -> Iterator[Claim]:
    """The gradients from what is kept as in ``of``: statistics of the same kind, the same layout and extras."""
    curve, y_dtype = get(of.curve), of.y.dtype
    alone = of.statistics == "rows" and of.last and of.y.shape[1] == 1
    groups = of.rstd.shape[1] if of.rstd.ndim == 2 and of.rstd.shape[1] in (1, 2, 4, 8) else 4
    for samples, positions in ((37, 1), (64, 1)) if alone else ((3, 37), (2, 64)):
        shape = (samples, positions, CHANNELS) if of.last else (samples, CHANNELS, positions)
        z = (1.5 * normal(shape, device, 2)).to(y_dtype)
        scale, shift = 1 + 0.3 * normal((CHANNELS,), device, 3), 0.3 * normal((CHANNELS,), device, 4)
        of_groups = (samples, groups) if of.statistics == "rows" else (CHANNELS,)
        columns = rescued = mean = None
        if of.columns is not None and of.rescued is not None:
            columns = torch.tensor([1, 5], device=device)
            rescued = normal(tuple(2 if n == CHANNELS else n for n in shape), device, 5).to(of.rescued.dtype)
            scale[1] = 0
            mean = None if of.mean is None else normal(of_groups, device, 6)
        rstd = normal(of_groups, device, 7).abs() + 0.5
        y, bits = eager_chain.forward(z, curve, torch.Tensor.contiguous)
        saved = SavedChain(
            y, bits, rstd, None if of.scale is None else scale, None if of.shift is None else shift, mean, columns,
            rescued, of.curve, of.statistics, of.centered, of.last,
        )  # fmt: skip
        grad = normal(shape, device, 8).to(grad_dtype)
        gradients = (b.chain_backward(grad, saved, dtype) for b in (kernels, eager_chain))
        for whose, ours, theirs in zip(("inputs", "weights", "biases"), *gradients, strict=True):
            yield Claim(f"gradients of {whose}, rows of {positions}", near(ours, theirs, ALLOWED[y_dtype]))
