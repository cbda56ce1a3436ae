"""``extract``: one language's expert becomes a dense model."""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints.commands.common import (
    add_dtype_argument,
    add_output_arguments,
    check_output,
    chosen_dtype,
    find_model,
    write_output,
)
from checkpoints.model_card import language_name
from checkpoints.transforms.merge import collapsed_tensors, expert_shares, open_any
from checkpoints.transforms.rewrite import Rewrite, dense_part


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("extract", help="one language's expert -> a dense model (Mistral or Llama)")
    parser.add_argument("source", type=Path, help="a mixture, or the run that trained it")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--language", required=True, help="whose expert; its number where the experts have no languages"
    )
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_any(find_model(arguments.source))
    language = arguments.language
    shares = expert_shares(source.config, {language: 1.0})
    check_output(arguments, source)
    dtype = chosen_dtype(arguments.dtype)
    llama = dense_part(source).settings.get("model_type") == "llama"
    rewrite = Rewrite(
        source,
        source.config.dense(),
        list(collapsed_tensors(source, shares, dtype)),
        action=f"The expert for {language_name(language)} was taken out of a mixture of experts",
        job=["extract", language],
        recipe={"expert": language},
        dtype=dtype,
        base_id=arguments.base_id,
        extra_config={"model_type": "llama", "architectures": ["LlamaForCausalLM"]} if llama else None,
    )
    write_output(arguments, rewrite)
    return 0
