"""Training losses: next-token cross-entropy on chosen positions, load balancing, router z-loss."""

# T tokens, N scored positions, D model dim, V vocabulary, E experts, K top-k

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_losses(hidden: Tensor, output_weight: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """Cross-entropy of each scored position, without ever holding all logits.

    Chunks are recomputed in the backward pass, so memory is ``chunk * V`` logits instead of ``N * V``.

    Args:
        hidden: [N, D] final hidden states of the positions that predict ``targets``.
        output_weight: [V, D].
        targets: [N] int64.

    Returns:
        [N] float32 losses in nats (float64 for float64 inputs).
    """

    def chunk_losses(states: Tensor, wanted: Tensor) -> Tensor:
        logits = F.linear(states, output_weight)  # [chunk, V]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, wanted, reduction="none")

    recompute = torch.is_grad_enabled() and hidden.shape[0] > chunk
    parts = []
    for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if recompute:
            parts.append(checkpoint(chunk_losses, states, wanted, use_reentrant=False))
        else:
            parts.append(chunk_losses(states, wanted))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def expert_counts(expert_ids: Tensor, num_experts: int, weight: Tensor | None = None) -> Tensor:
    """[E] float32: how many of the slots expert_ids [T, K] chose each expert, tokens weighted by ``weight`` [T]."""
    slots = None if weight is None else weight.float()[:, None].expand_as(expert_ids).reshape(-1)
    return torch.bincount(expert_ids.reshape(-1), weights=slots, minlength=num_experts).float()


def balance_loss(router_logits: Tensor, fractions: Tensor, weight: Tensor | None = None) -> Tensor:
    """Load-balancing loss of one layer, ``E * sum_e f_e P_e`` (Fedus et al., 2021): 1 when balanced, E when collapsed.

    ``f`` may be counted over more tokens than these (a whole accumulated batch): its gradient is zero anyway, and
    balance inside one small single-language batch would forbid language experts.

    Args:
        router_logits: [T, E].
        fractions: [E] float32, the share of slots sent to each expert; sums to 1.
        weight: [T], 0 for padding.

    Returns:
        a float32 scalar.
    """
    probabilities = torch.softmax(router_logits.float(), dim=-1)  # [T, E]
    if weight is None:
        mean = probabilities.mean(dim=0)  # [E]
    else:
        mean = (probabilities * weight.float()[:, None]).sum(dim=0) / weight.float().sum().clamp_min(1.0)
    return fractions.shape[0] * (fractions.to(mean.device) * mean).sum()


def z_loss(router_logits: Tensor) -> Tensor:
    """Router z-loss ``mean(logsumexp(logits)^2)`` (ST-MoE, Zoph et al., 2022): keeps router logits small."""
    return torch.logsumexp(router_logits.float(), dim=-1).pow(2).mean()
