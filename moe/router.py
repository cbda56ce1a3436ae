"""Top-k routing, by a token's own state or by its document so far.

A single token rarely says which language it belongs to (a bracket is a bracket); the tokens before it nearly always do.
So a router may decide by the causal running mean of its logits over the document, or by a Bayes filter: the logits of
each token are evidence, and at every token the language may change with a small probability. A filter knows the
language as surely as a mean does and follows a change within a few tokens, since one telling token outweighs many mute
ones. Both keep the shape of Mixtral's weights, and each token still gets a decision of its own.
"""

# B rows, S positions, T = B*S tokens, N documents, D model dim, E experts, K top-k

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe.cache import Prompts, Step
from moe.config import ModelConfig

BLOCK = 64  # positions summed by one small triangular product
FILTER_BLOCK = 32  # positions that the Bayes filter passes in sequence; blocks of them run side by side


@dataclass(frozen=True)
class Routing:
    """The decision of one layer's router.

    Attributes:
        router_logits: [T, E] the decision was made by (of the document so far where the router sees context); None
            where the experts were forced.
        gates: [T, K] float32 (float64 in a float64 model), each row sums to 1.
        expert_ids: [T, K] int64.
    """

    router_logits: Tensor | None
    gates: Tensor
    expert_ids: Tensor


def select_top_k(router_logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Chooses the ``k`` experts with the largest logits and weighs them by a softmax over these.

    Softmax over all experts, selection and renormalization is the same function as a softmax over the selected logits;
    this order rounds as Mixtral's released code does. Gates are float32 in narrower models, too (float64 in float64
    ones), so that identical experts reproduce the dense feed-forward.

    Args:
        router_logits: [T, E].

    Returns:
        gates [T, K] float32 (float64 for float64 logits) and expert_ids [T, K] int64, best first.
    """
    wide = torch.promote_types(router_logits.dtype, torch.float32)
    probabilities = torch.softmax(router_logits.to(wide), dim=-1)  # [T, E]
    gates, expert_ids = torch.topk(probabilities, k, dim=-1)  # [T, K]
    gates = gates / gates.sum(dim=-1, keepdim=True)
    if k == 1:  # a constant: no gradient
        return torch.ones_like(gates), expert_ids
    rest = gates[:, 1:]
    # The best expert's gate is 1 minus the others, so that the gates sum to 1 to the last bit.
    return torch.cat((1.0 - rest.sum(dim=-1, keepdim=True), rest), dim=-1), expert_ids


def force_experts(expert_ids: Tensor) -> Routing:
    """Sends each token to one given expert with gate 1: expert_ids [T] int64."""
    gates = torch.ones(expert_ids.shape[0], 1, dtype=torch.float32, device=expert_ids.device)  # [T, 1]
    return Routing(None, gates, expert_ids[:, None])


def running_sum(x: Tensor, decay: float, before: Tensor | None = None) -> Tensor:
    """``y[t] = decay * y[t - 1] + x[t]`` along dimension 1, starting from ``before``, without a loop over positions.

    Inside blocks of :data:`BLOCK` positions it is one triangular product, between blocks another.

    Args:
        x: [N, S, E]. Sums are float64 whatever its dtype, so that neither the batch nor the chunks in which a prompt is
            read move a decision.
        before: [N, E], the sum of earlier positions; None: 0.

    Returns:
        [N, S, E] float64.
    """
    rows, length, width = x.shape
    if length == 1:
        return x.double() if before is None else x.double() + decay * before[:, None]
    blocks = -(-length // BLOCK)
    x = torch.nn.functional.pad(x.double(), (0, 0, 0, blocks * BLOCK - length)).view(rows, blocks, BLOCK, width)
    inside = torch.arange(BLOCK, device=x.device)
    inner = _decays(inside[:, None] - inside, decay) @ x  # [N, blocks, BLOCK, E]
    outside = torch.arange(blocks, device=x.device)
    totals = inner[:, :, -1]  # [N, blocks, E]
    carried = _decays(BLOCK * (outside[:, None] - outside - 1), decay) @ totals  # what the blocks before leave
    if before is not None:
        carried = carried + _decays(BLOCK * outside, decay)[:, None] * before[:, None]
    whole = inner + _decays(inside + 1, decay)[:, None] * carried[:, :, None]
    return whole.view(rows, -1, width)[:, :length]


def filter_beliefs(logits: Tensor, keep: float, before: Tensor | None = None) -> Tensor:
    """The forward filter of a hidden Markov model whose state is the document's expert.

    ``p[t] ~ (keep * p[t - 1] + (1 - keep) / E) * softmax(logits[t])``, starting from the uniform belief.

    The recursion is linear up to scale, so each block runs from all E starts at once, side by side with the others, and
    a loop over blocks puts them together.

    Args:
        logits: [N, S, E].
        keep: probability that a token belongs to the expert of the token before for that reason alone.
        before: [N, E] log beliefs after the earlier positions, up to a constant; None: uniform.

    Returns:
        [N, S, E] float64 log beliefs; their exponentials sum to 1.
    """
    rows, length, width = logits.shape
    if length == 1:  # a step of decoding: the definition
        belief = (
            logits.new_full((rows, width), 1.0 / width, dtype=torch.float64) if before is None else before.softmax(-1)
        )
        belief = (keep * belief + (1.0 - keep) / width)[:, None] * logits.double().softmax(-1)
        return (belief / belief.sum(-1, keepdim=True)).log()
    block = min(length, FILTER_BLOCK)
    blocks = -(-length // block)
    padded = torch.nn.functional.pad(logits.double(), (0, 0, 0, blocks * block - length))
    evidence = padded.softmax(-1).view(rows, blocks, block, 1, width)
    state = torch.eye(width, dtype=torch.float64, device=logits.device).expand(rows, blocks, width, width)
    states = []
    for t in range(block):
        state = (keep * state + (1.0 - keep) / width * state.sum(-1, keepdim=True)) * evidence[:, :, t]
        state = state / state.amax((-1, -2), keepdim=True)  # only the scale; nothing underflows
        states.append(state)
    belief = padded.new_full((rows, width), 1.0 / width) if before is None else before.softmax(-1)
    starts = []
    for b in range(blocks):
        starts.append(belief)
        belief = (belief[:, None] @ state[:, b])[:, 0]  # [N, E]
        belief = belief / belief.sum(-1, keepdim=True)
    beliefs = torch.stack(starts, 1)[:, :, None, None] @ torch.stack(states, 2)  # [N, blocks, block, 1, E]
    beliefs = beliefs.view(rows, -1, width)[:, :length]
    return (beliefs / beliefs.sum(-1, keepdim=True)).log()


def _decays(ages: Tensor, decay: float) -> Tensor:
    """``decay ** age``, and 0 for what lies in the future (a negative age)."""
    powers = torch.full_like(ages, decay, dtype=torch.float64) ** ages.clamp_min(0)
    return torch.where(ages >= 0, powers, 0.0)


class RouterContext:
    """What routers remember of each document, for one forward pass.

    Args:
        config: ``router_context`` and ``router_half_life``.
        shape: (B, S) of the pass.
        documents: lengths of documents packed in one row (B = 1); None: each row is one document.
        cache: the pass over a cache, which knows sums or beliefs of earlier tokens and takes those of these.
    """

    def __init__(
        self,
        config: ModelConfig,
        shape: tuple[int, int],
        device: torch.device,
        documents: Sequence[int] | None = None,
        cache: Step | Prompts | None = None,
    ):
        self.filters = config.router_context == "filter"
        self.decay = 1.0 if config.router_context == "mean" else 0.5 ** (1.0 / config.router_half_life)
        self.shape, self.cache = shape, cache
        self.index: Tensor | None = None
        batch, length = shape
        if documents is not None:
            # Row and column [S] of each token in a table of documents, and its inverse [N, longest].
            self.row = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(documents)])
            self.column = torch.cat([torch.arange(n, device=device) for n in documents])
            self.index = torch.zeros(len(documents), max(documents), dtype=torch.int64, device=device)
            self.index[self.row, self.column] = torch.arange(length, device=device)
            self.ends = torch.cat([torch.full((1,), n - 1, device=device) for n in documents])  # [N]
            counted = self.column + 1
        elif isinstance(cache, Step):
            counted = (cache.positions + 1).view(-1)
        else:
            counted = (torch.arange(length, device=device) + 1).expand(batch, length).reshape(-1)
        counted = counted.double()
        if self.decay < 1.0:
            counted = (1.0 - self.decay**counted) / (1.0 - self.decay)
        self.weight = counted[:, None]  # [T, 1]

    def decide(self, values: Tensor, slot: int = 0) -> Tensor:
        """The router logits [T, E] that token logits values [T, E] give after each token's document so far.

        Means of the values, or log beliefs shifted so that their logsumexp is that of the token's own logits, which is
        what the z-loss holds down. ``slot`` is the router's place in the cache.
        """
        table = values.view(*self.shape, -1) if self.index is None else values[self.index]  # [B, S or longest, E]
        before = self.cache.recall(slot) if isinstance(self.cache, Step) else None
        states = (filter_beliefs if self.filters else running_sum)(table, self.decay, before)
        if isinstance(self.cache, Step):
            self.cache.remember(slot, states)
        elif self.cache is not None:
            self.cache.remember(slot, states[torch.arange(len(self.ends), device=states.device), self.ends])
        states = states[self.row, self.column] if self.index is not None else states.reshape(values.shape)
        if self.filters:
            return (states + values.double().logsumexp(-1, keepdim=True)).to(values.dtype)
        return (states / self.weight).to(values.dtype)
