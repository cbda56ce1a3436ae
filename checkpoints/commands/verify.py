"""``verify``: are all bytes of a model directory as they were written?"""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints.commands.common import directory_bytes, progress_bar
from checkpoints.storage.files import format_bytes
from checkpoints.storage.writer import MANIFEST
from checkpoints.verify import build_manifest, check_structure, verify_directory
from moe.errors import UserError
from moe.files import json_bytes, replace_file


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("verify", help="check every file's SHA-256 and every tensor's shape")
    parser.add_argument("directory", type=Path, help="a model directory")
    parser.add_argument("--write", action="store_true", help="write the manifest of a directory that has none")
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    directory = arguments.directory
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {found}; give a model directory")
    if arguments.write and not (directory / MANIFEST).exists():
        check_structure(directory)
        with progress_bar(directory_bytes(directory), "hash") as progress:
            manifest = build_manifest(directory, progress)
        replace_file(directory / MANIFEST, json_bytes(manifest))
        print(f"wrote {directory / MANIFEST} with {len(manifest['files'])} files")
        return 0
    with progress_bar(directory_bytes(directory), "verify") as progress:
        total = verify_directory(directory, progress)
    print(
        f"{directory} is whole: {format_bytes(total)}, every file as the manifest says, every tensor as the config says"
    )
    return 0
