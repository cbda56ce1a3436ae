"""Subcommand ``codebleu``: the score of every pair of a file, or of its corpora."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.codebleu.counts import EQUAL_WEIGHTS, Counts, check_weights, merge_all
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.files import PairRow, read_line_files, read_pairs
from eval.codebleu.languages import find_language
from eval.codebleu.pool import count_pairs, usable_cores
from eval.codebleu.score import MODES, score_of

MANY = 2_000  # pairs from which starting more processes pays


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``codebleu`` to ``python -m eval``."""
    parser = subparsers.add_parser("codebleu", help="score code against references")
    parser.description = "Prints a line of JSON for each pair; pairs that cannot be scored get an error, exit code 1."
    parser.add_argument("--pairs", type=Path, help="JSON Lines: id, lang, hypothesis, references, maybe weights")
    parser.add_argument("--hyp", type=Path, help="hypotheses, one a line (instead of --pairs)")
    parser.add_argument("--refs", type=Path, nargs="+", help="references, one a line, in one or more files")
    parser.add_argument("--lang", help="language of --hyp and --refs")
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    parser.add_argument("--corpus", action="store_true", help="one score for each language")
    parser.add_argument("--mode", choices=MODES, default="reference", help="as published, or with its faults mended")
    parser.add_argument("--weights", default=None, help="a,b,c,d: of n-gram, weighted n-gram, syntax, dataflow match")
    parser.add_argument("--jobs", type=int, default=None, help="processes (default: 1, all cores for many pairs)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code: 1 when a pair was not scored."""
    if args.jobs is not None and args.jobs < 1:
        raise CodeBLEUError(f"--jobs is {args.jobs}; expected 1 or more")
    weights = check_weights(args.weights.split(",") if args.weights else EQUAL_WEIGHTS)
    if args.output and not args.output.resolve().parent.is_dir():
        raise CodeBLEUError(f"--output {args.output}: there is no such folder; make it first")
    rows = _rows(args)
    if not rows:
        raise CodeBLEUError("nothing to score; the input has no pairs")
    good = sorted((i for i, row in enumerate(rows) if row.error is None), key=lambda i: rows[i].language)
    jobs = args.jobs or (usable_cores() if len(rows) > MANY else 1)
    tasks = [(rows[i].language, rows[i].references, rows[i].hypothesis) for i in good]
    outcomes: list[Counts | str] = [row.error or "" for row in rows]
    with tqdm(total=len(tasks), unit="pair", file=sys.stderr, disable=None) as bar:
        for i, outcome in zip(good, count_pairs(tasks, args.mode, jobs)):
            outcomes[i] = outcome
            bar.update()
    lines = _corpora(rows, outcomes, args.mode, weights) if args.corpus else _pairs(rows, outcomes, args.mode, weights)
    _write("".join(json.dumps(line) + "\n" for line in lines), args.output)
    failed = [(row, outcome) for row, outcome in zip(rows, outcomes) if isinstance(outcome, str)]
    if failed:
        row, reason = failed[0]
        message = f"error: {len(failed)} of {len(rows)} pairs were not scored; first: {_where(row)}: {reason}"
        print(" ".join(message.split()).encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return 1 if failed else 0


def _rows(args: argparse.Namespace) -> list[PairRow]:
    if args.pairs and not (args.hyp or args.refs or args.lang):
        return list(read_pairs(args.pairs))
    if args.hyp and args.refs and args.lang and not args.pairs:
        return list(read_line_files(args.hyp, args.refs, find_language(args.lang)))
    raise CodeBLEUError("give either --pairs FILE, or --hyp FILE --refs FILE ... --lang LANGUAGE")


def _where(row: PairRow) -> str:
    return f"line {row.line} (id {row.id})"


def _pairs(
    rows: Sequence[PairRow], outcomes: Sequence[Counts | str], mode: Any, weights: Sequence[float]
) -> Iterator[dict[str, Any]]:
    score = score_of(mode)
    for row, outcome in zip(rows, outcomes):
        if isinstance(outcome, str):
            yield {"id": row.id, "error": f"{_where(row)}: {outcome}"}
        else:
            yield {"id": row.id, **score(outcome, row.weights or weights).as_dict()}


def _corpora(
    rows: Sequence[PairRow], outcomes: Sequence[Counts | str], mode: Any, weights: Sequence[float]
) -> Iterator[dict[str, Any]]:
    score = score_of(mode)
    groups: dict[str, list[Counts]] = {}
    for row, outcome in zip(rows, outcomes):
        if not isinstance(outcome, str):
            groups.setdefault(find_language(row.language), []).append(outcome)
    for language, counts in groups.items():
        yield {"lang": language, "pairs": len(counts), **score(merge_all(counts), weights).as_dict()}


def _write(text: str, output: Path | None) -> None:
    """Writes the output; a file appears whole or not at all."""
    if output is None:
        sys.stdout.write(text)
        return
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CodeBLEUError(f"{output} cannot be written: {error.strerror or error}") from error
