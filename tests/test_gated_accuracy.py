"""The gradients of gated products against float64 mathematics, beside PyTorch's own autograd in the same dtype."""

import pytest
import torch

import optiacts
from benchmarks.gated_accuracy import DATA, errors, inputs
from optiacts import curves
from tests.samples import EVERY

N = 1 << 19
# Times PyTorch's error. The contract is 1.6 in bfloat16, 2.2 in float16. ReLU's up is h / s, with one rounding more
# than PyTorch's, which leaves a factor of sqrt(2); and where few elements make the norm, it is a matter of chance.
GATE_LIMIT, RELU_LIMIT, RARE_LIMIT, UP_LIMIT = 1.1, 1.6, 1.6, 1.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("curve", EVERY)
def test_16_bit_error_beside_pytorch(curve, kind, dtype):
    e = errors(curve, kind, dtype, N)
    limit = RELU_LIMIT if curve == "relu" else RARE_LIMIT if kind == "rare" else GATE_LIMIT
    assert e.finite > 0.998
    assert e.gate <= limit * e.pytorch_gate
    assert e.up <= UP_LIMIT * e.pytorch_up


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("curve", EVERY)
def test_float32_error(curve, kind):
    e = errors(curve, kind, torch.float32, N)
    assert e.finite == 1
    assert e.gate <= 1e-6
    assert e.up <= UP_LIMIT * e.pytorch_up


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("curve", EVERY)
def test_forward_is_pytorchs_to_the_bit(curve, dtype):
    gate, up, _ = inputs("outliers", dtype, N)
    h = optiacts.gated(gate.requires_grad_(), up, curve)
    assert torch.equal(h, curves.get(curve).forward(gate) * up)
