"""Derives the coefficients of the curves (src/optiacts/decoders/data/NAME.json).

    python tools/fit.py                  all curves; writes what has become better
    python tools/fit.py --only mish      one curve, without looking at the others
    python tools/fit.py --check          writes nothing; exit status 1 if anything would change

For each curve and part: how good the fit is, of what the accuracy contract allows, and what has changed. A fit that
misses the contract fails, with advice. The parts are explained in src/optiacts/decoders/__init__.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from optiacts.curves import Curve, get, unimodal
from optiacts.decoders.fitted import FOLDER
from optiacts.decoders.fitting import PARTS, FitError, refit


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these curves instead of all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="these parts instead of all")
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    chosen = parser.parse_args(arguments)
    changed = [_fit(curve, chosen.parts, chosen.check) for curve in map(get, chosen.only or unimodal())]
    print(f"{sum(changed)} of {len(changed)} curves {'would change' if chosen.check else 'changed'}")
    return int(chosen.check and any(changed))


def _fit(curve: Curve, parts: Sequence[str], check: bool) -> bool:
    """Fits one curve; whether anything is new."""
    file = FOLDER / f"{curve.name}.json"
    before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    after = dict(before)

    def say(part: str) -> None:
        print(f"{curve.name:12} {part:12} ", end="", flush=True)

    for result in refit(curve, before, parts, say):
        what = "unchanged" if not result.changed else "changed" if result.before else "new"
        was = f" (was {', '.join(map(str, result.before))})" if what == "changed" else ""
        print(f"{what}: {', '.join(map(str, result.qualities))}{was}", flush=True)
        after[result.part] = result.data
    if after != before and not check:
        file.write_text(json.dumps({part: after[part] for part in PARTS if part in after}, indent=1) + "\n")
    return after != before


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FitError, ValueError) as error:
        sys.exit(f"\n{error}")
