"""Who keeps an activation's output, and that the predicted gain is the gain: bytes of real storages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import optiacts
from optiacts.reporting import sharing, trace

ROWS, WIDE = 6, 40
FULL = ROWS * WIDE * 4  # one fp32 tensor between the layers
BITS = ROWS * WIDE // 8


class OwnCopy(torch.autograd.Function):
    """A quantised layer's way: it keeps an int8 copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward((x * 10).to(torch.int8), weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        copied, weight = ctx.saved_tensors
        return grad @ weight.T, (copied.float() / 10).T @ grad


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDE, 8))

    def forward(self, x: Tensor) -> Tensor:
        return OwnCopy.apply(x, self.weight)


def stack(activation: nn.Module, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, WIDE), activation, *after)


def frozen() -> nn.Module:
    return nn.Linear(WIDE, 8).requires_grad_(False)


def tail(name: str) -> list[nn.Module]:
    return {
        "linear": [nn.Linear(WIDE, 8)],
        "frozen": [frozen()],
        "dropout": [nn.Dropout(0.25), nn.Linear(WIDE, 8)],
        "norm": [nn.LayerNorm(WIDE), nn.Linear(WIDE, 8)],
        "quantised": [Quantised()],
        "square": [nn.Unflatten(1, (8, 5)), nn.Flatten(1), nn.Linear(WIDE, 8)],
    }[name]


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ("linear", True),
        ("norm", True),
        ("square", True),  # through views: the storage is the same
        ("frozen", False),
        ("dropout", False),
        ("quantised", False),
    ],
)
def test_shared_output_is_seen_and_the_gain_is_the_measured_one(after: str, kept: bool) -> None:
    torch.manual_seed(0)
    layers = tail(after)
    model = stack(nn.GELU(), *layers).train()
    x = torch.randn(ROWS, 16)
    (site,) = sharing(model, x)
    assert (site.path, site.activation, site.is_module, site.shape) == ("1", "gelu", True, (ROWS, WIDE))
    assert bool(site.kept_by) is kept
    assert site.gain == (FULL - BITS if kept else -BITS)
    assert site.pays is kept
    before = optiacts.saved_memory(model, x).bytes
    model[1] = optiacts.GELU()
    assert before - optiacts.saved_memory(model, x).bytes == site.gain


def test_names_who_keeps_the_output_or_who_takes_it() -> None:
    x = torch.randn(ROWS, 16)
    (site,) = sharing(stack(nn.SiLU(), nn.Linear(WIDE, 8)), x)
    assert site.reason == "its output is kept by 2 (Linear) as well"
    (site,) = sharing(stack(nn.SiLU(), frozen()), x)
    assert site.reason == "its output goes to addmm in 2 (Linear), which does not keep it"


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, WIDE), nn.Linear(WIDE, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


def test_functions_are_activations_too() -> None:
    model = nn.Sequential(Functional())
    (site,) = sharing(model, torch.randn(ROWS, 16))
    assert (site.path, site.activation, site.is_module) == ("0", "gelu", False)
    assert site.kept_by == ("0.down (Linear)",)
    assert site.gain == FULL - BITS


def test_a_module_called_twice_is_two_activations() -> None:
    act = nn.SiLU()
    model = nn.Sequential(nn.Linear(16, WIDE), act, nn.Linear(WIDE, WIDE), act, frozen())
    first, second = sharing(model, torch.randn(ROWS, 16))
    assert first.pays and not second.pays
    assert first.gain == FULL - BITS


class WrittenOut(nn.Module):
    """GELU in operators, as transformers' NewGELUActivation: autograd holds every step of it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))


WrittenOut.__name__ = WrittenOut.__qualname__ = "NewGELUActivation"
WrittenOut.__module__ = "transformers.activations"


def test_an_activation_in_operators_frees_all_its_steps() -> None:
    model = stack(WrittenOut(), nn.Linear(WIDE, 8))
    x = torch.randn(ROWS, 16)
    (site,) = sharing(model, x)
    before = optiacts.saved_memory(model, x).bytes
    model[1] = optiacts.GELU("tanh")
    assert site.gain == before - optiacts.saved_memory(model, x).bytes
    assert site.gain == 4 * FULL - BITS  # x (twice needed, once held), 0.5 x, tanh, 1 + tanh


def test_no_gradient_no_activation_to_convert() -> None:
    model = stack(nn.GELU(), nn.Linear(WIDE, 8))
    with torch.no_grad():
        assert sharing(model, torch.randn(ROWS, 16)) == ()
    assert sharing(model.requires_grad_(False), torch.randn(ROWS, 16)) == ()


def test_trace_counts_what_saved_memory_counts_and_names_the_holders() -> None:
    torch.manual_seed(0)
    model = stack(nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(WIDE), nn.Linear(WIDE, 8))
    x = torch.randn(ROWS, 16, requires_grad=True)
    traced = trace(model, x)
    assert traced.bytes == optiacts.saved_memory(model, x).bytes
    holders = {str(holder) for storage in traced.storages.values() for holder in storage.holders}
    assert holders == {
        "Addmm in 0 (Linear)",
        "Gelu in 1 (GELU)",
        "Mul in 2 (Dropout)",
        "NativeLayerNorm in 3 (LayerNorm)",
        "Addmm in 4 (Linear)",
    }


def test_hooks_are_gone_afterwards_even_if_the_forward_fails() -> None:
    from torch.nn.modules import module

    before = len(module._global_forward_hooks), len(module._global_forward_pre_hooks)
    with pytest.raises(RuntimeError):
        trace(nn.Linear(3, 4), torch.randn(2, 5))
    assert (len(module._global_forward_hooks), len(module._global_forward_pre_hooks)) == before


@pytest.mark.parametrize("as_mapping", [False, True])
def test_convert_leaves_alone_what_gains_nothing_on_the_example(as_mapping: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, WIDE), nn.GELU(), nn.Linear(WIDE, WIDE), nn.SiLU(), frozen())
    x = torch.randn(ROWS, 16)
    before = optiacts.saved_memory(model, x).bytes
    made = optiacts.convert(model, example_inputs={"input": x} if as_mapping else x)
    assert [entry.path for entry in made.converted] == ["1"]
    (left,) = made.left
    assert left.path == "3"
    assert left.reason == "its output goes to addmm in 4 (Linear), which does not keep it"
    assert before - optiacts.saved_memory(model, x).bytes == FULL - BITS


def test_frozen_products_keep_their_gate() -> None:
    """act(gate) keeps being held by the product with up, whatever the projection after it is."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.act, self.down = nn.Linear(16, WIDE), nn.Linear(16, WIDE), nn.SiLU(), frozen()

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.act(self.gate(x)) * self.up(x))

    model, x = Gated(), torch.randn(ROWS, 16)
    (site,) = sharing(model, x)
    assert site.kept_by == ("the model (Gated)",) and site.gain == FULL - BITS
    before = optiacts.saved_memory(model, x).bytes
    optiacts.convert(model, gated=False, example_inputs=x)
    assert before - optiacts.saved_memory(model, x).bytes == FULL - BITS


class Experts(nn.Module):
    """Two experts, as transformers runs them: one grouped product for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, 16, WIDE)), nn.Parameter(torch.randn(2, WIDE, 16))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([2, ROWS], dtype=torch.int32)
        h = functional.gelu(torch._grouped_mm(x, self.up, offs=ends))
        return torch._grouped_mm(h, self.down, offs=ends)


@pytest.mark.skipif(not hasattr(functional, "grouped_mm"), reason="its kernels take bfloat16 alone")
def test_experts_in_float32_run_on_fake_tensors() -> None:
    model, x = Experts(), torch.randn(ROWS, 16)
    before = optiacts.saved_memory(model, x).bytes
    made = optiacts.convert(model, example_inputs=x)
    after = optiacts.saved_memory(model, x).bytes
    assert made.saved_bytes == (before, after) and before - after == FULL - BITS


kept: dict[int, Tensor] = {}


def kept_in_a_dict(rows: int) -> Tensor:
    return kept.setdefault(rows, torch.ones(rows, 1))


class Cached(nn.Module):
    """Keeps tensors outside of itself, as positions are kept by shape."""

    def __init__(self, ones: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.ones = ones
        self.layers = nn.Sequential(nn.Linear(16, WIDE), nn.GELU(), nn.Linear(WIDE, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x * self.ones(len(x)))


def run_on_fake_tensors(how: str, model: nn.Module, x: Tensor) -> None:
    if how == "convert":
        optiacts.convert(model, example_inputs=x)
    else:
        optiacts.report(model, x)


@pytest.mark.parametrize("how", ["convert", "report"])
@pytest.mark.parametrize("maxsize", [None, 2])
def test_caches_of_functions_keep_no_fake_tensors(how: str, maxsize: int | None) -> None:
    @functools.lru_cache(maxsize=maxsize)
    def ones(rows: int) -> dict[str, Tensor]:
        return {"ones": torch.ones(rows, 1)}

    model, x = Cached(lambda rows: ones(rows)["ones"]), torch.randn(ROWS, 16)
    run_on_fake_tensors(how, model, x)
    assert type(model(x)) is Tensor
    run_on_fake_tensors(how, model, x)
    assert ones.cache_info().currsize == 1  # a real one stays


@pytest.mark.parametrize("how", ["convert", "report"])
def test_parameters_outside_of_the_model_get_no_fake_gradients(how: str) -> None:
    model, x, outside = Cached(lambda rows: torch.ones(rows, 1)), torch.randn(ROWS, 16), nn.Linear(16, 16)
    model.register_forward_hook(lambda module, inputs, output: output + outside(inputs[0]))
    outside.bias.grad = torch.ones(16)
    run_on_fake_tensors(how, model, x)
    assert outside.weight.grad is None
    assert type(outside.bias.grad) is Tensor and outside.bias.grad.eq(1).all()


@pytest.mark.parametrize("how", ["convert", "report"])
def test_fake_tensors_that_are_kept_elsewhere_are_an_error(how: str) -> None:
    kept.clear()
    model, x = Cached(kept_in_a_dict), torch.randn(ROWS, 16)
    run_on_fake_tensors(how, model, x)
    with pytest.raises(RuntimeError, match=r"without values .* keeps it outside of the model"):
        model(x)
    run_on_fake_tensors(how, model, x)
    kept.clear()
    model(x).sum().backward()
    run_on_fake_tensors(how, model, x)
    assert type(model(x)) is Tensor


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(2, 5), "a and b must have same reduction dim"),
        (torch.zeros(2, 3).long(), "addmm of different dtypes: float32, int64"),
        ("text", "must be Tensor, not str"),
        (torch.zeros(0, 3), r"the first has the shape \[0, 3\]; give at least one sample"),
    ],
)
def test_wrong_example_inputs_are_one_sentence(example: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=f"example_inputs: .*{message}") as raised:
        optiacts.convert(model, example_inputs=example)
    assert "\n" not in str(raised.value)
    assert type(model[1]) is nn.GELU
