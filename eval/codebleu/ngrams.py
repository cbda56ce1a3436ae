"""N-gram match (BLEU-4) and keyword-weighted n-gram match, as integer counts that add up over a corpus.

Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; Ren et al. 2020, "CodeBLEU".
The weighted match counts unigrams in fifths: a keyword weighs 5, any other token 1, that is 1 and 0.2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
KEYWORD_WEIGHT, OTHER_WEIGHT = 5, 1  # in fifths
SMOOTHING = 0.1  # Chen and Cherry 2014, method 1: stands in for a numerator of zero

NGramCounts = tuple[Counter, ...]


def count_ngrams(tokens: Sequence[str]) -> NGramCounts:
    """How often each n-gram of order 1 to 4 occurs."""
    return tuple(Counter(zip(*(tokens[i:] for i in range(n)))) if n > 1 else Counter(tokens) for n in range(1, 5))


def overlap(left: Counter, right: Counter) -> int:
    """Size of the multiset intersection."""
    return sum(min(left[gram], right[gram]) for gram in left.keys() & right.keys())


def clipped_matches(hypothesis: Counter, references: Sequence[Counter]) -> int:
    """N-grams of the hypothesis, each counted at most as often as in the reference that has most of it."""
    if len(references) == 1:
        return overlap(hypothesis, references[0])
    best: Counter = Counter()
    for reference in references:
        best |= reference
    return overlap(hypothesis, best)


def keyword_mass(counts: Counter, keywords: frozenset[str]) -> int:
    """Weight of the tokens, in fifths."""
    return sum(n * (KEYWORD_WEIGHT if token in keywords else OTHER_WEIGHT) for token, n in counts.items())


def closest_length(lengths: Sequence[int], target: int) -> int:
    """The reference length nearest to the hypothesis' length; the shorter one of two equally near."""
    return min(lengths, key=lambda length: (abs(length - target), length))


def brevity_penalty(reference_length: int, hypothesis_length: int) -> float:
    """1 for a hypothesis longer than the reference, 0 for an empty one, else exp(1 - r/h)."""
    if hypothesis_length > reference_length:
        return 1.0
    return math.exp(1 - reference_length / hypothesis_length) if hypothesis_length else 0.0


def geometric_mean(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Smoothed geometric mean of the four precisions (or recalls); 0 when not one unigram matches."""
    if numerators[0] == 0:
        return 0.0
    logs = (math.log((n or SMOOTHING) / d) / ORDERS for n, d in zip(numerators, denominators))
    return math.exp(math.fsum(logs))
