"""Throughput per core, next to the published implementation where that is installed.

    python -m eval.codebleu_throughput [--pairs FILE.jsonl] [--limit N] [--rounds N] [--hypotheses N]

Both score the same pairs in one process, taking turns. Figures are pairs per second of CPU time, medians over rounds:

- ``each new``: one call per pair, so every text is parsed again;
- ``N per reference``: one call per N hypotheses of a reference, as in an evaluation with N samples per task.

The baseline is the package ``codebleu`` 0.7.0, which runs on the newest tree-sitter if installed with ``--no-deps``. It
parses every text each time. Without ``--pairs``, pairs are made from built-in samples.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.codebleu.bench.samples import SAMPLES, make_pair
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.files import PairRow
from eval.codebleu.reference.native import describe_native
from eval.codebleu.score import codebleu
from eval.codebleu_command import read_pairs

Call = tuple[Sequence[Sequence[str]], Sequence[str], str]
"""The arguments of one call: references of each pair, hypotheses, language."""


def find_baseline() -> Callable[..., object] | None:
    """The published implementation; None if it is not installed."""
    if importlib.util.find_spec("codebleu") is None:
        return None
    from codebleu import calc_codebleu

    logging.disable(logging.WARNING)  # it warns about every pair without dataflow
    return calc_codebleu


def rate(score: Callable[..., object], calls: Sequence[Call]) -> float:
    """Pairs per second of CPU time."""
    started = time.process_time()
    for references, hypotheses, language in calls:
        score(references, hypotheses, language)
    return sum(len(hypotheses) for _, hypotheses, _ in calls) / (time.process_time() - started)


def make_calls(rows: Sequence[PairRow], hypotheses: int) -> list[Call]:
    """One call per group of pairs: the first reference, with the hypotheses of all."""
    calls: list[Call] = []
    for i in range(0, len(rows), hypotheses):
        group = rows[i : i + hypotheses]
        calls.append(([list(rows[i].references)] * len(group), [row.hypothesis for row in group], rows[i].language))
    return calls


def read_rows(path: Path | None, limit: int) -> dict[str, list[PairRow]]:
    """Language -> pairs."""
    groups: dict[str, list[PairRow]] = {}
    if path is None:
        for language in SAMPLES:
            pairs = [make_pair(language, number) for number in range(limit)]
            groups[language] = [PairRow(i, i, language, (pair[0],), pair[1]) for i, pair in enumerate(pairs)]
        return groups
    for row in read_pairs(path):
        if row.error is None and len(groups.setdefault(row.language, [])) < limit and is_scored(row):
            groups[row.language].append(row)
    return groups


def is_scored(row: PairRow) -> bool:
    """Whether the pair can be scored; the baseline fails on those that cannot."""
    try:
        codebleu([row.references], [row.hypothesis], row.language)
    except CodeBLEUError:
        return False
    return True


def compare(calls: Sequence[Call], baseline: Callable[..., object] | None, rounds: int) -> str:
    """Our rate, the baseline's rate and their ratio, as text."""
    mine, theirs = [], []
    for score in filter(None, (codebleu, baseline)):
        rate(score, calls[:1])  # loads the grammar
    for _ in range(rounds):
        mine.append(rate(codebleu, calls))
        if baseline is not None:
            theirs.append(rate(baseline, calls))
    line = f"ours {statistics.median(mine):7.0f}"
    if theirs:
        ratio = statistics.median([a / b for a, b in zip(mine, theirs)])
        line += f"  baseline {statistics.median(theirs):6.0f}  ratio {ratio:5.2f}"
    return line


def main() -> None:
    """Prints one line per language and kind of call."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=Path, help="JSON Lines with language, answer, reference (default: samples)")
    parser.add_argument("--limit", type=int, default=150, help="pairs per language (default: 150)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of both (default: 3)")
    parser.add_argument("--hypotheses", type=int, default=10, help="hypotheses per reference (default: 10)")
    arguments = parser.parse_args()
    baseline = find_baseline()
    found = "codebleu" if baseline else "not installed"
    print(f"pairs/s of CPU time, one core; ours in {describe_native()}; baseline: {found}")
    for language, rows in read_rows(arguments.pairs, arguments.limit).items():
        for name, count in (("each new", 1), (f"{arguments.hypotheses} per reference", arguments.hypotheses)):
            found = compare(make_calls(rows, count), baseline, arguments.rounds)
            print(f"{language:12} {len(rows):5} pairs  {name:18} {found}", flush=True)


if __name__ == "__main__":
    main()
