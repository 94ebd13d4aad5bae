"""Chains: the kernels, and the whole of them against float64 mathematics."""

from __future__ import annotations

import itertools
from unittest import mock

import torch
from torch import Tensor

from benchmarks.chain_accuracy import Data, errors
from optiacts import backends, curves
from optiacts.backends import eager_chain, triton_chain
from optiacts.chains import SavedChain

from .common import DTYPES, BrokenPromiseError, Report, relative

DRY_DTYPES = (torch.float16, torch.float32)  # an interpreter truncates to bfloat16 where a GPU rounds
KINDS = (("rows", 1, True), ("rows", 4, False), ("batch", 1, True), ("given", 1, True))
# Of the kernels against plain steps, which decode 16 bits by a table: their gradients differ by roundings of y.
MOST = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def told() -> list[str]:
    """The curves that there are kernels for."""
    return [name for name in (*curves.CURVES, "leaky_relu", "elu") if triton_chain.serves(curves.get(name))]


def chains(device: torch.device, dry: bool) -> Report:
    """Every kind of statistics and layout, with rescued channels and without, against the eager backend."""
    worst: Report = {}
    shapes = [(2, 16, 20)] if dry else [(2, 16, 20), (3, 8, 64), (40, 16, 1), (8, 96, 3136)]
    dtypes = DRY_DTYPES if dry else DTYPES
    for name, dtype, kind, shape in itertools.product(told(), dtypes, KINDS, shapes):
        for last, rescues in itertools.product((False, True), (False, True)):
            if dry and (last is rescues) is (name == "silu"):
                continue  # half of them for each curve: an interpreter takes its time
            saved = _saved(name, dtype, kind, shape, last, rescues, device)
            grad = torch.randn(saved.y.shape, device=device).to(dtype)
            due, got = (b.chain_backward(grad, saved, dtype) for b in (eager_chain, triton_chain))
            found = max(relative(a, b) for a, b in zip(got, due, strict=True))
            label = f"{name} {dtype}"
            worst[label] = max(worst.get(label, 0.0), found)
            if not found <= MOST[dtype]:
                raise BrokenPromiseError(f"{label}, {kind}, {shape}, last {last}, rescued {rescues}: {found}")
    return worst


def chains_lose_alike(device: torch.device, dry: bool) -> Report:
    """How far inputs lie too far left, of NaN and infinities as well, against the eager backend."""
    worst: Report = {}
    for dtype, count in itertools.product(DRY_DTYPES if dry else DTYPES, (1, 5000) if dry else (1, 5000, 3_000_001)):
        z = torch.randn(count, device=device).to(dtype) * 3
        z[count // 2] = torch.nan
        for number in (-30.0, -torch.inf):
            z[-1] = number
            due, got = (b.excess(z, 1.5) for b in (eager_chain, triton_chain))
            label = f"{dtype} {number}"
            found = 0.0 if torch.equal(due, got) else float((got - due).abs() / due)
            worst[label] = max(worst.get(label, 0.0), found)
            if not found <= 1e-5:
                raise BrokenPromiseError(f"{label}, {count} elements: {got} for {due}")
    return worst


def _saved(
    name: str,
    dtype: torch.dtype,
    kind: tuple[str, int, bool],
    shape: tuple[int, int, int],
    last: bool,
    rescues: bool,
    device: torch.device,
) -> SavedChain:
    statistics, groups, centered = kind
    samples, channels, positions = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=device)

    curve = curves.get(name)
    z = (normal(*((samples, positions, channels) if last else shape)) * 1.5).to(dtype)
    scale, shift = 1 + 0.3 * normal(channels), 0.3 * normal(channels)
    of_groups = (samples, groups) if statistics == "rows" else (channels,)
    columns = rescued = mean = None
    if rescues:
        columns = torch.tensor([1, 5], device=device)
        rescued = normal(*((samples, positions, 2) if last else (samples, 2, positions))).to(dtype)
        scale[1] = 0
        mean = normal(*of_groups) if centered else None
    rstd = torch.rand(of_groups, device=device) + 0.5
    y, bits = eager_chain.forward(z, curve, lambda tensor: tensor)
    return SavedChain(y, bits, rstd, scale, shift, mean, columns, rescued, name, statistics, centered, last)


def chains_are_exact(device: torch.device, dry: bool) -> Report:
    """The errors of dx, dw and db over PyTorch's own, both against float64: see docs/chains.md.

    At most 2.0 (dx, bfloat16) and 3.5 (float16) times; in float32 no more than 5e-6.
    """
    report: Report = {}
    norms = ("BatchNorm",) if dry else ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm")
    given = [Data(batch=2, correlation=1.0)] if dry else [Data(), Data(correlation=1.0), Data(batch=1)]
    dtypes = DRY_DTYPES if dry else DTYPES
    kernels = mock.patch.object(
        backends, "select_chain", lambda tensor, _: eager_chain if tensor.dtype is torch.float64 else triton_chain
    )
    for name, norm, dtype, data in itertools.product(told(), norms, dtypes, given):
        with kernels:  # in a dry run in place of the CPU's
            found = errors(norm, name, data, dtype, device.type, size=6 if dry else 24)
        most = {torch.bfloat16: 2.0, torch.float16: 3.5, torch.float32: 0.0}[dtype]
        label = f"{name} {norm} {dtype}"
        ratio = found.ours[0] / found.pytorch[0] if most else found.ours[0]
        report[label] = max(report.get(label, 0.0), ratio)
        for number, (ours, theirs) in enumerate(zip(found.ours, found.pytorch, strict=True)):
            if not ours <= max(most * theirs * (1.1 if number else 1.0), 5e-6):
                raise BrokenPromiseError({label: (found.ours, found.pytorch)})
    return report
