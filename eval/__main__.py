"""Command line for measuring: ``python -m eval COMMAND --help``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from checkpoints.cli import ArgumentParser, run
from eval.codebleu import CodeBLEUError

# Subcommand -> module with ``add_parser(subparsers)`` and ``main(args)``. Only the one that is asked for is imported:
# scoring text needs no torch.
COMMANDS: dict[str, str] = {
    "codebleu": "eval.codebleu.cli",
    "execution": "eval.execution.cli",
}


class CommandParser(ArgumentParser):
    """A parser with subcommands: an unknown flag is told by the subcommand, which can suggest the one meant."""

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.commands.choices[namespace.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace


def build_parser(modules: Sequence[ModuleType]) -> CommandParser:
    """The parser with the subcommands of ``modules``."""
    parser = CommandParser(prog="python -m eval", description="Score code against references and run its tests.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=ArgumentParser)
    parser.commands = subparsers
    for module in modules:
        module.add_parser(subparsers).set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    wanted = argv[:1] if argv[:1] and argv[0] in COMMANDS else list(COMMANDS)
    modules = [importlib.import_module(COMMANDS[name]) for name in wanted]

    def dispatch(arguments: argparse.Namespace) -> int:
        return arguments.main(arguments) or 0

    return run(build_parser(modules), dispatch, argv, also=(CodeBLEUError,))


if __name__ == "__main__":
    sys.exit(main())
