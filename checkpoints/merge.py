"""Delta experts folded into their base: the same mixture with full experts (the Mixtral form)."""

# E experts, D model dim, F hidden dim, r rank

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from checkpoints.parameters import meta_model, require_complete, set_parameter
from moe.config import ModelConfig
from moe.errors import UserError
from moe.experts import LowRankDelta
from moe.model import Transformer

MATRICES = ("w1", "w2", "w3")


def merged_config(config: ModelConfig) -> ModelConfig:
    """The config of the merged model: full experts, or a dense model where there was an adapter alone."""
    if not config.is_delta:
        raise UserError("this model has no low-rank deltas; there is nothing to merge")
    if not config.is_moe:
        return config.dense()
    return replace(config, expert_form="full", shared_rank=0, expert_rank=0)


def merge_weight(
    base: Tensor, shared: tuple[Tensor, Tensor] | None, own: tuple[Tensor, Tensor] | None, scale: float
) -> Tensor:
    """``base + scale * (B0 A0 + B_e A_e)`` in float32 at least, in the base's dtype: [N, M], with ``own`` [E, N, M].

    Args:
        base: [N, M].
        shared: A0 [r, M] and B0 [N, r]; own: A [E, r, M] and B [E, N, r].
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    merged = base.to(wide)
    for delta in (shared, own):
        if delta is not None:
            a, b = (matrix.to(wide) for matrix in delta)
            merged = merged + scale * (b @ a)
    return merged.to(base.dtype)


@torch.no_grad()
def merge_model(model: Transformer) -> Transformer:
    """Folds the deltas of a model into full experts (or of a dense adapter into a dense model), in memory.

    Weights outside of the feed-forwards are shared with ``model``. Raises :class:`UserError` without deltas.
    """
    config = merged_config(model.config)
    merged = meta_model(config)
    for name, parameter in model.named_parameters():
        if ".base." not in name and "_delta" not in name:
            # Deltas' models keep routers in float32; a Mixtral directory has one dtype.
            set_parameter(merged, name, parameter.detach().to(model.dtype))
    for index, block in enumerate(model.layers):
        ffn, prefix = block.feed_forward, f"layers.{index}.feed_forward."
        for matrix in MATRICES:
            base = getattr(ffn.base, matrix).weight
            shared, own = (_pair(delta, matrix) for delta in (ffn.shared_delta, ffn.expert_deltas))
            name = f"{prefix}experts.{matrix}" if config.is_moe else f"{prefix}{matrix}.weight"
            set_parameter(merged, name, merge_weight(base, shared, own, model.config.delta_scale))
    require_complete(merged)
    return merged


def _pair(delta: LowRankDelta | None, matrix: str) -> tuple[Tensor, Tensor] | None:
    return None if delta is None else (getattr(delta, f"a{matrix[1]}"), getattr(delta, f"b{matrix[1]}"))
