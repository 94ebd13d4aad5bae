"""The `optiacts` command. torch is all that it needs; a subcommand that wants more names it.

Nothing imports torch here until a command runs, so that `optiacts_command` tells at once how it is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from optiacts.reporting.arguments import add_arguments
from optiacts.reporting.errors import ReportError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; the exit status."""
    chosen = parse(arguments)
    parser: argparse.ArgumentParser = chosen.parser  # of the subcommand
    try:
        return int(chosen.run(chosen))
    except ReportError as error:
        parser.error(str(error))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for. Ends the process after `--help`, and where the arguments are wrong."""
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optiacts",
        description="Activation functions that keep their output, not their input: the same forward, less memory.",
    )
    parser.add_argument("--version", dest="run", action="store_const", const=_version, help="tell the version")
    parser.set_defaults(run=_help, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="tell which backend serves which device, and why the others do not")
    doctor.add_argument(
        "--prove", action="store_true", help="also compare every kernel with plain PyTorch operations"
    )
    doctor.set_defaults(run=_doctor, parser=doctor)

    demo = commands.add_parser("demo", help="train small models with and without OptiActs, side by side")
    demo.add_argument("--steps", type=_steps, default=100, help="training steps of each model (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of weights and batches (%(default)s)")
    demo.add_argument("--picture", type=Path, default=Path("out/demo.png"), help="where to draw (%(default)s)")
    demo.set_defaults(run=_demo, parser=demo)

    report = commands.add_parser("report", help="how much memory will I save, before I rent the GPU")
    add_arguments(report)
    report.set_defaults(run=_report, parser=report)
    return parser


def _help(chosen: argparse.Namespace) -> int:
    chosen.parser.print_help()
    return 0


def _version(chosen: argparse.Namespace) -> int:
    from optiacts import __version__

    print(f"optiacts {__version__}")
    return 0


def _report(chosen: argparse.Namespace) -> int:
    from optiacts.reporting.command import run

    return run(chosen)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on; got {text!r}")
    return int(text)


def _doctor(chosen: argparse.Namespace) -> int:
    from optiacts import doctor

    diagnosis = doctor(chosen.prove)
    print(diagnosis)
    return 1 if diagnosis.problems else 0


def _demo(chosen: argparse.Namespace) -> int:
    try:
        from optiacts.demo.main import run
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        raise ReportError(f"the demo needs {library}: pip install matplotlib rich transformers") from error
    run(chosen.steps, chosen.seed, chosen.picture)
    return 0
