"""How much memory a training step holds for backward, by what and why, and how much less after conversion."""

from optiacts.held.fake import fake_copy
from optiacts.held.sharing import ActivationSite, without_gain
from optiacts.reporting.analysis import report
from optiacts.reporting.data import Measured, MemoryReport, Stage
from optiacts.reporting.errors import ReportError
from optiacts.reporting.known import sharing, trace
from optiacts.reporting.lora import Lora

__all__ = [
    "ActivationSite",
    "Lora",
    "Measured",
    "MemoryReport",
    "ReportError",
    "Stage",
    "fake_copy",
    "report",
    "sharing",
    "trace",
    "without_gain",
]
