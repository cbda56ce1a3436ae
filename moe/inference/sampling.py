"""From logits to the next token: repetition penalty, greedy, temperature, top-k, nucleus and min-p sampling.

A draw inverts the cumulative distribution at one uniform number. The numbers of a row come from a generator of its own,
seeded by ``(seed, row id)`` alone, so an answer does not depend on what else is in the batch.
"""

# B rows, V vocabulary, C candidates

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
        min_p: and of these those at least this share as likely as the most likely one (Nguyen et al., 2024); 0 keeps
            all.
        repetition_penalty: logits of tokens that prompt or answer contain are divided by it where they are positive,
            else multiplied (Keskar et al., 2019); 1 changes nothing. It also applies to greedy choices.
        seed: with the same seed the same prompt at the same place gives the same answer.

    Raises :class:`UserError` for values outside their ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}, expected 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}, expected 0 (all tokens) or a positive number of tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}, expected 0 (all tokens) to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty is {self.repetition_penalty}, expected a positive number (1: none)")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}, expected 0 to 2**63 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def filters(self) -> tuple[float, int, float, float]:
        """What :func:`sample` looks at; rows that agree in it are drawn together."""
        return (0.0, 0, 1.0, 0.0) if self.greedy else (self.temperature, self.top_k, self.top_p, self.min_p)


GREEDY = Sampling()


def number_stream(seed: int, row_id: int) -> np.random.Generator:
    """The uniform numbers of an answer: those of ``seed`` and ``row_id``, whatever else is in the batch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, row_id])))


def choose(
    logits: Tensor, samplings: Sequence[Sampling], numbers: Sequence[float], texts: Sequence[Sequence[int]]
) -> list[int]:
    """The next token of each row, each with its own settings.

    Args:
        logits: [B, V].
        numbers: [B] uniform numbers for the rows that draw.
        texts: prompt and answer so far of each row, for the repetition penalty.
    """
    if any(sampling.repetition_penalty != 1 for sampling in samplings):
        logits = torch.stack([penalized(*row) for row in zip(logits, samplings, texts)])
    rows_of: dict[tuple[float, int, float, float], list[int]] = {}
    for row, sampling in enumerate(samplings):
        rows_of.setdefault(sampling.filters, []).append(row)
    uniform = torch.tensor(numbers, dtype=torch.float64)
    if len(rows_of) == 1:
        return sample(logits, samplings[0], uniform).tolist()
    chosen = torch.empty(len(samplings), dtype=torch.int64, device=logits.device)
    for rows in rows_of.values():
        chosen[rows] = sample(logits[rows], samplings[rows[0]], uniform[rows])
    return chosen.tolist()


def penalized(logits: Tensor, sampling: Sampling, text: Sequence[int]) -> Tensor:
    """Logits [V] of a row after the repetition penalty."""
    if sampling.repetition_penalty == 1:
        return logits
    seen = torch.tensor(sorted(set(text)), device=logits.device)
    values, penalty, most = logits[seen].double(), sampling.repetition_penalty, torch.finfo(logits.dtype).max
    changed = torch.where(values < 0, values * penalty, values / penalty).clamp(-most, most)  # no draw from infinity
    return logits.index_copy(0, seen, changed.to(logits.dtype))


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
    """Probabilities that a draw chooses from, after temperature, top-k, top-p and min-p.

    Returns:
        probabilities [B, C] float64, not renormalized, zero for what top-p and min-p drop, and the tokens' ids [B, C]
        int64 in falling order of probability; without top-k and top-p all V tokens in their own order, and None for
        the ids.
    """
    wide = logits.double()
    wide = (wide - wide.amax(dim=-1, keepdim=True)) / sampling.temperature  # no overflow at low temperatures
    few = 0 < sampling.top_k < wide.shape[-1]
    if not few and sampling.top_p == 1:
        kept = torch.softmax(wide, dim=-1)
        return kept.masked_fill(kept < sampling.min_p * kept.amax(-1, keepdim=True), 0.0), None
    if few:
        wide, ids = wide.topk(sampling.top_k, dim=-1)  # [B, k]
    else:
        wide, ids = wide.sort(dim=-1, descending=True, stable=True)  # [B, V]
    kept = torch.softmax(wide, dim=-1)
    before = kept.cumsum(dim=-1) - kept  # the share of the more likely ones; 0 for the first, which is always kept
    if sampling.top_p < 1:
        kept = kept.masked_fill(before >= sampling.top_p, 0.0)
    return kept.masked_fill(kept < sampling.min_p * kept[:, :1], 0.0), ids
