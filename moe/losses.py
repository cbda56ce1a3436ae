"""Training losses: next-token cross-entropy on chosen positions, load balancing, router z-loss."""

# T tokens, N scored positions, D model dim, V vocabulary, E experts, K top-k

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def token_losses(hidden: Tensor, output_weight: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """Cross-entropy of each scored position, without materializing all logits.

    Holds ``chunk * V`` logits instead of ``N * V``. If the output projection is frozen, a chunk's gradient is computed
    while its logits are at hand; if it is trained, chunks are recomputed in the backward pass.

    Args:
        hidden: [N, D] final hidden states of the positions that predict ``targets``.
        output_weight: [V, D].
        targets: [N] int64.

    Returns:
        [N] float32 losses in nats (float64 for float64 inputs).
    """
    if torch.is_grad_enabled() and hidden.requires_grad and not output_weight.requires_grad:
        return _FrozenHeadLosses.apply(hidden, output_weight, targets, chunk)

    def chunk_losses(states: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(_wide(F.linear(states, output_weight)), wanted, reduction="none")

    recompute = torch.is_grad_enabled() and hidden.shape[0] > chunk
    parts = []
    for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if recompute:
            parts.append(checkpoint(chunk_losses, states, wanted, use_reentrant=False))
        else:
            parts.append(chunk_losses(states, wanted))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _FrozenHeadLosses(torch.autograd.Function):
    """Losses and, in the same pass, ``d loss_i / d hidden_i = (softmax_i - onehot_i) W`` for each position i."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        losses = torch.empty(hidden.shape[0], dtype=_wide(hidden[:0]).dtype, device=hidden.device)  # [N]
        slopes = torch.empty_like(hidden)  # [N, D]
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            wanted = targets[rows, None]  # [chunk, 1]
            logits = _wide(F.linear(hidden[rows], weight))  # [chunk, V]
            normalizer = logits.logsumexp(dim=-1, keepdim=True)  # [chunk, 1]
            losses[rows] = (normalizer - logits.gather(1, wanted)).squeeze(1)
            probabilities = logits.sub_(normalizer).exp_()
            probabilities.scatter_add_(1, wanted, -torch.ones_like(normalizer))
            torch.mm(probabilities.to(weight.dtype), weight, out=slopes[rows])
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (slopes,) = ctx.saved_tensors
        return (slopes * gradient[:, None]).to(slopes.dtype), None, None, None


def expert_counts(expert_ids: Tensor, num_experts: int) -> Tensor:
    """[E] float32: how many of the slots expert_ids [T, K] chose each expert."""
    slots = expert_ids.reshape(-1)
    counts = torch.zeros(num_experts, device=slots.device)
    return counts.index_add_(0, slots, torch.ones_like(slots, dtype=counts.dtype))  # bincount would wait for a GPU


def balance_loss(router_logits: Tensor, fractions: Tensor) -> Tensor:
    """Load-balancing loss of one layer, ``E * sum_e f_e P_e`` (Fedus et al., 2021): 1 when balanced, E when collapsed.

    ``f`` may be counted over more tokens than these (a whole accumulated batch): its gradient is zero anyway, and
    balance inside one small single-language batch would forbid language experts.

    Args:
        router_logits: [T, E].
        fractions: [E] float32, the share of slots sent to each expert; sums to 1.

    Returns:
        a float32 scalar.
    """
    mean = torch.softmax(router_logits.float(), dim=-1).mean(dim=0)  # [E]
    return fractions.shape[0] * (fractions * mean).sum()


def z_loss(router_logits: Tensor) -> Tensor:
    """Router z-loss ``mean(logsumexp(logits)^2)`` (ST-MoE, Zoph et al., 2022): keeps router logits small."""
    return torch.logsumexp(router_logits.float(), dim=-1).pow(2).mean()
