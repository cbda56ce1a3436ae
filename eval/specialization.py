"""How much experts specialise in languages: routing tables and mutual information."""

# G languages, L layers, E experts, S tokens, K top-k

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

    Pass it as ``on_output`` to :func:`eval.perplexity.held_out_loss`. A second table has the same slots with every
    example's language drawn anew: the mutual information that chance alone gives with this much data.
    """

    def __init__(self, languages: int, layers: int, experts: int, seed: int = 0):
        self.counts = torch.zeros(layers, languages, experts, dtype=torch.float64)
        self.shuffled = torch.zeros_like(self.counts)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: Batch, output: ModelOutput) -> None:
        languages, experts = self.counts.shape[1:]
        lengths = torch.tensor(batch.documents)
        drawn = torch.randint(0, languages, (len(batch.documents),), generator=self._generator)
        random_labels = torch.repeat_interleave(drawn, lengths)  # [S]
        positions = batch.positions.cpu()
        for layer, routing in enumerate(output.routing):
            chosen = routing.expert_ids.cpu()[positions]  # [N, K]
            for table, labels in ((self.counts, batch.languages.cpu()), (self.shuffled, random_labels)):
                slots = labels[positions][:, None] * experts + chosen
                table[layer] += torch.bincount(slots.flatten(), minlength=languages * experts).view(languages, experts)

    def specialization(self) -> Specialization:
        """The result once everything is counted."""
        table = self.counts.sum(dim=0)
        return Specialization(
            table=(table / table.sum(dim=1, keepdim=True).clamp_min(1)).tolist(),
            information=[mutual_information(layer) for layer in self.counts],
            shuffled=[mutual_information(layer) for layer in self.shuffled],
        )


@dataclass(frozen=True)
class Specialization:
    """What :class:`RoutingCounter` counted.

    Attributes:
        table: [G][E] share of each language's slots that went to each expert, over all layers.
        information: [L] I(language; expert) in bits, per layer; at most log2(min(G, E)).
        shuffled: [L] the same with shuffled language labels.
    """

    table: list[list[float]]
    information: list[float]
    shuffled: list[float]
