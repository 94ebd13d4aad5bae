"""``python -m optiacts.report`` is ``optiacts report``."""

from optiacts.report.command import report

report(prog_name="optiacts report")
