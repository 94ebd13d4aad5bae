"""Regenerates docs/figures/report.md and report.png: what ``optiacts report`` says about well-known models.

README.md has two parts made here, each between two markers: the headline, and a table of the models that are shown.

make docs-figures
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch._subclasses.fake_tensor import FakeTensorMode

from optiacts.reporting import MemoryReport, report
from optiacts.reporting.build import Setting, build
from optiacts.reporting.conversion import CONVERSIONS
from optiacts.reporting.plot import plot
from optiacts.reporting.sizes import GIB

ROOT = Path(__file__).parents[1]
FOLDER, README = ROOT / "docs" / "figures", ROOT / "README.md"
PARTS = ("headline", "table")  # of README.md: <!-- headline of make docs-figures --> ... <!-- end of headline -->


class Row(NamedTuple):
    """One line of the table."""

    model: str
    words: str
    options: dict[str, Any]
    drawn: bool = False  # in the picture
    shown: bool = False  # in README.md
    headline: str = ""  # how the headline of README.md calls it


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
    Row(
        "llama-3-8b",
        "bf16, 1 x 4096, LoRA",
        {"train_mode": "lora"},
        drawn=True,
        shown=True,
        headline="LoRA fine-tuning of Llama-3-8B on 4,096 tokens",
    ),
    Row("qwen3-8b", "bf16, 1 x 4096", {}),
    Row("gemma-2-9b", "bf16, 1 x 4096, eager attention", {"attention": "eager"}),
    Row("llama-3-70b", "bf16, 1 x 4096", {}, shown=True),
)


def made(row: Row) -> MemoryReport:
    """The report as the command makes it."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(row.model, Setting(**row.options))
    name = row.model + (" (LoRA)" if row.options.get("train_mode") == "lora" else "")
    how: dict[str, Any] = {"like_cuda": True, "peak": False, "name": name, "setting": built.setting}
    return report(built.model, *built.args, **how, **built.kwargs)


def table(made_rows: list[tuple[Row, MemoryReport]]) -> str:
    """One line for each report, one column for each stage that any of them has."""
    met = {stage.name for _, one in made_rows for stage in one.stages}
    stages = [name for name in CONVERSIONS if name in met]
    lines = [
        "| " + " | ".join(("model", "setting", "held now", *stages)) + " |",
        "|---|---|" + "---:|" * (1 + len(stages)),
    ]
    for row, one in made_rows:
        after = {s.name: f"{GIB(s.bytes)} GiB ({one.change(s):+.1%})" for s in one.stages[1:]}
        cells = (row.model, row.words, f"{GIB(one.now.bytes)} GiB", *(after.get(name, "-") for name in stages))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        "Bytes that autograd holds after a forward on CUDA, parameters left out; SDPA, full fine-tuning and with the "
        "loss where nothing else is said. Each column includes those before it. Regenerate with `make docs-figures`."
    )
    return "\n".join(lines) + "\n"


def headline(made_rows: list[tuple[Row, MemoryReport]]) -> str:
    """One sentence with one number."""
    row, one = next((row, one) for row, one in made_rows if row.headline)
    best = one.stages[-1]
    return (
        f"**{row.headline} holds {GIB(best.bytes)} GiB for the backward pass instead of {GIB(one.now.bytes)} GiB: "
        f"{-one.change(best):.0%} less.**\n"
    )


def put_in(page: str, part: str, text: str) -> str:
    """``page`` with ``text`` between the markers of ``part``; ``ValueError`` if it has none."""
    opening, closing = f"<!-- {part} of make docs-figures -->\n", f"<!-- end of {part} -->"
    before, found, rest = page.partition(opening)
    _, ended, after = rest.partition(closing)
    if not (found and ended):
        raise ValueError(f"README.md has no {opening.strip()} ... {closing}")
    return f"{before}{opening}{text}{closing}{after}"


def main() -> None:
    """Writes both files and the parts of README.md."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made_rows = [(row, made(row)) for row in ROWS]
    (FOLDER / "report.md").write_text(table(made_rows), encoding="utf-8")
    plot([one for row, one in made_rows if row.drawn], FOLDER / "report.png")
    texts = (headline(made_rows), table([(row, one) for row, one in made_rows if row.shown]))
    page = README.read_text(encoding="utf-8")
    for part, text in zip(PARTS, texts, strict=True):
        page = put_in(page, part, text)
    README.write_text(page, encoding="utf-8")
    print((FOLDER / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
