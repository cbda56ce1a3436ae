"""Held-out loss: nats per response token, per language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from moe.data.packing import Batch, Example, make_batch
from moe.model import ModelOutput, Transformer
from moe.training.trainer import batch_losses, forward_batch


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean cross-entropy in nats per response token, over ``tokens`` tokens of ``examples`` examples.

    ``nats`` has the sum over each example's response, in the order of the examples.
    """

    loss: float
    tokens: int
    examples: int
    nats: tuple[float, ...]


def single_language_batches(examples: Sequence[Example], tokens_per_batch: int) -> list[Batch]:
    """All examples once, packed in order of length, the shortest first (in their order where equal)."""
    batches: list[Batch] = []
    group: list[Example] = []
    used = 0
    for example in (examples[index] for index in by_length(examples)):
        if group and used + len(example.tokens) > tokens_per_batch:
            batches.append(make_batch(group))
            group, used = [], 0
        group.append(example)
        used += len(example.tokens)
    if group:
        batches.append(make_batch(group))
    return batches


def by_length(examples: Sequence[Example]) -> list[int]:
    """Indices of the examples, the shortest first."""
    return sorted(range(len(examples)), key=lambda index: len(examples[index].tokens))


@torch.inference_mode()
def held_out_loss(
    model: Transformer,
    examples: Mapping[str, Sequence[Example]],
    tokens_per_batch: int = 4096,
    on_output: Callable[[Batch, ModelOutput], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    forced: bool = False,
) -> dict[str, HeldOutLoss]:
    """Loss per language; ``on_output`` gets each batch and its :class:`ModelOutput`.

    The model's own routing decides, or with ``forced`` every token visits the expert of its language.
    """
    model.eval()
    total = sum(len(items) for items in examples.values())
    done, result = 0, {}
    for language, items in examples.items():
        nats: list[float] = []  # by length
        lengths = [len(items[index].tokens) - items[index].response_start for index in by_length(items)]
        tokens = 0
        for batch in single_language_batches(items, tokens_per_batch):
            batch = batch.to(model.device)
            output = forward_batch(model, batch, forced)
            values = batch_losses(model, output, batch)
            own = lengths[len(nats) : len(nats) + len(batch.documents)]
            nats += [part.sum().item() for part in values.double().cpu().split(own)]
            tokens += values.shape[0]
            if on_output is not None:
                on_output(batch, output)
            done += len(batch.documents)
            if on_progress is not None:
                on_progress(done, total)
        placed = tuple(nat for _, nat in sorted(zip(by_length(items), nats, strict=True)))
        result[language] = HeldOutLoss(sum(nats) / max(1, tokens), tokens, len(items), placed)
    return result
