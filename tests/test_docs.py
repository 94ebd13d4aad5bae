"""The pages say what is there: links lead somewhere, names and versions are complete, figures agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import report_figures
import torch

import optiacts
from benchmarks.gradient_accuracy import ratio
from optiacts.reporting.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text(page))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_preset_of_reports_is_named() -> None:
    page = text(ROOT / "docs" / "report.md")
    assert not [name for name in PRESETS if f"`{name}`" not in page]


def test_every_page_and_every_public_name_is_in_the_index() -> None:
    index = text(ROOT / "docs" / "README.md")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
    for name in optiacts.__all__:
        assert hasattr(optiacts, name) and f"`{name}`" in index, name


def test_one_version_everywhere() -> None:
    """The package says it; the changelog and the citation follow."""
    assert f"\n## {optiacts.__version__} " in text(ROOT / "CHANGELOG.md")
    assert f"\nversion: {optiacts.__version__}\n" in text(ROOT / "CITATION.cff")
    assert "\nversion =" not in text(ROOT / "pyproject.toml")


def test_readme_shows_figures_that_were_made_together() -> None:
    made = text(ROOT / "docs" / "figures" / "report.md")
    readme = text(ROOT / "README.md")
    table = readme.partition("<!-- table of make docs-figures -->")[2].partition("<!-- end of table -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) > 5 and all(row in made.splitlines() for row in rows if not row.startswith("|---"))
    headline = readme.partition("<!-- headline of make docs-figures -->")[2].partition("<!-- end of headline -->")[0]
    after, before = re.findall(r"([\d.]+) GiB", headline)
    assert re.search(rf"\| llama-3-8b \| .*LoRA \| {before} GiB .* {after} GiB ", made)


def test_a_part_of_a_page_is_put_between_its_markers() -> None:
    page = "a\n<!-- x of make docs-figures -->\nold\n<!-- end of x -->\nb"
    assert report_figures.put_in(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="has no <!-- y of make docs-figures -->"):
        report_figures.put_in(page, "y", "new")


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1.9), (torch.float16, 2.9)])
@pytest.mark.parametrize("name", ["gelu", "mish"])  # the worst of all
def test_gradients_beside_pytorchs_are_as_readme_says(name: str, dtype: torch.dtype, most: float) -> None:
    found, _ = ratio(name, dtype, scale=1.0, count=2**18)
    assert 1.0 < found < most + 0.05


def test_largest_error_in_float32_is_as_readme_says() -> None:
    _, error = ratio("gelu", torch.float32, scale=1.0, count=2**18)
    assert error < 2.15e-6
