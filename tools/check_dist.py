"""What is about to be released is what it should be.

python tools/check_dist.py dist         the sdist has the repository's files, the wheels have the package, and no more
python tools/check_dist.py --tag v0.1.0 the tag, the package and CITATION.cff name one version
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILT = {"optiacts/_native.so", "optiacts/_host.abi3.so"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="what `make dist` has built")
    parser.add_argument("--tag", help="the tag of the release")
    arguments = parser.parse_args()
    faults = list(_versions(arguments.tag))
    if arguments.folder:
        faults += _built(arguments.folder)
    print("\n".join(faults) or f"{_version()}: as it should be")
    return int(bool(faults))


def _version() -> str:
    return _found(r'^__version__ = "(.+)"$', ROOT / "src/optiacts/__init__.py")


def _found(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text(), re.MULTILINE)
    if match is None:
        raise LookupError(f"{path} has no line {pattern}")
    return match[1]


def _versions(tag: str | None) -> Iterator[str]:
    version, cited = _version(), _found(r"^version: (.+)$", ROOT / "CITATION.cff")
    if cited != version:
        yield f"CITATION.cff says {cited}, the package {version}"
    if tag is not None and tag != f"v{version}":
        yield f"the tag is {tag}, the package v{version}"


def _built(folder: Path) -> Iterator[str]:
    version = _version()
    sdists, wheels = sorted(folder.glob("*.tar.gz")), sorted(folder.glob("*.whl"))
    if [path.name for path in sdists] != [f"optiacts-{version}.tar.gz"]:
        yield f"{folder} has the sdists {[path.name for path in sdists]}, not one of {version}"
    if not any(path.name == f"optiacts-{version}-py3-none-any.whl" for path in wheels):
        yield f"{folder} has no pure-Python wheel of {version}"
    tracked = _tracked()
    for path in sdists:
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        yield from _unlike(path, names, {"PKG-INFO", *(name for name in tracked if not name.startswith("."))})
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            names = {name for name in wheel.namelist() if name.partition("/")[0] != f"optiacts-{version}.dist-info"}
        yield from _unlike(path, names, package if path.stem.endswith("-any") else package | BUILT)


def _tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


def _unlike(path: Path, names: Iterable[str], expected: set[str]) -> Iterator[str]:
    for what, which in (("lacks", expected.difference(names)), ("has also", set(names) - expected)):
        if which:
            yield f"{path.name} {what} {', '.join(sorted(which))}"


if __name__ == "__main__":
    sys.exit(main())
