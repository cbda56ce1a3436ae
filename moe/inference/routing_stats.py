"""Which experts wrote an answer: shares of the gates, per answer and per layer."""

# B rows in the batch, S sequence, L layers with a router, E experts, K top-k

from __future__ import annotations

from collections.abc import Sequence

import torch

from moe.config import ModelConfig
from moe.inference.engine import Request
from moe.model import ModelOutput


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
        for layer, routing in enumerate(output.routing):
            gates = torch.zeros(len(requests), self.gates.shape[2], dtype=torch.float64)
            gates.scatter_add_(1, routing.expert_ids.cpu(), routing.gates.double().cpu())  # [B, E]
            self.gates[places, layer] += gates

    def shares(self, answer: int) -> list[float]:
        """[E] share of each expert in an answer, over all layers; they sum to 1."""
        return _normalized(self.gates[answer].sum(dim=0))

    def shares_by_layer(self, answer: int) -> list[list[float]]:
        """[L][E] share of each expert in an answer, for each of ``config.sparse_layers``."""
        return [_normalized(layer) for layer in self.gates[answer]]


def _normalized(gates: torch.Tensor) -> list[float]:
    return (gates / gates.sum().clamp_min(1e-300)).tolist()


def expert_names(config: ModelConfig) -> list[str]:
    """The experts' languages, or their numbers where they have none."""
    return list(config.expert_languages) or [f"expert {number}" for number in range(config.num_experts)]
