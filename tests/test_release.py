"""The tools that judge a release, on releases and test results made for them."""

import io
import tarfile
import zipfile
from pathlib import Path

import check_dist
import matrix
import pytest

from benchmarks import gpu_check

VERSION = check_dist._version()


def _dist(folder: Path, sdist: set[str], pure: set[str], kernels: set[str]) -> None:
    with tarfile.open(folder / f"optiacts-{VERSION}.tar.gz", "w:gz") as archive:
        for name in sdist:
            archive.addfile(tarfile.TarInfo(f"optiacts-{VERSION}/{name}"), io.BytesIO())
    for tag, names in (("any", pure), ("manylinux_2_28_x86_64", kernels)):
        with zipfile.ZipFile(folder / f"optiacts-{VERSION}-py3-none-{tag}.whl", "w") as wheel:
            for name in {*names, f"optiacts-{VERSION}.dist-info/METADATA"}:
                wheel.writestr(name, "")


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {".gitignore", "Makefile", "src/optiacts/__init__.py", "tests/test_a.py"}
    monkeypatch.setattr(check_dist, "_tracked", lambda: files)


SDIST = {"Makefile", "src/optiacts/__init__.py", "tests/test_a.py", "PKG-INFO"}
PACKAGE, KERNELS = {"optiacts/__init__.py"}, {"optiacts/_native.so", "optiacts/_host.abi3.so"}


def test_what_should_be_released_has_no_faults(tmp_path: Path, tracked: None) -> None:
    _dist(tmp_path, SDIST, PACKAGE, PACKAGE | KERNELS)
    assert list(check_dist._built(tmp_path)) == []


@pytest.mark.parametrize(
    ("sdist", "pure", "kernels", "fault"),
    [
        (SDIST | {"out/x"}, PACKAGE, PACKAGE | KERNELS, "tar.gz has also out/x"),
        (SDIST - {"tests/test_a.py"}, PACKAGE, PACKAGE | KERNELS, "tar.gz lacks tests/test_a.py"),
        (SDIST, PACKAGE | KERNELS, PACKAGE | KERNELS, "any.whl has also optiacts/_host.abi3.so, optiacts/_native.so"),
        (SDIST, PACKAGE, PACKAGE, "manylinux_2_28_x86_64.whl lacks optiacts/_host.abi3.so, optiacts/_native.so"),
    ],
)
def test_files_that_are_missing_or_do_not_belong_are_named(
    tmp_path: Path, tracked: None, sdist: set[str], pure: set[str], kernels: set[str], fault: str
) -> None:
    _dist(tmp_path, sdist, pure, kernels)
    (found,) = check_dist._built(tmp_path)
    assert found.endswith(fault)


def test_package_citation_and_tag_name_one_version() -> None:
    assert list(check_dist._versions(f"v{VERSION}")) == []
    assert list(check_dist._versions("v9.9")) == [f"the tag is v9.9, the package v{VERSION}"]


FOUND = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_x[gelu]">
<properties><property name="error" value="0.5"/></properties></testcase>
<testcase classname="tests.test_a" name="test_x[silu]"><failure message="assert 2 == 1&#10;more"/></testcase>
<testcase classname="tests.test_a" name="test_y"><skipped message="needs a GPU"/></testcase>
<testcase classname="tests.test_b" name="test_z"><error message="at setup"/></testcase>
</testsuite></testsuites>"""


def test_the_matrix_counts_what_pytest_found(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(FOUND)
    row = matrix._row([tmp_path / "tests.xml"])
    assert [row[key] for key in ("passed", "failed", "skipped")] == ["1", "2", "1"]
    assert row["which failed"] == "test_a::test_x[silu] test_b::test_z"
    again = '<testsuite><testcase classname="tests.test_b" name="test_z"/></testsuite>'
    (tmp_path / "again.xml").write_text(again)
    row = matrix._row([tmp_path / "tests.xml", tmp_path / "again.xml"])
    assert [row[key] for key in ("passed", "failed", "skipped")] == ["2", "1", "1"]


def test_gpu_check_keeps_what_it_does_not_take_again() -> None:
    rows = [{"x": 1.0}]
    earlier = {
        "machine": {"date": "2026-01-01"}, "checks": {"a": "passed"}, "figures": {"kernels": rows, "steps": rows},
        "dates": {"kernels": "2025-12-31", "steps": "2026-01-01"}, "notes": ["of people"],
    }  # fmt: skip
    new = {"machine": {"date": "2026-02-02"}, "checks": {}, "figures": {"steps": [{"x": 2.0}]}}
    assert gpu_check._with_earlier(earlier, new) == {
        "machine": new["machine"], "checks": {"a": "passed"}, "figures": {"kernels": rows, "steps": [{"x": 2.0}]},
        "dates": {"kernels": "2025-12-31", "steps": "2026-02-02"}, "notes": ["of people"],
    }  # fmt: skip


def test_gpu_check_puts_the_cases_of_a_function_together(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(FOUND)
    found = gpu_check._by_function(gpu_check.ElementTree.parse(tmp_path / "tests.xml").iter("testcase"))
    assert {name: (each["status"], each["cases"]) for name, each in found.items()} == {
        "a: x": ("failed", {"passed": 1, "failed": 1}),
        "a: y": ("skipped", {"skipped": 1}),
        "b: z": ("failed", {"failed": 1}),
    }
    assert found["a: x"]["found"] == {"gelu": {"error": 0.5}, "silu": {"failure": "assert 2 == 1"}}
