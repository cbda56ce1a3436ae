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
    write_output,
)
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.formats.extras import checkpoint_tokenizer
from checkpoints.formats.parameters import main_dtype
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.proof import PROOF_FILE, logit_bound
from checkpoints.storage.writer import add_to_directory
from checkpoints.streamed_proof import prove_directories
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.rewrite import merge_rewrite
from moe.errors import UserError
from moe.files import json_bytes


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("merge", help="delta experts -> full experts (Mixtral)")
    parser.add_argument("source", type=Path, help="a delta directory")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--no-proof", action="store_true", help="skip comparing both models")
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_any(resolve_model_path(arguments.source))
    if not isinstance(source, DeltaCheckpoint):
        raise UserError(
            f"{arguments.source} has no delta experts; merge takes what upcycle --expert-form delta or train.py wrote"
        )
    check_output(arguments, source)
    rewrite = merge_rewrite(source, chosen_dtype(arguments.dtype), arguments.base_id)
    if write_output(arguments, rewrite) and not arguments.no_proof:
        tokenizer = checkpoint_tokenizer(source.base)
        proof, how = prove_directories(source, open_any(arguments.out), tokenizer, torch.float32)
        stored = main_dtype({tensor.name: tensor for tensor in rewrite.tensors})
        proof = replace(proof, bound=merge_bound(stored, proof.max_abs_logit))
        print(f"against the delta model: {proof.describe()}\n({how})")
        if stored.itemsize < 4:
            print("the merged weights were rounded to 16 bit, so a difference is expected")
        add_to_directory(arguments.out, PROOF_FILE, json_bytes(proof.to_json()))
    return 0


def merge_bound(stored: torch.dtype, max_abs_logit: float) -> float:
    """The largest |Δlogit| that rounding explains after deltas were added to the weights.

    20 times the bound of an upcycled model, which multiplies the same matrices; SmolLM2's 30 layers need 7 times.
    """
    if stored.itemsize < 4:
        return logit_bound(stored, max_abs_logit)
    return 20 * logit_bound(torch.float32, max_abs_logit)
