"""Between a model in memory (experts stacked) and flat tensors on disk (one expert at a time)."""

# E experts, D model dim, F hidden dim

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from checkpoints.formats.names import stacked_name
from checkpoints.storage.safetensors_file import StoredTensor, memory_tensor
from moe.config import ModelConfig
from moe.model import Transformer


def meta_model(config: ModelConfig) -> Transformer:
    """A model without memory, whose parameters are then set one by one."""
    with torch.device("meta"):
        return Transformer(config)


def set_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Puts ``value`` in the place of the parameter ``name``."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value))


def fill_model(
    model: Transformer,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device | str,
    rename: Mapping[str, str] | None = None,
) -> None:
    """Sets parameters of a meta model from flat tensors, one tensor in memory at a time beside the model.

    Args:
        rename: parameter names for flat names that are called otherwise in this model.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    stacks: dict[str, Tensor] = {}
    for flat, tensor in tensors.items():
        name, expert = stacked_name(flat)
        name = (rename or {}).get(name, name)
        if expert is None:
            set_parameter(model, name, tensor.read().to(device=device, dtype=dtype))
            continue
        if name not in stacks:
            stacks[name] = torch.empty(shapes[name], dtype=dtype, device=device)  # [E, F, D] or [E, D, F]
        stacks[name][expert].copy_(tensor.read())
    for name, stack in stacks.items():
        set_parameter(model, name, stack)


def require_complete(model: Transformer) -> None:
    """Checks our own invariant that every parameter was set."""
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not missing, f"parameters never set: {missing[:3]}"


def main_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """The dtype of most of the weights: some formats keep a few small tensors in another."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def flat_tensors(model: Transformer) -> Iterator[StoredTensor]:
    """Yields the parameters of a dense model, or of one with full experts, under flat names, layer by layer."""
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if owner.endswith(".feed_forward.experts"):
            for expert in range(parameter.shape[0]):
                yield memory_tensor(f"{owner}.{expert}.{leaf}.weight", parameter[expert])  # [F, D] or [D, F]
        else:
            yield memory_tensor(name, parameter)


def base_rename(config: ModelConfig) -> dict[str, str]:
    """Where the sparse layers of a delta model keep what its dense base calls ``feed_forward.w1.weight`` and so on."""
    return {
        f"layers.{layer}.feed_forward.{weight}.weight": f"layers.{layer}.feed_forward.base.{weight}.weight"
        for layer in config.sparse_layers
        for weight in ("w1", "w2", "w3")
    }
