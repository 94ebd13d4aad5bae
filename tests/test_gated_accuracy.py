"""The gradients of gated products against float64 mathematics, beside PyTorch's own autograd in the same dtype."""

import pytest
import torch

import optiacts
from optiacts import curves

N = 1 << 19
# Times PyTorch's error. The contract is 1.6 in bfloat16, 2.2 in float16. ReLU's up is h / s, with one rounding more
# than PyTorch's, which leaves a factor of sqrt(2); and where few elements make the norm, it is a matter of chance.
GATE_LIMIT, RELU_LIMIT, RARE_LIMIT, UP_LIMIT = 1.1, 1.6, 1.6, 1.1


def _normal(generator):
    return torch.randn(N, generator=generator, dtype=torch.float64)


def _student(generator):
    return _normal(generator) / sum(_normal(generator) ** 2 / 3 for _ in range(3)).sqrt()


def _outliers(generator, share=1e-2):
    """One in a hundred is a hundred times as large."""
    return torch.where(torch.rand(N, generator=generator) < share, 100.0, 1.0) * _normal(generator)


def _rare(generator):
    return _outliers(generator, share=1e-3)


DATA = {"normal": _normal, "student": _student, "outliers": _outliers, "rare": _rare}


def _inputs(kind, dtype):
    generator = torch.Generator().manual_seed(1)
    gate, up, grad = DATA[kind](generator), DATA[kind](generator), _normal(generator)
    return gate.to(dtype), up.to(dtype), grad.to(dtype)


def _gradients(fn, gate, up, grad):
    gate, up = gate.clone().requires_grad_(), up.clone().requires_grad_()
    return torch.autograd.grad(fn(gate, up), (gate, up), grad)


def _exact(known, gate, up, grad):
    gate, up, grad = gate.double(), up.double(), grad.double()
    return grad * up * known.derivative(gate, torch), grad * known.function(gate, torch)


def _error(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("curve", curves.GATES)
def test_16_bit_error_beside_pytorch(curve, kind, dtype):
    known, inputs = curves.gate(curve), _inputs(kind, dtype)
    exact = _exact(known, *inputs)
    ours = _gradients(lambda g, u: optiacts.gated(g, u, curve), *inputs)
    theirs = _gradients(lambda g, u: known.forward(g) * u, *inputs)
    assert all(gradient.isfinite().all() for gradient in ours)
    finite = theirs[0].isfinite()  # of tanh-GELU written out in float16, PyTorch's gradient of an outlier is NaN
    assert finite.sum() > 0.998 * N
    limit = RELU_LIMIT if curve == "relu" else RARE_LIMIT if kind == "rare" else GATE_LIMIT
    assert _error(ours[0][finite], exact[0][finite]) <= limit * _error(theirs[0][finite], exact[0][finite])
    assert _error(ours[1], exact[1]) <= UP_LIMIT * _error(theirs[1], exact[1])


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("curve", curves.GATES)
def test_float32_error(curve, kind):
    known, inputs = curves.gate(curve), _inputs(kind, torch.float32)
    exact = _exact(known, *inputs)
    ours = _gradients(lambda g, u: optiacts.gated(g, u, curve), *inputs)
    theirs = _gradients(lambda g, u: known.forward(g) * u, *inputs)
    assert _error(ours[0], exact[0]) <= 1e-6
    assert _error(ours[1], exact[1]) <= UP_LIMIT * _error(theirs[1], exact[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("curve", curves.GATES)
def test_forward_is_pytorchs_to_the_bit(curve, dtype):
    gate, up, _ = _inputs("outliers", dtype)
    h = optiacts.gated(gate.requires_grad_(), up, curve)
    assert torch.equal(h, curves.gate(curve).forward(gate) * up)
