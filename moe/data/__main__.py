"""Command line for data: ``python -m moe.data COMMAND --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from checkpoints.cli import CommandParser, add_fields_argument, check_output_file, run
from checkpoints.commands.common import integer_at_least
from checkpoints.formats import open_checkpoint
from checkpoints.formats.extras import checkpoint_tokenizer, find_template
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.progress import CountDisplay
from moe.data.clean import CleanOptions, clean
from moe.data.layouts import Reading, parse_fields
from moe.data.mining import ANY, PERMISSIVE, STDLIB, SUFFIXES, MineOptions, mine, processes
from moe.data.overlap import Benchmarks
from moe.data.pairs import Pair, iterate_pairs
from moe.data.preview import as_html, as_text, collect
from moe.data.prompt import choose_template, encode_example, instruction_for
from moe.data.splits import find_split, list_splits
from moe.data.validate import Checks, describe_lengths
from moe.errors import UserError, did_you_mean
from moe.files import replace_file
from moe.languages import LANGUAGES
from moe.tokenizer import load_tokenizer
from moe.training.config import RunConfig


def validate(arguments: argparse.Namespace) -> int:
    """Prints what a directory holds and what is wrong with it; 2 for broken files, 1 where test pairs are in train."""
    splits = list_splits(Path(arguments.directory))
    find_split(Path(arguments.directory), "train")
    fields, broken, leaks = parse_fields(arguments.fields), 0, 0
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
                broken += 1
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
        line = f"one pass over the data is about {batches:,.0f} steps of {arguments.tokens_per_batch:,} tokens"
        if arguments.tokens_per_second:
            line += f", {kept / arguments.tokens_per_second / 3600:,.1f} hours"
        print(line if arguments.tokens_per_second else f"{line} (--tokens-per-second for hours)")
    if unknown:
        names = ", ".join(
            f"{count:,} {name!r}" for name, count in sorted(unknown.items(), key=lambda item: -item[1])[:8]
        )
        print(f"found: pairs of unknown languages: {names}")
    for check in checks.values():
        for finding in check.findings(tuple(checks)):
            leaks += finding.leak
            print(f"{'error' if finding.leak else 'found'}: {finding.text}")
    if not broken and not leaks:
        print("no errors")
    return 2 if broken else 1 if leaks else 0


def clean_command(arguments: argparse.Namespace) -> int:
    """Writes a cleaned copy of a directory and prints what was removed."""
    options = CleanOptions(
        near=not arguments.no_near,
        benchmarks=Benchmarks([Path(name) for name in arguments.benchmarks]) if arguments.benchmarks else None,
        mask=not arguments.no_mask,
        most=-1 if arguments.balance else arguments.most or 0,
        held_out=arguments.hold_out,
        seed=arguments.seed,
    )
    splits = list_splits(Path(arguments.directory))
    report = clean(splits, Path(arguments.output), parse_fields(arguments.fields), options)
    for line in report.lines():
        print(line)
    print(f"wrote {arguments.output}")
    return 0


def mine_command(arguments: argparse.Namespace) -> int:
    """Writes pairs from packages and prints what was dropped."""
    for language in arguments.languages:
        if language not in SUFFIXES:
            hint = did_you_mean(language, SUFFIXES)
            raise UserError(f"cannot mine {language!r}{hint}; languages: {', '.join(SUFFIXES)}")
    options = MineOptions(tuple(arguments.languages), tuple(arguments.allow_licenses))
    with processes(arguments.jobs) as pool, CountDisplay(Console(stderr=True), "files read") as show:
        report = mine(arguments.sources, Path(arguments.output), options, pool, show)
    for line in report.lines():
        print(line)
    print(f"wrote {arguments.output}")
    return 0


def preview(arguments: argparse.Namespace) -> int:
    """Shows random pairs and lengths of a split."""
    if arguments.html:
        check_output_file(arguments.html, arguments.force)
    fields, files = parse_fields(arguments.fields), find_split(Path(arguments.directory), arguments.split)
    pairs = (pair for language, path in files for _, pair in iterate_pairs(path, fields, Reading(), language))
    found = collect(pairs, arguments.count, arguments.seed)
    if arguments.html:
        page = as_html(found, f"{arguments.directory}, {arguments.split}")
        replace_file(Path(arguments.html), page.encode("utf-8"))
        print(f"wrote {arguments.html}")
    else:
        print(as_text(found))
    return 0


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
    add_fields_argument(check)
    check.add_argument(
        "--tokenizer", "--model", metavar="PATH", help="a model or tokenizer: lengths in tokens, and steps"
    )
    check.add_argument(
        "--benchmarks", nargs="+", default=[], metavar="FILE", help="look for 13 words in a row of these"
    )
    check.add_argument("--no-near", action="store_true", help="exact copies alone, which is faster")
    for name, help in (("max_tokens", "longest example of the run"), ("tokens_per_batch", "tokens of a batch")):
        flag = "--" + name.replace("_", "-")
        check.add_argument(flag, type=integer_at_least(1), default=getattr(RunConfig(), name), metavar="N", help=help)
    check.add_argument(
        "--tokens-per-second", type=integer_at_least(1), metavar="N", help="of training, as train.py prints it: hours"
    )
    check.set_defaults(main=validate)
    tidy = parser.commands.add_parser("clean", help="a copy without copies, leaks, benchmarks and secrets")
    tidy.add_argument("directory", metavar="DIR", help="a data directory, as train.py --data takes it")
    tidy.add_argument("output", metavar="OUT", help="a new directory: SPLIT/LANGUAGE.jsonl.gz")
    add_fields_argument(tidy)
    tidy.add_argument(
        "--benchmarks", nargs="+", default=[], metavar="FILE", help="remove what shares 13 words in a row"
    )
    tidy.add_argument("--no-near", action="store_true", help="remove exact copies alone")
    tidy.add_argument("--no-mask", action="store_true", help="leave keys, passwords and e-mail addresses as they are")
    size = tidy.add_mutually_exclusive_group()
    size.add_argument(
        "--balance", action="store_true", help="as many training pairs of each language as of the smallest"
    )
    size.add_argument("--most", type=integer_at_least(1), metavar="N", help="training pairs per language")
    tidy.add_argument(
        "--hold-out", type=share, default=0.0, metavar="X", help="share that becomes test, whole packages at a time"
    )
    tidy.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn")
    tidy.set_defaults(main=clean_command)
    dig = parser.commands.add_parser("mine", help="pairs from the documented functions of packages")
    dig.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"a source tree, an archive, an installed package or {STDLIB}"
    )
    dig.add_argument("--output", required=True, metavar="OUT", help="a new directory: train/LANGUAGE.jsonl.gz")
    dig.add_argument("--languages", nargs="+", default=list(SUFFIXES), metavar="NAME", help="which languages to take")
    dig.add_argument(
        "--allow-licenses",
        nargs="+",
        default=list(PERMISSIVE),
        metavar="ID",
        help=f"SPDX names of licenses whose code is taken; {ANY} for all, and for files without one",
    )
    dig.add_argument(
        "--jobs", type=integer_at_least(1), default=os.cpu_count() or 1, metavar="N", help="processes at a time"
    )
    dig.set_defaults(main=mine_command)
    look = parser.commands.add_parser("preview", help="random pairs per language, with histograms of lengths")
    look.add_argument("directory", metavar="DIR", help="a data directory, as train.py --data takes it")
    look.add_argument("--split", default="train", metavar="NAME", help="which split")
    add_fields_argument(look)
    look.add_argument("--count", type=integer_at_least(1), default=5, metavar="N", help="pairs per language")
    look.add_argument("--seed", type=int, default=0, metavar="N", help="other pairs for each")
    look.add_argument("--html", metavar="FILE", help="write a page in place of text")
    look.add_argument("--force", action="store_true", help="replace the page")
    look.set_defaults(main=preview)
    return parser


def share(text: str) -> float:
    """A number from 0 to 0.9; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 0.9:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a share from 0 to 0.9")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    return run(make_parser(), lambda arguments: arguments.main(arguments), argv)


if __name__ == "__main__":
    sys.exit(main())
