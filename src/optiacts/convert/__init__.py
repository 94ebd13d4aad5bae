"""Conversion of existing models: one call, in place, reversible."""

from optiacts.convert._convert import convert, revert
from optiacts.convert.report import Conversion, ConversionReport

__all__ = ["Conversion", "ConversionReport", "convert", "revert"]
