"""Top-k routing, and what its auxiliary losses are computed from."""

# T = B*S tokens, E experts, K top-k

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """The decision of one layer's router.

    Attributes:
        router_logits: [T, E] in the model's dtype; None where the experts were forced.
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
    rest = gates[:, 1:]
    # The best expert's gate is 1 minus the others, so that the gates sum to 1 to the last bit.
    return torch.cat((1.0 - rest.sum(dim=-1, keepdim=True), rest), dim=-1), expert_ids


def force_experts(expert_ids: Tensor) -> Routing:
    """Sends each token to one given expert with gate 1: expert_ids [T] int64."""
    gates = torch.ones(expert_ids.shape[0], 1, dtype=torch.float32, device=expert_ids.device)  # [T, 1]
    return Routing(None, gates, expert_ids[:, None])
