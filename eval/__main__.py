"""Command line for measuring: ``python -m eval COMMAND --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from checkpoints.__main__ import CommandParser
from checkpoints.cli import ArgumentParser, run
from eval import codebleu_command, execution
from eval.codebleu import CodeBLEUError


def build_parser() -> CommandParser:
    """The parser with all subcommands."""
    parser = CommandParser(prog="python -m eval", description="Score code against references and run its tests.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=ArgumentParser)
    parser.commands = subparsers
    for module in (codebleu_command, execution):
        module.add_parser(subparsers).set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""

    def dispatch(arguments: argparse.Namespace) -> int:
        return arguments.main(arguments) or 0

    return run(build_parser(), dispatch, argv, also=(CodeBLEUError,))


if __name__ == "__main__":
    sys.exit(main())
