"""pass@k: the unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code"."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of ``k`` of the samples is correct: 1 − C(n − c, k) / C(n, k).

    Raises ``ValueError`` unless 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"need 0 <= correct <= samples and 1 <= k <= samples, got {correct=}, {samples=}, {k=}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_pass_at_k(groups: Sequence[tuple[int, int]], k: int) -> float:
    """The mean of :func:`pass_at_k` over tasks given as (samples, correct); tasks with fewer than k samples raise."""
    return math.fsum(pass_at_k(samples, correct, k) for samples, correct in groups) / len(groups)
