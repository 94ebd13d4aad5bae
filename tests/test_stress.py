"""Everything at once: threads, forked workers, tensors of every size and layout. Results as from one thread alone.

`make asan` runs it on kernels built with AddressSanitizer and UBSan.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts.backends import native, native_library
from tests.samples import DTYPES, bits_of

JOBS, FORKED_JOBS = 120, 40
ACTIVATIONS = [optiacts.gelu, optiacts.silu, optiacts.mish, optiacts.quick_gelu]
GATED = [optiacts.swiglu, optiacts.geglu, optiacts.reglu]
KINDS = ["plain", "in place", "pair", "fused"]
LAYOUTS = ["contiguous", "transposed", "every second", "repeated rows", "odd start", "half of a row"]


def random_input(layout: str, rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A ``rows`` x ``columns`` tensor of N(0, 9) in one of the layouts."""

    def normal(*shape: int) -> Tensor:
        return (3 * torch.randn(*shape, generator=generator)).to(dtype)

    if layout == "transposed":
        return normal(columns, rows).t()
    if layout == "every second":
        return normal(rows, 2 * columns)[:, ::2]
    if layout == "repeated rows":
        return normal(1, columns).expand(rows, columns)
    if layout == "odd start":
        return normal(rows * columns + 1)[1:].view(rows, columns)
    if layout == "half of a row":
        return normal(rows, 2 * columns).chunk(2, dim=-1)[1]
    return normal(rows, columns)


def results(job: int) -> list[Tensor]:
    """The output and the gradients of a call that the number ``job`` chooses by chance."""
    generator = torch.Generator().manual_seed(job)

    def below(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    dtype, kind = DTYPES[below(len(DTYPES))], KINDS[job % len(KINDS)]
    rows, columns = ((below(5), below(40)), (below(300), below(70)), (1 + below(60), 1000 + below(4000)))[below(3)]
    if kind == "fused":
        columns *= 2
    layout = LAYOUTS[below(len(LAYOUTS))]
    inputs = [
        random_input(layout, rows, columns, dtype, generator).requires_grad_()
        for _ in range(2 if kind == "pair" else 1)
    ]
    if kind == "plain":
        output = ACTIVATIONS[below(len(ACTIVATIONS))](inputs[0])
    elif kind == "in place":
        output = ACTIVATIONS[below(len(ACTIVATIONS))](inputs[0] * 1, inplace=True)
    else:
        output = GATED[below(len(GATED))](*inputs)
    grad = torch.randn(output.shape, generator=generator).to(dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


class Jobs(torch.utils.data.Dataset[list[Tensor]]):
    def __len__(self) -> int:
        return FORKED_JOBS

    def __getitem__(self, job: int) -> list[Tensor]:
        return results(job)


def assert_same_bits(got: list[Tensor], wanted: list[Tensor], job: int) -> None:
    for position, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert torch.equal(bits_of(a), bits_of(b)), f"job {job}, result {position}"


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(1 << 20).relu()  # starts the pool, so that the workers are forked from a threaded parent
    yield
    torch.set_num_threads(before)


def assert_they_reach_what_they_should(seen: list[list[Tensor]]) -> None:
    """By chance, but not by luck: sizes 0 and larger than a thread's share, every dtype."""
    assert {outputs[0].dtype for outputs in seen} == set(DTYPES)
    assert any(outputs[0].numel() == 0 for outputs in seen)
    assert max(outputs[0].numel() for outputs in seen) > 1 << 17
    assert all(t.isfinite().all() for outputs in seen for t in outputs)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_and_forked_workers_at_once() -> None:
    # The last bits of PyTorch's own forward depend on the number of threads it splits a tensor among (where a
    # stretch ends, scalar code takes over), so the workers' and the threads' results each have their own truth.
    torch.set_num_threads(1)
    wanted_in_worker = [results(job) for job in range(FORKED_JOBS)]
    torch.set_num_threads(2)
    wanted = [results(job) for job in range(JOBS)]
    assert_they_reach_what_they_should(wanted)
    loader = torch.utils.data.DataLoader(
        Jobs(), batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    forked = iter(loader)  # forks here
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(2,)) as pool:
        threaded = pool.map(results, reversed(range(JOBS)))
        for job, got in enumerate(forked):
            assert_same_bits(got, wanted_in_worker[job], job)
        for job, got in zip(reversed(range(JOBS)), threaded, strict=True):
            assert_same_bits(got, wanted[job], job)


@pytest.mark.skipif("OPTIACTS_EXPECT_SANITIZED" not in os.environ, reason="`make asan` sets it")
def test_the_kernels_are_those_with_sanitizers() -> None:
    """Otherwise a run of `make asan` would say nothing."""
    assert native.unavailable(torch.device("cpu")) is None
    native_library.level()
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "_native.so" in line}
    assert loaded and all(b"__asan_report_load" in Path(path).read_bytes() for path in loaded)
