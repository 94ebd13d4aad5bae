"""LoRA adapters that cast or drop their input: the same forward and gradients, and one input for all of them held."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import optiacts
from optiacts.ops import derived

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # by dynamo
]
ROWS, WIDTH, RANK = 64, 128, 4
TENSOR, BITS = ROWS * WIDTH * 2, ROWS * WIDTH // 8  # in 16 bits
BF16, F32 = torch.bfloat16, torch.float32


class Attention(nn.Module):
    """Three projections of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in "qkv")

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) + self.k(x) + self.v(x)


def model(p: float = 0.0, base: torch.dtype = BF16, adapters: torch.dtype = F32, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    made = Attention().to(base)
    config = LoraConfig(r=RANK, lora_dropout=p, target_modules=["q", "k", "v"], init_lora_weights=False, **options)
    inject_adapter_in_model(config, made, "default")
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.to(adapters)
    return made


def converted(made: nn.Module, **options: Any) -> nn.Module:
    made = copy.deepcopy(made)
    report = optiacts.convert(made, **options)
    assert [entry.path for entry in report.converted if entry.what == "adapter"] == ["q", "k", "v"]
    return made


def step(made: Any, parameters: list[Tensor], dtype: torch.dtype = BF16, autocast: bool = False) -> tuple[Any, ...]:
    torch.manual_seed(1)
    leaf = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    torch.manual_seed(2)
    with torch.autocast("cpu", BF16, enabled=autocast):
        saved = optiacts.saved_memory(made, leaf * 1)
    grads = torch.autograd.grad(saved.output.float().square().sum(), [leaf, *parameters])
    return saved.output, grads, saved.bytes


def trained(made: nn.Module) -> list[Tensor]:
    return [parameter for parameter in made.parameters() if parameter.requires_grad]


SMALL = 3 * (
    WIDTH * WIDTH + ROWS * RANK * 4 * 4 + WIDTH * RANK * 4
)  # weights' casts, and what the second Linear keeps


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("adapters", [F32, BF16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_forward_gradients_and_bytes(p: float, adapters: torch.dtype, autocast: bool) -> None:
    original = model(p, adapters=adapters)
    if p == 0 and adapters == BF16:
        report = optiacts.convert(original)
        assert not report.converted  # adapters take the input as it is: nothing to do
        return
    ours = converted(original)
    output, grads, before = step(original, trained(original), autocast=autocast)
    same, found, after = step(ours, trained(ours), autocast=autocast)
    assert torch.equal(output, same)
    for one, other in zip(grads, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5 if one.dtype == F32 and not autocast else 1e-2, atol=1e-4)
    width = 2 if autocast else adapters.itemsize  # of what each first Linear holds
    noise = adapters.itemsize if p else 0  # what a dropout on a CPU holds
    held = 3 * ROWS * WIDTH * (width + noise)
    assert before - after == pytest.approx(held - TENSOR - 3 * (BITS if p else 0), abs=SMALL if autocast else 0)


def test_several_adapters_at_once() -> None:
    original = model(0.1)
    config = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q", "k", "v"], init_lora_weights=False)
    inject_adapter_in_model(config, original, "second")
    for layer in (original.q, original.k, original.v):
        layer.set_adapter(["default", "second"])
    ours = converted(original)
    output, grads, before = step(original, trained(original))
    same, found, after = step(ours, trained(ours))
    assert torch.equal(output, same) and len(grads) == 1 + 3 * 2 * 2
    for one, other in zip(grads, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5 if one.dtype == F32 else 1e-2, atol=1e-4)
    # the second one is in bfloat16: its input is cast to float32 for the first one, and back
    assert before - after == 3 * (4 + 2) * TENSOR - TENSOR - 6 * BITS


def test_second_derivatives() -> None:
    """In float64 with a dropout: a penalty on the gradient of the first adapter's weight."""
    original = model(0.3, torch.float64, torch.float64)
    ours = converted(original)
    results = []
    for made in (original, ours):
        torch.manual_seed(1)
        x = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(2)
        loss = made(x.tanh()).square().sum()
        first = torch.autograd.grad(loss, [x, made.q.lora_A["default"].weight], create_graph=True)
        penalty = sum(one.square().sum() for one in first)
        results.append(torch.autograd.grad(penalty, [x, *trained(made)]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-8)


def test_an_input_changed_in_place_is_an_error() -> None:
    ours = converted(model(0.1))
    x = torch.randn(ROWS, WIDTH, dtype=BF16, requires_grad=True) * 1
    output = ours(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_tensor_changed_after_it_was_derived_is_kept_itself() -> None:
    x = torch.randn(4, 8, dtype=BF16, requires_grad=True) * 1
    weight = nn.Parameter(torch.randn(3, 8))
    with derived.collecting():
        wide = x.float()
        derived.note_cast(x, wide)
        assert derived.derivation(wide) is not None and derived.linear(wide, weight, None) is not None
        wide.add_(1)
        assert derived.derivation(wide) is None and derived.linear(wide, weight, None) is None
        wide = x.float()
        derived.note_cast(x, wide)
        x.mul_(2)
        assert derived.derivation(wide) is None
    assert derived.derivation(wide) is None
    with derived.collecting():
        derived.note_cast(torch.randn(4, 8), x)  # narrower: that loses digits
        assert derived.derivation(x) is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    ours = converted(model(0.2))
    _, grads, _ = step(ours, trained(ours))
    run = lambda x: checkpoint(ours, x, use_reentrant=reentrant)  # noqa: E731
    torch.manual_seed(1)
    leaf = torch.randn(ROWS, WIDTH, dtype=BF16, requires_grad=True)
    torch.manual_seed(2)
    run(leaf * 1).float().square().sum().backward()
    for parameter, expected in zip([leaf, *trained(ours)], grads, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=0)


def test_copies_pickles_and_reverting() -> None:
    original = model(0.1)
    ours = converted(original)
    expected, _, held = step(ours, trained(ours))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        output, _, bytes_ = step(other, trained(other))
        assert torch.equal(output, expected) and bytes_ == held
    optiacts.revert(ours)
    output, _, bytes_ = step(ours, trained(ours))
    assert torch.equal(output, expected) and bytes_ == step(original, trained(original))[2]
    assert type(ours.q) is type(original.q) and type(ours.q.lora_A["default"]) is nn.Linear


def test_what_people_do_with_adapters() -> None:
    """Frozen and disabled adapters, merged ones, evaluation, hooks, and a compiler."""
    original = model(0.1)
    ours = converted(original)
    for made in (original, ours):
        for layer in (made.q, made.k):
            layer.lora_A["default"].weight.requires_grad_(False)
    output, grads, before = step(original, trained(original))
    same, found, after = step(ours, trained(ours))
    assert torch.equal(output, same) and len(found) == 1 + 4 and after < before
    for one, other in zip(grads, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5 if one.dtype == F32 else 1e-2, atol=1e-4)

    x = torch.randn(ROWS, WIDTH, dtype=BF16)
    seen: list[int] = []
    ours.v.lora_A["default"].register_forward_hook(lambda module, args, result: seen.append(result.shape[-1]))
    assert torch.equal(ours.eval()(x), original.eval()(x)) and seen == [RANK]
    for made in (original, ours):
        made.v.enable_adapters(False)
    assert torch.equal(ours(x), original(x))
    for made in (original, ours):
        made.v.enable_adapters(True)
        made.v.merge()
    assert torch.equal(ours(x), original(x))


def test_compiled_it_does_what_it_did() -> None:
    original = model(0.0)
    ours = converted(original)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    output, grads, _ = step(compiled, trained(ours))
    expected, reference, _ = step(original, trained(original))
    assert torch.equal(output, expected)
    for one, other in zip(reference, grads, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_with_example_inputs_a_norm_before_adapters_keeps_its_output() -> None:
    """Adapters keep their input then, so that the norm's output is shared."""
    made = nn.Sequential(nn.Linear(WIDTH, WIDTH).bfloat16(), nn.LayerNorm(WIDTH).bfloat16(), model(0.1))
    x = torch.randn(ROWS, WIDTH, dtype=BF16)
    report = optiacts.convert(made, example_inputs=x)
    norm = next(entry for entry in report.converted if "LayerNorm" in entry.kind)
    assert norm.note == "keeps its output"
    assert report.saved_bytes is not None
    assert report.saved_bytes[1] == optiacts.saved_memory(made, x).bytes < 0.4 * report.saved_bytes[0]


def test_shared_casts_under_autocast() -> None:
    """A model in float32 under autocast: adapters share the one copy too."""
    original = model(0.0, F32, F32)
    with_others = model(0.1, F32, F32)
    report = optiacts.convert(copy.deepcopy(original), autocast=True)
    assert {entry.what for entry in report.converted} == {"shared cast"}
    ours = converted(with_others, autocast=True)
    output, _, before = step(with_others, trained(with_others), F32, autocast=True)
    same, _, after = step(ours, trained(ours), F32, autocast=True)
    assert torch.equal(output, same) and after < before
