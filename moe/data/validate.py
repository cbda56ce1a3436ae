"""What is wrong with data: copies, leaks between splits, code that does not parse, pairs that are too long.

:func:`quick_findings` is what a run looks at before it starts; :class:`Checks` looks at a whole split, pair by pair.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from moe.data.grammars import parses
from moe.data.overlap import Benchmarks, ExactCopies, NearCopies
from moe.data.pairs import Pair
from moe.data.sources import DataSets, sample
from moe.languages import LANGUAGES

SAMPLED = 200  # pairs per language that are parsed
BROKEN = 0.1  # share of them from which it is worth a line
REPEATED = 0.01  # share of repeated training pairs from which it is worth a line


@dataclass(frozen=True)
class Finding:
    """One line about the data; ``leak``: test pairs are in train, word for word, so that scores mean nothing."""

    text: str
    leak: bool = False


def quick_findings(data: DataSets) -> list[Finding]:
    """What can be seen within seconds: exact copies, and a sample that does not parse."""
    found: list[Finding] = []
    for language, pairs in data.train.items():
        exact = ExactCopies()
        for pair in pairs:
            exact.add(pair)
        if exact.repeated > REPEATED * len(pairs):
            found.append(Finding(_count(exact.repeated, len(pairs), f"{language} training pairs repeat another")))
        for name, held_out in data.held_out.items():
            found += exact_leaks(exact, held_out[language], f"{language} {name}")
        with suppress(ImportError):  # a GPU machine may have no tree-sitter
            found += unparsed(language, sample(pairs, SAMPLED, 0), tuple(data.train))
    return found


def exact_leaks(train: ExactCopies, held_out: Sequence[Pair], name: str) -> list[Finding]:
    """Held-out pairs that are in train."""
    counts = Counter(_kind(train, pair) for pair in held_out)
    return _leaks(counts, len(held_out), name)


def _kind(train: ExactCopies, pair: Pair) -> str:
    if train.has(pair):
        return "exact"
    return "code" if train.has_code(pair) else "text" if train.has_text(pair) else ""


def _leaks(counts: Mapping[str, int], total: int, name: str) -> list[Finding]:
    words = {
        "exact": "pairs are also in train (same text and code)",
        "code": "pairs have their code in train with another text",
        "near": "pairs have a near copy of their code in train",
        "text": "pairs have their text in train with other code",
    }
    return [Finding(_count(counts[x], total, f"{name} {words[x]}"), x == "exact") for x in words if counts.get(x)]


def unparsed(language: str, pairs: Sequence[Pair], others: Sequence[str] = ()) -> list[Finding]:
    """Whether many pairs do not parse in their language, and in which of the others they do."""
    wrong = [pair.code for pair in pairs if not parses(pair.code, language)]
    if len(wrong) <= BROKEN * len(pairs):
        return []
    line = _count(len(wrong), len(pairs), f"{language} pairs looked at do not parse as {LANGUAGES[language].name}")
    fitting = {other: sum(parses(code, other) for code in wrong) for other in others if other != language}
    best = max(fitting, key=lambda other: fitting[other], default=None)
    if best is not None and fitting[best] > len(wrong) / 2:
        line += f"; {fitting[best]} of them parse as {LANGUAGES[best].name}"
    return [Finding(line)]


class Checks:
    """Everything about one language, pair by pair; memory grows by digests and shingles alone.

    Args:
        near: also look for near copies, which takes about 0.2 milliseconds a pair.
        measure: the tokens of a pair, for ``lengths``.
    """

    def __init__(
        self,
        language: str,
        near: bool = False,
        benchmarks: Benchmarks | None = None,
        measure: Callable[[Pair], int] | None = None,
    ):
        self.language, self.measure = language, measure
        self.lengths = array("I")
        self.exact, self.near = ExactCopies(), NearCopies() if near else None
        self.benchmarks = benchmarks
        self.count = self.near_repeated = self.touching = self.told = 0
        self.sample: list[Pair] = []
        self._random = random.Random(f"sample-{language}")
        self.held_out: dict[str, int] = {}
        self._leaks: dict[str, Counter[str]] = defaultdict(Counter)

    def add_train(self, pair: Pair) -> None:
        """Looks at a training pair."""
        self.count += 1
        if self.measure is not None:
            self.lengths.append(self.measure(pair))
        old = self.exact.add(pair)
        if self.near is not None and not old:
            self.near_repeated += self.near.add(pair.code)
        self.touching += self.benchmarks is not None and self.benchmarks.touch(pair)
        self.told += len(pair.text) > 20 and pair.text.strip() in pair.code
        place = len(self.sample) if len(self.sample) < SAMPLED else self._random.randrange(self.count)
        if place < SAMPLED:  # each pair is as likely to be in the sample as any other
            self.sample[place : place + 1] = [pair]

    def add_held_out(self, split: str, pair: Pair) -> None:
        """Looks at a held-out pair, after all of train."""
        self.held_out[split] = self.held_out.get(split, 0) + 1
        kind = _kind(self.exact, pair)
        if kind not in ("exact", "code") and self.near is not None and self.near.find(pair.code):
            kind = "near"
        self._leaks[split][kind] += 1

    def findings(self, languages: Sequence[str]) -> list[Finding]:
        """The findings, leaks first."""
        found = []
        for split, total in self.held_out.items():
            found += _leaks(self._leaks[split], total, f"{self.language} {split}")
        lines = (
            (self.exact.repeated, "repeat another"),
            (self.near_repeated, "are near copies of another's code"),
            (self.touching, "share 13 words in a row with a benchmark"),
            (self.told, "have their text in their code, which is then learned too"),
        )
        for count, words in lines:
            if count:
                found.append(Finding(_count(count, self.count, f"{self.language} training pairs {words}")))
        return found + unparsed(self.language, self.sample, languages)


def describe_lengths(language: str, lengths: Sequence[int], max_tokens: int) -> str:
    """Median, 95th percentile and longest, and the share that a run with ``max_tokens`` leaves out."""
    tokens = np.asarray(lengths)
    median, high = np.percentile(tokens, (50, 95))
    left_out = float((tokens > max_tokens).mean())
    return (
        f"{language}: {median:,.0f} tokens in the median, {high:,.0f} at 95%, {tokens.max():,} at most; "
        f"{left_out:.1%} longer than {max_tokens:,} are left out"
    )


def _count(count: int, total: int, words: str) -> str:
    return f"{count:,} of {total:,} {words}"
