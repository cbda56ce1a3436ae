"""Routers for a mixture on disk by ridge regression from labelled prompts, in the place of random ones."""

# E experts, D model dim

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from checkpoints.formats import Checkpoint
from checkpoints.model_io import load_model
from checkpoints.transforms.upcycle import upcycle_model
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.synthetic import generate_pairs
from moe.errors import UserError
from moe.training.ridge import ridge_routers

TOKENS_PER_BATCH = 2048


def ridge_gates(
    base: Checkpoint,
    languages: Sequence[str],
    prompts: int = 48,
    seed: int = 0,
    moe_layers: tuple[int, ...] | None = None,
) -> tuple[dict[int, Tensor], list[float]]:
    """Fits each layer's router on generated prompts whose language is known.

    The dense model is loaded in float32; the mixture it is fitted for shares its memory.

    Args:
        prompts: per language.
        moe_layers: the layers that get a router; None: all.

    Returns:
        The routers [E, D] by layer, and the share of held-out tokens that each sends to its language, in that order.

    Raises:
        UserError: the base has no tokenizer, or no prompts can be generated in a language.
    """
    loaded = load_model(base.path)
    if loaded.tokenizer is None:
        raise UserError(f"{base.path} has no tokenizer, so no prompt can be read; give --router random")
    longest = min(TOKENS_PER_BATCH, base.config.max_seq_len)
    pairs = {language: generate_pairs(language, prompts, seed) for language in languages}
    data = encode_pairs(pairs, loaded.tokenizer, loaded.template, longest)
    batches = MixedBatches(data.examples, TOKENS_PER_BATCH, seed)
    count = max(2, round(batches.epoch_batches))
    model = upcycle_model(loaded.model, languages, expert_rank=1, experts_per_token=1, moe_layers=moe_layers)
    accuracies = ridge_routers(model, [batches[index] for index in range(count)])
    gates = {n: model.layers[n].feed_forward.gate.weight.detach().clone() for n in model.config.sparse_layers}
    return gates, accuracies


def describe_accuracies(accuracies: Sequence[float], path: Path) -> str:
    """One line about how well the routers tell languages apart."""
    mean = sum(accuracies) / len(accuracies)
    return (
        f"ridge routers for {path}: {mean:.1%} of held-out tokens to their language (worst layer {min(accuracies):.1%})"
    )
