"""torch.func, torch.compile and torch.library's own checks."""

import pytest
import torch
from torch import Tensor

import optiacts
from optiacts.curves import get
from optiacts.functional import apply
from tests.samples import DTYPES, NAMES, true_derivative


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_dim, shape", [(0, (5,)), (0, (5, 9)), (1, (9, 5)), (-1, (3, 9, 5))])
def test_vmap_of_grad(name: str, in_dim: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: apply(name, x).sum()), in_dims=in_dim)(x)
    truth = true_derivative(get(name), x).movedim(in_dim, 0)
    torch.testing.assert_close(per_sample, truth, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_hessian_and_forward_over_reverse(name: str) -> None:
    x = torch.tensor([-3.0, -0.2, 0.0, 1.3], dtype=torch.float64)
    truth = torch.diag(get(name).second_derivative(x, torch))
    torch.testing.assert_close(torch.func.hessian(lambda x: apply(name, x).sum())(x), truth, rtol=0, atol=1e-7)
    reverse_twice = torch.func.jacrev(torch.func.grad(lambda x: apply(name, x).sum()))(x)
    torch.testing.assert_close(reverse_twice, truth, rtol=0, atol=1e-7)


def test_jvp_of_a_tensor_that_requires_grad() -> None:
    x, tangent = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        y = optiacts.silu(torch.autograd.forward_ad.make_dual(x, tangent))
        got = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert got is not None
    torch.testing.assert_close(got, tangent * true_derivative(get("silu"), x.detach()), rtol=0, atol=1e-7)


def test_vmap_and_grad_with_inplace() -> None:
    def function(x: Tensor) -> Tensor:
        return optiacts.silu(x * 1, inplace=True).sum()

    x = torch.randn(5, 9, dtype=torch.float64)
    got = torch.func.vmap(torch.func.grad(function))(x)
    torch.testing.assert_close(got, true_derivative(get("silu"), x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 16), (4, 0), (0, 4)])
def test_opcheck(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Schema, fake kernel, aliasing and dynamic-shape tracing of every op."""
    x = torch.randn(shape).to(dtype)
    y, bits = torch.ops.optiacts.activation_forward(x, "gelu", [])
    torch.library.opcheck(torch.ops.optiacts.activation_forward.default, (x, "gelu", []))
    torch.library.opcheck(torch.ops.optiacts.activation_forward_.default, (x.clone(), "gelu", []))
    torch.library.opcheck(torch.ops.optiacts.activation_backward.default, (torch.ones_like(y), y, bits, "gelu", []))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_eager(name: str, backend: str) -> None:
    torch.compiler.reset()
    x = torch.randn(6, 20, requires_grad=True)
    weight = torch.randn(6, 20)
    y = torch.compile(lambda x: apply(name, x) * weight, backend=backend, fullgraph=True)(x)
    (compiled,) = torch.autograd.grad(y.sum(), x)
    (eager,) = torch.autograd.grad((apply(name, x) * weight).sum(), x)
    assert torch.equal(compiled, eager)


def test_compiled_inplace_and_channels_last() -> None:
    torch.compiler.reset()
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return optiacts.gelu(x * 2, inplace=True)

    y = torch.compile(function, fullgraph=True)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, function(x))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(function(x).sum(), x)[0])


def test_dynamic_shapes_compile_once() -> None:
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: optiacts.silu(x).sum(), backend=counter, fullgraph=True, dynamic=True)
    for rows in (3, 5, 8, 13):
        compiled(torch.randn(rows, rows + 9, requires_grad=True)).backward()
    assert counter.frame_count == 1


def test_export_holds_plain_aten_ops() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), optiacts.GELU()).train()
    program = torch.export.export(model, (torch.randn(2, 4),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.linear.default", "aten.gelu.default"}
