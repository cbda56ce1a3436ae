"""N-gram match (BLEU-4) and keyword-weighted n-gram match, as integer counts that add up over a corpus.

Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; Ren et al. 2020, "CodeBLEU".
The weighted match counts unigrams in fifths: a keyword weighs 5, any other token 1, which stand for 1 and 0.2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
KEYWORD_WEIGHT, OTHER_WEIGHT = 5, 1  # in fifths
SMOOTHING = 0.1  # Chen and Cherry 2014, method 1: replaces a numerator of zero

NGrams = list[Counter[tuple[str, ...]]]
"""How often each n-gram of order 1 to 4 occurs, by order."""


def count_ngrams(tokens: Sequence[str]) -> NGrams:
    """The n-grams of a list of tokens."""
    return [Counter(zip(*[tokens[i:] for i in range(order)])) for order in range(1, ORDERS + 1)]


def shared_ngrams(left: NGrams, right: NGrams) -> NGrams:
    """The multiset intersection, order by order."""
    return [a & b for a, b in zip(left, right)]


def weigh(unigrams: Counter[tuple[str, ...]], keywords: frozenset[str]) -> int:
    """Weight of all unigrams, in fifths."""
    return sum(n * (KEYWORD_WEIGHT if token in keywords else OTHER_WEIGHT) for (token,), n in unigrams.items())


def brevity_penalty(reference_length: int, hypothesis_length: int) -> float:
    """1 for a hypothesis longer than the reference, 0 for an empty one, else exp(1 - r/h)."""
    if hypothesis_length > reference_length:
        return 1.0
    return math.exp(1 - reference_length / hypothesis_length) if hypothesis_length else 0.0


def geometric_mean(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Smoothed geometric mean of the precisions (or recalls) of each order; 0 when no unigram matches."""
    if numerators[0] == 0:
        return 0.0
    log, size = math.log, len(numerators)
    return math.exp(math.fsum([log((n or SMOOTHING) / d) / size for n, d in zip(numerators, denominators)]))
