"""Memory that a run needs, computed before it starts.

Counts weights, gradients, optimizer state and activations. The allocator's fragmentation and a GPU's context (0.5 to
1 GiB) come on top.
"""

# T tokens in a batch, D model dim, F hidden dim, V vocabulary

from __future__ import annotations

from dataclasses import dataclass

import torch

from moe.config import ModelConfig
from moe.model import Transformer
from moe.training.stages import is_expert, is_router

GIB = 2**30
LOSS_CHUNK = 1024  # positions whose logits exist at once


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose, and parameter counts."""

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def describe(self) -> str:
        """One line for the terminal."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
        }
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return (
            f"{self.parameters / 1e6:,.1f} M parameters, {self.trainable / 1e6:,.1f} M of them trained; "
            f"{self.total / GIB:.2f} GiB: {listed}"
        )


def plan_memory(config: ModelConfig, tokens: int, dtype: torch.dtype, activation_checkpointing: bool) -> MemoryPlan:
    """Memory of the branch stage (the largest) for batches of ``tokens`` tokens.

    Deltas and routers are float32 with two float32 Adam moments. Per layer, a forward pass keeps about 6 D + 2 A + 4 F
    values a token (A: width of the attention projections), and another 4 F for each further expert of a token. With
    ``activation_checkpointing`` only one layer at a time does so, and every layer keeps its D inputs. Frozen layers
    below the first one with experts keep nothing.
    """
    with torch.device("meta"):
        model = Transformer(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    sparse = config.is_moe or config.is_delta
    trained = sum(n for name, n in sizes.items() if not sparse or is_expert(name))
    small = sum(n for name, n in sizes.items() if is_expert(name) or is_router(name)) if config.is_delta else 0
    total = sum(sizes.values())
    width = dtype.itemsize
    attention = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    further = config.num_experts_per_tok - 1 if config.is_moe else 0
    dense_layer = tokens * (6 * config.dim + 2 * attention + 4 * config.hidden_dim) * width
    sparse_layer = dense_layer + tokens * 4 * config.hidden_dim * further * width
    learning = config.sparse_layers or range(config.n_layers)  # a dense model learns in every layer
    layers = config.n_layers - learning[0]
    if activation_checkpointing:
        kept = tokens * config.dim * width * layers + sparse_layer
    else:
        kept = dense_layer * (layers - len(learning)) + sparse_layer * len(learning)
    logits = 2 * min(tokens, LOSS_CHUNK) * config.vocab_size * 4
    master = 4 if config.is_delta else max(4, width)
    return MemoryPlan(
        parameters=total,
        trainable=trained,
        weights=(total - small) * width + small * 4,
        gradients=trained * master,
        optimizer=trained * 8,
        activations=kept + logits,
    )
