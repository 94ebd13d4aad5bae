"""Measures every method on every model, and writes the CSV, the picture and the part of docs/frontier.md.

    make frontier                             or: python -m benchmarks.frontier       20 minutes on two quiet cores
    ... --only Llama                          one model, printed, nothing written
    ... --rounds 5 --seconds 0                so many rounds, and no more than it takes
    ... --device cuda                         bfloat16 and larger sizes; benchmarks/results/frontier_<device>.csv
    ... --dry-run                             tiny sizes, every method once, nothing written
    ... --write                               the picture and the page from the CSV that is there

Every method runs in a process of its own. They take turns, so that whatever slows the machine down hits all alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.frontier import page, picture
from benchmarks.frontier.contender import Contender, Found, Setting
from benchmarks.frontier.methods import EAGER, Method, methods
from benchmarks.frontier.models import MODELS, Model
from benchmarks.frontier.rows import Row, device_name, read, rows, write
from benchmarks.frontier.turns import FailedError, Step, measured, started
from benchmarks.frontier.verdict import sentences

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "frontier.md"
PICTURE = ROOT / "docs" / "figures" / "frontier.png"
CPU = RESULTS / "frontier_cpu.csv"

SECONDS, ROUNDS = 120.0, 15  # of the turns of one model: so long, and at least so many rounds
START = 260.0  # seconds for the first steps of a model's methods, most of it compilation; what is late is left out


def run(model: Model, setting: Setting, chosen: list[Method], seconds: float, rounds: int, start: float) -> list[Row]:
    """The rows of one model: ``start`` seconds to get ready, then ``seconds`` of turns, ``rounds`` at the least."""
    began = time.monotonic()
    print(f"{model.name}: {model.words(model.size(setting.device, setting.dry))}", flush=True)
    ready = started(model, chosen, setting, began + start)
    remotes = [remote for _, remote, _ in ready if remote is not None]
    try:
        if EAGER not in {remote.method for remote in remotes}:
            raise FailedError(f"PyTorch itself did not run: {ready[0][2]}")
        print(f"  {len(remotes)} methods ready after {time.monotonic() - began:.0f} s; their turns", flush=True)
        times = measured(remotes, EAGER, seconds, rounds)
    finally:
        for remote in remotes:
            remote.close()
    made = _rows(model, setting, {method: found for method, _, found in ready}, times)
    print(f"  done after {time.monotonic() - began:.0f} s", flush=True)
    return made


def dry_run(model: Model, setting: Setting, chosen: list[Method]) -> list[Row]:
    """The same in this process, one step each: whether everything runs."""
    import torch

    threads = torch.get_num_threads()
    found: dict[Method, Found | FailedError] = {}
    times: dict[Method, list[Step]] = {}
    for method in chosen:
        torch._dynamo.reset()
        contender = Contender(model, method, setting)
        found[method] = contender.found()
        took = contender.step()
        times[method] = [Step(took, times[EAGER][0].seconds if EAGER in times else took)]
    torch.set_num_threads(threads)
    return _rows(model, setting, found, times)


def _rows(
    model: Model, setting: Setting, found: dict[Method, Found | FailedError], times: dict[Method, list[Step]]
) -> list[Row]:
    made = rows(model, setting, found, times)
    for sentence in sentences(made):
        print(f"  {sentence}", flush=True)
    return made


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=MODELS, help="one of the models")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of turns for each model")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at least so many")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, every method once")
    parser.add_argument("--write", action="store_true", help="the picture and the page from the CSV")
    arguments = parser.parse_args()
    chosen = [MODELS[arguments.only]] if arguments.only else list(MODELS.values())
    if arguments.dry_run:
        setting = Setting(arguments.device, dry=True)
        made = [row for model in chosen for row in dry_run(model, setting, methods(model, setting.device))]
        print(page.written(made))
        return
    if arguments.write:
        _publish(read(CPU))
        return
    setting = Setting(arguments.device)
    made = []
    for model in chosen:
        ways = methods(model, setting.device)
        made += run(model, setting, ways, arguments.seconds, arguments.rounds, START)
        if arguments.only:
            print(page.written(made))
        else:
            write(made, _file(setting.device))  # after each, so that a run that is stopped leaves what it found
    if not arguments.only and setting.device == "cpu":
        _publish(made)


def _file(device: str) -> Path:
    if device == "cpu":
        return CPU
    return RESULTS / f"frontier_{''.join(c if c.isalnum() else '_' for c in device_name(device)).lower()}.csv"


def _publish(made: list[Row]) -> None:
    picture.draw(made, PICTURE)
    PAGE.write_text(page.put_in(PAGE.read_text(encoding="utf-8"), page.written(made)), encoding="utf-8")


if __name__ == "__main__":
    main()
