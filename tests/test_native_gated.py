"""The gated CPU kernels against the eager backend, at every instruction set."""

from collections.abc import Iterator

import pytest
import torch

from optiacts import curves, decoders, ops
from optiacts.backends import eager, native, native_forward, native_library
from optiacts.decoders import valley
from optiacts.decoders.table import every_value
from optiacts.layouts import by_rows
from tests.kernels import CURVES, DTYPES, HALVES, LEVELS, decode_float32, named, same_bits


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if (
        request.param == "portable"
    ):  # multiplies and adds apart, so that it has not PyTorch's bits: a trial finds that
        monkeypatch.setattr(native_forward, "_unfused", {("silu", torch.float32)})
    native_library.use_level(request.param)
    yield request.param
    native_library.use_level(native_library.best_level())


def pairs(dtype: torch.dtype, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate, up and grad: half of random bit patterns (every kind of number), half of N(0, 1)."""
    generator = torch.Generator().manual_seed(0)

    def values() -> torch.Tensor:
        normal = torch.randn(count, generator=generator).to(dtype)
        if dtype == torch.float32:
            patterns = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(dtype)
        else:
            patterns = every_value(dtype)[torch.randint(65536, (count,), generator=generator)]
        return torch.cat([patterns, normal])

    return values(), values(), values()


def gradients(backend, grad, h, slot, bits, curve):
    results = torch.full_like(h, 7.0), torch.full_like(h, 7.0)
    backend.gated_backward(grad, h, slot, bits, curve, *results)
    return results


@pytest.mark.parametrize("curve", CURVES, **named)
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_forward_is_that_of_eager_to_the_bit(curve, dtype, level):
    gate, up, _ = pairs(dtype, 100_000)
    for result, expected in zip(
        native.gated_forward(gate, up, curve), eager.gated_forward(gate, up, curve), strict=True
    ):
        assert torch.equal(result, expected) if result.dtype == torch.uint8 else same_bits(result, expected)
    assert same_bits(native.gated_forward(gate, up, curve)[0], curve.forward(gate) * up)


@pytest.mark.parametrize("curve", CURVES, **named)
@pytest.mark.parametrize("dtype", HALVES, **named)
def test_16bit_gradients_are_those_of_eager_to_the_bit(curve, dtype, level):
    gate, up, grad = pairs(dtype, 100_000)
    saved = eager.gated_forward(gate, up, curve)
    for result, expected in zip(
        gradients(native, grad, *saved, curve), gradients(eager, grad, *saved, curve), strict=True
    ):
        assert same_bits(result, expected)


@pytest.mark.parametrize("curve", CURVES, **named)
def test_float32_gradients(curve, level):
    gate, up, grad = pairs(torch.float32, 100_000)
    saved = eager.gated_forward(gate, up, curve)
    by_gate, by_up = gradients(native, grad, *saved, curve)
    expected_gate, expected_up = gradients(eager, grad, *saved, curve)
    in_valley = valley.contains(curve, gate)
    assert same_bits(by_up[~in_valley], expected_up[~in_valley])
    exact = grad.double() * curve.function(gate.double(), torch)
    assert ((by_up.double() - exact).abs() <= 4e-7 * exact.abs() + 2.0**-149)[in_valley & grad.isfinite()].all()
    assert torch.equal(by_gate.isnan(), expected_gate.isnan())
    # f' differs by a few units in the last place of 1 from that of the same coefficients, and by the contract's 2e-6
    # from that of eager, and the gradient by that times grad * up
    told = decoders.read(*saved, curve)
    decoded = torch.where(
        told.in_valley, curve.derivative(gate, torch), decode_float32(told.s, told.left, curve, level)
    )
    size = (grad.double() * told.up.double()).abs()
    finite = by_gate.isfinite() & expected_gate.isfinite()
    for expected, units in ((grad.double() * told.up.double() * decoded, 4), (expected_gate.double(), 17)):
        assert ((by_gate.double() - expected).abs() <= units * 2.0**-23 * size + 2.0**-149)[finite].all()
    assert (finite | by_gate.isnan() | (size > 0.4 * torch.finfo(torch.float32).max)).all()  # and f' may be 1.1


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (9,), (4, 0), (3, 5), (2, 3, 17), (129, 1), (40_003,), (2, 3, 4096)]
)
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_every_shape(shape, dtype, level):
    curve = curves.get("silu")
    gate, up, grad = (torch.randn(shape).to(dtype) for _ in range(3))
    saved = native.gated_forward(gate, up, curve)
    expected = eager.gated_forward(gate, up, curve)
    assert all(torch.equal(a, b) for a, b in zip(saved, expected, strict=True))
    for result, wanted in zip(
        gradients(native, grad, *saved, curve), gradients(eager, grad, *saved, curve), strict=True
    ):
        torch.testing.assert_close(
            result, wanted, rtol=2e-6 if dtype == torch.float32 else 0, atol=2e-6 if dtype == torch.float32 else 0
        )


@pytest.mark.parametrize("cols", [1, 5, 16, 333])
@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_halves_of_a_fused_projection_are_read_and_written_in_place(cols, dtype, monkeypatch):
    curve = curves.get("gelu")
    generator = torch.Generator().manual_seed(5)
    both = torch.randn(3, 40, 2 * cols, generator=generator).to(dtype)
    grad = torch.randn(3, 40, cols, generator=generator).to(dtype)
    gate, up = both.chunk(2, dim=-1)
    if cols > 1:
        assert by_rows(gate)[0] is gate and by_rows(up)[1] == 2 * cols
    h, slot, bits = native.gated_forward(gate, up, curve)
    assert all(torch.equal(a, b) for a, b in zip((h, slot, bits), eager.gated_forward(gate, up, curve), strict=True))
    expected = gradients(native, grad, h, slot, bits, curve)

    def no_copy(*_: object, **__: object) -> None:
        raise AssertionError("a half was copied")

    result = torch.full_like(both, 7.0)
    monkeypatch.setattr(torch.Tensor, "copy_", no_copy)
    native.gated_backward(grad, h, slot, bits, curve, *result.chunk(2, dim=-1))
    monkeypatch.undo()
    assert torch.equal(result, torch.cat(expected, dim=-1))


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_irregular_rows_are_copied(dtype):
    curve = curves.get("silu")
    base = torch.randn(6, 10, 24).to(dtype)
    for gate in (base[:, ::2, :12], base.transpose(0, 1), base[..., ::2], base[:, :1].expand(6, 10, 24)):
        up = gate * 2
        h, slot, bits = native.gated_forward(gate, up, curve)
        assert same_bits(h, curve.forward(gate) * up) and h.is_contiguous()
        grad = torch.randn(gate.shape).to(dtype)
        expected = gradients(native, grad, h, slot, bits, curve)
        results = [torch.zeros(*gate.shape[:-1], gate.shape[-1], 2, dtype=dtype)[..., 0] for _ in range(2)]
        native.gated_backward(grad, h, slot, bits, curve, *results)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_nothing_is_allocated_beyond_the_results(dtype):
    x = torch.randn(256, 2048).to(dtype)
    gate, up = x.chunk(2, dim=-1)
    for _ in range(3):  # to try kernels and to record calls takes memory, once
        h, slot, bits = ops.gated_forward(gate, up, "silu")
        ops.gated_backward_fused(h, h, slot, bits, "silu")
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.gated_forward(gate, up, "silu")
        ops.gated_backward_fused(h, h, slot, bits, "silu")
    allocated = [event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0]
    assert sum(allocated) == 2 * h.nbytes + h.numel() // 4 + 2 * h.nbytes


@pytest.mark.parametrize("dtype", DTYPES, **named)
def test_huge_pages_change_nothing(dtype, monkeypatch):
    curve = curves.get("silu")
    gate, up = torch.randn(64, 2048).to(dtype).chunk(2, dim=-1)
    expected = native.gated_forward(gate, up, curve)
    expected_grads = gradients(native, up.contiguous(), *expected, curve)
    monkeypatch.setattr(native, "HUGE_PAGES_FROM", 1)
    saved = native.gated_forward(gate, up, curve)
    assert all(torch.equal(a, b) for a, b in zip(saved, expected, strict=True))
    grads = gradients(native, up.contiguous(), *saved, curve)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))
