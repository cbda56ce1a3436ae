"""The subcommand ``execution`` of ``python -m eval``: runs pairs against their tests, prints pass rates."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.answer_code import answer_code
from eval.execution.cases import CaseTests
from eval.execution.judge import check_language, judge_many
from eval.execution.limits import Limits
from eval.execution.pass_at_k import mean_pass_at_k
from eval.execution.results import STATUSES, Verdict
from eval.execution.toolchains import PACKAGES, missing_tools
from moe.data.rows import Judged, describe_judged, read_judged
from moe.errors import UserError
from moe.files import write_json_lines

CONTAINMENT = """\
Answers run in bubblewrap, or in Linux namespaces where it is not installed: no network, no files but the system's and
their own small /tmp, no other processes. Time, memory, processes and disk are limited, and nothing that an answer
started outlives its verdict. Not covered: faults of the kernel, of bubblewrap and of the compilers. With --unsafe,
where neither works, an answer can read and write your files, use the network and kill the judge. docs/execution.md
has the details."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``execution`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "execution",
        help="run code against its test cases",
        description="Runs the answer of each row (in a row without one, the reference) against the row's tests and "
        "prints the pass rate per language. Code is taken out of an answer's fenced block. " + CONTAINMENT,
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        required=True,
        help="JSON Lines (also .gz) with language, tests, and answer or reference; the answers of train.py and "
        "generate.py are such files",
    )
    parser.add_argument("--limit", type=int, default=None, help="how many pairs to run (default: all)")
    parser.add_argument(
        "--skip-bad-tests", action="store_true", help="leave out rows whose tests are unusable, instead of stopping"
    )
    parser.add_argument("--workers", type=int, default=None, help="programs at a time (default: one per core)")
    parser.add_argument(
        "--k", type=int, nargs="+", default=[1], help="pass@k for these k; rows with one id are samples"
    )
    parser.add_argument("--output", type=Path, default=None, help="write each result to this JSON Lines file")
    add_limits(parser)
    return parser


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that :func:`limits_of` reads."""
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds per program, compiling not counted")
    parser.add_argument(
        "--no-sanitizers", action="store_true", help="do not run C++ again under Address- and UBSanitizer"
    )
    parser.add_argument(
        "--unsafe", action="store_true", help="run with resource limits alone where nothing contains programs"
    )
    parser.add_argument("--cache", type=Path, default=None, help="keep what was compiled in this folder")


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the flags ask for. Raises ``UserError`` for a time that is none."""
    if not 0 < args.timeout < math.inf:
        raise UserError(f"--timeout is {args.timeout:g}; it must be greater than 0 and finite")
    return Limits(seconds=args.timeout, sanitize=not args.no_sanitizers, unsafe=args.unsafe, cache=args.cache)


def main(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    for flag, value in (("--workers", args.workers or 1), ("--k", min(args.k))):
        if value < 1:
            raise UserError(f"{flag} is {value:g}; it must be greater than 0 and finite")
    limits = limits_of(args)
    if args.output and args.output.exists():
        raise UserError(f"{args.output} exists; give another --output")
    rows = read_judged(args.pairs, args.limit)
    usable, unusable = _check(rows, args.skip_bad_tests)
    if not usable:
        raise UserError(f"{args.pairs}: none of its {len(rows)} pairs has usable tests; nothing to run")
    print(describe_judged([row for row, _ in usable]), file=sys.stderr)
    for language in dict.fromkeys(row.language for row, _ in usable):
        if tools := missing_tools(language):
            print(f"{' and '.join(tools)} not found on the path; install {PACKAGES[tools[0]]}", file=sys.stderr)
    jobs = [
        (row.language, answer_code(row.code, row.language) if row.answer else row.code, tests) for row, tests in usable
    ]
    verdicts: list[Verdict] = []
    try:
        for verdict in judge_many(jobs, limits, args.workers):
            verdicts.append(verdict)
    finally:  # an interrupted run keeps what it has
        if args.output and verdicts:
            found = [{"id": r.id, "language": r.language, **asdict(v)} for (r, _), v in zip(usable, verdicts)]
            found += [{"id": r.id, "language": r.language, "status": "unusable", "detail": why} for r, why in unusable]
            write_json_lines(args.output, found)
    if untested := len(rows) - len(usable) - len(unusable):
        print(f"{untested} of {len(rows)} pairs have no tests and were not run")
    if unusable:
        print(f"{len(unusable)} of {len(rows)} pairs have unusable tests and were not run")
    _print_table(args.k, [(row, verdict) for (row, _), verdict in zip(usable, verdicts)])
    return 0


def _check(rows: list[Judged], skip: bool) -> tuple[list[tuple[Judged, CaseTests]], list[tuple[Judged, str]]]:
    """Rows with their tests, and those whose tests are unusable with the reason; raises it unless ``skip``."""
    usable, unusable = [], []
    for row in rows:
        if not row.tests:
            continue
        try:
            check_language(row.language)
            usable.append((row, CaseTests.parse(row.tests, row.language)))
        except UserError as error:
            message = f"{row.where}, id {row.id!r}: {error}"
            if not skip:
                raise UserError(f"{message}; fix it, or leave such rows out with --skip-bad-tests") from error
            print(f"skipped: {message}", file=sys.stderr)
            unusable.append((row, str(error)))
    return usable, unusable


def _print_table(ks: list[int], judged: list[tuple[Judged, Verdict]]) -> None:
    columns = [f"pass@{k}" for k in ks]
    print("  ".join([f"{'language':<12}", *(f"{name:>13}" for name in (*STATUSES, *columns))]))
    for language in dict.fromkeys(row.language for row, _ in judged):
        found = [(i, row, verdict) for i, (row, verdict) in enumerate(judged) if row.language == language]
        counts = Counter(verdict.status for _, _, verdict in found)
        samples: dict[str | int, list[bool]] = defaultdict(list)
        for i, row, verdict in found:
            if verdict.status != "unavailable":
                samples[f"row {i}" if row.id is None else row.id].append(verdict.passed)
        groups = [(len(passed), sum(passed)) for passed in samples.values()]
        least = min((size for size, _ in groups), default=0)
        rates = [f"{mean_pass_at_k(groups, k):.4f}" if k <= least else "too few" for k in ks]
        cells = [*(str(counts[status]) for status in STATUSES), *rates]
        print("  ".join([f"{language:<12}", *(f"{cell:>13}" for cell in cells)]))
