"""``quantize``: feed-forwards in int4, with the perplexity before and after."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch

from checkpoints.commands.common import (
    add_output_arguments,
    check_output,
    directory_bytes,
    print_disk,
    progress_bar,
    whole,
)
from checkpoints.formats import open_checkpoint
from checkpoints.formats.delta import is_delta
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.quantized import is_quantized
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.model_io import LoadedModel, load_model
from checkpoints.storage.files import format_bytes
from checkpoints.storage.writer import SMALL_FILES_BYTES
from checkpoints.transforms.quantize import (
    InputMoments,
    gptq_rounder,
    is_quantizable,
    perplexity,
    quantization_settings,
    quantized_tensors,
    round_to_nearest,
    sample_sequences,
)
from checkpoints.transforms.rewrite import write_rewritten
from moe.errors import UserError

METHODS = ("nearest", "gptq")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("quantize", help="feed-forwards to int4 in groups of 128")
    parser.add_argument("source", type=Path, help="a dense model or one with full experts")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="nearest",
        help="nearest: streamed, bounded memory; gptq: calibrated on prompts, loads the model",
    )
    parser.add_argument(
        "--calibration", type=whole(1), default=24, metavar="N", help="gptq: prompts with solutions per language"
    )
    parser.add_argument(
        "--evaluation", type=whole(1), default=24, metavar="N", help="perplexity: other prompts per language"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="pairs in DIR/train and DIR/validation (LANGUAGE.jsonl[.gz]); left out: generated tasks",
    )
    parser.add_argument("--no-perplexity", action="store_true", help="do not load both models to measure them")
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    path = resolve_model_path(arguments.source)
    if is_delta(path):
        merge = f"python -m checkpoints merge {shlex.quote(str(path))} FULL"
        raise UserError(f"{path} has delta experts; type first: {merge}")
    source = open_checkpoint(path)
    if is_quantized(source.settings):
        raise UserError(f"{path} is in int4 already; give the model that it was made from")
    check_output(arguments, source, strict=arguments.method == "gptq")
    feed_forward = [(n, s) for n, s in expected_tensors(source.config) if ".feed_forward." in n and ".gate." not in n]
    rounded = sum(is_quantizable(name, shape) for name, shape in feed_forward)
    planned = list(quantized_tensors(source))
    written = sum(tensor.nbytes for tensor in planned)
    print(f"{rounded} of {len(feed_forward)} feed-forward matrices to int4 in groups of 128 ({arguments.method})")
    if rounded < len(feed_forward):
        print("the others have an input width that is no multiple of 128 and stay as they are")
    if arguments.dry_run:
        print_disk(arguments.out, written + SMALL_FILES_BYTES)
        return 0
    loaded = None
    if arguments.method == "gptq" or not arguments.no_perplexity:
        loaded = load_model(path)
        if loaded.tokenizer is None:
            raise UserError(f"{path} has no tokenizer, so no prompt can be read; give --method nearest --no-perplexity")
    rounder, prompts, held_out = round_to_nearest, [], []
    if not arguments.no_perplexity:
        held_out = sequences(loaded, "validation", arguments.evaluation, arguments.data)
    if arguments.method == "gptq":
        prompts = sequences(loaded, "train", arguments.calibration, arguments.data)
        print(f"calibrated on {len(prompts)} prompts with solutions, {sum(map(len, prompts))} tokens")
        rounder = gptq_rounder(InputMoments(loaded.model, prompts))
    with progress_bar(written, "quantize") as progress:
        write_rewritten(
            source,
            arguments.out,
            source.config,
            quantized_tensors(source, rounder),
            action=f"Feed-forward matrices were rounded to int4 in groups of 128 ({arguments.method})",
            job=["quantize", arguments.method, prompts],
            force=arguments.force,
            max_shard_bytes=arguments.max_shard,
            extra_config={"quantization_config": quantization_settings(arguments.method)},
            progress=progress,
        )
    size = directory_bytes(arguments.out)
    print(f"wrote {arguments.out} ({format_bytes(size)}; before: {format_bytes(source_bytes(source.weight_files))})")
    if not arguments.no_perplexity:
        print_perplexity(loaded, arguments.out, held_out)
    return 0


def source_bytes(files: tuple[Path, ...]) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in files)


def sequences(loaded: LoadedModel, split: str, per_language: int, data: Path | None) -> list[list[int]]:
    """Prompts with solutions, in the model's own template."""
    return sample_sequences(loaded.tokenizer, loaded.template, loaded.config, split, per_language, data=data)


def print_perplexity(before: LoadedModel, out: Path, held_out: list[list[int]]) -> None:
    """Prints the perplexity per token on prompts that calibration has not seen, before and after."""
    first = perplexity(before.model, held_out)
    before.model.to(torch.device("meta"))  # its memory is needed for the next one
    second = perplexity(load_model(out).model, held_out)
    tokens = sum(map(len, held_out))
    print(
        f"perplexity on {len(held_out)} held-out prompts with solutions ({tokens} tokens): {first:.4f} -> {second:.4f}"
    )
