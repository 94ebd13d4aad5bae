"""``python -m optiacts.reporting`` is ``optiacts report``."""

from optiacts.reporting.command import report

report(prog_name="optiacts report")
