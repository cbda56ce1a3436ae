"""Which experts wrote an answer: shares of the gates, per answer and per layer."""

# B rows in the batch, S sequence, L layers with a router, E experts, K top-k

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moe.config import ModelConfig
from moe.inference.engine import Request
from moe.inference.expert_choice import expert_names
from moe.model import ModelOutput
from moe.router import Routing


class RoutingShares:
    """Sums, for each answer, the gates of each expert over the answer's tokens.

    Pass it as ``on_output`` to an :class:`~moe.inference.engine.Engine` whose requests have the answer's number as key.
    A token counts at the position that predicted it, the one before it, so of the prompt only the last token counts.

    Args:
        answers: how many prompts there are.
    """

    def __init__(self, config: ModelConfig, answers: int):
        self.config = config
        self.gates = torch.zeros(answers, len(config.sparse_layers), config.num_experts, dtype=torch.float64)

    def __call__(self, requests: Sequence[Request], output: ModelOutput) -> None:
        places = torch.tensor([request.key for request in requests])
        self.gates[places] += dense_gates(output.routing, self.config.num_experts)

    def clear(self, answer: int) -> None:
        """Forgets an answer, so that another can have its number."""
        self.gates[answer] = 0.0

    def shares(self, answer: int) -> list[float]:
        """[E] share of each expert in an answer, over all layers; they sum to 1."""
        return _normalized(self.gates[answer].sum(dim=0))

    def shares_by_layer(self, answer: int) -> list[list[float]]:
        """[L][E] share of each expert in an answer, for each of ``config.sparse_layers``."""
        return [_normalized(layer) for layer in self.gates[answer]]


def dense_gates(routing: Sequence[Routing], experts: int) -> torch.Tensor:
    """[T, L, E] float64 gates of T tokens in all layers, 0 where an expert was not chosen; on the CPU."""
    ids = torch.stack([layer.expert_ids for layer in routing], 1).cpu()  # [T, L, K]
    gates = torch.stack([layer.gates for layer in routing], 1).cpu().double()
    return torch.zeros(*ids.shape[:2], experts, dtype=torch.float64).scatter_add_(2, ids, gates)


def _normalized(gates: torch.Tensor) -> list[float]:
    return (gates / gates.sum().clamp_min(1e-300)).tolist()


def routing_of(shares: RoutingShares, answer: int) -> dict[str, Any]:
    """What the router decided in an answer: the expert with the largest share of the gates, and all shares."""
    by_name = {name: round(x, 4) for name, x in zip(expert_names(shares.config), shares.shares(answer))}
    return {"expert": max(by_name, key=by_name.__getitem__), "shares": by_name}
