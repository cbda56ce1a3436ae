"""The one exception that a caller's mistake raises."""

from __future__ import annotations


class CodeBLEUError(ValueError):
    """A mistake in what was asked for, told in one line: what was found, what was expected, what to give instead."""
