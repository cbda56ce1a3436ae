"""``quantize``: int4 feed-forwards or int8 matrices, with the perplexity before and after."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from checkpoints.commands.common import (
    add_data_argument,
    add_output_arguments,
    check_output,
    find_model,
    integer_at_least,
    labeled_pairs,
    only_planned,
    open_full,
)
from checkpoints.formats import open_checkpoint
from checkpoints.formats.delta import base_reference, is_delta, open_delta
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.quantized import is_quantized
from checkpoints.model_io import LoadedModel, load_model, write_delta_files
from checkpoints.progress import byte_progress
from checkpoints.storage.files import directory_bytes, format_bytes, new_directory
from checkpoints.transforms.gptq import InputMoments, gptq_rounder, perplexity, sample_sequences
from checkpoints.transforms.quantize import (
    Rounder,
    is_quantizable,
    quantized_rewrite,
    quantized_tensors,
    round_to_nearest,
)
from checkpoints.transforms.rewrite import OutputOptions, Rewrite, write_rewritten
from kernels.int4 import group_of
from moe.errors import UserError
from moe.languages import DEFAULT_LANGUAGES

METHODS = ("nearest", "gptq")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("quantize", help="feed-forwards to int4 in groups of 128, or everything to int8")
    parser.add_argument("source", type=Path, help="a model; of one with delta experts the base is rounded")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="nearest",
        help="nearest: streamed, bounded memory; gptq: calibrated on prompts, loads the model",
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="8: feed-forwards, attention and output")
    parser.add_argument(
        "--rest",
        choices=("keep", "int8"),
        default="keep",
        help="attention and output beside int4 feed-forwards; int8 writes faster",
    )
    parser.add_argument(
        "--calibration",
        type=integer_at_least(1),
        default=24,
        metavar="N",
        help="gptq: prompts with solutions per language",
    )
    parser.add_argument(
        "--evaluation", type=integer_at_least(1), default=24, metavar="N", help="perplexity: other prompts per language"
    )
    add_data_argument(parser, "DIR/train and DIR/validation")
    parser.add_argument("--no-perplexity", action="store_true", help="skip measuring both models")
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    path = find_model(arguments.source)
    if is_delta(path):
        return quantize_base(arguments, path)
    source = open_full(path, merged=Path("FULL"))
    if is_quantized(source.settings):
        raise UserError(f"{source.path} is quantized already; give the model that it was made from")
    check_bits(arguments)
    if arguments.method == "gptq" and source.config.is_moe and not source.config.is_mixtral:
        raise UserError(
            f"{arguments.source} routes by document context, which gptq's calibration does not follow; give "
            "--method nearest"
        )
    check_output(arguments, source, strict=arguments.method == "gptq")
    how = (arguments.bits, arguments.rest)
    feed_forward = [(n, s) for n, s in expected_tensors(source.config) if ".feed_forward." in n and ".gate." not in n]
    rounded = sum(is_quantizable(name, shape) for name, shape in feed_forward)
    written = sum(tensor.nbytes for tensor in quantized_tensors(source, round_to_nearest, *how))
    if arguments.bits == 8:
        action = "Matrices were rounded to int8, one scale for each output"
        print("feed-forward, attention and output matrices to int8")
    else:
        sizes = sorted({group_of(shape[1]) for _, shape in feed_forward} - {0}, reverse=True)
        groups = f"groups of {' and '.join(map(str, sizes))}"
        also = " and attention and output to int8" if arguments.rest == "int8" else ""
        action = f"Feed-forward matrices were rounded to int4 in {groups} ({arguments.method}){also}"
        print(f"{rounded} of {len(feed_forward)} feed-forward matrices to int4 in {groups} ({arguments.method}){also}")
        if rounded < len(feed_forward):
            print("the others have an input width that is not a multiple of 32 and stay as they are")
    if only_planned(arguments, written):
        return 0
    rounder: Rounder = round_to_nearest
    prompts: list[list[int]] = []
    held_out: list[list[int]] = []
    loaded = load_model(source.path) if arguments.method == "gptq" or not arguments.no_perplexity else None
    if loaded is not None and not arguments.no_perplexity:
        held_out = sequences(loaded, "validation", arguments.evaluation, arguments)
    if loaded is not None and arguments.method == "gptq":
        prompts = sequences(loaded, "train", arguments.calibration, arguments)
        print(f"calibrated on {len(prompts)} prompts with solutions, {sum(map(len, prompts))} tokens")
        rounder = gptq_rounder(InputMoments(loaded.model, prompts))
    rewrite = quantized_rewrite(source, action, rounder, arguments.method, prompts, *how, arguments.base_id)
    with byte_progress(written, "quantize") as progress:
        write_rewritten(rewrite, arguments.out, OutputOptions(arguments.force, arguments.max_shard, progress))
    before = sum(path.stat().st_size for path in source.weight_files)
    print(f"wrote {arguments.out} ({format_bytes(directory_bytes(arguments.out))}; before: {format_bytes(before)})")
    if loaded is not None and held_out:
        print_perplexity(loaded, arguments.out, held_out)
    return 0


def check_bits(arguments: argparse.Namespace) -> None:
    """Raises :class:`UserError` for flags that int8 does not know."""
    if arguments.bits == 8 and (arguments.method == "gptq" or arguments.rest != "keep"):
        raise UserError("--bits 8 rounds every matrix to nearest; leave --method and --rest out")


def quantize_base(arguments: argparse.Namespace, path: Path) -> int:
    """Writes a delta directory whose quantized base lies in it; the deltas stay as they are."""
    delta, how = open_delta(path), (arguments.bits, arguments.rest)
    check_bits(arguments)
    if arguments.method == "gptq":
        raise UserError(f"{path} has delta experts, whose base is rounded to nearest; leave --method out")
    if is_quantized(delta.base.settings):
        raise UserError(f"the base of {path} is quantized already; give the model that it was made from")
    tensors = quantized_tensors(delta.base, round_to_nearest, *how)
    written = sum(tensor.nbytes for tensor in (*tensors, *delta.tensors.values()))
    if only_planned(arguments, written):
        return 0
    reads = [path, *delta.base.weight_files]
    with new_directory(arguments.out, arguments.force, written, reads=reads) as temporary:
        action = f"Matrices were rounded to int{arguments.bits} (nearest)"
        rewrite = quantized_rewrite(delta.base, action, bits=how[0], rest=how[1], base_id=arguments.base_id)
        write_rewritten(rewrite, temporary / "base", OutputOptions(max_shard_bytes=arguments.max_shard))
        reference = base_reference(open_checkpoint(temporary / "base")).to_json(temporary)
        reference["path"] = str((arguments.out / "base").absolute())
        own = list(delta.tensors.values())
        whole = Rewrite(delta, delta.config, own, f"{action} in its base", (), base_id=arguments.base_id)
        documents, files, ids = whole.small_parts()
        write_delta_files(temporary, own, delta.config, reference, documents, files, ids)
    print(f"wrote {arguments.out} ({format_bytes(directory_bytes(arguments.out))}) with its quantized base")
    return 0


def sequences(loaded: LoadedModel, split: str, per_language: int, arguments: argparse.Namespace) -> list[list[int]]:
    """Prompts with solutions of a split of the data, or of the generated tasks, in the model's languages.

    Raises:
        UserError: the directory lacks the split or a language, none of its pairs fits, or the model has no tokenizer.
    """
    languages = [name for name in loaded.config.expert_languages if name in DEFAULT_LANGUAGES] or DEFAULT_LANGUAGES
    # All of a folder's pairs: some may be too long.
    pairs = labeled_pairs(arguments, split, languages, per_language if arguments.data is None else 0)
    return sample_sequences(pairs, loaded, per_language)


def print_perplexity(before: LoadedModel, out: Path, held_out: list[list[int]]) -> None:
    """Prints the perplexity per token on prompts outside of the calibration set, before and after."""
    first = perplexity(before.model, held_out)
    before.model.to(torch.device("meta"))  # frees its memory for the next model
    second = perplexity(load_model(out).model, held_out)
    tokens = sum(map(len, held_out))
    print(
        f"perplexity on {len(held_out)} held-out prompts with solutions ({tokens} tokens): {first:.4f} -> {second:.4f}"
    )
