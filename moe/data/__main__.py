"""Command line for data: ``python -m moe.data COMMAND --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoints.cli import CommandParser, run
from checkpoints.commands.common import integer_at_least
from checkpoints.formats import open_checkpoint
from checkpoints.formats.extras import checkpoint_tokenizer, find_template
from checkpoints.formats.smollm2 import resolve_model_path
from moe.data.layouts import Reading, parse_fields
from moe.data.overlap import Benchmarks
from moe.data.pairs import Pair, iterate_pairs
from moe.data.prompt import choose_template, encode_example, instruction_for
from moe.data.splits import list_splits
from moe.data.validate import Checks, describe_lengths
from moe.errors import UserError
from moe.languages import LANGUAGES
from moe.tokenizer import load_tokenizer
from moe.training.config import RunConfig


def validate(arguments: argparse.Namespace) -> int:
    """Prints what a directory holds and what is wrong with it; 1 where ``train.py`` would refuse it."""
    splits = list_splits(Path(arguments.directory))
    if "train" not in splits:
        raise UserError(f"{arguments.directory}: no split 'train'; splits there: {', '.join(splits) or 'none'}")
    fields, problems = parse_fields(arguments.fields), 0
    benchmarks = Benchmarks([Path(name) for name in arguments.benchmarks]) if arguments.benchmarks else None
    measure = token_counter(arguments.tokenizer) if arguments.tokenizer else None
    checks: dict[str, Checks] = {}
    unknown: dict[str, int] = {}
    for split in ("train", *sorted(splits.keys() - {"train"})):
        reading = Reading()
        for language, path in splits[split]:
            try:
                for _, pair in iterate_pairs(path, fields, reading, language):
                    if pair.language not in LANGUAGES:
                        unknown[pair.language] = unknown.get(pair.language, 0) + 1
                        continue
                    if pair.language not in checks:
                        checks[pair.language] = Checks(pair.language, not arguments.no_near, benchmarks, measure)
                    if split == "train":
                        checks[pair.language].add_train(pair)
                    else:
                        checks[pair.language].add_held_out(split, pair)
            except UserError as error:
                problems += 1
                print(f"error: {error}")
        print(f"{split}: {reading.describe()}")
    for language, check in checks.items():
        held_out = "".join(f", {count:,} {split}" for split, count in check.held_out.items())
        print(f"{language}: {check.count:,} training pairs{held_out}")
        if check.lengths:
            print(describe_lengths(language, check.lengths, arguments.max_tokens))
    if measure is not None:
        kept = sum(length for check in checks.values() for length in check.lengths if length <= arguments.max_tokens)
        batches = kept / arguments.tokens_per_batch
        print(f"one pass over the data is about {batches:,.0f} steps of {arguments.tokens_per_batch:,} tokens")
    if unknown:
        names = ", ".join(
            f"{count:,} {name!r}" for name, count in sorted(unknown.items(), key=lambda item: -item[1])[:8]
        )
        print(f"found: pairs of unknown languages: {names}")
    for check in checks.values():
        for finding in check.findings(tuple(checks)):
            problems += finding.leak
            print(f"{'error' if finding.leak else 'found'}: {finding.text}")
    if not problems:
        print("no errors")
    return 1 if problems else 0


def token_counter(path: str) -> Callable[[Pair], int]:
    """Counts the tokens of a pair, prompt included, for a model or a file of its tokenizer."""
    place = Path(path)
    if place.is_file() and place.suffix not in (".gguf", ".whl"):
        tokenizer = load_tokenizer(place)
        template = choose_template(tokenizer)
    else:
        checkpoint = open_checkpoint(resolve_model_path(place))
        found = checkpoint_tokenizer(checkpoint)
        if found is None:
            raise UserError(f"{path}: has no tokenizer; give a directory or file with one")
        tokenizer, template = found, find_template(place, [(checkpoint.directory, checkpoint.settings)], found)

    def count(pair: Pair) -> int:
        instruction = instruction_for(pair.text, pair.language)
        return len(encode_example(tokenizer, template, instruction, pair.code)[0])

    return count


def make_parser() -> CommandParser:
    """The parser with all subcommands."""
    parser = CommandParser(prog="python -m moe.data", description="Check, clean and look at text-to-code pairs.")
    check = parser.commands.add_parser("validate", help="what a data directory holds, and what is wrong with it")
    check.add_argument("directory", metavar="DIR", help="a data directory, as train.py --data takes it")
    add_reading(check)
    check.add_argument(
        "--tokenizer", "--model", metavar="PATH", help="a model or tokenizer: lengths in tokens, and steps"
    )
    check.add_argument(
        "--benchmarks", nargs="+", default=[], metavar="FILE", help="look for 13 words in a row of these"
    )
    check.add_argument("--no-near", action="store_true", help="exact copies alone: needs no datasketch, and is faster")
    for name, help in (("max_tokens", "longest example of the run"), ("tokens_per_batch", "tokens of a batch")):
        flag = "--" + name.replace("_", "-")
        check.add_argument(flag, type=integer_at_least(1), default=getattr(RunConfig(), name), metavar="N", help=help)
    check.set_defaults(main=validate)
    return parser


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Flags of everything that reads pairs."""
    parser.add_argument(
        "--fields", nargs="+", default=[], metavar="PART=FIELD", help="what is what: text=a+b code=c language=d id=e"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    return run(make_parser(), lambda arguments: arguments.main(arguments), argv)


if __name__ == "__main__":
    sys.exit(main())
