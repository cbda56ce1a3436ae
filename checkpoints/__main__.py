"""Command line for weights: ``python -m checkpoints COMMAND --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from checkpoints.cli import CommandParser, run
from checkpoints.commands import registry


def build_parser() -> CommandParser:
    """The parser with all subcommands."""
    parser = CommandParser(prog="python -m checkpoints", description="Read, upcycle, check and convert model weights.")
    for module in registry():
        module.add_parser(parser.commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    return run(build_parser(), lambda arguments: arguments.main(arguments), argv)


if __name__ == "__main__":
    sys.exit(main())
