"""``collapse``: a mixture becomes one dense model, the weighted mean of its experts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from checkpoints.commands.common import (
    add_dtype_argument,
    add_output_arguments,
    check_output,
    chosen_dtype,
    find_model,
    write_output,
)
from checkpoints.transforms.merge import collapsed_tensors, expert_names, expert_shares, open_any
from checkpoints.transforms.rewrite import Rewrite
from moe.errors import UserError


def language_weight(text: str) -> tuple[str, float]:
    """Parses ``python=2``; for argparse."""
    name, equals, value = text.partition("=")
    try:
        return name, float(value if equals else "1")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a weight; write for example python=2") from None


def by_language(weights: Sequence[tuple[str, float]] | None) -> dict[str, float] | None:
    """Weights by language; raises :class:`UserError` for a language with two."""
    names = [name for name, _ in weights or ()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--weights names {twice} twice; give each language one weight")
    return dict(weights) if weights else None


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("collapse", help="mixture -> one dense model, the weighted mean of its experts")
    parser.add_argument("source", type=Path, help="a mixture: full or delta experts")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--weights", nargs="+", type=language_weight, metavar="LANGUAGE=WEIGHT", help="default: all experts equal"
    )
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    source = open_any(find_model(arguments.source))
    shares = expert_shares(source.config, by_language(arguments.weights))
    check_output(arguments, source)
    dtype = chosen_dtype(arguments.dtype)
    names = expert_names(source.config)
    print("experts: " + ", ".join(f"{names[expert]} {share:.3f}" for expert, share in shares.items()))
    rewrite = Rewrite(
        source,
        source.config.dense(),
        list(collapsed_tensors(source, shares, dtype)),
        action="The experts of a mixture were averaged into one dense model",
        job=["collapse", sorted(shares.items())],
        recipe={f"weight of {names[expert]}": f"{share:.3f}" for expert, share in shares.items()},
        dtype=dtype,
        base_id=arguments.base_id,
    )
    write_output(arguments, rewrite)
    return 0
