"""The router's start: ridge regression from hidden states to languages (DUME, 2025), then one temperature a layer.

The closed form is ``W = (X'X + lambda I)^-1 X'Y``. Its outputs are near 0 and 1, which a softmax would turn into
almost equal gates, so each layer's weights are scaled by the temperature (Guo et al., 2017) that makes the language
labels most likely.
"""

# S tokens of a packed row, D model dim, E experts (one per language), L layers with a router

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.data.packing import Batch
from moe.model import Transformer

SCALES = tuple(2.0 ** (i / 2) for i in range(13))  # 1 to 64


@torch.no_grad()
def ridge_routers(model: Transformer, batches: Sequence[Batch], ridge: float = 0.01) -> list[float]:
    """Fits every router to language-labeled batches; returns the accuracy of each, in order of layers.

    The last batch is held out to choose the temperature and measure the accuracy. Experts are forced by language while
    hidden states are collected, as in the branch stage.

    Args:
        batches: at least two packed batches; token languages are the labels, expert i is language i.
        ridge: penalty relative to the mean squared hidden state.
    """
    if len(batches) < 2:
        raise ValueError(f"the router's start needs at least 2 batches, got {len(batches)}")
    dim, experts = model.config.dim, model.config.num_experts
    places = {layer: place for place, layer in enumerate(model.config.sparse_layers)}
    gram = torch.zeros(len(places), dim, dim, dtype=torch.float32, device=model.device)  # [L, D, D]
    cross = torch.zeros(len(places), dim, experts, dtype=torch.float32, device=model.device)  # [L, D, E]
    held: dict[int, Tensor] = {}
    for index, batch in enumerate(batches):
        batch = batch.to(model.device)
        labels = F.one_hot(batch.languages, experts).float()  # [S, E]
        last = index == len(batches) - 1

        def observe(layer: int, x: Tensor, labels: Tensor = labels, last: bool = last) -> None:
            if layer not in places:
                return
            states = x[0].float()  # [S, D]
            if last:
                held[layer] = states
            else:
                gram[places[layer]].addmm_(states.T, states)
                cross[places[layer]].addmm_(states.T, labels)

        model(batch.tokens, documents=batch.documents, forced_experts=batch.languages, observer=observe, logits=False)
    labels = batches[-1].languages.to(model.device)
    accuracies = []
    for layer, place in places.items():
        moment = gram[place].double()
        penalty = ridge * moment.diagonal().mean()
        system = moment + penalty * torch.eye(dim, dtype=torch.float64, device=moment.device)
        weight = torch.linalg.solve(system, cross[place].double()).T.float()  # [E, D]
        logits = held[layer] @ weight.T  # [S, E]
        losses = [F.cross_entropy(logits * scale, labels).item() for scale in SCALES]
        scale = SCALES[min(range(len(SCALES)), key=losses.__getitem__)]
        model.get_parameter(f"layers.{layer}.feed_forward.gate.weight").copy_(weight * scale)
        accuracies.append((logits.argmax(-1) == labels).float().mean().item())
    return accuracies
