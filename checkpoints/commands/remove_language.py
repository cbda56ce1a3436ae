"""``remove-language``: a mixture without the experts of some languages."""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints.commands.common import add_output_arguments, check_output, find_model, only_planned, write_output
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.formats.dense_layers import huggingface_tensors
from checkpoints.model_card import language_name
from checkpoints.progress import byte_progress
from checkpoints.storage.files import format_bytes
from checkpoints.transforms.experts import without_experts
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.rewrite import OutputOptions, Rewrite
from checkpoints.transforms.upcycle import write_delta


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("remove-language", help="a mixture without the experts of some languages")
    parser.add_argument("source", type=Path, help="a mixture, or the run that trained it")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--language", nargs="+", required=True, metavar="LANGUAGE", help="whose experts to leave out")
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_any(find_model(arguments.source))
    config, tensors = without_experts(source, arguments.language)
    check_output(arguments, source, strict=isinstance(source, DeltaCheckpoint))
    names = ", ".join(map(language_name, arguments.language))
    rewrite = Rewrite(
        source,
        config,
        tensors if config.is_delta else list(huggingface_tensors(config, tensors)),
        action=f"Taken out of a mixture of experts: {names}; the other experts did not change",
        job=["remove-language", *arguments.language],
        base_id=arguments.base_id,
    )
    if not isinstance(source, DeltaCheckpoint):
        write_output(arguments, rewrite)
        return 0
    if only_planned(arguments, rewrite.nbytes):
        return 0
    with byte_progress(rewrite.nbytes, arguments.command) as progress:
        options = OutputOptions(arguments.force, progress=progress)
        write_delta(rewrite, source.base, arguments.out, with_base=False, options=options)
    print(f"wrote {arguments.out} ({format_bytes(rewrite.nbytes)} of tensors)")
    return 0
