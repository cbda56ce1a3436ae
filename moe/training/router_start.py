"""The router's start: logistic regression from what the router sees to the language of the document.

Run before training, on documents whose language is known. Filters also read documents of two languages, as a chat or a
web page may be, and learn to follow the change. A softmax of the fitted logits is already
calibrated, so the gates need no temperature. Features are whitened first, which makes the problem well conditioned:
L-BFGS takes seconds.
"""

# S tokens of a packed row, N tokens that are fitted on, D model dim, E experts (one per language)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.data.packing import Batch, MixedBatches
from moe.model import Transformer
from moe.router import RouterContext
from moe.training.config import RunConfig

TOKENS_PER_DOCUMENT = 32  # drawn at random
JOINED = 3  # one in so many batches is read as documents of two examples each
FILTER_TOKENS = 512  # the first of each document: a filter is fitted on whole sequences
MAX_FEATURE_BYTES = 2 << 30
SHRINKAGE = 1e-4  # of the features' second moment, relative to its mean
WEIGHT_PENALTY = 1e-4
HELD_OUT_BATCHES = 8
ADDED_ROW, OLD_WEIGHT = 12, 8.0  # times the documents, and what a token of the other languages counts for
ITERATIONS, FILTER_ITERATIONS = 100, 60  # of L-BFGS, at most; a filter's cost ten times as much


def fit_routers(
    model: Transformer, batches: Sequence[Batch], held_out: int, seed: int = 0, last_row: bool = False
) -> list[float]:
    """Sets every router of ``model`` from language-labelled batches.

    Experts are forced by language while states are collected. Where the first sparse layer decides for all, the layers
    above it do not run.

    Args:
        batches: packed batches; token languages are the labels, expert i is language i.
        held_out: how many of the last batches only measure.
        last_row: fit the row of the last expert beside the others, which stay as they are.

    Returns:
        for each router, in order, the share of held-out learned tokens that it sends to their language.
    """
    if not 0 < held_out < len(batches):
        raise ValueError(f"held_out is {held_out} of {len(batches)} batches; expected at least one of each kind")
    layers = list(model.config.router_places)
    fitted, measured = batches[:-held_out], batches[-held_out:]
    if model.config.router_context == "filter":
        fitted = [_join(batch) if i % JOINED == JOINED - 1 else batch for i, batch in enumerate(fitted)]
    # A filter needs whole sequences of each layer's states, so its layers take turns.
    filters = model.config.router_context == "filter"
    for group in [[layer] for layer in layers] if filters else [layers]:
        for layer, weight in _fit(model, fitted, group, seed, last_row).items():
            with torch.no_grad():
                model.get_parameter(f"layers.{layer}.feed_forward.gate.weight").copy_(weight)
    right, total = dict.fromkeys(layers, 0), 0
    for batch in measured:
        batch = batch.to(model.device)
        total += len(batch.positions)
        for layer, states in _router_inputs(model, batch, layers).items():
            logits = states @ model.get_parameter(f"layers.{layer}.feed_forward.gate.weight").float().T
            found = _decide(model, batch.documents, logits).argmax(-1)[batch.positions]
            right[layer] += int((found == batch.languages[batch.positions]).sum())
    return [right[layer] / total for layer in layers]


def fit_router(model: Transformer, batches: MixedBatches, first: int, config: RunConfig) -> list[float]:
    """:func:`fit_routers` on ``router_documents`` documents in the batches from ``first`` on.

    A row for a new language is not trained further, and each token that it takes from another language costs that one
    dearly. So the others weigh `OLD_WEIGHT` times as much, and where the first layer decides for all, it is fitted on
    all documents, up to `ADDED_ROW` times as many.
    """
    chosen: list[Batch] = []
    documents, wanted = 0, config.router_documents
    if config.new_language and len(model.config.router_places) == 1:
        wanted = max(wanted, min(ADDED_ROW * wanted, sum(map(len, batches.examples))))
    while documents < wanted:
        chosen.append(batches[first + len(chosen)])
        documents += len(chosen[-1].documents)
    chosen += [batches[first + len(chosen) + i] for i in range(HELD_OUT_BATCHES)]
    return fit_routers(model, chosen, HELD_OUT_BATCHES, config.seed, bool(config.new_language))


def _fit(
    model: Transformer, batches: Sequence[Batch], layers: Sequence[int], seed: int, last_row: bool
) -> dict[int, Tensor]:
    """The weights [E, D] of some layers' routers."""
    config = model.config
    filters = config.router_context == "filter"
    documents = sum(len(batch.documents) for batch in batches)
    wanted = MAX_FEATURE_BYTES // (4 * config.dim * len(layers) * documents)
    per_document = max(1, min(FILTER_TOKENS if filters else TOKENS_PER_DOCUMENT, wanted))
    generator = torch.Generator().manual_seed(seed)
    features: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    labels, lengths = [], []
    for batch in batches:
        chosen = _choose(batch.documents, per_document, None if filters else generator).to(model.device)  # [N]
        labels.append(batch.languages.to(model.device)[chosen])
        lengths += [min(length, per_document) for length in batch.documents]
        for layer, states in _router_inputs(model, batch, layers).items():
            features[layer].append((states if filters else _decide(model, batch.documents, states))[chosen])

    def decide(logits: Tensor) -> Tensor:
        return _decide(model, lengths, logits) if filters else logits

    y, steps = torch.cat(labels), FILTER_ITERATIONS if filters else ITERATIONS
    gates = {layer: model.get_parameter(f"layers.{layer}.feed_forward.gate.weight").detach() for layer in layers}
    kept = {layer: gate[: len(gate) - 1 if last_row else 0] for layer, gate in gates.items()}
    return {
        layer: _logistic(torch.cat(parts), y, config.num_experts, decide, steps, kept[layer])
        for layer, parts in features.items()
    }


def _join(batch: Batch) -> Batch:
    """The same row with every two neighbors as one document, mostly of two languages."""
    lengths = batch.documents
    return replace(batch, documents=tuple(sum(lengths[i : i + 2]) for i in range(0, len(lengths), 2)))


def _choose(documents: Sequence[int], count: int, generator: torch.Generator | None) -> Tensor:
    """Up to ``count`` places of each document in the packed row: at random, or without a generator the first."""
    places, start = [], 0
    for length in documents:
        inside = torch.arange(length) if generator is None else torch.randperm(length, generator=generator)
        places.append(start + inside[:count])
        start += length
    return torch.cat(places)


def _decide(model: Transformer, documents: Sequence[int], values: Tensor) -> Tensor:
    """What the model's router context makes of values [S, ...] of packed documents."""
    if model.config.router_context == "none":
        return values
    return RouterContext(model.config, (1, len(values)), values.device, documents).decide(values)


@torch.no_grad()
def _router_inputs(model: Transformer, batch: Batch, layers: Sequence[int]) -> dict[int, Tensor]:
    """The token states that the router of each layer sees, [S, D] float32."""
    batch = batch.to(model.device)
    found: dict[int, Tensor] = {}

    def observe(layer: int, x: Tensor) -> None:
        if layer in layers:
            found[layer] = x[0].float()

    model(
        batch.tokens,
        documents=batch.documents,
        forced_experts=batch.languages,
        observer=observe,
        logits=False,
        depth=max(layers) + 1,
    )
    return found


def _logistic(
    x: Tensor,
    y: Tensor,
    classes: int,
    decide: Callable[[Tensor], Tensor],
    iterations: int = ITERATIONS,
    kept: Tensor | None = None,
) -> Tensor:
    """Multinomial logistic regression without intercept: x [N, D], y [N] int64 -> [E, D] float32.

    ``decide`` turns token logits [N, E] into the logits that are compared with y. The first rows of the result are
    those ``kept`` [<E, D], whose classes weigh `OLD_WEIGHT`.
    """
    kept = x.new_zeros(0, x.shape[1]) if kept is None else kept
    counts = x.new_ones(classes, dtype=torch.float64)
    counts[: len(kept)] = OLD_WEIGHT
    x = x.double()
    given = x @ kept.double().T  # [N, <E]
    moment = x.T @ x / len(x)  # [D, D]
    moment.diagonal().add_(SHRINKAGE * moment.diagonal().mean())
    factor = torch.linalg.cholesky(moment)
    white = torch.linalg.solve_triangular(factor, x.T, upper=False).T  # [N, D]
    weight = torch.zeros(classes - len(kept), x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = decide(torch.cat((given, white @ weight.T), -1))
        loss = F.cross_entropy(logits, y, counts) + WEIGHT_PENALTY * weight.pow(2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    fitted = torch.linalg.solve_triangular(factor.T, weight.detach().T, upper=True).T.float()
    return torch.cat((kept.float(), fitted))
