"""Throughput per core, side by side with the published implementation where it is installed.

    python -m eval.codebleu.bench.throughput [--pairs FILE.jsonl] [--limit N] [--rounds N] [--hypotheses N]

Both score the same pairs in one process, in turns; the figures are pairs per second of CPU time, medians over the
rounds:

- ``each new``: one call a pair, every text is read anew, as a program that knows nothing of the other pairs would do;
- ``N per reference``: as in an evaluation with N samples of each task, where the reference is read once.

The peer is the package ``codebleu`` 0.7.0, which runs on the newest tree-sitter when it is installed with
``--no-deps``; it reads every text anew each time. Without ``--pairs`` pairs are made from built-in samples.
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
from eval.codebleu.files import PairRow, read_pairs
from eval.codebleu.reference.native import describe_native
from eval.codebleu.score import codebleu

Call = tuple[Sequence[Sequence[str]], Sequence[str], str]
"""References of each pair, hypotheses, language: what one call scores."""


def find_peer() -> Callable[..., object] | None:
    """The published implementation; None where it is not installed."""
    if importlib.util.find_spec("codebleu") is None:
        return None
    from codebleu import calc_codebleu

    logging.disable(logging.WARNING)  # it warns of each pair without dataflow
    return calc_codebleu


def rate(score: Callable[..., object], calls: Sequence[Call]) -> float:
    """Pairs per second of CPU time."""
    started = time.process_time()
    for references, hypotheses, language in calls:
        score(references, hypotheses, language)
    return sum(len(hypotheses) for _, hypotheses, _ in calls) / (time.process_time() - started)


def make_calls(rows: Sequence[PairRow], hypotheses: int) -> list[Call]:
    """One call for each reference, with its own hypothesis and those of the pairs that follow it."""
    calls = []
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
    """Whether the pair has a score; the peer fails at the pairs that have none."""
    try:
        codebleu([row.references], [row.hypothesis], row.language)
    except CodeBLEUError:
        return False
    return True


def compare(calls: Sequence[Call], peer: Callable[..., object] | None, rounds: int) -> str:
    """Our rate, the peer's and the ratio of both, as text."""
    mine, theirs = [], []
    for score in filter(None, (codebleu, peer)):
        rate(score, calls[:1])  # loads the grammar
    for _ in range(rounds):
        mine.append(rate(codebleu, calls))
        if peer is not None:
            theirs.append(rate(peer, calls))
    line = f"ours {statistics.median(mine):7.0f}"
    if theirs:
        ratio = statistics.median([a / b for a, b in zip(mine, theirs)])
        line += f"  peer {statistics.median(theirs):6.0f}  ratio {ratio:5.2f}"
    return line


def main() -> None:
    """Prints a line per language and kind of work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=Path, help="JSON Lines with lang, hypothesis, references (default: samples)")
    parser.add_argument("--limit", type=int, default=150, help="pairs per language (default: 150)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both (default: 3)")
    parser.add_argument("--hypotheses", type=int, default=10, help="hypotheses per reference (default: 10)")
    arguments = parser.parse_args()
    peer = find_peer()
    print(
        f"pairs/s of CPU time, one core; ours in {describe_native()}; peer: {'codebleu' if peer else 'not installed'}"
    )
    for language, rows in read_rows(arguments.pairs, arguments.limit).items():
        for name, count in (("each new", 1), (f"{arguments.hypotheses} per reference", arguments.hypotheses)):
            found = compare(make_calls(rows, count), peer, arguments.rounds)
            print(f"{language:12} {len(rows):5} pairs  {name:18} {found}", flush=True)


if __name__ == "__main__":
    main()
