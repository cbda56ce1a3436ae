"""``compose``: the experts of several mixtures of one base in one mixture."""

from __future__ import annotations

import argparse
from pathlib import Path

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
)
from checkpoints.formats.config_json import ROUTER_KEYS
from checkpoints.model_card import training_of_parts
from checkpoints.progress import byte_progress
from checkpoints.storage.files import format_bytes
from checkpoints.transforms.adapters import mixture_of_adapters
from checkpoints.transforms.experts import experts_as_adapters
from checkpoints.transforms.fitted_routers import describe_accuracies, fitted_gates
from checkpoints.transforms.initialize import Initialization
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.rewrite import OutputOptions, own_template
from checkpoints.transforms.upcycle import upcycle_directory, upcycled_tensors
from moe.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("compose", help="experts of several delta mixtures of one base -> one mixture")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="delta directories, or runs")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--router-prompts", type=integer_at_least(1), metavar="N", default=250,
        help="prompts with solutions per language that the router is fitted on",
    )  # fmt: skip
    add_data_argument(parser, "DIR/train")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs that the router is fitted on")
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    if len(arguments.sources) < 2:
        raise UserError(f"compose got {arguments.sources[0]} alone; give at least two mixtures, and OUT last")
    sources = [open_any(find_model(path)) for path in arguments.sources]
    base, adapters = experts_as_adapters(sources)
    first = sources[0].config
    router = {name: getattr(first, name) for name in ROUTER_KEYS}
    config, deltas = mixture_of_adapters(base, adapters, first.num_experts_per_tok, **router)
    for source in sources:
        check_output(arguments, source, strict=True)
    dtype, seed = chosen_dtype(arguments.dtype), arguments.seed
    size = sum(tensor.nbytes for tensor in upcycled_tensors(base, config, Initialization(deltas=deltas), dtype))
    if only_planned(arguments, size):
        return 0
    template = own_template(sources[0])[0]
    pairs = labeled_pairs(arguments, "train", config.expert_languages, arguments.router_prompts, seed)
    routers, accuracies = fitted_gates(base, pairs, config, seed, deltas, template)
    print(describe_accuracies(accuracies, base.path))
    with byte_progress(size, arguments.command) as progress:
        upcycle_directory(
            base, arguments.out, config, Initialization(seed, deltas=deltas, routers=routers), dtype=dtype,
            template=template, trained=training_of_parts({name: part.path for name, part in adapters.items()}),
            base_id=arguments.base_id, options=OutputOptions(arguments.force, arguments.max_shard, progress),
        )  # fmt: skip
    print(f"wrote {arguments.out}: experts for {', '.join(config.expert_languages)} ({format_bytes(size)} of tensors)")
    return 0
