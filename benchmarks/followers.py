"""What is held around an activation, gated product or norm, by what follows it: the table of docs/followers.md.

    python -m benchmarks.followers            # prints the table
    python -m benchmarks.followers --write    # and puts it into docs/followers.md

Each follower is measured with ``optiacts.saved_memory`` behind a GELU, a SwiGLU product and a Llama RMSNorm, as
PyTorch has them and converted, in bfloat16 on a CPU. The unit is the hidden tensor: 2 bytes for each of its elements.
Rows of packages that are not installed keep the figures that stand in the page.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import optiacts

ROWS, WIDTH = 1024, 256
UNIT = ROWS * WIDTH * 2
PAGE = Path(__file__).parents[1] / "docs" / "followers.md"
OPENING, CLOSING = "<!-- table of benchmarks/followers.py -->\n", "<!-- end of table -->"


class Follower(NamedTuple):
    """What comes after, how to make it, what to do, and the package that it needs."""

    name: str
    make: Callable[[], nn.Module]
    advice: str
    package: str = "torch"
    compiled: bool = False


class Activated(nn.Module):
    def __init__(self, follower: nn.Module) -> None:
        super().__init__()
        self.act, self.follower = nn.GELU(), follower

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.follower(self.act(a))


class Gated(nn.Module):
    def __init__(self, follower: nn.Module) -> None:
        super().__init__()
        self.act, self.follower = nn.SiLU(), follower

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.follower(self.act(a) * b)


class Normed(nn.Module):
    def __init__(self, follower: nn.Module) -> None:
        super().__init__()
        self.norm, self.follower = LlamaRMSNorm(WIDTH).bfloat16(), follower

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.follower(self.norm(a))


def linear(trained: bool = True) -> nn.Module:
    """A projection."""
    return nn.Linear(WIDTH, WIDTH, bias=False).bfloat16().requires_grad_(trained)


def lora(dropout: float, dtype: torch.dtype, base: nn.Module | None = None) -> nn.Module:
    """A frozen projection with an adapter."""
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.ModuleDict({"projection": linear() if base is None else base})
    model.is_loaded_in_4bit = base is not None  # type: ignore[assignment]  # PEFT asks the model
    config = LoraConfig(r=8, lora_dropout=dropout, target_modules=["projection"])
    inject_adapter_in_model(config, model, "default")
    adapted: nn.Module = model["projection"].requires_grad_(False)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(dtype)
    return adapted


class Convolved(nn.Module):
    """A convolution along the rows."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, bias=False).bfloat16().requires_grad_(trained)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.T[None])


class Added(nn.Module):
    """The residual stream: nobody keeps anything."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class FusedLoss(nn.Module):
    """The last projection and the loss in one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        target = torch.zeros(len(x), dtype=torch.long)
        return nn.functional.linear_cross_entropy(x, self.weight, target)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


def bnb(bits: int) -> nn.Module:
    """A quantised projection of bitsandbytes'."""
    import bitsandbytes

    if bits == 4:
        made = bitsandbytes.nn.Linear4bit(WIDTH, WIDTH, False, torch.bfloat16, quant_type="nf4")
    else:
        made = bitsandbytes.nn.Linear8bitLt(WIDTH, WIDTH, False, has_fp16_weights=False)
    return made.to("cpu")


def qlora() -> nn.Module:
    """Adapters on a projection in 4 bits."""
    return lora(0.05, torch.float32, bnb(4))


def float8() -> nn.Module:
    """torchao's float8 training, emulated on a CPU."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    model = nn.ModuleDict({"projection": linear()})
    return convert_to_float8_training(model, config=Float8LinearConfig(emulate=True))["projection"]


def int8(training: bool) -> nn.Module:
    """torchao's int8: mixed-precision training, or frozen quantised weights."""
    from torchao.prototype.quantized_training import Int8MixedPrecisionTrainingConfig
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(linear(training))
    quantize_(model, Int8MixedPrecisionTrainingConfig() if training else Int8WeightOnlyConfig())
    return model


KEEPS = "nothing: the saving is whole"
ADAPTERS = "convert once adapters are there: [adapters](#adapters)"
COMPILED = "nothing is gained: compilers compute again what OptiActs would save"
BF16, F32 = torch.bfloat16, torch.float32
FOLLOWERS = (
    Follower("Linear", linear, KEEPS),
    Follower("Conv", lambda: Convolved(True), KEEPS),
    Follower(
        "LayerNorm, also frozen",
        lambda: nn.LayerNorm(WIDTH).bfloat16(),
        "convert with `example_inputs`; here nobody takes its output",
    ),
    Follower(
        "fused linear cross-entropy (`torch.nn.functional.linear_cross_entropy`)",
        FusedLoss,
        "nothing: it goes well with a converted last norm",
    ),
    Follower("frozen Linear", lambda: linear(False), "convert with `example_inputs`"),
    Follower("frozen Conv", lambda: Convolved(False), "convert with `example_inputs`"),
    Follower("an addition, a concatenation", Added, "convert with `example_inputs`"),
    Follower("a checkpointed Linear", Checkpointed, "it keeps its input, which is the output: nothing"),
    Follower("LoRA, adapters in bf16", lambda: lora(0.0, BF16), KEEPS, "peft"),
    Follower("LoRA, bf16, `lora_dropout=0.05`", lambda: lora(0.05, BF16), ADAPTERS, "peft"),
    Follower("LoRA, adapters in fp32 (PEFT's default)", lambda: lora(0.0, F32), ADAPTERS, "peft"),
    Follower("LoRA, fp32, `lora_dropout=0.05`", lambda: lora(0.05, F32), ADAPTERS, "peft"),
    Follower("bitsandbytes 4-bit, frozen", lambda: bnb(4), "as a frozen Linear", "bitsandbytes"),
    Follower("QLoRA: the same, fp32 adapters, `lora_dropout=0.05`", qlora, ADAPTERS, "bitsandbytes"),
    Follower("bitsandbytes 8-bit, frozen", lambda: bnb(8), "as a frozen Linear", "bitsandbytes"),
    Follower("torchao float8 training", float8, "nothing: it keeps its input in bf16", "torchao"),
    Follower("the same, compiled", float8, COMPILED, "torchao", compiled=True),
    Follower("torchao int8 mixed-precision training", lambda: int8(True), "nothing", "torchao"),
    Follower("torchao int8 weights, frozen", lambda: int8(False), "as a frozen Linear", "torchao"),
)


def held(model: nn.Module, compiled: bool) -> float:
    """Hidden tensors that autograd holds; the inputs are results, as they are in a model, and nobody else's."""
    torch.manual_seed(0)
    a, b = (torch.randn(ROWS, WIDTH, dtype=BF16, requires_grad=True) * 1 for _ in "ab")
    called: Any = model
    if compiled:
        torch._dynamo.reset()
        called = torch.compile(model, backend="aot_eager")
    return optiacts.saved_memory(called, a, b).bytes / UNIT


def cells(follower: Follower) -> Iterable[str]:
    """Before and after, for each of the three; in brackets with ``example_inputs``, if that differs."""
    for kind in (Activated, Gated, Normed):
        torch.manual_seed(0)
        original = kind(follower.make())
        before = held(original, follower.compiled)
        converted = kind(follower.make())
        optiacts.convert(converted)
        after = held(converted, follower.compiled)
        with_inputs = after
        a, b = (torch.randn(ROWS, WIDTH, dtype=BF16, requires_grad=True) for _ in "ab")
        try:
            told = kind(follower.make())
            optiacts.convert(told, example_inputs=(a, b))
            with_inputs = held(told, follower.compiled)
        except ValueError:  # bitsandbytes' layers do not run on fake tensors
            pass
        yield f"{before:.2f} → {after:.2f}" + (f" ({with_inputs:.2f})" if abs(with_inputs - after) > 0.01 else "")


def table() -> list[str]:
    """The rows; those of packages that are not there are taken from the page."""
    old = {line.split("|")[1].strip(): line for line in PAGE.read_text().splitlines() if line.startswith("|")}
    rows = ["| follower | GELU | SwiGLU | RMSNorm | what to do |", "|---|---:|---:|---:|---|"]
    for follower in FOLLOWERS:
        if importlib.util.find_spec(follower.package) is None:
            rows += [old[follower.name]] if follower.name in old else []
            continue
        rows.append(f"| {follower.name} | {' | '.join(cells(follower))} | {follower.advice} |")
    return rows


def main() -> None:
    """Prints the table, or writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put it into docs/followers.md")
    write = parser.parse_args().write
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = "\n".join(table()) + "\n"
    print(text)
    if write:
        page = PAGE.read_text(encoding="utf-8")
        head, _, rest = page.partition(OPENING)
        PAGE.write_text(f"{head}{OPENING}{text}{CLOSING}{rest.partition(CLOSING)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
