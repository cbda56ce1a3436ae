"""Between a model in memory (experts stacked) and flat tensors on disk (one expert at a time)."""

# E experts, D model dim, F hidden dim

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from checkpoints.formats.names import stacked_name
from checkpoints.formats.quantized import pair_of
from checkpoints.storage.safetensors_file import StoredTensor, memory_tensor, whole
from kernels.int4 import GROUP, Int4Weight
from kernels.packed import Int4Weights, Packed, PackedWeights, pack_for_cpu
from moe.config import ModelConfig
from moe.model import Transformer

FEED_FORWARD = (".w1.weight", ".w2.weight", ".w3.weight")


def meta_model(config: ModelConfig) -> Transformer:
    """A model on the meta device, without memory, whose parameters are set later."""
    with torch.device("meta"):
        return Transformer(config)


def set_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Replaces the parameter ``name`` with ``value``."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value))


def set_packed(model: nn.Module, name: str, weight: nn.Module) -> None:
    """Puts a packed weight in the place of the parameter ``name``."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    delattr(module, leaf)
    setattr(module, leaf, weight)


def packed_weights(model: nn.Module) -> dict[str, PackedWeights | Int4Weights]:
    """The packed weights of a model by the name of the parameter that each stands for."""
    return {name: part for name, part in model.named_modules() if isinstance(part, PackedWeights | Int4Weights)}


def fill_model(
    model: Transformer,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device | str,
    rename: Mapping[str, str] | None = None,
    packed: bool | Literal["int4"] = False,
) -> None:
    """Sets parameters of a meta model from flat tensors, holding one tensor at a time besides the model.

    Args:
        rename: flat name -> parameter name, where they differ in this model.
        packed: keeps weights in int4 and int8 as they are, or those in int4 alone; the others are decoded.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    stacks: dict[str, Tensor] = {}
    quantized: dict[str, tuple[type, list[Tensor]]] = {}  # what it becomes, levels and scales of all experts
    matrices = [tensor for flat, tensor in tensors.items() if flat.endswith(FEED_FORWARD)]
    # a CPU multiplies a feed-forward of packed and other weights, a GPU does not
    whole_layers = torch.device(device).type == "cpu" or all(is_packable(tensor, device, dtype) for tensor in matrices)

    def keeps(pair: tuple[StoredTensor, StoredTensor]) -> bool:
        return packed is True or (packed == "int4" and pair[0].dtype == torch.uint8)

    for flat, tensor in tensors.items():
        name, expert = stacked_name(flat)
        name = (rename or {}).get(name, name)
        pair = pair_of(tensor)
        if pair is not None and whole_layers and is_packable(tensor, device, dtype) and keeps(pair):
            fields = read_packed(pair, device)
            if expert is None:
                quantized[name] = type(fields), [field[None] for field in fields]
                continue
            if name not in quantized:
                quantized[name] = type(fields), [field.new_empty(shapes[name][0], *field.shape) for field in fields]
            for stack, field in zip(quantized[name][1], fields):
                stack[expert].copy_(field)
            continue
        if expert is None:
            set_parameter(model, name, tensor.read().to(device=device, dtype=dtype))
            continue
        if name not in stacks:
            stacks[name] = torch.empty(shapes[name], dtype=dtype, device=device)  # [E, F, D] or [E, D, F]
        stacks[name][expert].copy_(tensor.read())
    for name, stack in stacks.items():
        set_parameter(model, name, stack)
    for name, (kind, (levels, scales)) in quantized.items():
        whole = PackedWeights(levels, scales) if kind is Packed else Int4Weights(Int4Weight(levels, scales))
        set_packed(model, name, whole)


def is_packable(tensor: StoredTensor, device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether this device multiplies a quantized weight without decoding it: a GPU those in int4, groups of 128, by
    bfloat16."""
    pair = pair_of(tensor)
    if torch.device(device).type == "cpu":
        return True
    fits = pair is not None and pair[0].dtype == torch.uint8 and pair[0].shape[2] == GROUP // 2
    return fits and dtype == torch.bfloat16


def read_packed(pair: tuple[StoredTensor, StoredTensor], device: torch.device | str) -> Packed | Int4Weight:
    """A quantized weight as the device multiplies it; of int4 for a GPU without the leading E."""
    levels, scales = (tensor.read().to(device) for tensor in pair)
    if levels.dtype == torch.int8:
        return Packed(levels, scales)
    return (
        pack_for_cpu(Int4Weight(levels[None], scales[None]))
        if levels.device.type == "cpu"
        else Int4Weight(levels, scales)
    )


def require_complete(model: Transformer) -> None:
    """Asserts that every parameter was set."""
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not missing, f"parameters never set: {missing[:3]}"


def main_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """The dtype that holds most bytes: some formats keep a few small tensors in another."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def flat_tensors(model: Transformer) -> Iterator[StoredTensor]:
    """Yields the parameters of a dense model, or of one with full experts, under flat names in model order."""
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if owner.endswith(".feed_forward.experts"):
            for expert in range(parameter.shape[0]):
                yield _one_expert(f"{owner}.{expert}.{leaf}.weight", parameter, expert)
        else:
            yield memory_tensor(name, parameter)


def _one_expert(name: str, stack: nn.Parameter, expert: int) -> StoredTensor:
    """The weight [F, D] or [D, F] of one expert, read from all of them [E, ...], which may be sharded."""
    return StoredTensor(name, stack.dtype, tuple(stack.shape[1:]), lambda: whole(stack)[expert])


def base_rename(config: ModelConfig) -> dict[str, str]:
    """Maps the feed-forward names of a dense base to the parameters of a delta model's sparse layers."""
    return {
        f"layers.{layer}.feed_forward.{weight}.weight": f"layers.{layer}.feed_forward.base.{weight}.weight"
        for layer in config.sparse_layers
        for weight in ("w1", "w2", "w3")
    }
