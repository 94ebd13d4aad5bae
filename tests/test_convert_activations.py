"""Activation modules that conversion knows, their variants, and those it leaves with a reason."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from optiacts import curves
from optiacts.conversion.recognition import recognise_module
from tests.convertible import (
    agrees,
    run,
    sample,
)

MODULES = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
}


@pytest.mark.parametrize("curve", MODULES)
def test_torch_modules(curve: str) -> None:
    module = copy.deepcopy(MODULES[curve])
    original = copy.deepcopy(module)
    assert optiacts.convert(module).converted[0].what == curve  # the model may be an activation itself
    assert isinstance(module, type(original)) and type(module).__name__ == type(original).__name__
    assert "OptiActs" in repr(module)
    x = sample(3, 40)
    agrees(module, original, x)
    assert optiacts.saved_memory(module, x).storages[0].shape == (3, 40)
    assert optiacts.saved_memory(module, x).bytes == 3 * 40 * 4 + 3 * 5
    optiacts.revert(module)
    assert type(module) is type(original) and vars(module).keys() == vars(original).keys()


def _transformers_activations() -> list[tuple[str, str]]:
    return [
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_accurate", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_python_tanh", "gelu_tanh"),
        ("quick_gelu", "quick_gelu"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("mish", "mish"),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "curve"), _transformers_activations())
def test_transformers_modules_keep_every_bit(name: str, curve: str, dtype: torch.dtype) -> None:
    from transformers.activations import ACT2FN

    module, original = ACT2FN[name], ACT2FN[name]
    assert optiacts.convert(module).converted[0].what == curve
    if dtype is torch.float32:
        x = torch.linspace(-12, 12, 100_001)
    else:
        x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    y = module(x.requires_grad_())
    assert y.grad_fn is not None and "Activation" in y.grad_fn.name()
    torch.testing.assert_close(y, original(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
def test_other_activations_are_left_with_a_reason(name: str) -> None:
    from transformers.activations import ACT2FN

    module = ACT2FN[name]
    kind = type(module)
    report = optiacts.convert(module)
    assert not report.converted and type(module) is kind
    reason = report.left[0].reason
    assert "keeps its result" in reason


def test_timm_is_recognised() -> None:
    """timm itself needs torchvision, so its classes are stood in for."""

    class GELUTanh(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return functional.gelu(input, approximate="tanh")

    class Swish(nn.Module):
        def __init__(self, inplace: bool = False) -> None:
            super().__init__()
            self.inplace = inplace

        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(x.sigmoid()) if self.inplace else x.mul(x.sigmoid())

    model = nn.Sequential(nn.Linear(8, 8), GELUTanh(), nn.Linear(8, 8), Swish(), nn.Linear(8, 8), Swish(inplace=True))
    original = copy.deepcopy(model)
    report = optiacts.convert(model)
    assert [entry.what for entry in report.converted] == ["gelu_tanh", "silu", "silu"]
    agrees(model, original, sample())


def _variant(name: str) -> str:
    """The variant that transformers' activation of that name is."""
    from transformers.activations import ACT2FN

    recognised = recognise_module(ACT2FN[name])
    assert recognised.curve != recognised.base and recognised.steps
    return recognised.curve


@pytest.mark.parametrize("written_out", ["gelu_python", "gelu_new", "gelu_fast", "gelu_accurate"])
def test_variants_meet_the_accuracy_contract(written_out: str) -> None:
    """float32: 2e-6 away from the minimum, 1.2e-4 near it; 16 bits: 1.1 x the floor, and rounding."""
    name = _variant(written_out)
    curve = curves.get(name)
    x = torch.linspace(-5, 20, 200_001, requires_grad=True)
    y = optiacts.functional.apply(name, x)
    error = (torch.autograd.grad(y.sum(), x)[0].double() - curve.derivative(x.detach().double(), torch)).abs()
    near = (x - curve.x_min).abs() <= 0.1
    assert error[~near].max() <= 2e-6 and error.max() <= 1.2e-4

    for dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
        x = x[x.isfinite()].requires_grad_()
        y = optiacts.functional.apply(name, x)
        slope = torch.autograd.grad(y, x, torch.ones_like(y))[0].double()
        truth = curve.derivative(x.detach().double(), torch)
        # the floor: half the spread of f' over the inputs that one (output, side bit) stands for
        key = (y.detach().view(torch.int16).int() & 0xFFFF) + (x < curve.threshold(dtype)).int() * 65536
        highest = torch.zeros(1 << 17, dtype=torch.float64).scatter_reduce(
            0, key.long(), truth, "amax", include_self=False
        )
        lowest = torch.zeros(1 << 17, dtype=torch.float64).scatter_reduce(
            0, key.long(), truth, "amin", include_self=False
        )
        floor = ((highest - lowest) / 2).max()
        rounding = torch.finfo(dtype).eps / 2 * 1.2  # f' is at most 1.13, and backward rounds it to the dtype
        assert (slope - truth).abs().max() <= 1.1 * floor + rounding


@pytest.mark.parametrize("gate", [False, True])
def test_variants_whose_result_autocast_widens(gate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, autocast runs ``pow`` in float32, and so gelu_new of bfloat16 is float32. Here as there."""
    name = _variant("gelu_new")
    narrow = curves.VARIANTS[name]
    wide = dataclasses.replace(narrow, forward=lambda x: narrow.forward(x.float()))
    x, up = (t.bfloat16().detach().requires_grad_() for t in (sample(64, 8), sample(64, 8) + 1))
    optiacts.gated(x, up, name)  # tables are made outside of autocast, of the narrow one
    optiacts.functional.apply(name, x)
    monkeypatch.setitem(curves.GATES, name, wide)
    if gate:
        y, expected = optiacts.gated(x, up, name), wide.forward(x) * up
    else:
        y, expected = optiacts.functional.apply(name, x), wide.forward(x)
    assert torch.equal(y, expected) and y.dtype == torch.float32
    inputs = [x, up] if gate else [x]
    ours = torch.autograd.grad(y.sum(), inputs)
    theirs = torch.autograd.grad(expected.sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=2**-7, atol=2e-4)


class Squares(nn.Module):
    """An MLP that squares the ReLU of what a call returns."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(16, 64), nn.Linear(16, 64), nn.Linear(64, 16)
        self.act, self.drop = nn.ReLU(), nn.Dropout(0.5)


SQUARES: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {  # and the tensors of 64 that are left
    "square": (lambda self, x: self.down(functional.relu(self.gate(x)).square()), 1),
    "torch.square": (lambda self, x: self.down(torch.square(self.act(self.gate(x)))), 1),
    "power": (lambda self, x: self.down(torch.relu(self.gate(x)) ** 2), 1),
    "pow": (lambda self, x: self.down(torch.pow(self.act(self.gate(x)), 2)), 1),
    "methods": (lambda self, x: self.down(self.gate(x).relu().pow(2)), 1),
    "sum": (lambda self, x: self.down(functional.relu(self.gate(x) + self.up(x)).square()), 1),
    "gate": (lambda self, x: self.down(self.up(x) * functional.relu(self.gate(x)).square()), 2),
    "nested": (lambda self, x: self.down(functional.relu(functional.gelu(self.gate(x))).square()), 2),
    "dropout": (lambda self, x: self.down(self.drop(functional.relu(self.gate(x)).square())), 1),
}


@pytest.mark.parametrize("form", SQUARES)
def test_the_squared_relu_of_a_call(form: str) -> None:
    forward, kept = SQUARES[form]
    torch.manual_seed(0)
    model = type("MLP", (Squares,), {"forward": forward})()
    original = copy.deepcopy(model)
    optiacts.convert(model)
    x = sample(32, 16)
    for seed in range(2):  # a second forward runs the rewritten one again
        torch.manual_seed(seed)
        (y, ours) = run(model, x)
        torch.manual_seed(seed)
        (expected, theirs) = run(original, x)
        assert torch.equal(y, expected)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    held = [storage.nbytes for storage in optiacts.saved_memory(model, x).storages]
    assert sum(size == 32 * 64 * 4 for size in held) == kept, held
    optiacts.revert(model)
    assert sum(s.nbytes == 32 * 64 * 4 for s in optiacts.saved_memory(model, x).storages) > kept


def test_a_cubed_relu_is_left() -> None:
    model = type("MLP", (Squares,), {"forward": lambda self, x: self.down(functional.relu(self.gate(x)) ** 3)})()
    assert not optiacts.convert(model, dropout=False).converted


def test_numbers_that_a_compiler_makes_symbols_of() -> None:
    """With ``dynamic=True`` those of a module and of a function's defaults are."""

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.slope = nn.Linear(8, 16), nn.Linear(16, 8), 0.2

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(functional.softplus(functional.leaky_relu(self.first(x), self.slope)))
            return y

    model = Leaky()
    optiacts.convert(model)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    for rows in (4, 9):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(compiled(x), model(x))
