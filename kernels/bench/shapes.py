"""Sizes of the models that benchmarks, estimates and the compile check are about."""

from __future__ import annotations

from typing import NamedTuple


class ModelShape(NamedTuple):
    """Sizes of a dense decoder, by the names of `moe.config.ModelConfig`."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int


MISTRAL_7B = ModelShape(vocab_size=32000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, hidden_dim=14336)
SMOLLM2_135M = ModelShape(vocab_size=49152, dim=576, n_layers=30, n_heads=9, n_kv_heads=3, hidden_dim=1536)
EXPERTS, TOP_K = 4, 2  # one expert per language
RANK = 64  # of low-rank deltas
