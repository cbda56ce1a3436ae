"""N-gram match (BLEU-4) and keyword-weighted n-gram match, as integer counts that add up over a corpus.

Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; Ren et al. 2020, "CodeBLEU".
The weighted match counts unigrams in fifths: a keyword weighs 5, any other token 1, that is 1 and 0.2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

ORDERS = 4
KEYWORD_WEIGHT, OTHER_WEIGHT = 5, 1  # in fifths
SMOOTHING = 0.1  # Chen and Cherry 2014, method 1: stands in for a numerator of zero

Gram = str | tuple[str, ...]


class NGrams:
    """The n-grams of order 1 to 4 of one list of tokens."""

    def __init__(self, tokens: Sequence[str], keywords: frozenset[str]):
        self.tokens = tokens
        self.length = len(tokens)
        self.totals = [max(1, self.length - shorter) for shorter in range(ORDERS)]  # of each order, at least 1
        self.keywords = keywords
        self.unigrams = Counter(tokens)
        self._counts: list[Counter[Gram] | None] = [None, self.unigrams, None, None, None]

    def grams(self, order: int) -> Iterable[Gram]:
        """The n-grams of order 2 to 4, one after the other."""
        tokens = self.tokens
        return zip(*[tokens[i:] for i in range(order)])

    def counts(self, order: int) -> Counter[Gram]:
        """How often each n-gram occurs."""
        found = self._counts[order]
        if found is None:
            found = self._counts[order] = Counter(self.grams(order))
        return found

    @cached_property
    def mass(self) -> int:
        """Weight of all tokens, in fifths."""
        keywords = sum([n for token, n in self.unigrams.items() if token in self.keywords])
        return self.length * OTHER_WEIGHT + keywords * (KEYWORD_WEIGHT - OTHER_WEIGHT)


def overlap(reference: NGrams, hypothesis: NGrams, order: int) -> int:
    """Size of the multiset intersection of the n-grams of one order above 1."""
    counts = reference.counts(order)
    shared = Counter(filter(counts.__contains__, hypothesis.grams(order)))
    return len(shared) + sum([min(count, counts[gram]) - 1 for gram, count in shared.items() if count > 1])


def overlaps(reference: NGrams, hypothesis: NGrams) -> tuple[list[int], int]:
    """N-grams of order 1 to 4 that both have, and the weight of the unigrams among them, in fifths."""
    x, y, keywords = reference.unigrams, hypothesis.unigrams, reference.keywords
    matches = mass = 0
    for token in x.keys() & y.keys():
        n, m = x[token], y[token]
        if m < n:
            n = m
        matches += n
        if token in keywords:
            mass += n
    found = [matches, 0, 0, 0]
    for order in range(2, ORDERS + 1):
        if not matches:
            break
        found[order - 1] = matches = overlap(reference, hypothesis, order)
    return found, found[0] * OTHER_WEIGHT + mass * (KEYWORD_WEIGHT - OTHER_WEIGHT)


def clipped_overlaps(references: Sequence[NGrams], hypothesis: NGrams) -> list[int]:
    """N-grams of the hypothesis, each counted at most as often as in the one of several references with most of it."""
    found = []
    for order in range(1, ORDERS + 1):
        most: Counter[Gram] = Counter()
        for reference in references:
            most |= reference.counts(order)
        counts = hypothesis.counts(order)
        found.append(sum([min(counts[gram], most[gram]) for gram in counts.keys() & most.keys()]))
    return found


def closest_length(lengths: Sequence[int], target: int) -> int:
    """The reference length nearest to the hypothesis' length; the shorter one of two equally near."""
    if len(lengths) == 1:
        return lengths[0]
    return min(lengths, key=lambda length: (abs(length - target), length))


def brevity_penalty(reference_length: int, hypothesis_length: int) -> float:
    """1 for a hypothesis longer than the reference, 0 for an empty one, else exp(1 - r/h)."""
    if hypothesis_length > reference_length:
        return 1.0
    return math.exp(1 - reference_length / hypothesis_length) if hypothesis_length else 0.0


def geometric_mean(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Smoothed geometric mean of the precisions (or recalls) of each order; 0 when not one unigram matches."""
    if numerators[0] == 0:
        return 0.0
    log, size = math.log, len(numerators)
    return math.exp(math.fsum([log((n or SMOOTHING) / d) / size for n, d in zip(numerators, denominators)]))
