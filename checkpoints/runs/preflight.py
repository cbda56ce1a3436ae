"""What a run needs before it may start: a base that is there and fits, and room on the disk."""

from __future__ import annotations

from pathlib import Path

from checkpoints.model_io import read_config
from checkpoints.storage.files import DiskUsage, free_bytes, require_free_space
from checkpoints.transforms.upcycle import upcycled_config
from moe.config import ModelConfig
from moe.errors import UserError
from moe.layer_ranges import ALL, parse_layers
from moe.training.config import TINY, RunConfig
from moe.training.memory_plan import MemoryPlan, plan_memory
from moe.training.tiny_base import VOCABULARY, tiny_config


def base_config(config: RunConfig) -> ModelConfig:
    """Sizes of the run's base, read without its weights.

    Raises:
        UserError: there is no base, it is no dense model, or examples may be longer than its context.
    """
    if not config.base:
        raise UserError("no base given; add --base DIR with the dense model, or --base tiny for the embedded one")
    base = tiny_config(VOCABULARY) if config.base == TINY else read_config(config.base)
    if base.is_moe or base.is_delta:
        raise UserError(f"{config.base} is a mixture already; give the dense model it was made from as --base")
    if config.max_tokens > base.max_seq_len:
        raise UserError(
            f"max_tokens is {config.max_tokens}, but the context of {config.base} has {base.max_seq_len} tokens; "
            f"set --max-tokens to at most {base.max_seq_len}"
        )
    return base


def mixture_config(config: RunConfig, base: ModelConfig) -> ModelConfig:
    """Sizes of the mixture that the run makes of ``base``."""
    return upcycled_config(
        base,
        config.languages,
        config.form,
        config.experts_per_token,
        config.expert_rank,
        config.shared_rank,
        moe_layers=parse_layers(config.layers, base.n_layers),
    )


def disk_needed(config: RunConfig, plan: MemoryPlan) -> int:
    """Bytes that a run writes at most: models and three stages' states (an old one goes when the new one is there)."""
    states = 3 * (3 * 4 * plan.trainable) + 3 * 4 * plan.trainable
    full = 4 * plan.parameters * (1 if config.layers == ALL else len(config.languages))  # dense layers are copied
    models = 2 * 4 * plan.trainable + (full if config.form == "full" else 0)
    merged = 4 * plan.parameters * (len(config.languages) if config.merge else 0)
    return states + models + merged + (1 << 24)


def require_disk(config: RunConfig, plan: MemoryPlan, directory: Path, disk_free: DiskUsage = free_bytes) -> None:
    """Raises :class:`UserError` when the disk of ``directory`` has no room for the run."""
    require_free_space(directory, disk_needed(config, plan), disk_free)


def plan_run(config: RunConfig, base: ModelConfig, dtype) -> MemoryPlan:
    """Memory of the run's largest stage."""
    return plan_memory(mixture_config(config, base), config.tokens_per_batch, dtype, config.recompute)
