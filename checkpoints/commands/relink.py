"""``relink``: updates where a delta directory finds its base."""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints.model_io import relink


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "relink", help="update where a delta directory finds its base (checksums are compared)"
    )
    parser.add_argument("directory", type=Path, help="the delta directory")
    parser.add_argument("base", type=Path, help="where the dense base is now: a directory or a GGUF file")
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    relink(arguments.directory, arguments.base)
    print(f"{arguments.directory} now uses the base {arguments.base}")
    return 0
