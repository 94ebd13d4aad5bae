"""The CPU kernels of chains against the eager backend, at every level, in both memory orders."""

import ctypes
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from optiacts import curves
from optiacts.backends import eager_chain, native, native_chain, native_forward, native_library
from optiacts.chains import Chain, SavedChain
from tests.kernels import DTYPES, LEVELS, named, same_bits

MOST = {torch.float32: 6e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
KINDS = [("rows", 4, True), ("rows", 16, True), ("rows", 1, False), ("batch", 1, True), ("given", 1, True)]
CLOSED = ("leaky_relu(negative_slope=0.1)", "elu", "elu(alpha=0.5)", "celu(alpha=2.0)")
SHAPES = [(3, 16, 37), (2, 32, 70), (5, 16, 1), (1, 16, 300)]  # samples, channels, positions


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    before = native_library.level()
    yield
    native_library.use_level(before)


def saved(
    curve: str,
    dtype: torch.dtype,
    kind: tuple[str, int, bool],
    shape: tuple[int, int, int],
    last: bool,
    rescues: bool,
) -> SavedChain:
    statistics, groups, centered = kind
    samples, channels, positions = shape
    own = (samples, positions, channels) if last else shape
    known = curves.get(curve)
    z = (torch.randn(own) * 1.5).to(dtype)
    scale, shift = 1 + 0.3 * torch.randn(channels), 0.3 * torch.randn(channels)
    of_groups = (samples, groups) if statistics == "rows" else (channels,)
    columns = torch.tensor([1, 5]) if rescues else None
    rescued = torch.randn((samples, positions, 2) if last else (samples, 2, positions)).to(dtype) if rescues else None
    if rescues:
        scale[1] = 0
    mean = torch.randn(of_groups) if rescues and centered else None
    rstd = torch.rand(of_groups) + 0.5
    return SavedChain(
        known.forward(z), eager_chain.side_bits(z, known), rstd, scale, shift, mean, columns, rescued, curve,
        statistics, centered, last,
    )  # fmt: skip


@pytest.mark.parametrize("chosen", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_are_eagers(
    kind: tuple[str, int, bool], dtype: torch.dtype, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded once or twice, with rescued channels or without, of all curves."""
    native_library.use_level(chosen)
    torch.manual_seed(0)
    for shape, last, rescues in itertools.product(SHAPES, (False, True), (False, True)):
        if shape[1] % kind[1]:
            continue
        cases = [("silu", 1 << 18), ("silu", 8), ("mish", 1 << 18), *((name, 1 << 18) for name in CLOSED)]
        for curve, kept in cases:
            monkeypatch.setattr(native_chain, "_KEPT", kept)
            given = saved(curve, dtype, kind, shape, last, rescues)
            grad = torch.randn(given.y.shape).to(dtype)
            dx, by_scale, by_shift = native_chain.chain_backward(grad, given, dtype)
            exact = eager_chain.chain_backward(grad, given, dtype)
            assert dx.dtype == dtype
            for ours, theirs, most in zip((dx, by_scale, by_shift), exact, (MOST[dtype], 6e-6, 6e-6), strict=True):
                assert (ours.double() - theirs.double()).norm() <= most * theirs.double().norm(), (shape, last, curve)


@pytest.mark.parametrize("chosen", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("statistics", "groups", "centered"), KINDS[:4], ids=str)
@pytest.mark.usefixtures("two_threads")
def test_statistics_are_those_of_float64(
    statistics: str, groups: int, centered: bool, last: bool, dtype: torch.dtype, chosen: str
) -> None:
    """Of one sample as of many, of few positions as of many, of channels around 0 and, one by one, far from it."""
    native_library.use_level(chosen)
    torch.manual_seed(0)
    kind = Chain("", "silu", statistics, 1e-5, groups=groups, centered=centered)
    for samples, channels, positions in (*SHAPES, (1, 16, 4099), (3, 1040, 33)):
        offsets = torch.cat([torch.zeros(channels - 2), torch.tensor([300.0, -4000.0])])
        for away in (0.0, offsets if last else offsets.unsqueeze(-1)):
            x = torch.randn((samples, positions, channels) if last else (samples, channels, positions))
            x = (x * 2 + away).to(dtype)
            due_mean, due_rstd = kind.taken(x.double(), last)
            mean, rstd = native_chain.statistics(x, kind, last)
            assert mean.dtype is rstd.dtype is torch.float32
            rounded = 2**-23 * due_mean.abs() * due_rstd  # a mean of float32, in deviations
            assert ((mean - due_mean).abs() * due_rstd <= 2e-6 + rounded).all(), (samples, channels, positions)
            assert ((rstd / due_rstd - 1).abs() <= 2e-6 + rounded).all(), (samples, channels, positions)


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("last", [False, True])
def test_statistics_of_equal_numbers_go_by_eps(last: bool, dtype: torch.dtype) -> None:
    """Sums of a few dozen equal numbers of 16 bits are exact; of float32 the mean is off by some roundings."""
    kind = Chain("", "silu", "batch", 1e-5)
    for positions in (1, 3, 50, 1000, 12345):
        of_channel = torch.randn(16, generator=torch.Generator().manual_seed(0)) * 10
        x = of_channel.expand(2, positions, 16).to(dtype)
        x = (x if last else x.transpose(1, 2)).contiguous()
        mean, rstd = native_chain.statistics(x, kind, last)
        due = of_channel.to(dtype).double()
        off = (1e-6 if dtype is torch.float32 else 0.0) * due.abs()
        assert ((mean - due).abs() <= off).all()
        assert ((rstd.double() * 1e-5**0.5 - 1).abs() <= off.square() / 2e-5 + 2**-23).all()


@pytest.mark.parametrize("last", [False, True])
def test_statistics_of_what_is_not_finite_are_not_finite(last: bool) -> None:
    """Of its channel alone."""
    kind = Chain("", "silu", "batch", 1e-5)
    for value in (torch.inf, -torch.inf, torch.nan):
        x = torch.randn(4, 8, 8)
        x[1, 3, 3] = value
        mean, rstd = native_chain.statistics(x, kind, last)
        assert not mean[3].isfinite() and mean.isfinite().sum() == 7
        assert rstd[3].isnan() and rstd.isfinite().sum() == 7


@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("last", [False, True])
def test_an_element_has_the_same_gradient_wherever_it_stands(last: bool, dtype: torch.dtype) -> None:
    """Alone, or in rows shorter and longer than kernels look ahead, at every level that has fused multiply-adds."""
    torch.manual_seed(0)
    for count in (5, 16, 63, 128, 136, 145, 300, 1024):
        together = saved("silu", dtype, ("given", 1, True), (1, count, 1) if last else (1, 1, count), last, False)
        grad = torch.randn(together.y.shape).to(dtype)
        if last:  # two rows, which may be one for a kernel
            y, bits = together.y.repeat(1, 2, 1), together.bits.repeat(1, 2, 1)
            alone = [together._replace(y=y[:, :1], bits=bits[:, :1])] * 2
            together, grads = together._replace(y=y, bits=bits), [grad, torch.randn(grad.shape).to(dtype)]
        else:
            bits = eager_chain.side_bits(together.y.new_tensor([1.0, -9.0]).view(2, 1, 1), curves.get("silu"))
            left = [together.bits[0, 0, i // 8] >> (i % 8) & 1 for i in range(count)]
            alone = [
                together._replace(y=together.y[:, :, i : i + 1], bits=bits[int(left[i])].unsqueeze(0))
                for i in range(count)
            ]
            grads = list(grad.split(1, dim=2))
        axis, found = 1 if last else 2, []
        for chosen in [level for level in LEVELS if level != "portable"]:
            native_library.use_level(chosen)
            dx = native_chain.chain_backward(torch.cat(grads, axis), together, dtype)[0]
            each = [native_chain.chain_backward(g, one, dtype)[0] for g, one in zip(grads, alone, strict=True)]
            assert same_bits(dx, torch.cat(each, axis)), (count, chosen)
            found.append(dx)
        if dtype is not torch.float32:  # which each level reads from other coefficients
            assert all(same_bits(dx, found[0]) for dx in found), count


@pytest.mark.skipif("avx512" not in LEVELS, reason="other levels read lines in any case")
def test_without_coefficients_in_registers_lines_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a curve that they do not fit: the gradients are those of AVX2 then, to the bit."""
    torch.manual_seed(0)
    given = saved("silu", torch.float32, ("given", 1, True), (2, 16, 37), False, False)
    grad = torch.randn(given.y.shape)

    def gradient(level: str) -> torch.Tensor:
        native_library.use_level(level)
        return native_chain.chain_backward(grad, given, torch.float32)[0]

    lines, registers = gradient("avx2"), gradient("avx512")
    assert not same_bits(registers, lines)
    monkeypatch.setattr(native_chain, "input_registers", lambda name: None)
    monkeypatch.setattr(native_chain, "_decoder", native_chain._decoder.__wrapped__)
    assert same_bits(gradient("avx512"), lines)


def test_room_is_private_and_begins_with_a_huge_page(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 3 << 20
    room = native_chain._room(count)
    begin, room[0], room[count - 1] = ctypes.addressof(room), 1.0, 2.0
    assert len(room) == count
    assert begin % (2 << 20) == 0
    maps = Path("/proc/self/maps")
    if maps.exists():  # a shared mapping would be that of forked processes as well
        fields = [line.split() for line in maps.read_text().splitlines()]
        ranges = [([int(end, 16) for end in where.split("-")], rights) for where, rights, *_ in fields]
        assert [rights for (low, high), rights in ranges if low <= begin < high] == ["rw-p"]
    monkeypatch.setattr(native, "huge_pages", False)
    assert len(native_chain._room(count)) == count


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_far_outputs_and_those_that_are_no_numbers(dtype: torch.dtype) -> None:
    """What underflows gives the furthest input, an infinite or NaN output none."""
    torch.manual_seed(0)
    given = saved("silu", dtype, ("given", 1, True), (1, 16, 32), False, False)
    y = given.y.clone()
    y[0, :, :4] = torch.tensor([-0.0, 1e30 if dtype is not torch.float16 else 6e4, torch.nan, 3.0])
    bits = given.bits.clone()
    bits[..., 0] = bits[..., 0] & 0b11110000 | 1
    given = given._replace(y=y, bits=bits)
    grad = torch.ones_like(y)
    for ours, theirs in zip(
        native_chain.chain_backward(grad, given, dtype), eager_chain.chain_backward(grad, given, dtype), strict=True
    ):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.allclose(ours.float(), theirs.float(), rtol=2 * MOST[dtype], atol=1e-6, equal_nan=True)
    assert native_chain.chain_backward(grad, given, dtype)[0][0, :, 2].isnan().all()


@pytest.mark.parametrize("chosen", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, **named)
@pytest.mark.parametrize("curve", CLOSED)
def test_special_outputs_of_closed_forms(curve: str, dtype: torch.dtype, chosen: str) -> None:
    """Zeros of both signs, the limit, what lies next to it, infinities and NaN: as in float64, at every level."""
    native_library.use_level(chosen)
    known = curves.get(curve)
    x = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 0.5, -0.5, -2, -5, -9, -30, -80, 300, torch.inf, torch.nan, -1, 1])
    given = saved(curve, dtype, ("given", 1, True), (1, 16, 16), False, False)
    y = known.forward(x.to(dtype)).expand(1, 16, 16).contiguous()
    given = given._replace(y=y, scale=torch.ones(16), shift=torch.zeros(16), rstd=torch.ones(16))
    grad = torch.ones_like(y)
    ours = native_chain.chain_backward(grad, given, dtype)
    theirs = eager_chain.chain_backward(grad, given, dtype)
    assert torch.equal(ours[0].isnan(), theirs[0].isnan())
    assert torch.allclose(ours[0].float(), theirs[0].float(), rtol=2 * MOST[dtype], atol=1e-6, equal_nan=True)
    finite = given._replace(y=y.masked_fill(~y.isfinite(), 2.0))
    for a, b in zip(
        native_chain.chain_backward(grad, finite, dtype), eager_chain.chain_backward(grad, finite, dtype), strict=True
    ):
        assert torch.allclose(a.float(), b.float(), rtol=1e-5 if a.dtype is torch.float32 else 2 * MOST[dtype])


@pytest.mark.parametrize("chosen", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_how_far_inputs_lie_too_far_left(dtype: torch.dtype, chosen: str) -> None:
    native_library.use_level(chosen)
    for count in (1, 37, 5000, 300_001):
        z = torch.randn(count).to(dtype)
        z[count // 2] = torch.nan
        z[-1] = -30.0
        for furthest in (16.0, 1.0, 0.25):
            due = (-furthest - z.double()).clamp(min=0).nan_to_num(0).square().sum()
            for backend in (native_chain, eager_chain):
                found = backend.excess(z, furthest).double()
                assert abs(found - due) <= 1e-5 * due
        z[0] = -torch.inf
        assert native_chain.excess(z, 3.0).isinf() and eager_chain.excess(z, 3.0).isinf()
    slices = torch.randn(3, 5, 7, 9).to(dtype, memory_format=torch.channels_last)[:, :, 1:]
    due = (-1 - slices.double()).clamp(min=0).square().sum()
    assert abs(native_chain.excess(slices, 1.0) - due) <= 1e-5 * due


def test_what_has_no_kernel_is_eagers() -> None:
    given = saved("silu", torch.float32, ("batch", 1, True), (2, 16, 20), False, False)
    grad = torch.randn(given.y.shape, dtype=torch.float64)
    assert native_chain.chain_backward(grad, given, torch.float32)[0].dtype is torch.float32


def test_side_bits_are_eagers() -> None:
    for dtype, curve in itertools.product(DTYPES, ("silu", "mish")):
        z = torch.randn(3, 5, 77).to(dtype)
        ours, theirs = (b.forward(z, curves.get(curve), lambda t: t) for b in (native_chain, eager_chain))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    "chosen", LEVELS[1:]
)  # the portable level of x86 multiplies and adds apart: a trial finds that
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_silu_has_pytorchs_bits(dtype: torch.dtype, chosen: str) -> None:
    """All numbers of 16 bits, many patterns of 32, on any number of threads, in rows with and without a rest."""
    native_library.use_level(chosen)
    curve = curves.get("silu")
    patterns = torch.arange(-(2**15), 2**15) if dtype is not torch.float32 else torch.arange(-(2**31), 2**31, 65521)
    integers = torch.int16 if dtype is not torch.float32 else torch.int32
    every = torch.cat([patterns.to(integers).view(dtype), (3 * torch.randn(1 << 17)).to(dtype)])
    before = torch.get_num_threads()
    try:
        for threads, count, cols in itertools.product((1, 2), (1 << 17, 1 << 14, 3 * 64 * 9, 1000), (8, 125, 64)):
            torch.set_num_threads(threads)
            z = every[torch.randperm(len(every))[: count // cols * cols]].view(-1, cols)
            y, bits = native_chain.forward_(z.clone(), curve, torch.Tensor.contiguous)
            expected, theirs = eager_chain.forward(z, curve, torch.Tensor.contiguous)
            assert torch.equal(y.nan_to_num(nan=-9.0), expected.nan_to_num(nan=-9.0))
            assert torch.equal(bits, theirs)
            assert y.data_ptr() != z.data_ptr()
            given = z.clone()
            y, bits = native.activation_forward(given, curve, ())
            assert torch.equal(y.nan_to_num(nan=-9.0), expected.nan_to_num(nan=-9.0))
            assert torch.equal(bits, theirs)
            assert torch.equal(given.nan_to_num(nan=-9.0), z.nan_to_num(nan=-9.0))
            assert torch.equal(native.activation_forward_(given, curve, ()), bits)
            assert torch.equal(given.nan_to_num(nan=-9.0), y.nan_to_num(nan=-9.0))
    finally:
        torch.set_num_threads(before)


def test_a_rest_of_a_vector_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch computes it with another exponential; and everything, where a trial has found other bits."""
    curve, fused = curves.get("silu"), native_forward.is_fused
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for count, whole in ((1 << 16, True), ((1 << 16) + 64, False), (1 << 10, True), ((1 << 10) + 1, False)):
            assert fused(curve, torch.zeros(count)) == whole
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(native_forward, "_unfused", set())
    assert not native_forward.unfuse(curves.get("mish"), torch.float32)
    assert native_forward.unfuse(curve, torch.float32) and not native_forward.unfuse(curve, torch.float32)
    assert not fused(curve, torch.zeros(64)) and fused(curve, torch.zeros(64, dtype=torch.bfloat16))
