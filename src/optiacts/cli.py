"""The `optiacts` command. Its libraries come with `pip install 'optiacts[report]'`."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import click
except ImportError:
    sys.exit("the optiacts command needs its extra: pip install 'optiacts[report]'")

from optiacts import doctor as diagnose
from optiacts.reporting.command import report


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="optiacts")
def main() -> None:
    """Activation functions that keep their output, not their input: the same forward, less memory."""


@main.command()
@click.option(
    "--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Training steps of each model."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and batches.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/demo.png"),
    show_default=True,
    help="Where to write the picture.",
)
def demo(steps: int, seed: int, picture: Path) -> None:
    """Train a small GPT with and without OptiActs, side by side."""
    from rich.console import Console

    from optiacts.demo.main import run

    run(steps, seed, picture, Console())


@main.command()
def doctor() -> None:
    """Tell which backend serves which device, and why the others do not."""
    click.echo(str(diagnose()))


main.add_command(report)
