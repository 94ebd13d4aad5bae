"""A converted model exports as PyTorch's own: whoever loads it needs no OptiActs."""

import operator

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import optiacts


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class WrittenOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def converted() -> nn.Module:
    activations = nn.GELU(), GatedMLP(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Mish(), WrittenOut()
    model = nn.Sequential(nn.Linear(8, 8), *activations, nn.Linear(8, 3))
    report = optiacts.convert(model, autocast=True)
    found = [entry.what for entry in report.converted if entry.kind != "Linear"]
    assert found == ["gelu", "silu gate", "silu", "LayerNorm", "mish", "RMSNorm"]
    assert all("OptiActs" in repr(module) for module in model)
    return model


class Explicit(nn.Module):
    """Our functions called by name."""

    def forward(self, x: Tensor) -> Tensor:
        return optiacts.swiglu(optiacts.gelu(x), optiacts.quick_gelu(x)) + optiacts.geglu(torch.cat([x, x], dim=-1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [converted, Explicit])
def test_export_holds_plain_aten_ops(make: type[nn.Module], training: bool) -> None:
    model, x = make().train(training), torch.randn(4, 8, requires_grad=True)
    program = torch.export.export(model, (x,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") for name in called - {str(operator.getitem)}), called
    assert {"aten.gelu.default", "aten.silu.default", "aten.mul.Tensor"} <= called
    assert make is not converted or {"aten.layer_norm.default", "aten.rsqrt.default"} <= called
    assert torch.equal(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore")  # the exporter warns about its own parts
def test_onnx_holds_standard_operators() -> None:
    model, x = converted().eval(), torch.randn(4, 8)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    exported = program.model_proto
    onnx.checker.check_model(exported)
    nodes = [*exported.graph.node, *(node for function in exported.functions for node in function.node)]
    assert len(nodes) >= 9 and {node.domain for node in nodes} == {""}
    (output,) = ReferenceEvaluator(exported).run(None, {exported.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(output, model(x).detach().numpy(), rtol=0, atol=1e-6)
