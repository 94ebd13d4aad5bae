"""A LoRA-wrapped Llama: converted before or after the adapters come, it trains, saves and loads as without us."""

import copy
from pathlib import Path

import model_zoo
import pytest
import torch
from torch import Tensor, nn

import optiacts

# peft asks transformers by a name that transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
LLAMA = next(entry for entry in model_zoo.ZOO if entry.name == "Llama")


def _with_adapters(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    targets = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


def _train(model: nn.Module, steps: int = 3) -> list[Tensor]:
    inputs = model_zoo.inputs(LLAMA)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(steps):
        output = model_zoo.first_tensor(model(**inputs))
        target = torch.linspace(-1, 1, output.shape[-1])  # of the output alone, normalised, the mean square is 1
        loss = (output - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("first", ["adapters", "conversion"])
def test_lora(first: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = model_zoo.build(LLAMA)
    original = _with_adapters(copy.deepcopy(base))
    model = copy.deepcopy(base)
    if first == "conversion":
        report = optiacts.convert(model)
        model = _with_adapters(model)
    else:
        model = _with_adapters(model)
        report = optiacts.convert(model)
    layer = ["dropout in eager_attention_forward()", "silu gate", "silu", "RMSNorm", "RMSNorm"]
    assert [entry.what for entry in report.converted] == [*layer * 2, "RMSNorm"]

    inputs = model_zoo.inputs(LLAMA)
    before = optiacts.saved_memory(original, **inputs)
    after = optiacts.saved_memory(model, **inputs)
    assert torch.equal(model_zoo.first_tensor(after.output), model_zoo.first_tensor(before.output))
    hidden = model_zoo.BATCH * model_zoo.LENGTH * 128 * 4
    assert before.bytes - after.bytes >= 2 * (2 * hidden - hidden // 16 - 8)  # two layers, two tensors less the bits

    ours, theirs = _train(model), _train(original)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert ours[-1] < ours[0]

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    optiacts.revert(model)
    with torch.no_grad():
        expected = model_zoo.first_tensor(model(**inputs))
        assert torch.equal(model_zoo.first_tensor(loaded(**inputs)), expected)
        optiacts.convert(loaded)
        assert torch.equal(model_zoo.first_tensor(loaded(**inputs)), expected)
