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
    """Mean cross-entropy in nats per response token, over ``tokens`` tokens of ``examples`` examples."""

    loss: float
    tokens: int
    examples: int


def single_language_batches(examples: Sequence[Example], tokens_per_batch: int) -> list[Batch]:
    """All examples once, packed in order of length."""
    batches: list[Batch] = []
    group: list[Example] = []
    used = 0
    for example in sorted(examples, key=lambda e: len(e.tokens)):
        if group and used + len(example.tokens) > tokens_per_batch:
            batches.append(make_batch(group))
            group, used = [], 0
        group.append(example)
        used += len(example.tokens)
    if group:
        batches.append(make_batch(group))
    return batches


@torch.inference_mode()
def held_out_loss(
    model: Transformer,
    examples: Mapping[str, Sequence[Example]],
    tokens_per_batch: int = 4096,
    on_output: Callable[[Batch, ModelOutput], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, HeldOutLoss]:
    """Loss per language with the model's own routing; ``on_output`` gets each batch and its :class:`ModelOutput`."""
    model.eval()
    total = sum(len(items) for items in examples.values())
    done, result = 0, {}
    for language, items in examples.items():
        losses, tokens = 0.0, 0
        for batch in single_language_batches(items, tokens_per_batch):
            batch = batch.to(model.device)
            output = forward_batch(model, batch, forced=False)
            values = batch_losses(model, output, batch)
            losses += values.double().sum().item()
            tokens += values.shape[0]
            if on_output is not None:
                on_output(batch, output)
            done += len(batch.documents)
            if on_progress is not None:
                on_progress(done, total)
        result[language] = HeldOutLoss(losses / max(1, tokens), tokens, len(items))
    return result
