"""Routers for a mixture on disk, fitted on labeled prompts, in place of random ones."""

# E experts, D model dim

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from checkpoints.formats import Checkpoint
from checkpoints.formats.config_json import ROUTER_KEYS
from checkpoints.formats.parameters import set_parameter
from checkpoints.model_io import load_model
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.transforms.upcycle import upcycle_model
from moe.config import ModelConfig
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.pairs import Pair
from moe.errors import UserError
from moe.training.router_start import fit_routers

TOKENS_PER_BATCH = 2048
UNNAMED_SHARE = 0.5


def fitted_gates(
    base: Checkpoint,
    pairs: Mapping[str, Sequence[Pair]],
    config: ModelConfig,
    seed: int = 0,
    deltas: Mapping[str, StoredTensor] | None = None,
    template: str | None = None,
) -> tuple[dict[int, Tensor], list[float]]:
    """Fits each layer's router on prompts with solutions whose language is known.

    The dense model is loaded in float32, and the mixture shares its memory. Half of the prompts do not name the
    language, so that the routers learn to read code.

    Args:
        pairs: by language, in the order of the experts.
        config: of the mixture.
        deltas: its deltas by parameter name; None where they change nothing yet.
        template: of the prompts; None takes the base's own.

    Returns:
        The routers [E, D] by layer, and the share of held-out tokens that each sends to its language, in that order.

    Raises:
        UserError: the base has no tokenizer, or no pair of a language fits into a batch.
    """
    loaded = load_model(base.path, template=template)
    if loaded.tokenizer is None:
        raise UserError(f"{base.path} has no tokenizer, so no prompt can be read; give --router random")
    longest = min(TOKENS_PER_BATCH, base.config.max_seq_len)
    data = encode_pairs(pairs, loaded.tokenizer, loaded.template, longest, UNNAMED_SHARE, seed)
    batches = MixedBatches(data.examples, TOKENS_PER_BATCH, seed)
    count = max(2, round(batches.epoch_batches))
    if deltas is None:  # any form computes the same: the smallest one
        config = replace(config, expert_form="delta", expert_rank=1, shared_rank=0)
    kept = {name: getattr(config, name) for name in (*ROUTER_KEYS, "moe_layers", "delta_scale", "attention_experts")}
    model = upcycle_model(loaded.model, tuple(pairs), "delta", 1, config.expert_rank, config.shared_rank, **kept)
    for name, tensor in (deltas or {}).items():
        set_parameter(model, name, tensor.read().to(model.dtype))
    accuracies = fit_routers(model, [batches[index] for index in range(count)], held_out=1, seed=seed)
    gates = {n: model.get_parameter(f"layers.{n}.feed_forward.gate.weight") for n in model.config.router_places}
    return {layer: gate.detach().clone() for layer, gate in gates.items()}, accuracies


def describe_accuracies(accuracies: Sequence[float], path: Path) -> str:
    """One line about how well the routers tell languages apart."""
    mean, worst = sum(accuracies) / len(accuracies), min(accuracies)
    return f"fitted routers for {path}: {mean:.1%} of held-out tokens to their language (worst layer {worst:.1%})"
