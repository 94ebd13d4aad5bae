"""Chains: the kernels, and the whole of them against float64 mathematics."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from benchmarks.chain_accuracy import Data, errors
from optiacts import backends, curves
from optiacts.backends import eager_chain, triton_chain
from optiacts.chains import SavedChain

from .common import DEVICE, DTYPES, INTERPRETED, Record, named, relative

# an interpreter truncates to bfloat16 where a GPU rounds
CHAIN_DTYPES = (torch.float16, torch.float32) if INTERPRETED else DTYPES
TOLD = [name for name in (*curves.CURVES, "leaky_relu", "elu") if triton_chain.serves(curves.get(name))]
KINDS = (("rows", 1, True), ("rows", 4, False), ("batch", 1, True), ("given", 1, True))
SHAPES = [(2, 16, 20)] if INTERPRETED else [(2, 16, 20), (3, 8, 64), (40, 16, 1), (8, 96, 3136)]
# Of the kernels against plain steps, which decode 16 bits by a table: their gradients differ by roundings of y.
MOST = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", CHAIN_DTYPES, **named)
@pytest.mark.parametrize("name", TOLD)
def test_kernels(name: str, dtype: torch.dtype, record_property: Record) -> None:
    """Every kind of statistics and layout, with rescued channels and without, against the eager backend."""
    worst = 0.0
    for kind, shape, last, rescues in itertools.product(KINDS, SHAPES, (False, True), (False, True)):
        if INTERPRETED and (last is rescues) is (name == "silu"):
            continue  # half of them for each curve: an interpreter takes its time
        saved = _saved(name, dtype, kind, shape, last, rescues)
        grad = torch.randn(saved.y.shape, device=DEVICE).to(dtype)
        due, got = (b.chain_backward(grad, saved, dtype) for b in (eager_chain, triton_chain))
        for gradient, a, b in zip(("dx", "dw", "db"), got, due, strict=True):
            found = relative(a, b)
            assert found <= MOST[dtype], (gradient, kind, shape, last, rescues)
            worst = max(worst, found)
    record_property("error", worst)


@pytest.mark.parametrize("count", (1, 5000) if INTERPRETED else (1, 5000, 3_000_001))
@pytest.mark.parametrize("dtype", CHAIN_DTYPES, **named)
def test_what_is_lost_is_counted_alike(dtype: torch.dtype, count: int) -> None:
    """How far inputs lie too far left, of NaN and infinities as well, against the eager backend."""
    z = torch.randn(count, device=DEVICE).to(dtype) * 3
    z[count // 2] = torch.nan
    for number in (-30.0, -torch.inf):
        z[-1] = number
        due, got = (b.excess(z, 1.5) for b in (eager_chain, triton_chain))
        assert torch.equal(due, got) or float((got - due).abs() / due) <= 1e-5, (number, got, due)


def _saved(
    name: str, dtype: torch.dtype, kind: tuple[str, int, bool], shape: tuple[int, int, int], last: bool, rescues: bool
) -> SavedChain:
    statistics, groups, centered = kind
    samples, channels, positions = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=DEVICE)

    curve = curves.get(name)
    z = (normal(*((samples, positions, channels) if last else shape)) * 1.5).to(dtype)
    scale, shift = 1 + 0.3 * normal(channels), 0.3 * normal(channels)
    of_groups = (samples, groups) if statistics == "rows" else (channels,)
    columns = rescued = mean = None
    if rescues:
        columns = torch.tensor([1, 5], device=DEVICE)
        rescued = normal(*((samples, positions, 2) if last else (samples, 2, positions))).to(dtype)
        scale[1] = 0
        mean = normal(*of_groups) if centered else None
    rstd = torch.rand(of_groups, device=DEVICE) + 0.5
    y, bits = eager_chain.forward(z, curve, lambda tensor: tensor)
    return SavedChain(y, bits, rstd, scale, shift, mean, columns, rescued, name, statistics, centered, last)


@pytest.mark.parametrize("dtype", CHAIN_DTYPES, **named)
@pytest.mark.parametrize(
    "norm", ["BatchNorm"] if INTERPRETED else ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm"]
)
@pytest.mark.parametrize("name", TOLD)
def test_chains_are_exact(
    name: str, norm: str, dtype: torch.dtype, record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors of dx, dw and db over PyTorch's own, both against float64: see docs/chains.md.

    At most 2.0 (dx, bfloat16) and 3.5 (float16) times; in float32 no more than 5e-6. Of a gradient that is the input,
    but for noise, 3.1 and 5.5 times: on a GPU PyTorch's own error is then smaller than on a CPU, ours is the same.
    """

    def kernels(tensor: Tensor, _: object) -> object:  # in the interpreter in place of the CPU's
        return eager_chain if tensor.dtype is torch.float64 else triton_chain

    monkeypatch.setattr(backends, "select_chain", kernels)
    usual = {torch.bfloat16: 2.0, torch.float16: 3.5, torch.float32: 0.0}[dtype]
    correlated = usual if INTERPRETED else {torch.bfloat16: 3.1, torch.float16: 5.5, torch.float32: 0.0}[dtype]
    given = [Data(batch=2, correlation=1.0)] if INTERPRETED else [Data(), Data(correlation=1.0), Data(batch=1)]
    worst = {"usual": 0.0, "correlated": 0.0}
    for data in given:
        most, label = (correlated, "correlated") if data.correlation else (usual, "usual")
        found = errors(norm, name, data, dtype, DEVICE.type, size=6 if INTERPRETED else 24)
        worst[label] = max(worst[label], found.ours[0] / found.pytorch[0] if most else found.ours[0])
        for number, (ours, theirs) in enumerate(zip(found.ours, found.pytorch, strict=True)):
            assert ours <= max(most * theirs * (1.1 if number else 1.0), 5e-6), (data, found.ours, found.pytorch)
    for label, ratio in worst.items():
        record_property(f"dx, {label}", ratio)
