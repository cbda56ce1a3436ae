"""From logits to the next token: greedy, temperature, top-k and nucleus sampling.

A draw inverts the cumulative distribution at one uniform number. The numbers of a row come from a generator of its own,
seeded by ``(seed, row id)`` alone, so an answer does not depend on what else is in the batch.
"""

# B rows, V vocabulary, N most tokens of an answer

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token (greedy), and the rest is ignored.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: of these keep the fewest whose probabilities sum to this share (nucleus sampling, Holtzman et al.,
            2020); 1 keeps all.
        seed: with the same seed the same prompt at the same place gives the same answer.

    Raises :class:`UserError` for values outside their ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}, expected 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}, expected 0 (all tokens) or a positive number of tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}, expected 0 to 2**63 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling()


def uniforms(seed: int, row_ids: Sequence[int], count: int) -> Tensor:
    """[B, count] float64 in [0, 1): row b depends on ``seed`` and ``row_ids[b]`` only, and not on ``count``."""
    rows = [np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, row]))).random(count) for row in row_ids]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, count, dtype=torch.float64)


def sample(logits: Tensor, sampling: Sampling, uniform: Tensor | None = None) -> Tensor:
    """Chooses one token a row.

    Args:
        logits: [B, V].
        uniform: [B] float64 in [0, 1), where the cumulative distribution is inverted; greedy needs none.

    Returns:
        [B] int64. Greedy takes the lowest of equally likely tokens.
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)  # [B]
    assert uniform is not None, "sampling needs uniform numbers"
    kept, ids = candidates(logits, sampling)  # [B, C] each
    cumulative = kept.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()  # [B, 1]
    place = torch.searchsorted(cumulative, uniform.to(kept.device)[:, None] * total, right=True)  # [B, 1]
    place = torch.minimum(place, torch.searchsorted(cumulative, total))  # rounding up must not step off the end
    return (place if ids is None else ids.gather(1, place))[:, 0]  # [B]


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Probabilities that a draw chooses from, after temperature, top-k and top-p.

    Returns:
        probabilities [B, C] float64, not renormalized, zero for what top-p drops, and the tokens' ids [B, C] int64 in
        falling order of probability; without top-k and top-p all V tokens in their own order, and None for the ids.
    """
    wide = logits.double()
    wide = (wide - wide.amax(dim=-1, keepdim=True)) / sampling.temperature  # no overflow at low temperatures
    few = 0 < sampling.top_k < wide.shape[-1]
    if not few and sampling.top_p == 1:
        return torch.softmax(wide, dim=-1), None
    if few:
        wide, ids = wide.topk(sampling.top_k, dim=-1)  # [B, k]
    else:
        wide, ids = wide.sort(dim=-1, descending=True, stable=True)  # [B, V]
    kept = torch.softmax(wide, dim=-1)
    before = kept.cumsum(dim=-1) - kept  # the share of the more likely ones; 0 for the first, which is always kept
    return kept.masked_fill(before >= sampling.top_p, 0.0) if sampling.top_p < 1 else kept, ids
