"""Regenerates docs/figures/report.md and report.png: what ``optiacts report`` says about well-known models.

The table in README.md, between its two markers, is the rows of the pictured models and one more.

make docs-figures
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.reporting import MemoryReport, report
from optiacts.reporting.build import Setting, build
from optiacts.reporting.plot import plot
from optiacts.reporting.table import GIB

ROOT = Path(__file__).parents[1]
FOLDER, README = ROOT / "docs" / "figures", ROOT / "README.md"
MARKERS = ("<!-- table of make docs-figures -->", "<!-- end of table -->")


class Row(NamedTuple):
    """One line of the table."""

    model: str
    words: str
    options: dict[str, Any]
    drawn: bool = False  # in the picture
    shown: bool = False  # in README.md


ROWS = (
    Row(
        "bert-base",
        "fp32, 16 x 512, bare model",
        {"batch": 16, "dtype": "float32", "loss": False},
        drawn=True,
        shown=True,
    ),
    Row("bert-large", "bf16, 16 x 512", {"batch": 16}),
    Row("gpt2-xl", "bf16, 8 x 1024", {"batch": 8}, shown=True),
    Row("vit-large", "bf16, 64 images", {"batch": 64}),
    Row("mistral-7b", "bf16, 1 x 4096", {}, shown=True),
    Row("mistral-7b", "bf16, 1 x 4096, LoRA", {"train_mode": "lora"}),
    Row("llama-3-8b", "bf16, 1 x 4096", {}, drawn=True, shown=True),
    Row("llama-3-8b", "bf16, 1 x 4096, LoRA", {"train_mode": "lora"}, drawn=True, shown=True),
    Row("qwen3-8b", "bf16, 1 x 4096", {}),
    Row("gemma-2-9b", "bf16, 1 x 4096, eager attention", {"attention": "eager"}),
    Row("llama-3-70b", "bf16, 1 x 4096", {}, shown=True),
)


def made(row: Row) -> MemoryReport:
    """The report as the command makes it."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(row.model, Setting(**row.options))
    name = row.model + (" (LoRA)" if row.options.get("train_mode") == "lora" else "")
    return report(built.model, *built.args, like_cuda=True, name=name, setting=built.setting, **built.kwargs)


def table(made_rows: list[tuple[Row, MemoryReport]]) -> str:
    """One line for each report."""
    lines = [
        "| model | setting | held now | activations converted | gated MLPs converted |",
        "|---|---|---:|---:|---:|",
    ]
    for row, one in made_rows:
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
    """Writes both files and README.md's table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made_rows = [(row, made(row)) for row in ROWS]
    (FOLDER / "report.md").write_text(table(made_rows), encoding="utf-8")
    plot([one for row, one in made_rows if row.drawn], FOLDER / "report.png")
    before, _, rest = README.read_text(encoding="utf-8").partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    shown = table([(row, one) for row, one in made_rows if row.shown])
    README.write_text(f"{before}{MARKERS[0]}\n{shown}{MARKERS[1]}{after}", encoding="utf-8")
    print((FOLDER / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
