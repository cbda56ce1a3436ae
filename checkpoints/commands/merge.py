"""``merge``: delta experts become full ones, a Mixtral directory that any reader takes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from checkpoints.commands.common import (
    add_data_argument,
    add_dtype_argument,
    add_output_arguments,
    check_output,
    chosen_dtype,
    find_model,
    integer_at_least,
    labeled_pairs,
    only_planned,
    warn_ignored,
    write_output,
)
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.formats.extras import checkpoint_tokenizer
from checkpoints.formats.parameters import main_dtype
from checkpoints.progress import CountDisplay
from checkpoints.proof import PROOF_FILE, Proof, logit_bound
from checkpoints.storage.safetensors_file import tensors_digest
from checkpoints.storage.writer import add_to_directory
from checkpoints.streamed_proof import prove_directories, prove_streamed
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.refit import refit_routers, token_config, with_gates
from checkpoints.transforms.rewrite import Rewrite, Source, dense_part, merge_rewrite
from moe.errors import UserError
from moe.files import json_bytes

REFIT_PAIRS, HELD_OUT_PAIRS = 3000, 200  # per language


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("merge", help="delta experts -> full experts (Mixtral)")
    parser.add_argument("source", type=Path, help="a delta directory, or the run that trained it")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--no-proof", action="store_true", help="skip comparing both models")
    parser.add_argument(
        "--refit-router",
        action="store_true",
        help="for routers that see context: fit token gates, print the held-out loss with both; loads the model",
    )
    parser.add_argument(
        "--keep-context",
        action="store_true",
        help="for routers that see context: keep them; read by this project, and transformers with trust_remote_code",
    )
    add_data_argument(parser, "DIR/train and DIR/test", "refit: ")
    parser.add_argument(
        "--steps",
        type=integer_at_least(0),
        default=0,
        metavar="N",
        help="refit: train the gates, and nothing else, for N steps",
    )
    parser.add_argument(
        "--num-experts-per-tok",
        type=integer_at_least(1),
        metavar="K",
        help="refit: experts that each token visits (default: the source's); a token gate errs, and 2 make up for it",
    )
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_any(find_model(arguments.source))
    sees_context = source.config.is_moe and not source.config.is_mixtral
    if not isinstance(source, DeltaCheckpoint) and not (sees_context and arguments.refit_router):
        raise UserError(
            f"{arguments.source} has no delta experts; merge takes what upcycle --expert-form delta or train.py wrote"
        )
    check_output(arguments, source, strict=arguments.refit_router)
    dtype, base_id = chosen_dtype(arguments.dtype), arguments.base_id
    if arguments.refit_router and arguments.keep_context:
        raise UserError("--refit-router and --keep-context exclude each other; give one of them")
    if arguments.refit_router and sees_context:
        return refit(arguments, source, dtype)
    if arguments.refit_router:
        raise UserError(f"{arguments.source} routes each token by itself already; leave --refit-router out")
    given = {
        "--data": arguments.data,
        "--steps": arguments.steps,
        "--num-experts-per-tok": arguments.num_experts_per_tok,
    }
    warn_ignored((flag for flag, value in given.items() if value), "only --refit-router uses it")
    if not sees_context:
        warn_ignored(["--keep-context"] * arguments.keep_context, "its routers see no context")
    rewrite = merge_rewrite(source, dtype, base_id, arguments.keep_context)
    if write_output(arguments, rewrite) and not arguments.no_proof:
        tokenizer = checkpoint_tokenizer(dense_part(source))
        proof, how = prove_directories(source, open_any(arguments.out), tokenizer, torch.float32)
        store_proof(arguments.out, rewrite, proof, how)
    return 0


def refit(arguments: argparse.Namespace, source: Source, dtype: torch.dtype | None) -> int:
    """Merges a model whose routers see context, with token gates in their place."""
    languages, k = source.config.expert_languages, arguments.num_experts_per_tok
    if not languages:
        raise UserError(f"the experts of {arguments.source} have no languages, by which gates could be fitted")
    if only_planned(arguments, merge_rewrite(with_gates(source, token_config(source.config, k)), dtype).nbytes):
        return 0
    train = labeled_pairs(arguments, "train", languages, REFIT_PAIRS)
    held_out = labeled_pairs(arguments, "test", languages, HELD_OUT_PAIRS)
    with CountDisplay(Console(stderr=True), "gates") as show:
        result = refit_routers(source, train, held_out, k, arguments.steps, on_progress=show)
    rows = result.losses()
    print("held-out loss     before  token gates")
    for name, (before, after) in rows.items():
        print(f"{name:<14} {before:9.4f} {after:12.4f}")
    fitted = "fitted by logistic regression" + (f", trained for {arguments.steps} steps" if arguments.steps else "")
    recipe = {
        f"held-out loss, {name}": f"{before:.4f} before, {after:.4f} here" for name, (before, after) in rows.items()
    }
    rewrite = replace(
        merge_rewrite(result.source, dtype, arguments.base_id),
        action="Merged, with token gates in place of routers that saw the document so far, at the losses below",
        job=["merge", tensors_digest(result.gates.values())],
        recipe={"token gates": fitted, **recipe},
        same_function=False,
    )
    if write_output(arguments, rewrite) and not arguments.no_proof:
        tokenizer = checkpoint_tokenizer(dense_part(source))
        proof = prove_streamed(result.source, open_any(arguments.out), tokenizer, torch.float32)
        store_proof(arguments.out, rewrite, proof, "layer by layer, with the new gates in both")
    return 0


def store_proof(out: Path, rewrite: Rewrite, proof: Proof, how: str) -> None:
    """Prints the comparison with the source and stores it in ``proof.json``."""
    stored = main_dtype({tensor.name: tensor for tensor in rewrite.tensors})
    proof = replace(proof, bound=merge_bound(stored, proof.max_abs_logit))
    print(f"against the delta model: {proof.describe()}\n({how})")
    if stored.itemsize < 4:
        print("the merged weights were rounded to 16 bit, so a difference is expected")
    add_to_directory(out, PROOF_FILE, json_bytes(proof.to_json()))


def merge_bound(stored: torch.dtype, max_abs_logit: float) -> float:
    """The largest |Δlogit| that rounding explains after deltas were added to the weights.

    20 times the bound of an upcycled model, which multiplies the same matrices; SmolLM2's 30 layers need 7 times.
    """
    if stored.itemsize < 4:
        return logit_bound(stored, max_abs_logit)
    return 20 * logit_bound(torch.float32, max_abs_logit)
