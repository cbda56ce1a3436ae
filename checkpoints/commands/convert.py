"""``convert``: any supported format -> a Hugging Face directory, dense (Mistral) or with full experts (Mixtral)."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from checkpoints.commands.common import (
    add_dtype_argument,
    add_output_arguments,
    check_output,
    chosen_dtype,
    print_disk,
    progress_bar,
)
from checkpoints.formats import open_checkpoint
from checkpoints.formats.delta import is_delta
from checkpoints.formats.dense_layers import huggingface_tensors
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.storage.files import format_bytes
from checkpoints.storage.writer import SMALL_FILES_BYTES, in_dtype, renamed
from checkpoints.transforms.rewrite import write_rewritten
from moe.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("convert", help="GGUF, Mistral's own files or Hugging Face -> Hugging Face")
    parser.add_argument("source", type=Path, help="a model in any supported format")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--template", help="prompt template to store; left out: the source's own")
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    path = resolve_model_path(arguments.source)
    if is_delta(path):
        merge = shlex.join(["python", "-m", "checkpoints", "merge", str(path), str(arguments.out)])
        raise UserError(f"{path} has delta experts; type: {merge}")
    source = open_checkpoint(path)
    check_output(arguments, source)
    dtype = chosen_dtype(arguments.dtype)
    flat = (renamed(in_dtype(source.tensors[name], dtype), name) for name, _ in expected_tensors(source.config))
    tensors = list(huggingface_tensors(source.config, flat))
    written = sum(tensor.nbytes for tensor in tensors)
    if arguments.dry_run:
        print_disk(arguments.out, written + SMALL_FILES_BYTES)
        return 0
    with progress_bar(written, "convert") as progress:
        write_rewritten(
            source,
            arguments.out,
            source.config,
            tensors,
            action=f"Converted from the {source.format} format",
            job=["convert"],
            same_function=True,
            dtype=dtype,
            template=arguments.template,
            force=arguments.force,
            max_shard_bytes=arguments.max_shard,
            progress=progress,
        )
    print(f"wrote {arguments.out} ({format_bytes(written)} of tensors)")
    return 0
