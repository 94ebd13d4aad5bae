"""Regenerates docs/figures/report_calibration.md: the peak of a training step, predicted and measured on this CPU.

Measured is what PyTorch's allocator gives and takes back during a real forward, backward and optimizer step, as its
profiler records it, on top of what was there before. make report-calibration
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import report_ranks
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import optiacts
from optiacts import replay
from optiacts.held.memory import local_tensors
from optiacts.reporting.analysis import peak_of
from optiacts.reporting.changes import checkpointed, layers_of
from optiacts.reporting.lora import Lora, set_train_mode
from optiacts.reporting.loss import scalar

TABLE = Path(__file__).parents[1] / "docs" / "figures" / "report_calibration.md"


Made = tuple[nn.Module, dict[str, Tensor]]


class Case(NamedTuple):
    """A model that is made, and how it is trained."""

    name: str
    make: Callable[[], Made]
    autocast: torch.dtype | None = None
    optimizer: str = "adamw"
    checkpoint: int = 0  # every so many-th of the layers


def observed(
    model: nn.Module, inputs: dict[str, Tensor], autocast: torch.dtype | None, optimizer: str, steps: int = 1
) -> int:
    """The most bytes that a real step has allocated at any moment, once the optimizer has its state.

    The least of so many ``steps``: the threads of collectives keep a buffer until they come to let go of it.
    """
    made = _OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])

    def step() -> None:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = scalar(model(**inputs))
        loss.backward()
        del loss
        made.step()
        made.zero_grad()

    step()
    gc.collect()
    state = [leaf for leaf in tree_leaves(list(made.state.values())) if isinstance(leaf, Tensor)]
    given = (*model.parameters(), *model.buffers(), *inputs.values(), *state)
    storages = [local.untyped_storage() for tensor in given for local in local_tensors(tensor)]
    there = {storage.data_ptr(): storage.nbytes() for storage in storages}
    patience = replay.record_after(2**31)  # what is recorded and proven takes memory, once
    try:
        return min(_highest(step, sum(there.values())) for _ in range(steps))
    finally:
        replay.record_after(patience)


def _highest(step: Callable[[], None], level: int) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    highest = level
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest


_OPTIMIZERS: dict[str, Callable[[list[Any]], torch.optim.Optimizer]] = {
    "adamw": lambda params: torch.optim.AdamW(params),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-3),
}


def compared(case: Case) -> list[tuple[str, str, int, int]]:
    """For the model as it is and converted: its name, the phase of the peak, bytes predicted and measured."""
    torch.manual_seed(0)
    rows = []
    model, inputs = case.make()
    for words in ("", ", converted"):
        if words:
            optiacts.convert(model, gated=True, dropout=True, norms=True)
        now = peak_of(model, inputs, case.optimizer, autocast=case.autocast, checkpoint=case.checkpoint)
        layers = layers_of(model)[:: case.checkpoint] if case.checkpoint else []
        with checkpointed(layers, nullcontext):
            real = observed(model, inputs, case.autocast, case.optimizer)
        rows.append((case.name + words, now.phase, now.bytes, real))
    return rows


def language_model(
    kind: str, tokens: int, batch: int, **sizes: Any
) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    def make() -> tuple[nn.Module, dict[str, Tensor]]:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**sizes)
        config.use_cache = False
        head = "ForMaskedLM" if kind == "Bert" else "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
        model = getattr(transformers, f"{kind}{head}")(config).train()
        ids = torch.randint(0, 1000, (batch, tokens))
        return model, {"input_ids": ids, "labels": ids.clone()}

    return make


def with_adapters(
    make: Callable[[], Made], mode: str, dtype: torch.dtype = torch.float32, **options: Any
) -> Callable[[], Made]:
    """The same on a frozen base in ``dtype``."""

    def made() -> Made:
        model, inputs = make()
        module: nn.Module = model.to(dtype)
        set_train_mode(module, mode, Lora(**options))
        return module, inputs

    return made


def _conv(channels_last: bool = False) -> Made:
    def block(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.BatchNorm2d(2 * channels), nn.SiLU()]

    model = nn.Sequential(nn.Conv2d(3, 32, 3), *block(32), *block(64), nn.Flatten(), nn.Linear(128 * 16 * 16, 10))
    order = torch.channels_last if channels_last else torch.contiguous_format
    module: nn.Module = model.train()
    module.to(memory_format=order)  # type: ignore[call-overload]
    return module, {"input": torch.randn(16, 3, 66, 66).to(memory_format=order)}


def _small_llama() -> Made:
    return language_model("Llama", 64, 4, **(LLAMA | {"num_hidden_layers": 2, "num_key_value_heads": 8}))()


def _observed_on_a_rank(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    return observed(model, inputs, None, "adamw", steps=4)


LLAMA = {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
LLAMA |= {"num_attention_heads": 8, "num_key_value_heads": 4}
BERT = {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
BERT |= {"num_attention_heads": 8}
GPT2 = {"vocab_size": 4000, "n_embd": 256, "n_layer": 4, "n_head": 8}
_llama = language_model("Llama", 256, 4, **LLAMA)
_mixtral = language_model("Mixtral", 256, 4, **LLAMA, num_local_experts=4)
CASES = (
    Case("Llama, 4 layers, 4 x 256", _llama),
    Case("Llama, 4 layers, 4 x 256, bfloat16 autocast", _llama, torch.bfloat16),
    Case("Llama, 4 layers, 1 x 16: the optimizer's step", language_model("Llama", 16, 1, **LLAMA)),
    Case("Llama, 4 layers, 4 x 256, SGD", _llama, optimizer="sgd"),
    Case("Llama, 4 layers, 4 x 256, every layer checkpointed", _llama, checkpoint=1),
    Case("Llama, 4 layers, 4 x 256, every second layer checkpointed", _llama, checkpoint=2),
    Case("Llama, 4 layers, 4 x 256, LoRA with dropout", with_adapters(_llama, "lora", dropout=0.1)),
    Case("Llama, 4 layers, 4 x 256, LoRA on bfloat16", with_adapters(_llama, "lora", torch.bfloat16)),
    Case("Llama, 4 layers, 4 x 256, LoRA, every layer checkpointed", with_adapters(_llama, "lora"), checkpoint=1),
    Case("Mixtral, 4 layers, 4 x 256, 4 experts, SGD", _mixtral, optimizer="sgd"),
    Case("BERT, 4 layers, 4 x 256", language_model("Bert", 256, 4, **BERT)),
    Case("BERT, 4 layers, 4 x 256, bfloat16 autocast", language_model("Bert", 256, 4, **BERT), torch.bfloat16),
    Case("GPT-2, 4 layers, 4 x 256", language_model("GPT2", 256, 4, **GPT2)),
    Case("convolutions with BatchNorm and SiLU, 16 images of 66 x 66", _conv, optimizer="sgd"),
    Case("the same in channels_last", lambda: _conv(channels_last=True), optimizer="sgd"),
)


def main() -> None:
    """Writes the table."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    lines = ["| model | peak in | predicted | measured | error |", "|---|---|---:|---:|---:|"]
    for case in CASES:
        for name, phase, said, real in compared(case):
            mib = f"{said / 2**20:.2f} MiB | {real / 2**20:.2f} MiB"
            lines.append(f"| {name} | {phase} | {mib} | {said / real - 1:+.2%} |")
            print(lines[-1], flush=True)
    for name, phase, said, real in report_ranks.compared(_small_llama, _observed_on_a_rank):
        mib = f"{said / 2**20:.2f} MiB | {real / 2**20:.2f} MiB"
        lines.append(f"| Llama, 2 layers, one of four ranks: {name} | {phase} | {mib} | {said / real - 1:+.2%} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"PyTorch {torch.__version__.partition('+')[0]}, float32 and AdamW where nothing else is said. Measured are "
        "the bytes that PyTorch's CPU allocator gives out during a real step, as its profiler records them. oneDNN's "
        "convolutions copy their input, weight and output into layouts of their own, which they choose by the "
        "instruction set and no argument tells: the report names them. In channels_last they copy the weight alone; "
        "converted, it is the CPU kernel of a norm and its activation that keeps up to 8 MiB in each thread, which "
        "is named too. Ranks are real processes over gloo. Regenerate with `make report-calibration`.",
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
