"""Conversion of existing models: one call, in place, reversible."""

from optiacts.conversion.model import convert, revert
from optiacts.conversion.report import Conversion, ConversionReport

__all__ = ["Conversion", "ConversionReport", "convert", "revert"]
