"""Calls ``python -m checkpoints`` within the test's own process."""

from __future__ import annotations

from checkpoints.__main__ import main


def run_main(*arguments) -> int:
    """The exit code of a command; arguments as they would be typed."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
