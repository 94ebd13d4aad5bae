"""How much memory a training step holds for backward, by what and why, and how much less after conversion."""

from optiacts.report.analysis import report
from optiacts.report.data import Measured, MemoryReport, Stage
from optiacts.report.errors import ReportError
from optiacts.report.sharing import ActivationSite, sharing

__all__ = ["ActivationSite", "Measured", "MemoryReport", "ReportError", "Stage", "report", "sharing"]
