"""Bootstrap intervals of differences between two models, by runs and by pairs.

A difference is measured on the same pairs by both models of one seed. Runs of different seeds have different weights,
and often different held-out pairs, so a resample draws runs first and then the pairs of each drawn run (Davison and
Hinkley 1997, "Bootstrap Methods and their Application", section 3.8). Pairs of one id in several languages, as the
synthetic tasks have, are drawn together. With one run the interval covers the pairs alone.
"""

# B resamples, U runs, N pairs

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.codebleu.counts import EQUAL_WEIGHTS, Counts, reference_score

LEVEL = 0.95
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Sample:
    """One measure of one model on the pairs of one language.

    Attributes:
        keys: what each pair is known by, the same for every model.
        values: [N, V] numbers of each pair, which add up.
    """

    keys: tuple[Any, ...]
    values: Array

    def of(self, keys: Sequence[Any]) -> Array:
        """[len(keys), V]: the numbers of these pairs."""
        places = {key: place for place, key in enumerate(self.keys)}
        return self.values[[places[key] for key in keys]]


def ratio(sums: Array) -> Array:
    """[B, 2] sums of a numerator and a denominator -> [B]."""
    return sums[:, 0] / np.maximum(sums[:, 1], 1e-12)


def corpus_codebleu(sums: Array) -> Array:
    """[B, 23] summed counts of CodeBLEU -> [B] corpus scores (mode ``reference``)."""
    rows = sums.astype(np.int64).tolist()
    return np.array([reference_score(Counts(*row), EQUAL_WEIGHTS).codebleu for row in rows])


# What the numbers of a pair are, and how their sums become a score.
METRICS: dict[str, Callable[[Array], Array]] = {"loss": ratio, "CodeBLEU": corpus_codebleu, "pass@1": ratio}
Measured = Mapping[str, Sample]  # language -> sample


@dataclass(frozen=True)
class Interval:
    """A difference with its 95% interval, over ``pairs`` pairs of ``runs`` runs."""

    difference: float
    low: float
    high: float
    runs: int
    pairs: int


def score(metric: str, sample: Sample) -> float:
    """The score of all pairs."""
    return float(METRICS[metric](sample.values.sum(axis=0, keepdims=True))[0])


def bootstrap(
    metric: str, runs: Sequence[tuple[Measured, Measured]], languages: Sequence[str], resamples: int, seed: int
) -> dict[str, Interval]:
    """Intervals of the first model's score minus the second's: by language, and of their mean (``mean``).

    Args:
        runs: what both models of each run measured; pairs that only one of them has are left out.
        languages: those that every run has pairs of, in both models.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(runs), (resamples, len(runs)))  # [B, U]
    found = np.zeros((len(languages), *drawn.shape))
    points = np.zeros((len(languages), len(runs)))
    pairs = [0] * len(languages)
    for place, (first, second) in enumerate(runs):
        slots = drawn == place
        weights: dict[tuple[Any, ...], Array] = {}  # languages with the same pairs share their draws
        for index, language in enumerate(languages):
            keys = common_keys(first[language], second[language])
            if keys not in weights:
                weights[keys] = generator.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), int(slots.sum()))
            a, b = (x[language].of(keys) for x in (first, second))
            found[index][slots] = METRICS[metric](weights[keys] @ a) - METRICS[metric](weights[keys] @ b)
            whole = (values.sum(axis=0, keepdims=True) for values in (a, b))
            points[index, place] = np.subtract(*(METRICS[metric](sums)[0] for sums in whole))
            pairs[index] += len(keys)
    spread = found.mean(axis=2)  # [languages, B]
    rows = {language: (points[i], spread[i], pairs[i]) for i, language in enumerate(languages)}
    rows["mean"] = (points.mean(axis=0), spread.mean(axis=0), sum(pairs))
    result = {}
    for name, (point, values, count) in rows.items():
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        result[name] = Interval(float(point.mean()), low, high, len(runs), count)
    return result


def common_keys(first: Sample, second: Sample) -> tuple[Any, ...]:
    """The pairs that both have, in the first one's order."""
    other = set(second.keys)
    return tuple(key for key in first.keys if key in other)
