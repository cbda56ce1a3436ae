"""``python -m eval report``: the report of one or more runs as one HTML page and in Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from eval.compare import compare_runs, explain, read_runs
from eval.reporting.page import write_report
from moe.errors import UserError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``report`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "report",
        help="write the report of runs of train.py: one HTML page, Markdown and plots",
        description="Writes report.html (one self-contained page), report.md and the plots of runs: results, loss "
        "curves, routing, CodeBLEU's parts, cost, and examples with their difference to the reference. Several runs "
        "are also compared. Plots need matplotlib.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: the run's directory, if there is one run)"
    )
    parser.add_argument(
        "--allow-different", action="store_true", help="compare runs of different data, test sets or bases"
    )
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    runs = read_runs(arguments.runs)
    if len(runs) > 1 and arguments.output is None:
        raise UserError(f"a report of {len(runs)} runs needs a folder; add --output DIR")
    folder = arguments.output or arguments.runs[0]
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder to write the report into")
    comparison = None
    if len(runs) > 1:
        found = compare_runs(runs, allow_different=arguments.allow_different)
        comparison = {**found, "explained": explain(found)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = write_report(runs, folder, comparison)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from error
    print("\n".join(lines))
    return 0
