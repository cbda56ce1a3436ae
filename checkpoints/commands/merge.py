"""``merge``: delta experts become full ones, a Mixtral directory that any reader takes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints.commands.common import (
    add_dtype_argument,
    add_output_arguments,
    check_output,
    chosen_dtype,
    print_disk,
    progress_bar,
)
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.formats.extras import checkpoint_tokenizer
from checkpoints.formats.parameters import main_dtype
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.proof import PROOF_FILE, logit_bound
from checkpoints.storage.files import format_bytes
from checkpoints.storage.writer import SMALL_FILES_BYTES, add_to_directory
from checkpoints.streamed_proof import prove_directories
from checkpoints.transforms.merge import full_config, merged_tensors, open_any
from checkpoints.transforms.rewrite import MERGED, write_rewritten
from moe.errors import UserError
from moe.files import json_bytes


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("merge", help="delta experts -> full experts (Mixtral)")
    parser.add_argument("source", type=Path, help="a delta directory")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--no-proof", action="store_true", help="do not load both models to compare them")
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_any(resolve_model_path(arguments.source))
    if not isinstance(source, DeltaCheckpoint):
        raise UserError(
            f"{arguments.source} has no delta experts; merge takes what upcycle --form delta or train.py wrote"
        )
    check_output(arguments, source)
    dtype = chosen_dtype(arguments.dtype)
    tensors = list(merged_tensors(source, dtype))
    written = sum(tensor.nbytes for tensor in tensors)
    if arguments.dry_run:
        print_disk(arguments.out, written + SMALL_FILES_BYTES)
        return 0
    with progress_bar(written, "merge") as progress:
        write_rewritten(
            source,
            arguments.out,
            full_config(source.config),
            tensors,
            action=MERGED,
            job=["merge"],
            same_function=True,
            dtype=dtype,
            force=arguments.force,
            max_shard_bytes=arguments.max_shard,
            progress=progress,
        )
    print(f"wrote {arguments.out} ({format_bytes(written)} of tensors)")
    if not arguments.no_proof:
        tokenizer = checkpoint_tokenizer(source.base)
        proof, how = prove_directories(source, open_any(arguments.out), tokenizer, torch.float32)
        stored = main_dtype({tensor.name: tensor for tensor in tensors})
        proof = replace(proof, bound=merge_bound(stored, proof.max_abs_logit))
        print(f"against the delta model: {proof.describe()}\n({how})")
        if stored.itemsize < 4:
            print("the merged weights were rounded to 16 bit, so a difference is expected")
        add_to_directory(arguments.out, PROOF_FILE, json_bytes(proof.to_json()))
    return 0


def merge_bound(stored: torch.dtype, max_abs_logit: float) -> float:
    """The largest |Δlogit| that rounding explains where deltas were added to the weights and the sums rounded.

    20 times an upcycled model's, which multiplies the same matrices; SmolLM2's 30 layers need 7 times as much.
    """
    if stored.itemsize < 4:
        return logit_bound(stored, max_abs_logit)
    return 20 * logit_bound(torch.float32, max_abs_logit)
