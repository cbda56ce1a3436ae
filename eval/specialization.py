"""How much experts specialize in languages: routing tables and mutual information."""

# G languages, L layers with a router, E experts, S tokens, K top-k

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe.data.packing import Batch
from moe.model import ModelOutput


def mutual_information(counts: Tensor) -> float:
    """I(row; column) in bits of a contingency table of counts [G, E], rows weighed equally (each language the same)."""
    rows = counts.double() / counts.double().sum(dim=1, keepdim=True).clamp_min(1e-12)  # p(expert | language)
    joint = rows / rows.shape[0]
    marginal = joint.sum(dim=0, keepdim=True)  # [1, E]
    ratio = joint / (marginal / rows.shape[0]).clamp_min(1e-300)
    return float((joint * ratio.clamp_min(1e-300).log2())[joint > 0].sum())


class RoutingCounter:
    """Counts which experts the response tokens of each language visit, layer by layer.

    Pass it as ``on_output`` to :func:`moe.training.held_out_loss.held_out_loss`. It keeps a table of gate weight per
    expert, one of first choices, and one of first choices with a random language per example: the mutual information of
    the last is what chance alone gives with this much data.
    """

    def __init__(self, languages: int, layers: int, experts: int, seed: int = 0):
        self.weights = torch.zeros(layers, languages, experts, dtype=torch.float64)
        self.first = torch.zeros_like(self.weights)
        self.shuffled = torch.zeros_like(self.weights)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: Batch, output: ModelOutput) -> None:
        languages, experts = self.first.shape[1:]
        lengths = torch.tensor(batch.documents)
        drawn = torch.randint(0, languages, (len(batch.documents),), generator=self._generator)
        positions = batch.positions.cpu()
        labels = batch.languages.cpu()[positions]  # [N]
        random_labels = torch.repeat_interleave(drawn, lengths)[positions]  # [N]
        for layer, routing in enumerate(output.routing):
            chosen, gates = routing.expert_ids.cpu()[positions], routing.gates.cpu()[positions].double()  # [N, K]
            self.weights[layer] += _count(labels, chosen, gates, languages, experts)
            ones = torch.ones_like(gates[:, :1])
            self.first[layer] += _count(labels, chosen[:, :1], ones, languages, experts)
            self.shuffled[layer] += _count(random_labels, chosen[:, :1], ones, languages, experts)

    def specialization(self) -> Specialization:
        """The result once everything is counted."""
        table = self.weights.sum(dim=0)
        return Specialization(
            table=_shares(table).tolist(),
            layers=[_shares(layer).tolist() for layer in self.weights],
            information=[mutual_information(layer) for layer in self.first],
            shuffled=[mutual_information(layer) for layer in self.shuffled],
        )


def _shares(weights: Tensor) -> Tensor:
    """[G, E] of gate weight -> the share of each row that each expert has."""
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)


def _count(labels: Tensor, chosen: Tensor, weights: Tensor, languages: int, experts: int) -> Tensor:
    """[G, E] weight of each (language, expert): labels [N], chosen and weights [N, K]."""
    slots = labels[:, None] * experts + chosen  # [N, K]
    counts = torch.bincount(slots.flatten(), weights=weights.flatten(), minlength=languages * experts)
    return counts.view(languages, experts)


@dataclass(frozen=True)
class Specialization:
    """Result of :class:`RoutingCounter`.

    Attributes:
        table: [G][E] share of each language's gate weight that each expert has, over all layers.
        layers: [L][G][E] the same for each layer.
        information: [L] I(language; first-choice expert) in bits, per layer; at most log2(min(G, E)).
        shuffled: [L] the same with shuffled language labels.
    """

    table: list[list[float]]
    layers: list[list[list[float]]]
    information: list[float]
    shuffled: list[float]
