"""The exception for mistakes of the caller."""

from __future__ import annotations


class CodeBLEUError(ValueError):
    """A mistake of the caller; the message says in one line what was found, what was expected and what to give."""
