"""Command line for weights: ``python -m checkpoints COMMAND --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from checkpoints.cli import ArgumentParser, run
from checkpoints.commands import registry


class CommandParser(ArgumentParser):
    """A parser with subcommands: an unknown flag is told by the subcommand, which can suggest the one meant."""

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.commands.choices[namespace.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace


def build_parser() -> CommandParser:
    """The parser with all subcommands."""
    parser = CommandParser(prog="python -m checkpoints", description="Read, upcycle, check and convert model weights.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=ArgumentParser)
    parser.commands = subparsers
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
