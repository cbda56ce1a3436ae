"""The counts behind a score: integers that add up, so a corpus can be split in any way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.ngrams import brevity_penalty, geometric_mean

Weights = Sequence[float]
EQUAL_WEIGHTS: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)
"""Weights of the n-gram, weighted n-gram, syntax and dataflow match."""


@dataclass(frozen=True)
class CodeBLEUScore:
    """The score and its four parts, each from 0 to 1."""

    codebleu: float
    ngram_match_score: float
    weighted_ngram_match_score: float
    syntax_match_score: float
    dataflow_match_score: float

    def as_dict(self) -> dict[str, float]:
        """The scores by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Counts(NamedTuple):
    """Counts of one pair or of many. The unigrams of the weighted match are in fifths."""

    hypothesis_length: int = 0
    reference_length: int = 0
    weighted_reference_length: int = 0
    ngram_matches_1: int = 0
    ngram_matches_2: int = 0
    ngram_matches_3: int = 0
    ngram_matches_4: int = 0
    ngrams_1: int = 0
    ngrams_2: int = 0
    ngrams_3: int = 0
    ngrams_4: int = 0
    weighted_matches_1: int = 0
    weighted_matches_2: int = 0
    weighted_matches_3: int = 0
    weighted_matches_4: int = 0
    weighted_1: int = 0
    weighted_2: int = 0
    weighted_3: int = 0
    weighted_4: int = 0
    syntax_matches: int = 0
    subtrees: int = 0
    dataflow_matches: int = 0
    edges: int = 0

    def parts(self) -> tuple[float, float, float, float]:
        """N-gram, weighted n-gram, syntax and dataflow match; 0 for a part that the references lack."""
        ngram = geometric_mean(self[3:7], self[7:11])
        ngram *= brevity_penalty(self.reference_length, self.hypothesis_length)
        recall = geometric_mean(self[11:15], self[15:19])  # unigrams in fifths on both sides
        recall *= brevity_penalty(self.weighted_reference_length, self.hypothesis_length)
        matches, subtrees, dataflow_matches, edges = self[19:]
        return ngram, recall, matches / subtrees if subtrees else 0.0, dataflow_matches / edges if edges else 0.0


def merge_all(counts: Iterable[Counts]) -> Counts:
    """The sum of all."""
    counts = list(counts)
    if len(counts) == 1:
        return counts[0]
    return Counts(*map(sum, zip(*counts, strict=True)))


def reference_score(counts: Counts, weights: Weights) -> CodeBLEUScore:
    """The score of mode ``reference``: a dataflow match of 0 counts as 1, whatever the reason."""
    ngram, recall, syntax, dataflow = counts.parts()
    a, b, c, d = weights
    return CodeBLEUScore(a * ngram + b * recall + c * syntax + d * (dataflow or 1.0), ngram, recall, syntax, dataflow)


def check_weights(weights: Sequence[float | str]) -> tuple[float, ...]:
    """The weights as floats. They may all be 0, for callers who want only the parts.

    Raises:
        CodeBLEUError: they are not four numbers from 0 to 1 that sum to 1.
    """
    if weights is EQUAL_WEIGHTS:
        return EQUAL_WEIGHTS
    try:
        found = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError, OverflowError):
        found = ()
    if len(found) == 4 and all(0 <= weight <= 1 for weight in found):
        if abs(sum(found) - 1) <= 1e-6 or not any(found):
            return found
        problem = f"sum to {sum(found):g}"
    else:
        problem = "are not four numbers from 0 to 1"
    raise CodeBLEUError(f"weights {weights!r} {problem}; expected four that sum to 1, such as 0.25,0.25,0.25,0.25")
