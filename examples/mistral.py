"""A Hugging Face Mistral: SiLU alone, then the whole gated product act(gate) * up, which holds two tensors fewer.

pip install transformers
python examples/mistral.py
"""

from __future__ import annotations

import copy

import torch
import transformers

import optiacts


def new_model() -> torch.nn.Module:
    """A small Mistral in bfloat16, as it is trained."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=None,
        use_cache=False,
    )
    return transformers.MistralForCausalLM(config).to(torch.bfloat16).train()


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The loss's gradient by all parameters, in one vector."""
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def main() -> None:
    """Saved bytes of the three stages, and what the gradient is worth in each."""
    model = new_model()
    ids = torch.randint(0, 512, (4, 128))
    print(optiacts.report(model, input_ids=ids, labels=ids, optimizer="adamw-fp32"))

    exact = gradients(copy.deepcopy(model).double(), ids)
    stages = {"PyTorch": model, "activations": copy.deepcopy(model), "gated MLPs": copy.deepcopy(model)}
    optiacts.convert(stages["activations"], gated=False)
    print(optiacts.convert(stages["gated MLPs"]))
    print(f"\n{'measured':14}{'bytes held':>14}{'change':>9}{'error of the gradient (relative)':>36}")
    first = optiacts.saved_memory(model, input_ids=ids, labels=ids).bytes
    for name, stage in stages.items():
        saved = optiacts.saved_memory(stage, input_ids=ids, labels=ids).bytes
        error = (gradients(stage, ids) - exact).norm() / exact.norm()
        print(f"{name:14}{saved:14,}{saved / first - 1:+9.1%}{error:36.4f}")


if __name__ == "__main__":
    main()
