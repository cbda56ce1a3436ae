"""Command line for measuring: ``python -m eval COMMAND --help``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from checkpoints.cli import CommandParser, run
from eval.codebleu import CodeBLEUError

# Subcommand -> module with ``add_parser(subparsers)`` and ``main(args)``. Only the one that is asked for is imported:
# scoring text needs no torch.
COMMANDS: dict[str, str] = {
    "benchmark": "eval.benchmarks.cli",
    "codebleu": "eval.codebleu_command",
    "compare": "eval.compare",
    "execution": "eval.execution.cli",
    "plot": "eval.plot",
    "preferences": "eval.preferences",
    "report": "eval.report",
    "routing": "eval.routing",
    "score-answers": "eval.score_answers",
}


def build_parser(modules: Sequence[ModuleType]) -> CommandParser:
    """The parser with the subcommands of ``modules``."""
    parser = CommandParser(prog="python -m eval", description="Score code against references and run its tests.")
    for module in modules:
        module.add_parser(parser.commands).set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    wanted = argv[:1] if argv[:1] and argv[0] in COMMANDS else list(COMMANDS)
    modules = [importlib.import_module(COMMANDS[name]) for name in wanted]
    return run(build_parser(modules), lambda arguments: arguments.main(arguments), argv, also=(CodeBLEUError,))


if __name__ == "__main__":
    sys.exit(main())
