"""Errors that a person can act on: each says what to do."""

from __future__ import annotations


class ReportError(ValueError):
    """The report cannot be made with what was given."""
