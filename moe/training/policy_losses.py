"""Losses of learning from answers, on log-probabilities in nats; both hold the model at the policy that it started as.

The direct preference loss is that of Rafailov et al. (2023); the clipped loss and its advantages are GRPO's (Shao et
al., 2024), in which each token weighs the same (DAPO, Yu et al., 2025).
"""

# P pairs, N tokens of answers, M tasks, G answers to a task

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def preference_losses(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """[P] ``-log sigmoid(beta * margin)``: how far the chosen answer has gained over the rejected one.

    Args:
        policy, reference: [P, 2] log-probabilities of the chosen and the rejected answer.
    """
    return -F.logsigmoid(beta * margins(policy, reference))


def margins(policy: Tensor, reference: Tensor) -> Tensor:
    """[P] by how much more the chosen answer's log-probability has risen since the start than the rejected one's."""
    gains = policy - reference
    return gains[:, 0] - gains[:, 1]


def clipped_losses(policy: Tensor, sampled: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """[N] ``-min(r A, clip(r, 1 - c, 1 + c) A)`` of each token, with ``r`` its probability now over that when sampled.

    Args:
        policy, sampled: [N] log-probabilities.
        advantages: [N] of the answer that each token is of.
    """
    ratio = (policy - sampled).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def divergence(policy: Tensor, reference: Tensor) -> Tensor:
    """[N] estimate of KL(policy, reference) from sampled tokens: ``e^d - d - 1``, never negative (Schulman, 2020)."""
    difference = reference - policy
    return difference.expm1() - difference


def group_advantages(rewards: Tensor) -> Tensor:
    """[M, G] rewards in standard deviations above the mean of their group; 0 in a group of equal rewards."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
