"""``python -m eval plot``: the curves of a run as a picture, at any time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from checkpoints.cli import check_output_file
from eval.reporting.plots import INSTALL, can_plot, loss_curves
from eval.reporting.record import RunRecord
from moe.errors import UserError
from moe.files import replace_file


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``plot`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "plot",
        help="draw the loss curves of a run of train.py, also of one that goes on",
        description="Draws training and validation loss by step, from metrics.csv. Needs matplotlib.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="where to draw to (default: RUN/curves.png)")
    parser.add_argument("--force", action="store_true", help="replace --output if it exists")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    run = RunRecord(arguments.run, finished=False)
    if not can_plot():
        raise UserError(INSTALL)
    if not run.stages():
        raise UserError(f"{arguments.run} has made no training step yet; there is nothing to draw")
    path = arguments.output or arguments.run / "curves.png"
    check_output_file(path, arguments.force or arguments.output is None)
    replace_file(path, loss_curves(run, "light"))
    print(path)
    return 0
