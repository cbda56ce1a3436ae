"""The router's start: logistic regression from what the router sees to the language of the document.

Run before training, on documents whose language is known. A softmax of the fitted logits is already calibrated, so the
gates need no temperature. Features are whitened first, which makes the problem well conditioned: L-BFGS takes seconds.
"""

# S tokens of a packed row, N sampled tokens, D model dim, E experts (one per language)

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.data.packing import Batch, MixedBatches
from moe.model import Transformer
from moe.router import RouterContext
from moe.training.config import RunConfig

TOKENS_PER_DOCUMENT = 32
MAX_FEATURE_BYTES = 2 << 30
SHRINKAGE = 1e-4  # of the features' second moment, relative to its mean
WEIGHT_PENALTY = 1e-4


def fit_routers(model: Transformer, batches: Sequence[Batch], held_out: int, seed: int = 0) -> list[float]:
    """Sets every router of ``model`` from language-labelled batches.

    Experts are forced by language while states are collected. Where the first sparse layer decides for all, the layers
    above it do not run.

    Args:
        batches: packed batches; token languages are the labels, expert i is language i.
        held_out: how many of the last batches only measure.

    Returns:
        for each router, in order, the share of held-out learned tokens that it sends to their language.
    """
    if not 0 < held_out < len(batches):
        raise ValueError(f"held_out is {held_out} of {len(batches)} batches; expected at least one of each kind")
    config = model.config
    layers = list(config.router_places)
    documents = sum(len(batch.documents) for batch in batches[:-held_out])
    wanted = MAX_FEATURE_BYTES // (4 * config.dim * len(layers) * max(1, documents))
    per_document = max(1, min(TOKENS_PER_DOCUMENT, wanted))
    generator = torch.Generator().manual_seed(seed)
    features: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    labels = []
    for batch in batches[:-held_out]:
        chosen = _sample(batch.documents, per_document, generator).to(model.device)  # [N]
        labels.append(batch.languages.to(model.device)[chosen])
        for layer, states in _router_inputs(model, batch, layers).items():
            features[layer].append(states[chosen])
    y = torch.cat(labels)
    weights = {layer: _logistic(torch.cat(parts), y, config.num_experts) for layer, parts in features.items()}
    right, total = dict.fromkeys(layers, 0), 0
    for batch in batches[-held_out:]:
        batch = batch.to(model.device)
        total += len(batch.positions)
        for layer, states in _router_inputs(model, batch, layers).items():
            found = (states[batch.positions] @ weights[layer].T).argmax(-1)
            right[layer] += int((found == batch.languages[batch.positions]).sum())
    with torch.no_grad():
        for layer, weight in weights.items():
            model.get_parameter(f"layers.{layer}.feed_forward.gate.weight").copy_(weight)
    return [right[layer] / total for layer in layers]


HELD_OUT_BATCHES = 8


def fit_router(model: Transformer, batches: MixedBatches, first: int, config: RunConfig) -> list[float]:
    """:func:`fit_routers` on ``router_documents`` documents in the batches from ``first`` on."""
    chosen: list[Batch] = []
    documents = 0
    while documents < config.router_documents:
        chosen.append(batches[first + len(chosen)])
        documents += len(chosen[-1].documents)
    chosen += [batches[first + len(chosen) + i] for i in range(HELD_OUT_BATCHES)]
    return fit_routers(model, chosen, HELD_OUT_BATCHES, config.seed)


def _sample(documents: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` places of each document in the packed row."""
    places, start = [], 0
    for length in documents:
        places.append(start + torch.randperm(length, generator=generator)[:count])
        start += length
    return torch.cat(places)


@torch.no_grad()
def _router_inputs(model: Transformer, batch: Batch, layers: Sequence[int]) -> dict[int, Tensor]:
    """What the router of each layer decides by, [S, D] float32: token states, or their running means."""
    batch = batch.to(model.device)
    found: dict[int, Tensor] = {}
    context = None
    if model.config.router_context != "none":
        context = RouterContext(model.config, (1, batch.tokens.shape[1]), model.device, batch.documents)

    def observe(layer: int, x: Tensor) -> None:
        if layer in layers:
            states = x[0].float()  # [S, D]
            found[layer] = states if context is None else context.mean(states)

    model(
        batch.tokens,
        documents=batch.documents,
        forced_experts=batch.languages,
        observer=observe,
        logits=False,
        depth=max(layers) + 1,
    )
    return found


def _logistic(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Multinomial logistic regression without intercept: x [N, D], y [N] int64 -> [E, D] float32."""
    x = x.double()
    moment = x.T @ x / len(x)  # [D, D]
    moment.diagonal().add_(SHRINKAGE * moment.diagonal().mean())
    factor = torch.linalg.cholesky(moment)
    white = torch.linalg.solve_triangular(factor, x.T, upper=False).T  # [N, D]
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(white @ weight.T, y) + WEIGHT_PENALTY * weight.pow(2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return torch.linalg.solve_triangular(factor.T, weight.detach().T, upper=True).T.float()
