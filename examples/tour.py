"""The tour: writes docs/tour.md and its pictures, docs/figures/tour_*.png. Every number in it comes out of this run.

pip install '.[report]'
python examples/tour.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import optiacts

ROOT = Path(__file__).parents[1]
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072b2", "#d55e00", "#009e73", "#999999", "#333333"  # told apart by everybody
LEFT = -1.6  # an input left of the minimum
STEPS = 12


def value(x: float) -> Tensor:
    """A number in float64."""
    return torch.tensor(x, dtype=torch.float64)


def slope(x: Tensor) -> Tensor:
    """GELU's slope from its input, in float64."""
    x = x.detach().double().requires_grad_()
    return torch.autograd.grad(nn.functional.gelu(x).sum(), x)[0]


def slope_by(gelu: Any, x: Tensor) -> Tensor:
    """The slope that a GELU's backward multiplies with, in the dtype of ``x``."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(gelu(x).sum(), x)[0]


def minimum() -> tuple[float, float]:
    """Where GELU is least, by bisection of its slope."""
    low, high = value(-2.0), value(0.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(low), float(nn.functional.gelu(low))


def other_input(y: float, at: float) -> float:
    """The input right of the minimum ``at`` with the output ``y``."""
    low, high = at, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if nn.functional.gelu(value(middle)) < y else (low, middle)
    return low


def figure(file: Path, *draw: Any) -> None:
    """Panels side by side, each drawn by a function of its axes."""
    made = Figure(figsize=(5.2 * len(draw), 3.6), layout="constrained")
    for axes, one in zip(made.subplots(1, len(draw), squeeze=False)[0], draw, strict=True):
        one(axes)
        axes.spines[["top", "right"]].set_visible(False)
    made.savefig(file, dpi=110)


def draw_curve(axes: Axes, left: float, right: float, at: tuple[float, float]) -> None:
    x = torch.linspace(-4, 2, 601).double()
    y = nn.functional.gelu(x)
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.plot(x[x <= at[0]], y[x <= at[0]], color=ORANGE, linewidth=2, label="left branch: side bit 1")
    axes.plot(x[x >= at[0]], y[x >= at[0]], color=BLUE, linewidth=2, label="right branch: side bit 0")
    axes.plot(*at, "o", color=BLACK, markersize=5)
    axes.annotate(f"minimum at {at[0]:.3f}", at, (at[0] - 1.2, -0.45), arrowprops={"arrowstyle": "-", "color": GREY})
    level = float(nn.functional.gelu(value(left)))
    axes.plot([left, right], [level, level], "--", color=BLACK, linewidth=1)
    axes.plot([left, right], [level, level], "s", color=BLACK, markersize=4)
    axes.set(xlabel="input x", ylabel="output y = GELU(x)", ylim=(-0.6, 2), title="two inputs, one output")
    axes.legend(frameon=False, loc="upper left")


def draw_slope(axes: Axes, left: float, right: float, at: tuple[float, float]) -> None:
    x = torch.linspace(-4, 2, 2001).double()
    y, f = nn.functional.gelu(x), slope(x)
    for part, colour, name in ((x <= at[0], ORANGE, "side bit 1"), (x >= at[0], BLUE, "side bit 0")):
        axes.plot(y[part], f[part], color=colour, linewidth=2, label=name)
    level = float(nn.functional.gelu(value(left)))
    axes.axvline(level, color=BLACK, linestyle="--", linewidth=1)
    axes.plot([level, level], [float(slope(value(v))) for v in (left, right)], "s", color=BLACK, markersize=4)
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set(xlabel="output y", ylabel="slope f'(x)", xlim=(-0.2, 0.5), title="the output and one bit tell the slope")
    axes.legend(frameon=False, loc="lower right")


def draw_error(axes: Axes, dtype: torch.dtype) -> tuple[float, float]:
    """The error of the slope over inputs of ``dtype``; the RMS errors for normal inputs of PyTorch's and ours."""
    x = torch.linspace(-6, 4, 60_001).to(dtype).unique()
    for name, gelu, colour in (("OptiActs", optiacts.gelu, ORANGE), ("PyTorch", nn.functional.gelu, BLUE)):
        error = (slope_by(gelu, x).double() - slope(x)).abs().clamp_min(1e-12)
        axes.plot(x.float(), error, ".", color=colour, markersize=1.5, label=name, rasterized=True)
    axes.set(xlabel="input x", yscale="log", ylim=(1e-9, 1), title=f"|error of the slope|, {str(dtype)[6:]}")
    axes.legend(frameon=False, loc="upper right", markerscale=6)
    torch.manual_seed(0)
    x = torch.randn(2**20).to(dtype)
    theirs, ours = (
        float((slope_by(gelu, x).double() - slope(x)).square().mean().sqrt())
        for gelu in (nn.functional.gelu, optiacts.gelu)
    )
    return theirs, ours


def new_model(dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """A small Llama, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).to(dtype).train()


def batch() -> dict[str, Tensor]:
    """Sequences in which each token tells the next one."""
    ids = (torch.randint(0, 256, (4, 1)) + 7 * torch.arange(128)) % 256
    return {"input_ids": ids, "labels": ids}


def train(model: nn.Module) -> list[float]:
    """The losses of a few steps."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def draw_bytes(axes: Axes, stages: dict[str, int]) -> None:
    sizes = [size / 2**20 for size in stages.values()]
    bars = axes.barh(list(stages), sizes, color=[BLUE, *[ORANGE] * (len(sizes) - 1)])
    axes.bar_label(bars, [f"{size:.1f} MiB" for size in sizes], padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="held for backward", xlim=(0, 1.2 * sizes[0]), title="a small Llama, 4 x 128 tokens, bfloat16")


def draw_losses(axes: Axes, losses: dict[str, list[float]]) -> None:
    axes.plot(losses["PyTorch"], color=BLUE, linewidth=5, alpha=0.4, label="PyTorch")
    axes.plot(losses["OptiActs"], color=ORANGE, linewidth=1.5, label="OptiActs")
    axes.set(xlabel="step", ylabel="loss", title="the same training, float32")
    axes.legend(frameon=False)


def stages() -> dict[str, int]:
    """What the model holds as PyTorch has it, and as more and more of it is converted."""
    options = {"activations": {"gated": False, "norms": False}, "and gated products": {"norms": False}}
    found = {"PyTorch": optiacts.saved_memory(new_model(), **batch()).bytes}
    for name, chosen in (*options.items(), ("and norms", {})):
        model = new_model()
        optiacts.convert(model, **chosen)  # type: ignore[arg-type]
        found[name] = optiacts.saved_memory(model, **batch()).bytes
    return found


def gelu_and_linear() -> dict[str, int]:
    """What a GELU and the Linear after it hold of 64 x 1024 numbers."""
    hidden = torch.randn(64, 1024, requires_grad=True)
    kinds = {"PyTorch": nn.GELU, "OptiActs": optiacts.GELU}
    models = {name: nn.Sequential(kind(), nn.Linear(1024, 256)) for name, kind in kinds.items()}
    return {name: optiacts.saved_memory(model, hidden * 1).bytes for name, model in models.items()}


def main(docs: Path) -> dict[str, Any]:
    """Writes the page and its pictures below ``docs``; returns the numbers in it."""
    figures = docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    at = minimum()
    left = LEFT
    level = float(nn.functional.gelu(value(left)))
    right = other_input(level, at[0])
    figure(
        figures / "tour_curve.png",
        lambda axes: draw_curve(axes, left, right, at),
        lambda axes: draw_slope(axes, left, right, at),
    )
    errors: dict[str, tuple[float, float]] = {}

    def error_of(dtype: torch.dtype) -> Any:
        return lambda axes: errors.__setitem__(str(dtype)[6:], draw_error(axes, dtype))

    figure(figures / "tour_error.png", error_of(torch.bfloat16), error_of(torch.float32))
    held = stages()
    models = {name: new_model(torch.float32) for name in ("PyTorch", "OptiActs")}
    report = optiacts.convert(models["OptiActs"])
    losses = {name: train(model) for name, model in models.items()}
    figure(figures / "tour_model.png", lambda axes: draw_bytes(axes, held), lambda axes: draw_losses(axes, losses))
    one = gelu_and_linear()
    last = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    numbers: dict[str, Any] = {
        "at": at,
        "left": left,
        "right": right,
        "level": level,
        "slopes": [float(slope(value(x))) for x in (left, right)],
        "errors": errors,
        "held": held,
        "one": one,
        "losses": losses,
        "apart": last,
        "report": str(report),
    }
    (docs / "tour.md").write_text(page(numbers), encoding="utf-8")
    return numbers


def page(n: dict[str, Any]) -> str:
    """The page."""
    (theirs, ours), (theirs_32, ours_32) = n["errors"]["bfloat16"], n["errors"]["float32"]
    held, one = n["held"], n["one"]
    elements = 64 * 1024
    rows = (f"| {name} | {size:,} bytes | {size / held['PyTorch']:.1%} |" for name, size in held.items())
    table = "\n".join(rows)
    return f"""# A tour in ten minutes

Written by `python examples/tour.py`; every number on this page comes out of its run.

## 1. What PyTorch keeps

```python
y = torch.nn.functional.gelu(x)  # keeps x for its backward
z = linear(y)  # keeps y for its own
```

GELU's backward needs the slope f'(x), so PyTorch keeps x. The Linear after it needs y for the gradient of its weight. Two tensors of one
size are held, and one of them could be computed from the other, were it not for this:

![GELU with its minimum; two inputs have the same output. Right: the slope over the output, two branches](figures/tour_curve.png)

GELU falls to a minimum at x = {n["at"][0]:.4f} and rises again. x = {n["left"]:.3f} and x = {n["right"]:.3f} both give y = {n["level"]:.4f}, but their slopes are
{n["slopes"][0]:+.3f} and {n["slopes"][1]:+.3f}. One bit tells them apart: was x left of the minimum? With it the output determines the slope, which the right picture
shows. Both ends of the curves at the minimum are vertical: there the slope changes like the *square root* of y's distance from its least
value, so that is what a decoder computes with.

## 2. What OptiActs keeps

```python
y = optiacts.gelu(x)  # keeps y, which the Linear keeps anyway, and one bit per element
```

| held by GELU and Linear, 64 x 1024 float32 | bytes | per element |
|---|---:|---:|
| PyTorch: x, y | {one["PyTorch"]:,} | {one["PyTorch"] / elements:.3f} |
| OptiActs: y, bits | {one["OptiActs"]:,} | {one["OptiActs"] / elements:.3f} |

The forward is PyTorch's own op: `torch.equal(optiacts.gelu(x), torch.nn.functional.gelu(x))`.

## 3. How exact the slope is

![The error of the slope over the input, in bfloat16 and in float32](figures/tour_error.png)

In bfloat16 y was rounded, and near the minimum, where many inputs share an output, that costs something. No decoder could do better from
this y: `optiacts` is at that floor ([accuracy](accuracy.md)). For x ~ N(0, 1) the RMS error of the slope is {ours:.1e} against PyTorch's {theirs:.1e} in
bfloat16, about what rounding a gradient to bfloat16 costs anyway, and {ours_32:.1e} against {theirs_32:.1e} in float32.

## 4. A whole model

```python
report = optiacts.convert(model)  # in place; revert(model) undoes it
print(report)
```

```
{n["report"]}
```

![Bytes held by a small Llama, stage by stage; the losses of two trainings](figures/tour_model.png)

| a small Llama, 4 x 128 tokens, bfloat16 | held for backward | of PyTorch's |
|---|---:|---:|
{table}

The first losses are equal to the bit, since the forward is: {n["losses"]["PyTorch"][0]:.6f} and {n["losses"]["OptiActs"][0]:.6f}. Over {STEPS} steps the losses are never more than {n["apart"]:.1e} apart:
a gradient differs in its last digits, as it does from one machine to another.

## 5. Where to go on

- Your model, before you rent a GPU: `optiacts report`, [report.md](report.md).
- Your trainer: [trainers.md](trainers.md). Your LoRA, your quantised layers: [followers.md](followers.md).
- How conversion keeps your code yours: [convert.md](convert.md). Gated MLPs in full: [gated.md](gated.md). Norms: [norms.md](norms.md).
- An activation of your own: [your_own.md](your_own.md).
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where to write")
    main(parser.parse_args().docs)
