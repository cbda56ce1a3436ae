"""The subcommand ``execution`` of ``python -m eval``: runs pairs against their tests, prints pass rates."""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.execution.pass_at_k import mean_pass_at_k
from eval.execution.programs import STATUSES, run_many
from moe.data.pairs import read_pairs
from moe.errors import UserError
from moe.files import write_json_lines


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``execution`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "execution",
        help="run code against its test cases",
        description="Runs the code of each pair against the pair's test cases and prints the pass rate per language. "
        "This is not a security sandbox: run code from models that you do not trust in a container.",
    )
    parser.add_argument("--pairs", type=Path, required=True, help="pairs with tests, *.jsonl or *.jsonl.gz")
    parser.add_argument("--limit", type=int, default=None, help="how many pairs to run (default: all)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds per program, compiling not counted")
    parser.add_argument("--workers", type=int, default=None, help="programs at a time (default: one per core)")
    parser.add_argument(
        "--k", type=int, nargs="+", default=[1], help="pass@k for these k; rows with one id are samples"
    )
    parser.add_argument("--output", type=Path, default=None, help="write each result to this JSON Lines file")
    return parser


def main(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    for flag, value in (("--timeout", args.timeout), ("--workers", args.workers or 1), ("--k", min(args.k))):
        if not 0 < value < math.inf:
            raise UserError(f"{flag} is {value:g}; it must be greater than 0 and finite")
    if args.output and args.output.exists():
        raise UserError(f"{args.output} exists; give another --output")
    pairs = read_pairs(args.pairs, args.limit)
    tested = [pair for pair in pairs if pair.tests]
    if not tested:
        raise UserError(f"{args.pairs}: none of its {len(pairs)} pairs has tests; nothing to run")
    results = run_many([(pair.language, pair.code, pair.tests or "") for pair in tested], args.timeout, args.workers)
    if len(tested) < len(pairs):
        print(f"{len(pairs) - len(tested)} of {len(pairs)} pairs have no tests and were not run")
    columns = [f"pass@{k}" for k in args.k]
    print("  ".join([f"{'language':<12}", *(f"{name:>13}" for name in (*STATUSES, *columns))]))
    for language in dict.fromkeys(pair.language for pair in tested):
        found = [(i, result) for i, (pair, result) in enumerate(zip(tested, results)) if pair.language == language]
        counts = Counter(result.status for _, result in found)
        samples: dict[str, list[bool]] = defaultdict(list)
        for i, result in found:
            if result.status != "unavailable":
                samples[tested[i].id or f"row {i}"].append(result.passed)
        groups = [(len(passed), sum(passed)) for passed in samples.values()]
        least = min((size for size, _ in groups), default=0)
        rates = [f"{mean_pass_at_k(groups, k):.4f}" if k <= least else "too few" for k in args.k]
        cells = [*(str(counts[status]) for status in STATUSES), *rates]
        print("  ".join([f"{language:<12}", *(f"{cell:>13}" for cell in cells)]))
    if args.output:
        rows = ({"id": p.id, "language": p.language, **asdict(result)} for p, result in zip(tested, results))
        write_json_lines(args.output, rows)
    return 0
