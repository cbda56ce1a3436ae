"""Throughput per core, side by side with the published implementation where it is installed.

    python -m eval.codebleu.benchmark --pairs FILE.jsonl [--limit N] [--rounds N]

Both score the same pairs of ``FILE`` (``lang``, ``hypothesis``, ``references``) in one process, in turns, one call a
pair; the figures are pairs per second of CPU time, medians over the rounds. The peer is the package ``codebleu`` 0.7.0,
which runs on the newest tree-sitter when it is installed with ``--no-deps``.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.codebleu.files import PairRow, read_pairs
from eval.codebleu.score import codebleu

Scores = Callable[[PairRow], object]


def ours(row: PairRow) -> object:
    """Our score of one pair."""
    return codebleu([row.references], [row.hypothesis], row.language)


def find_peer() -> Scores | None:
    """The published implementation as a function of a pair; None where it is not installed."""
    if importlib.util.find_spec("codebleu") is None:
        return None
    from codebleu import calc_codebleu

    logging.disable(logging.WARNING)  # it warns for each pair without dataflow
    return lambda row: calc_codebleu([list(row.references)], [row.hypothesis], row.language)


def rate(score: Scores, rows: Sequence[PairRow]) -> float:
    """Pairs per second of CPU time."""
    started = time.process_time()
    for row in rows:
        score(row)
    return len(rows) / (time.process_time() - started)


def main() -> None:
    """Prints a line per language."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="JSON Lines with lang, hypothesis, references")
    parser.add_argument("--limit", type=int, default=150, help="pairs per language (default: 150)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both (default: 3)")
    arguments = parser.parse_args()
    groups: dict[str, list[PairRow]] = {}
    for row in read_pairs(arguments.pairs):
        if row.error is None and len(groups.setdefault(row.language, [])) < arguments.limit:
            groups[row.language].append(row)
    peer = find_peer()
    print(f"pairs/s of CPU time, one core; peer: {'codebleu' if peer else 'not installed'}")
    for language, rows in groups.items():
        mine, theirs = [], []
        for _ in range(arguments.rounds):
            mine.append(rate(ours, rows))
            if peer is not None:
                theirs.append(rate(peer, rows))
        line = f"{language:12} {len(rows):4} pairs  ours {statistics.median(mine):8.0f}"
        if theirs:
            ratios = [a / b for a, b in zip(mine, theirs)]
            line += f"  peer {statistics.median(theirs):8.0f}  ratio {statistics.median(ratios):5.2f}"
        print(line)


if __name__ == "__main__":
    main()
