"""Conversion of existing models: one call, in place, reversible.

model.py                                  convert and revert: all modules of a model
planning.py  sites.py  products.py        what to replace in a function, and why not the rest
dropouts.py  sequences.py                 dropouts in functions, and in a Sequential behind activations
flow.py  interpretation.py  values.py     where an activation's output goes: changed in place, kept by nobody
followers.py                              what torch's own modules do with it
callees.py  lookup.py  interest.py        what a name in a function stands for; whether to read a function at all
purity.py  recognition.py  steps.py       what a callable computes: pins, values, gradients, variants
source.py  rewriting.py                   a function's own source, provably; the function made from an edited copy
runtime.py  known.py                      what rewritten functions call: decided when it runs
converted.py  subclass.py                 modules of a class made for the purpose; copies, pickles
hooked.py                                 modules that carry accelerate's hooks
rehearsal.py  selection.py  report.py     a dry run on fake tensors; which modules are meant; what was done
"""

from optiacts.conversion.model import convert, revert
from optiacts.conversion.report import Conversion, ConversionReport

__all__ = ["Conversion", "ConversionReport", "convert", "revert"]
