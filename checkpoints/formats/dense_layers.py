"""Mixtral directories in which some layers stay dense: ``moe_layers`` in ``config.json`` names the layers with experts.

Mixtral has no dense layers. For other readers to compute the same function, a dense feed-forward is written as E equal
copies behind a router of zeros, which weights the experts it picks equally. Our reader takes one copy.
"""

# E experts, D model dim

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints.formats.names import expected_tensors, flat_name, to_huggingface
from checkpoints.storage.safetensors_file import StoredTensor
from moe.config import ModelConfig
from moe.errors import UserError

_DENSE = re.compile(r"layers\.(\d+)\.feed_forward\.(w[123])\.weight", re.ASCII)
REMEDY = "write the directory again, or take moe_layers out of config.json to read every layer as a mixture"


def dense_copies(name: str, config: ModelConfig) -> tuple[int, list[str]] | None:
    """For the flat name of a dense feed-forward in a mixture, its layer and the names of its copies; otherwise None."""
    match = _DENSE.fullmatch(name)
    if match is None or not config.is_moe:
        return None
    layer = int(match[1])
    return layer, [to_huggingface(flat_name(layer, match[2], expert)) for expert in range(config.num_experts)]


def zero_router(config: ModelConfig, layer: int, dtype: torch.dtype) -> StoredTensor:
    """The router [E, D] of a layer that stays dense, under its Hugging Face name."""
    shape = (config.num_experts, config.dim)
    name = to_huggingface(f"layers.{layer}.feed_forward.gate.weight")
    return StoredTensor(name, dtype, shape, lambda: torch.zeros(shape, dtype=dtype))


def stores_router(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has a router in a Mixtral directory: those that decide do, and all that stay dense."""
    return layer in config.router_places or layer not in config.sparse_layers


def huggingface_tensors(config: ModelConfig, tensors: Iterable[StoredTensor]) -> Iterator[StoredTensor]:
    """Yields the tensors of a Hugging Face directory for a model's tensors under flat names."""
    for tensor in tensors:
        copies = dense_copies(tensor.name, config)
        if copies is None:
            yield replace(tensor, name=to_huggingface(tensor.name))
            continue
        layer, names = copies
        if tensor.name.endswith(".w1.weight"):
            yield zero_router(config, layer, tensor.dtype)
        for name in names:
            yield replace(tensor, name=name)


def without_copies(tensors: Mapping[str, StoredTensor], config: ModelConfig, source: Path) -> dict[str, StoredTensor]:
    """Inverse of :func:`huggingface_tensors`, for all tensors of a Mixtral directory by flat name.

    Rejects a router that has been trained. Does not compare the copies, which would read all of them; ``verify`` does.

    Raises:
        UserError: the router of a layer that should be dense is not zero.
    """
    result = {}
    for name, _ in expected_tensors(config):
        match = _DENSE.fullmatch(name)
        if match is None:
            result[name] = tensors[name]
            continue
        result[name] = tensors[flat_name(int(match[1]), match[2], 0)]
        gate = f"layers.{match[1]}.feed_forward.gate.weight"
        if match[2] == "w1" and tensors[gate].read().any():
            raise UserError(
                f"{source}: tensor {to_huggingface(gate)!r} is not zero, but moe_layers in config.json says that "
                f"layer {match[1]} is dense; {REMEDY}"
            )
    return result
