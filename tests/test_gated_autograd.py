"""Second derivatives, torch.func, layouts, fused projections, saved bytes, fall-through and errors."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

import optiacts
from optiacts import curves, ops
from tests.compilers import without_kernels
from tests.samples import EVERY

every_curve = pytest.mark.parametrize("curve", EVERY)


def _pair(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


@every_curve
def test_gradcheck(curve):
    inputs = _pair(2, 3)  # time grows with the elements; inputs on both branches are all that is asked of them
    fn = lambda gate, up: optiacts.gated(gate, up, curve)  # noqa: E731
    assert gradcheck(fn, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(fn, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@every_curve
def test_gradcheck_fused(curve):
    inputs = _pair(2, 4)[:1]
    fn = lambda gate_up: optiacts.gated(gate_up, None, curve)  # noqa: E731
    assert gradcheck(fn, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(fn, inputs, check_fwd_over_rev=True, check_batched_grad=True)


def test_second_derivative_where_gate_and_up_are_zero():
    """d2(s u) / dg du = f'(0), though neither s nor u says anything."""
    gate, up = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (by_gate,) = torch.autograd.grad(optiacts.swiglu(gate, up), gate, create_graph=True)
    assert torch.autograd.grad(by_gate, up)[0].item() == pytest.approx(0.5, abs=1e-12)


def test_third_derivative_is_refused():
    gate, up = _pair(3)
    (first,) = torch.autograd.grad(optiacts.swiglu(gate, up).sum(), gate, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), gate, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        second.sum().backward()


@every_curve
@pytest.mark.parametrize("shape", [(), (5,), (3, 5)])
def test_torch_func(curve, shape):
    gate, up = (t.detach() for t in _pair(4, *shape))
    known = curves.get(curve)

    def batch(fn):
        return torch.func.vmap(torch.func.grad(lambda g, u: fn(g, u).sum(), argnums=(0, 1)))(gate, up)

    def hessian(fn):
        return torch.func.hessian(lambda g, u: fn(g, u).sum(), argnums=(0, 1))(gate[0], up[0])

    ours, theirs = (lambda g, u: optiacts.gated(g, u, curve)), (lambda g, u: known.forward(g) * u)
    torch.testing.assert_close(batch(ours), batch(theirs), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(hessian(ours), hessian(theirs), rtol=1e-7, atol=1e-9)


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "strided rows": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "every second": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "size one": lambda t: torch.empty_strided((4, 1, 9), (18, 100, 1), dtype=t.dtype).copy_(t[:, :1]),
}


@pytest.mark.parametrize("gate_layout", LAYOUTS)
@pytest.mark.parametrize("up_layout", LAYOUTS)
def test_layouts(gate_layout, up_layout):
    gate, up = (t.detach() for t in _pair(4, 3, 9))
    if "size one" in (gate_layout, up_layout):
        gate, up = gate[:, :1], up[:, :1]
    gate, up = LAYOUTS[gate_layout](gate).requires_grad_(), LAYOUTS[up_layout](up).requires_grad_()
    grad = torch.randn(gate.shape, dtype=gate.dtype)
    h, exact = optiacts.swiglu(gate, up), functional.silu(gate) * up
    assert torch.equal(h, exact)
    ours, theirs = (torch.autograd.grad(y, (gate, up), grad) for y in (h, exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every second"])
def test_fused_gradient_is_that_of_the_halves(layout):
    gate_up = LAYOUTS[layout](_pair(4, 3, 10)[0].detach()).requires_grad_()
    ours = torch.autograd.grad(optiacts.swiglu(gate_up).sum(), gate_up)
    theirs = torch.autograd.grad(optiacts.swiglu(*gate_up.chunk(2, dim=-1)).sum(), gate_up)
    assert torch.equal(ours[0], theirs[0])


class MLP(torch.nn.Module):
    def __init__(self, product, width, hidden, dtype, fused=False):
        super().__init__()
        linear = lambda a, b: torch.nn.Linear(a, b, bias=False, dtype=dtype)  # noqa: E731
        self.inner = torch.nn.ModuleList(
            [linear(width, 2 * hidden)] if fused else [linear(width, hidden), linear(width, hidden)]
        )
        self.down, self.product = linear(hidden, width), product

    def forward(self, x):
        return self.down(self.product(*(linear(x) for linear in self.inner)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("fused", [False, True], ids=["two", "fused"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2.13), (torch.float32, 2.07)])
def test_saved_bytes(dtype, limit, fused, compiled):
    model, x = MLP(optiacts.swiglu, 16, 256, dtype, fused), torch.randn(64, 16, dtype=dtype)
    if compiled:
        torch._dynamo.reset()
    saved = optiacts.saved_memory(
        torch.compile(model, fullgraph=True, backend=without_kernels) if compiled else model, x
    )
    tensors = (saved.bytes - x.nbytes) / (64 * 256 * dtype.itemsize)
    assert 2.0 < tensors <= limit
    saved.output.sum().backward()
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for compiled_grad, parameter in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(compiled_grad, parameter.grad)


def test_pytorch_saves_four():
    """The baseline of the figures above."""
    x = torch.randn(64, 16)
    saved = optiacts.saved_memory(MLP(lambda g, u: functional.silu(g) * u, 16, 256, torch.float32), x)
    assert (saved.bytes - x.nbytes) / (64 * 256 * 4) == 4


def test_one_factor_without_gradient():
    gate, up = _pair(4, 9)
    exact = torch.autograd.grad((functional.silu(gate) * up).sum(), (gate, up))
    (by_gate,) = torch.autograd.grad(optiacts.swiglu(gate, up.detach()).sum(), gate)
    torch.testing.assert_close(by_gate, exact[0], rtol=1e-9, atol=1e-10)
    h = optiacts.swiglu(gate.detach(), up)
    assert h.grad_fn.name() == "MulBackward0"  # PyTorch keeps act(gate) alone, which we could not better
    assert torch.equal(torch.autograd.grad(h.sum(), up)[0], exact[1])


def test_falls_through_to_pytorch():
    gate, up = _pair(4, 9)
    with torch.no_grad():
        assert torch.equal(optiacts.swiglu(gate, up), functional.silu(gate) * up)
    assert optiacts.swiglu(gate, up[:1]).grad_fn.name() == "MulBackward0"  # broadcasting
    assert optiacts.swiglu(gate, up.float()).dtype == torch.float64  # type promotion
    with pytest.raises(RuntimeError, match="must match the size"):
        optiacts.swiglu(gate, up[:, :4])


def test_modules_are_their_functions():
    gate, up = _pair(4, 8)
    assert torch.equal(optiacts.SwiGLU()(gate, up), functional.silu(gate) * up)
    assert torch.equal(optiacts.GEGLU()(gate, up), functional.gelu(gate) * up)
    tanh = optiacts.GEGLU("tanh")
    assert torch.equal(tanh(gate, up), functional.gelu(gate, approximate="tanh") * up)
    assert "tanh" in repr(tanh)
    assert torch.equal(optiacts.ReGLU()(gate), functional.relu(gate[:, :4]) * gate[:, 4:])


def test_errors_name_the_argument():
    gate, up = (t.detach() for t in _pair(4, 9))
    with pytest.raises(ValueError, match=r"curve must be one of .*relu.*; got 'tangent'"):
        optiacts.gated(gate, up, "tangent")
    with pytest.raises(ValueError, match=r"even last dimension; got shape \(4, 9\)"):
        optiacts.swiglu(gate)
    with pytest.raises(RuntimeError, match="approximate argument must be either none or tanh"):
        optiacts.geglu(gate, up, "exact")
    h, slot, bits = ops.gated_forward(gate, up, "silu")
    with pytest.raises(ValueError, match=r"bits must be uint8 of shape \(4, 2\)"):
        ops.gated_backward(h, h, slot, bits, "relu")
    with pytest.raises(ValueError, match="slot must have shape"):
        ops.gated_backward(h, h, slot[:2], bits, "silu")
    with pytest.raises(ValueError, match="up must have shape"):
        ops.gated_forward(gate, up.float(), "silu")


@every_curve
def test_ops_pass_torchs_own_check(curve):
    gate, up = (t.detach() for t in _pair(4, 9, dtype=torch.float32))
    torch.library.opcheck(ops.gated_forward, (gate, up, curve))
    h, slot, bits = ops.gated_forward(gate, up, curve)
    torch.library.opcheck(ops.gated_backward, (h, h, slot, bits, curve))
    torch.library.opcheck(ops.gated_backward_fused, (h, h, slot, bits, curve))


PYTORCHS_LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 2),
    "channels_last": lambda x: x.unsqueeze(0).contiguous(memory_format=torch.channels_last),
    "every other, transposed": lambda x: x[:, ::2].transpose(0, 1),
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", PYTORCHS_LAYOUTS)
@pytest.mark.parametrize("curve", sorted(EVERY))
def test_layouts_keep_pytorchs_bits_and_strides(curve, layout, dtype):
    """PyTorch's GELU rounds differently by layout on CPU; the product follows it. Gradients are a plain copy's."""
    torch.manual_seed(0)
    gate, up = (
        PYTORCHS_LAYOUTS[layout](torch.randn(12, 16, 24).to(dtype)).detach().requires_grad_() for _ in range(2)
    )
    wanted = curves.get(curve).forward(gate.detach()) * up.detach()
    h = optiacts.gated(gate, up, curve)
    assert torch.equal(h, wanted) and h.stride() == wanted.stride()
    weight = torch.randn(h.shape).to(dtype)
    got = torch.autograd.grad(h, (gate, up), weight)
    plain = [t.detach().contiguous().requires_grad_() for t in (gate, up)]
    expected = torch.autograd.grad(optiacts.gated(*plain, curve), plain, weight)
    floor = {torch.float32: 2e-4, torch.bfloat16: 0.03}[dtype]  # two last bits of the output near the minimum
    for ours, theirs in zip(got, expected, strict=True):
        scale = (up * weight).abs().float().max()
        assert (ours.float() - theirs.float()).abs().max() <= floor * scale
