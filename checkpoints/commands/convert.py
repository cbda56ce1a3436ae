"""``convert``: any supported format -> a Hugging Face directory, dense (Mistral) or with full experts (Mixtral)."""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints.commands.common import (
    add_dtype_argument,
    add_output_arguments,
    check_output,
    chosen_dtype,
    open_full,
    write_output,
)
from checkpoints.formats.dense_layers import huggingface_tensors
from checkpoints.formats.names import expected_tensors
from checkpoints.storage.writer import in_dtype, renamed
from checkpoints.transforms.rewrite import Rewrite


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("convert", help="GGUF, Mistral's own files or Hugging Face -> Hugging Face")
    parser.add_argument("source", type=Path, help="a model in any supported format")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--template", help="prompt template to store; default: the source's own")
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_full(arguments.source, merged=arguments.out)
    check_output(arguments, source)
    dtype = chosen_dtype(arguments.dtype)
    flat = (renamed(in_dtype(source.tensors[name], dtype), name) for name, _ in expected_tensors(source.config))
    rewrite = Rewrite(
        source,
        source.config,
        list(huggingface_tensors(source.config, flat)),
        action=f"Converted from the {source.format} format",
        job=["convert"],
        same_function=True,
        dtype=dtype,
        template=arguments.template,
        base_id=arguments.base_id,
    )
    write_output(arguments, rewrite)
    return 0
