"""``adapters``: delta experts become PEFT LoRA adapters of their base, one per language."""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints.commands.common import (
    add_dtype_argument,
    add_output_arguments,
    check_output,
    chosen_dtype,
    find_model,
    only_planned,
)
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.progress import byte_progress
from checkpoints.storage.files import format_bytes
from checkpoints.transforms.adapters import adapter_folders, adapter_tensors, write_adapters
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.rewrite import OutputOptions
from moe.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("adapters", help="delta experts -> PEFT LoRA adapters, a folder per language")
    parser.add_argument("source", type=Path, help="a delta directory, or the run that trained it")
    parser.add_argument("out", type=Path, help="the directory to write")
    add_dtype_argument(parser)
    add_output_arguments(parser, sharded=False)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_any(find_model(arguments.source))
    if not isinstance(source, DeltaCheckpoint):
        found = "has full experts, which no low-rank adapter holds" if source.config.is_moe else "is a dense model"
        hint = "; python -m checkpoints extract takes one out" if source.config.is_moe else ""
        raise UserError(f"{arguments.source} {found}; give a delta directory{hint}")
    check_output(arguments, source, strict=True)
    dtype = chosen_dtype(arguments.dtype)
    folders = adapter_folders(source.config)
    size = sum(tensor.nbytes for _, expert in folders for tensor in adapter_tensors(source, expert, dtype))
    if only_planned(arguments, size):
        return 0
    with byte_progress(size, arguments.command) as progress:
        options = OutputOptions(arguments.force, progress=progress)
        write_adapters(source, arguments.out, dtype, arguments.base_id, options)
    print(f"wrote {', '.join(str(arguments.out / name) for name, _ in folders)} ({format_bytes(size)} of tensors)")
    return 0
