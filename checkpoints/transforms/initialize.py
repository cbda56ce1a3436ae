"""First values of what upcycling adds to a dense model: routers and low-rank deltas.

Each tensor has its own random stream, named by the seed and the tensor's name, so that a model upcycled in memory and
one streamed from disk to disk start with the same bits, whatever the order.
"""

# E experts, D model dim, F hidden dim, r rank

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from checkpoints.storage.safetensors_file import StoredTensor
from moe.config import ModelConfig


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def router_tensor(config: ModelConfig, layer: int, seed: int, std: float, dtype: torch.dtype) -> StoredTensor:
    """The router of one layer [E, D], normal with ``std`` (0.02: Muennighoff et al., 2024, OLMoE)."""
    name = f"layers.{layer}.feed_forward.gate.weight"
    shape = (config.num_experts, config.dim)

    def read() -> Tensor:
        return (torch.randn(shape, generator=_generator(seed, name)) * std).to(dtype)  # [E, D]

    return StoredTensor(name, dtype, shape, read)


def delta_tensors(config: ModelConfig, layer: int, seed: int, dtype: torch.dtype) -> list[StoredTensor]:
    """The low-rank deltas of one layer: A Kaiming-uniform, B zero, so that nothing changes (Hu et al., 2021)."""
    prefix = f"layers.{layer}.feed_forward"
    result = []
    groups: list[tuple[str, tuple[int, ...], int]] = []
    if config.shared_rank:
        groups.append(("shared_delta", (), config.shared_rank))
    if config.num_experts:
        groups.append(("expert_deltas", (config.num_experts,), config.expert_rank))
    for group, lead, rank in groups:
        for weight, (fan_in, fan_out) in {
            "1": (config.dim, config.hidden_dim),
            "2": (config.hidden_dim, config.dim),
            "3": (config.dim, config.hidden_dim),
        }.items():
            a_name, a_shape = f"{prefix}.{group}.a{weight}", (*lead, rank, fan_in)  # [E, r, D] or [E, r, F]
            b_shape = (*lead, fan_out, rank)
            result.append(StoredTensor(a_name, dtype, a_shape, _uniform(a_name, a_shape, seed, dtype)))
            result.append(StoredTensor(f"{prefix}.{group}.b{weight}", dtype, b_shape, _zeros(b_shape, dtype)))
    return result


def _uniform(name: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype):
    def read() -> Tensor:
        bound = 1.0 / math.sqrt(shape[-1])
        return torch.empty(shape).uniform_(-bound, bound, generator=_generator(seed, name)).to(dtype)

    return read


def _zeros(shape: tuple[int, ...], dtype: torch.dtype):
    return lambda: torch.zeros(shape, dtype=dtype)
