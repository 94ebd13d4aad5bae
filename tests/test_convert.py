"""Conversion: which modules are meant, what is rewritten, what is left alone, and that the rewriting is faithful."""

import copy
import dataclasses
import io
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

import optiacts
from optiacts import curves


class Gated(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act = nn.SiLU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Chunked(Gated):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.cat([self.gate(x), self.up(x)], dim=-1).chunk(2, dim=-1)
        up = up * self.act(gate)
        return self.down(up)


class InPlaceProduct(Gated):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.gate(x))
        h *= self.up(x)
        return self.down(h)


class ByFunction(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.gate(x), approximate="tanh").mul(self.up(x)))


class ByHelper(Gated):
    def forward(self, x: Tensor) -> Tensor:
        for row in x:  # cannot be traced
            assert row.shape[-1] == 8
        return self.down(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        return functional.relu(self.gate(x)) * self.up(x)


class Plain(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class WrittenOut(Gated):
    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(up * torch.sigmoid(1.702 * up))


def _input(*shape: int) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(*(shape or (4, 8)), requires_grad=True)


def _run(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(6)
    y = model(x)
    return y, list(
        torch.autograd.grad(y.square().sum(), [x, *model.parameters()], allow_unused=True, materialize_grads=True)
    )


def _agrees(model: nn.Module, original: nn.Module, x: Tensor) -> None:
    """The same bits forward; gradients to float32 rounding (the contract at the curves' minimum is 1.2e-4)."""
    (y, ours), (expected, theirs) = _run(model, x), _run(original, x)
    assert torch.equal(y, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Gated, "silu gate"),
        (Chunked, "silu gate"),
        (InPlaceProduct, "silu gate"),
        (ByFunction, "gelu_tanh gate"),
        (ByHelper, "relu gate in _product()"),
        (Plain, "gelu"),
        (WrittenOut, "quick_gelu"),
    ],
)
def test_rewritten_forwards(kind: type[Gated], what: str) -> None:
    torch.manual_seed(0)
    original = kind()
    model = copy.deepcopy(original)
    report = optiacts.convert(model)
    assert [(entry.path, entry.what) for entry in report.converted][:1] == [("", what)]
    _agrees(model, original, _input())
    tensors = 4 * 16 * 4  # one hidden tensor
    before = optiacts.saved_memory(original, _input()).bytes
    after = optiacts.saved_memory(model, _input()).bytes
    # PyTorch holds gate, act(gate), up and h, or x, sigmoid and h, or x and h; of a ReLU gate act(gate), up and h
    gained = {Plain: 1, ByHelper: 1}.get(kind, 2)
    assert before - after == gained * tensors - _side_bytes(what), (before, after)


def _side_bytes(what: str) -> int:
    """Planes of bits, and for gates the two numbers through which second derivatives find their way."""
    planes = 1 if "relu" in what or "gate" not in what else 2
    return planes * 4 * 2 + (8 if "gate" in what else 0)


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
    x = _input(3, 40)
    _agrees(module, original, x)
    assert optiacts.saved_memory(module, x).storages[0].shape == (3, 40)
    assert optiacts.saved_memory(module, x).bytes == 3 * 40 * 4 + 3 * 5
    optiacts.revert(module)
    assert type(module) is type(original) and vars(module).keys() == vars(original).keys()


def _transformers_activations() -> list[tuple[str, str]]:
    return [
        ("gelu", "gelu"),
        ("gelu_python", "gelu_python"),
        ("gelu_new", "gelu_new"),
        ("gelu_accurate", "gelu_new"),
        ("gelu_fast", "gelu_fast"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_python_tanh", "gelu_new"),
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


@pytest.mark.parametrize(
    "name", ["laplace", "relu2", "sqrtsoftplus", "gelu_10", "leaky_relu", "prelu", "relu", "tanh"]
)
def test_other_activations_are_left_with_a_reason(name: str) -> None:
    from transformers.activations import ACT2FN

    module = ACT2FN[name]
    kind = type(module)
    report = optiacts.convert(module)
    assert not report.converted and type(module) is kind
    reason = report.left[0].reason
    assert ("parameters" in reason) == (name == "prelu")
    assert ("keeps its result" in reason) == (name in ("relu", "tanh"))


def test_timm_is_known_by_name() -> None:
    """timm itself needs torchvision, so its classes are stood in for, under their names."""

    class GELUTanh(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return functional.gelu(input, approximate="tanh")

    class Swish(nn.Module):
        def __init__(self, inplace: bool = False) -> None:
            super().__init__()
            self.inplace = inplace

        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(x.sigmoid()) if self.inplace else x.mul(x.sigmoid())

    for kind in (GELUTanh, Swish):
        kind.__module__, kind.__qualname__ = "timm.layers.activations", kind.__name__
    model = nn.Sequential(nn.Linear(8, 8), GELUTanh(), nn.Linear(8, 8), Swish(), nn.Linear(8, 8), Swish(inplace=True))
    original = copy.deepcopy(model)
    report = optiacts.convert(model)
    assert [entry.what for entry in report.converted] == ["gelu_tanh", "swish", "swish"]
    _agrees(model, original, _input())


@pytest.mark.parametrize("name", curves.VARIANTS)
def test_variants_meet_the_accuracy_contract(name: str) -> None:
    """float32: 2e-6 away from the minimum, 1.2e-4 near it; 16 bits: 1.1 x the floor, and rounding."""
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
    narrow = curves.VARIANTS["gelu_new"]
    wide = dataclasses.replace(narrow, forward=lambda x: narrow.forward(x.float()))
    monkeypatch.setitem(curves.VARIANTS, "gelu_new", wide)
    monkeypatch.setitem(curves.GATES, "gelu_new", wide)
    x, up = (t.bfloat16().detach().requires_grad_() for t in (_input(64, 8), _input(64, 8) + 1))
    if gate:
        y, expected = optiacts.gated(x, up, "gelu_new"), wide.forward(x) * up
    else:
        y, expected = optiacts.functional.apply("gelu_new", x), wide.forward(x)
    assert torch.equal(y, expected) and y.dtype == torch.float32
    inputs = [x, up] if gate else [x]
    ours = torch.autograd.grad(y.sum(), inputs)
    theirs = torch.autograd.grad(expected.sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=2**-7, atol=2e-4)


class TestFaithfulness:
    """A trace knows one way through a forward; whatever else may happen must be found out or refused."""

    def _model(self, forward: Callable[..., Tensor], **attributes: object) -> nn.Module:
        kind = type("Model", (Gated,), {"forward": forward})
        torch.manual_seed(0)
        model: nn.Module = kind()
        for name, value in attributes.items():
            setattr(model, name, value)
        return model

    def test_training_flag(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            return self.down(functional.dropout(h, p=0.5, training=self.training))

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        for mode in (True, False, True):
            _agrees(model.train(mode), original.train(mode), _input())

    def test_attribute_changed_later(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            return self.down(h * self.scale if self.scaled else h)

        original = self._model(forward, scaled=False, scale=3.0)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        for scaled, scale in ((False, 3.0), (True, 3.0), (True, 5.0)):
            for m in (model, original):
                m.scaled, m.scale = scaled, scale
            _agrees(model, original, _input())

    def test_optional_arguments(self) -> None:
        def forward(self: Gated, x: Tensor, bias: Tensor | None = None, *rest: Tensor, factor: float = 1.0) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            h = h if bias is None else h + bias
            return self.down(h) * factor + sum(rest)

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        x, bias = _input(), torch.ones(16)
        for args, kwargs in (((), {}), ((bias,), {}), ((bias, x), {}), ((), {"bias": bias}), ((), {"factor": 2.0})):
            assert torch.equal(model(x, *args, **kwargs), original(x, *args, **kwargs))

    def test_branch_on_a_value_is_followed_both_ways(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            h = self.act(self.gate(x)) * self.up(x)
            if x.shape[0] > 4:
                h = h + 1
            if h.dtype == torch.float64 and h.sum() > 0:
                h = h * 2
            return self.down(h)

        original = self._model(forward)
        model = copy.deepcopy(original)
        assert optiacts.convert(model).converted[0].what == "silu gate"
        for x in (_input(4, 8), _input(5, 8)):
            _agrees(model, original, x)
        x = _input(5, 8).detach().double()
        assert torch.equal(model.double()(x), original.double()(x))

    def test_replaced_activation(self) -> None:
        original = Gated()
        model = copy.deepcopy(original)
        optiacts.convert(model)
        model.act, original.act = nn.Tanh(), nn.Tanh()
        assert torch.equal(model(_input()), original(_input()))

    def test_hooks_on_the_activation_still_run(self) -> None:
        model = Gated()
        optiacts.convert(model)
        seen: list[Tensor] = []
        handle = model.act.register_forward_hook(lambda module, args, output: seen.append(output))
        model(_input())
        assert len(seen) == 1
        handle.remove()
        model(_input())
        assert len(seen) == 1

    @pytest.mark.parametrize(
        ("statement", "reason"),
        [
            (lambda self, x: self.options["scale"], "reads self.options"),
            (lambda self, x: float(torch.rand(())), "aten.rand"),
            (lambda self, x: random.random(), "random"),
            (lambda self, x: 1 if isinstance(x, Tensor) else 2, "type of a tensor"),
            (lambda self, x: len(list(x)), "cannot be traced"),
            (lambda self, x: setattr(self, "calls", 1) or 1, "writes the attribute calls"),
        ],
    )
    def test_what_cannot_be_traced_is_left(self, statement: Callable[..., float], reason: str) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            return self.down(self.act(self.gate(x)) * self.up(x) * statement(self, x))

        model = self._model(forward, options={"scale": 2})
        attributes = set(vars(model))
        before = random.getstate(), torch.random.get_rng_state()
        report = optiacts.convert(model)
        assert [entry.what for entry in report.converted] == ["silu"]  # the module itself
        assert reason in report.left[0].reason, report
        assert set(vars(model)) == attributes
        assert random.getstate() == before[0] and torch.equal(torch.random.get_rng_state(), before[1])

    def test_contexts(self) -> None:
        def forward(self: Gated, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                gate = self.gate(x)
            with torch.no_grad():
                up = self.up(x)
            return self.down(self.act(gate.float()) * up.float())

        original = self._model(forward)
        model = copy.deepcopy(original)
        report = optiacts.convert(model)
        assert "context" in report.left[0].reason
        _agrees(model, original, _input())


def test_nothing_is_changed_that_is_changed_in_place_afterwards() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5, inplace=True), nn.Linear(8, 8))
    original = copy.deepcopy(model)
    report = optiacts.convert(model)
    assert "in place" in report.left[0].reason and not report.converted
    _agrees(model, original, _input())


def test_activations_whose_output_is_not_kept_are_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.0))
    report = optiacts.convert(model)
    assert [entry.path for entry in report.converted] == ["4"]
    assert "does not keep" in report.left[0].reason


def test_shared_activation() -> None:
    act = nn.SiLU()
    original = nn.Sequential(Gated(act), Gated(act), nn.Linear(8, 8), act)
    model = copy.deepcopy(original)
    report = optiacts.convert(model)
    assert [entry.path for entry in report.converted] == ["0", "0.act", "1"]
    assert model[0].act is model[1].act is model[3]
    _agrees(model, original, _input())


def test_include_and_exclude() -> None:
    def converted(**selection: object) -> list[str]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": Gated(), "b": nn.Sequential(nn.Linear(8, 8), nn.GELU()), "c": Plain(nn.Mish())})
        return [entry.path for entry in optiacts.convert(model, **selection).converted]  # type: ignore[arg-type]

    assert converted() == ["a", "a.act", "b.1", "c", "c.act"]
    assert converted(include="a") == ["a", "a.act"]
    assert converted(include=["b*", Plain]) == ["b.1", "c", "c.act"]
    assert converted(include=nn.SiLU) == ["a", "a.act"]  # the activation, its product included
    assert converted(exclude="a.act") == ["b.1", "c", "c.act"]
    assert converted(exclude=(nn.GELU, "c")) == ["a", "a.act"]
    assert converted(include=lambda path, module: path.startswith("c")) == ["c", "c.act"]
    assert converted(include="a", exclude="a") == []
    with pytest.raises(ValueError, match="'nowhere'"):
        converted(include=["a", "nowhere"])
    for wrong in (3, [nn.SiLU()], int, ["a", None]):
        with pytest.raises(TypeError, match="exclude must be"):
            converted(exclude=wrong)
    with pytest.raises(TypeError, match="model must be"):
        optiacts.convert("model")  # type: ignore[arg-type]


def test_twice_is_once_and_reverting_twice_too() -> None:
    model = nn.Sequential(Gated(), Plain())
    kinds = [type(m) for m in model.modules()]
    optiacts.convert(model)
    converted = [type(m) for m in model.modules()]
    assert optiacts.convert(model).entries == ()
    assert [type(m) for m in model.modules()] == converted
    optiacts.revert(model)
    optiacts.revert(model)
    assert [type(m) for m in model.modules()] == kinds


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_converted_and_can_be_reverted(copied: str) -> None:
    model = nn.Sequential(Gated(), Plain())
    optiacts.convert(model)
    if copied == "deepcopy":
        other = copy.deepcopy(model)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    x = _input()
    assert torch.equal(other(x), model(x))
    assert optiacts.saved_memory(other, x).bytes == optiacts.saved_memory(model, x).bytes
    with torch.no_grad():
        other[0].gate.weight.zero_()  # the copy has children of its own
    assert not torch.equal(other(x), model(x))
    optiacts.revert(other)
    assert [type(m) for m in other] == [Gated, Plain]
    assert all(type(m) is not Gated for m in model)


def test_layers_share_one_class() -> None:
    model = nn.Sequential(Gated(), Gated())
    optiacts.convert(model)
    assert type(model[0]) is type(model[1])


def test_compiled_model_keeps_the_saving() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Gated(), Plain(), Gated(nn.ReLU()))
    x = _input()
    optiacts.convert(model)
    expected, gradients = _run(model, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    ours = list(torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()], allow_unused=True))
    for a, b in zip(ours, gradients, strict=True):
        torch.testing.assert_close(a if a is not None else torch.zeros_like(b), b, rtol=1e-4, atol=1e-4)
    after = optiacts.saved_memory(compiled, x).bytes
    optiacts.revert(model)
    before = optiacts.saved_memory(torch.compile(model, backend="aot_eager", fullgraph=True), x).bytes
    hidden = 4 * 16 * 4  # compiled PyTorch holds gate, up and h; x and h; act(gate), up and h
    assert before - after >= 2 * hidden - 4 * 4 * 3, (before, after)


def test_transformer_encoder_layer() -> None:
    """PyTorch's own layer calls the function it holds, in a helper method."""
    torch.manual_seed(0)
    original = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    model = copy.deepcopy(original)
    report = optiacts.convert(model)
    assert [entry.what for entry in report.converted] == ["gelu"]
    for mode in (True, False):
        _agrees(model.train(mode), original.train(mode), _input(2, 3, 8))
    with torch.no_grad():  # its fast path
        assert torch.equal(model(_input(2, 3, 8)), original(_input(2, 3, 8)))


def test_without_memory() -> None:
    """A model of fake tensors is converted as a real one, so that a saving can be told before a run."""
    with FakeTensorMode():
        model, x = nn.Sequential(Gated(), Plain()), torch.randn(4, 8, requires_grad=True)
        before = optiacts.saved_memory(model, x).bytes
        assert len(optiacts.convert(model).converted) == 4
        fake = before, optiacts.saved_memory(model, x).bytes
    model = nn.Sequential(Gated(), Plain())
    before = optiacts.saved_memory(model, _input()).bytes
    optiacts.convert(model)
    assert fake == (before, optiacts.saved_memory(model, _input()).bytes)


def test_wrapped_afterwards() -> None:
    model = Gated()
    optiacts.convert(model)
    model.__class__ = type("Wrapped", (type(model),), {})
    with pytest.raises(RuntimeError, match="Wrapped"):
        optiacts.revert(model)


def test_report_prints_as_a_table() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([Gated(), Gated()]), "head": nn.PReLU()})
    text = str(optiacts.convert(model))
    assert "layers.* (2)      Gated  silu gate" in text
    assert "head              PReLU  left: learnable" in text
    assert text.endswith("4 converted, 1 left alone")
    assert str(optiacts.convert(nn.Linear(2, 2))) == "nothing to convert"


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, torch, optiacts; optiacts.convert(torch.nn.Sequential(torch.nn.GELU()));"
        "print([m for m in ('transformers', 'diffusers', 'timm', 'peft', 'triton') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", math.nan
