"""First values of what upcycling adds to a dense model: routers and low-rank deltas.

Each tensor has a random stream of its own, derived from the seed and the tensor's name, so that a model upcycled in
memory and one streamed from disk to disk start with the same bits, in any order.
"""

# E experts, D model dim, F hidden dim, r rank

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from checkpoints.storage.safetensors_file import StoredTensor, memory_tensor, tensors_digest
from moe.config import ModelConfig
from moe.experts import draw_low_rank, low_rank_deltas

ROUTER_STD = 0.02


@dataclass(frozen=True)
class Initialization:
    """How routers and deltas start.

    Attributes:
        router_std: standard deviation of normal routers (0.02: Muennighoff et al., 2024, OLMoE).
        routers: fitted routers [E, D] by layer, in place of random ones.
        deltas: trained deltas by parameter name, in place of new ones.
    """

    seed: int = 0
    router_std: float = ROUTER_STD
    routers: Mapping[int, Tensor] | None = None
    deltas: Mapping[str, StoredTensor] | None = None

    def describe(self) -> str:
        """The routers' start, in words."""
        if self.routers is not None:
            return "logistic regression on labeled prompts"
        return f"normal, standard deviation {self.router_std:g}"

    def identity(self) -> list[object]:
        """JSON-able: seed, standard deviation, and the SHA-256 of fitted routers."""
        if self.routers is None:
            return [self.seed, self.router_std, None]
        return [self.seed, self.router_std, tensors_digest(self.routers.values())]


DEFAULT_START = Initialization()


def new_tensors(config: ModelConfig, layer: int, start: Initialization, dtype: torch.dtype) -> Iterator[StoredTensor]:
    """The tensors that one layer of the mixture adds to the dense weights: its router, and deltas in that form.

    A layer that stays dense adds none. Shapes and names can be had without drawing a number.
    """
    if layer not in config.sparse_layers:
        return
    name = f"layers.{layer}.feed_forward.gate.weight"
    if start.routers is not None and layer in config.router_places:
        yield memory_tensor(name, start.routers[layer].to(dtype))
    elif layer in config.router_places:
        shape = (config.num_experts, config.dim)
        yield StoredTensor(name, dtype, shape, partial(_normal, name, shape, start, dtype))
    if config.is_delta and start.deltas is None:
        yield from _delta_tensors(config, layer, start.seed, dtype)
    elif start.deltas is not None:
        prefix = f"layers.{layer}."
        yield from (tensor for name, tensor in start.deltas.items() if name.startswith(prefix))


def _delta_tensors(config: ModelConfig, layer: int, seed: int, dtype: torch.dtype) -> Iterator[StoredTensor]:
    """Low-rank deltas: A random, B zero, so that the model does not change (:class:`moe.experts.LowRankDelta`)."""
    for part in config.delta_names:
        with torch.device("meta"):
            shapes = nn.ModuleDict(low_rank_deltas(config, part))
        for short, parameter in shapes.named_parameters():  # expert_deltas.a1 [E, r, D], expert_deltas.b1 [E, F, r] ...
            name, shape = f"layers.{layer}.{part}.{short}", tuple(parameter.shape)
            if short.split(".")[1].startswith("a"):
                yield StoredTensor(name, dtype, shape, partial(_low_rank, name, shape, seed, dtype))
            else:
                yield StoredTensor(name, dtype, shape, partial(torch.zeros, shape, dtype=dtype))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _normal(name: str, shape: tuple[int, ...], start: Initialization, dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape, generator=_generator(start.seed, name)) * start.router_std).to(dtype)


def _low_rank(name: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return draw_low_rank(torch.empty(shape), _generator(seed, name)).to(dtype)
