"""Regenerates docs/figures/report.md and report.png: what ``optiacts report`` says about well-known models.

make docs-figures
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.report import MemoryReport, report
from optiacts.report.build import Setting, build
from optiacts.report.plot import plot
from optiacts.report.table import GIB

FOLDER = Path(__file__).parents[1] / "docs" / "figures"


class Row(NamedTuple):
    """One line of the table."""

    model: str
    words: str
    options: dict[str, Any]
    drawn: bool = False


ROWS = (
    Row("bert-base", "fp32, 16 x 512, bare model", {"batch": 16, "dtype": "float32", "loss": False}, drawn=True),
    Row("bert-large", "bf16, 16 x 512", {"batch": 16}),
    Row("gpt2-xl", "bf16, 8 x 1024", {"batch": 8}),
    Row("vit-large", "bf16, 64 images", {"batch": 64}),
    Row("mistral-7b", "bf16, 1 x 4096", {}),
    Row("mistral-7b", "bf16, 1 x 4096, LoRA", {"train_mode": "lora"}),
    Row("llama-3-8b", "bf16, 1 x 4096", {}, drawn=True),
    Row("llama-3-8b", "bf16, 1 x 4096, LoRA", {"train_mode": "lora"}, drawn=True),
    Row("qwen3-8b", "bf16, 1 x 4096", {}),
    Row("gemma-2-9b", "bf16, 1 x 4096, eager attention", {"attention": "eager"}),
    Row("llama-3-70b", "bf16, 1 x 4096", {}),
)


def made(row: Row) -> MemoryReport:
    """The report as the command makes it."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(row.model, Setting(**row.options))
    name = row.model + (" (LoRA)" if row.options.get("train_mode") == "lora" else "")
    return report(built.model, *built.args, like_cuda=True, name=name, setting=built.setting, **built.kwargs)


def table(reports: list[MemoryReport]) -> str:
    """One line for each report."""
    lines = [
        "| model | setting | held now | activations converted | gated MLPs converted |",
        "|---|---|---:|---:|---:|",
    ]
    for row, one in zip(ROWS, reports, strict=True):
        after = [f"{GIB(stage.bytes)} GiB ({one.change(stage):+.1%})" for stage in one.stages[1:]]
        cells = (row.model, row.words, f"{GIB(one.now.bytes)} GiB", *after, *["-"] * (2 - len(after)))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        "Bytes that autograd holds after a forward on CUDA, parameters left out; SDPA, full fine-tuning and with the "
        "loss where nothing else is said. Regenerate with `make docs-figures`."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes both files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    reports = [made(row) for row in ROWS]
    (FOLDER / "report.md").write_text(table(reports), encoding="utf-8")
    plot([one for row, one in zip(ROWS, reports, strict=True) if row.drawn], FOLDER / "report.png")
    print((FOLDER / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
