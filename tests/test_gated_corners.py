"""The elements where h does not give the lost factor back: zeros, subnormals, overflow, NaN."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import optiacts
from optiacts import curves, decoders, ops
from optiacts.backends import eager
from optiacts.decoders import valley
from tests.samples import EVERY

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
every_curve = pytest.mark.parametrize("curve", EVERY)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def _gradients(fn, gate, up, grad):
    gate, up = gate.clone().requires_grad_(), up.clone().requires_grad_()
    h = fn(gate, up)
    return h.detach(), *torch.autograd.grad(h, (gate, up), grad)


def _ours(curve, gate, up, grad):
    return _gradients(lambda g, u: optiacts.gated(g, u, curve), gate, up, grad)


def _theirs(curve, gate, up, grad):
    return _gradients(lambda g, u: curves.get(curve).forward(g) * u, gate, up, grad)


def _assert_grad_up(by_up, grad, gate, curve, where):
    """PyTorch's to the bit, but in the valley of float32, where a polynomial gives act(gate).

    All of ``gate`` is evaluated at once: PyTorch's own forward may round an element by where it stands.
    """
    known = curves.get(curve)
    expected = (grad * known.forward(gate))[where]
    by_up, grad, gate = by_up[where], grad[where], gate[where]
    in_valley = torch.zeros_like(gate, dtype=torch.bool)
    if isinstance(known.decoder, curves.Unimodal) and gate.dtype is torch.float32:
        in_valley = valley.contains(known, gate)
    assert torch.equal(by_up[~in_valley], expected[~in_valley])
    exact = grad.double() * known.function(gate.double(), torch)
    torch.testing.assert_close(by_up[in_valley].double(), exact[in_valley], rtol=4e-7, atol=2.0**-149)


@every_dtype
@every_curve
def test_eager_gives_up_pytorchs_gradient_to_the_bit(curve, dtype):
    known, generator = curves.get(curve), torch.Generator().manual_seed(3)
    gate, up, grad = torch.randn(3, 4096, generator=generator, dtype=torch.float64).to(dtype)
    saved = eager.gated_forward(gate, up, known)
    normal = saved[0].abs() >= torch.finfo(dtype).tiny
    by_gate, by_up = torch.empty_like(gate), torch.empty_like(gate)
    eager.gated_backward(grad, *saved, known, by_gate, by_up)
    assert normal.sum() > 2000
    assert torch.equal(by_up[normal], (grad * known.forward(gate))[normal])


@every_dtype
@every_curve
def test_zero_rows_get_zero_gradients(curve, dtype):
    zero, grad = torch.zeros(2, 9, dtype=dtype), torch.ones(2, 9, dtype=dtype)
    for result in _ours(curve, zero, zero, grad):
        assert torch.equal(result, zero)


@every_dtype
@every_curve
def test_gate_zero_keeps_up(curve, dtype):
    """s = 0 gives up no way back, so the slot holds it: grad_gate = grad * up * f'(0)."""
    gate = torch.tensor([0.0, -0.0, 0.0, -0.0], dtype=dtype)
    up = torch.tensor([3.0, 3.0, -0.7, -0.7], dtype=dtype)
    _, by_gate, by_up = _ours(curve, gate, up, torch.ones_like(up))
    slope = 0.0 if curve == "relu" else 0.6 if curve.startswith("mish") else 0.5
    decoded = 2e-6 if dtype is torch.float32 else 0.0
    torch.testing.assert_close(by_gate, slope * up, rtol=2 * torch.finfo(dtype).eps + decoded, atol=0)
    assert torch.equal(by_up.abs(), torch.zeros_like(up))


@every_dtype
@every_curve
def test_up_zero_needs_no_slot(curve, dtype):
    gate = torch.tensor([2.0, 2.0, -0.5, -0.5], dtype=dtype)
    up = torch.tensor([0.0, -0.0, 0.0, -0.0], dtype=dtype)
    _, by_gate, by_up = _ours(curve, gate, up, torch.ones_like(up))
    assert torch.equal(by_gate, torch.zeros_like(up))
    _assert_grad_up(by_up, torch.ones_like(gate), gate, curve, slice(None))
    if curve != "relu":  # the sign of zero survives
        h, slot, bits = ops.gated_forward(gate, up, curve)
        assert torch.equal(decoders.read(h, slot, bits, curves.get(curve)).up.signbit(), up.signbit())


@every_dtype
@every_curve
def test_underflow_loses_less_than_the_smallest_normal_allows(curve, dtype):
    """h below the normal numbers: the larger factor is exact, the other one off by half a spacing of h / larger."""
    limits = torch.finfo(dtype)
    scale = limits.tiny**0.5
    generator = torch.Generator().manual_seed(2)
    steps = 2.0 ** torch.randint(-6, 6, (2, 4096), generator=generator, dtype=torch.float64)
    signs = torch.randn(2, 4096, generator=generator, dtype=torch.float64).sign()
    gate, up = (scale * steps * signs * 0.9).to(dtype)
    h, slot, bits = ops.gated_forward(gate, up, curve)
    s, u, *_ = decoders.read(h, slot, bits, curves.get(curve))
    true_s = curves.get(curve).forward(gate).double()
    size_s, size_up = true_s.abs(), up.double().abs()
    lost = limits.tiny * limits.eps / torch.maximum(size_s, size_up) + 2 * limits.eps * torch.minimum(size_s, size_up)
    under = h.abs() < limits.tiny
    needed = under & ~((true_s == 0) & curves.get(curve).left(gate))
    assert int(needed.sum()) > 1000
    assert bool(((s.double() - true_s).abs() <= lost)[under].all())
    assert bool(((u.double() - up.double()).abs() <= lost)[needed].all())


@every_dtype
def test_reglu_passes_the_gradient_where_h_underflows(dtype):
    tiny = torch.finfo(dtype).tiny
    gate, up = torch.tensor([tiny, tiny, -1.0], dtype=dtype), torch.tensor([tiny * 4, -tiny * 4, 5.0], dtype=dtype)
    h, by_gate, _ = _ours("relu", gate, up, torch.ones_like(up))
    assert torch.equal(h.abs(), torch.zeros_like(h))
    assert torch.equal(by_gate, torch.stack([up[0], up[1], torch.zeros_like(up[2])]))


@every_dtype
@every_curve
def test_overflow_stays_finite(curve, dtype):
    most = torch.finfo(dtype).max
    gate = torch.tensor([4.0, most / 2, most / 2, 3.0], dtype=dtype)
    up = torch.tensor([most / 2, 4.0, most / 2, -most], dtype=dtype)
    h, by_gate, by_up = _ours(curve, gate, up, torch.full_like(up, 0.25))
    assert bool(h.isinf().all())
    assert bool(by_gate.isfinite().all()) and bool(by_up.isfinite().all())
    larger_is_up = up.abs() > gate
    slope = curves.get(curve).derivative(gate.double().clamp(max=1e3), torch)
    exact = 0.25 * up.double() * slope
    wrong = (by_gate.double() - exact).abs()[larger_is_up]
    assert bool((wrong <= 0.15 * exact.abs()[larger_is_up]).all())  # 1 <= f' <= 1.13 wherever h can overflow


@every_curve
def test_nan_spreads(curve):
    nan = torch.tensor([float("nan")])
    one = torch.ones(1)
    assert all(t.isnan().all() for t in _ours(curve, nan, one, one))
    h, by_gate, by_up = _ours(curve, one, nan, one)
    assert h.isnan().all() and by_gate.isnan().all()
    assert torch.equal(by_up, curves.get(curve).forward(one))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), curve=st.sampled_from(sorted(EVERY)))
def test_any_finite_inputs(data, dtype, curve):
    """Never NaN where PyTorch's gradients are finite, and grad_up as good as PyTorch's.

    Left out is where act(gate) is infinite for a finite gate, as PyTorch's bfloat16 GELU on CPU is above 1.7e38:
    with up = 0 the product is NaN there already, and up cannot be had back from it.
    """
    width = {torch.float64: 64, torch.float16: 16}.get(dtype, 32)
    most = torch.finfo(dtype).max
    floats = st.floats(-most, most, width=width, allow_nan=False)
    n = data.draw(st.integers(1, 12))
    gate, up, grad = (
        torch.tensor(data.draw(st.lists(floats, min_size=n, max_size=n)), dtype=torch.float64).to(dtype)
        for _ in range(3)
    )
    ours, theirs = _ours(curve, gate, up, grad), _theirs(curve, gate, up, grad)
    assert torch.equal(ours[0].isnan(), theirs[0].isnan()) and torch.equal(
        ours[0].nan_to_num(), theirs[0].nan_to_num()
    )
    for mine, pytorchs in zip(ours[1:], theirs[1:], strict=True):
        assert not bool((mine.isnan() & pytorchs.isfinite() & curves.get(curve).forward(gate).isfinite()).any())
    exact_h = (ours[0].abs() >= torch.finfo(dtype).tiny) & ours[0].isfinite()
    _assert_grad_up(ours[2], grad, gate, curve, exact_h)
