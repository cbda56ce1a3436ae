"""Command line for weights: ``python -m checkpoints COMMAND --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from checkpoints.cli import ArgumentParser, run
from checkpoints.commands import registry


def build_parser() -> ArgumentParser:
    """The parser with all subcommands."""
    parser = ArgumentParser(prog="python -m checkpoints", description="Read, upcycle, check and convert model weights.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=ArgumentParser)
    for module in registry():
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""

    def dispatch(arguments: argparse.Namespace) -> int:
        return arguments.main(arguments) or 0

    return run(build_parser(), dispatch, argv)


if __name__ == "__main__":
    sys.exit(main())
