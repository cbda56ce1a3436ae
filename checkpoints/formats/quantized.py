"""Directories with int4 or int8 weights: each is two tensors, ``.int4_packed`` and ``.int4_scales``, or in int8
``.int8_levels`` and ``.int8_scales``.

Reading yields the weight that the pair encodes, in float32, which represents it exactly. Packing:
:mod:`kernels.int4`, :mod:`kernels.packed`.
"""

# N outputs, K inputs, G = K / 128 groups

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.storage.safetensors_file import StoredTensor, computed, row_ranges
from kernels.int4 import GROUP, Int4Weight, unpack
from moe.errors import UserError

METHOD, INT8_METHOD = "int4-split128", "int8-rows"
PACKED, SCALES = ".int4_packed", ".int4_scales"
LEVELS, INT8_SCALES = ".int8_levels", ".int8_scales"


@dataclass(frozen=True)
class QuantizedTensor(StoredTensor):
    """The weight [N, K] that two tensors encode, and these: levels and scales, of int4 [G, N, half a group], [G, N], of
    int8 [N, K], [N]."""

    pair: tuple[StoredTensor, StoredTensor] | None = None


def pair_of(tensor: StoredTensor) -> tuple[StoredTensor, StoredTensor] | None:
    """The tensors that encode a weight; None for a tensor that is not quantized."""
    return tensor.pair if isinstance(tensor, QuantizedTensor) else None


def is_quantized(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a model in this format."""
    quantization = settings.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") in (METHOD, INT8_METHOD)


def _joined(name: str, packed: StoredTensor, scales: StoredTensor | None, source: Path) -> StoredTensor:
    shape = packed.shape
    fits = packed.dtype == torch.uint8 and len(shape) == 3 and shape[2] in (GROUP // 2, GROUP // 4, GROUP // 8)
    if not fits or scales is None or scales.dtype != torch.bfloat16 or scales.shape != shape[:2]:
        raise UserError(f"{source}: tensor {packed.name!r} has no fitting {SCALES} beside it; copy the model again")

    def parts() -> Iterator[torch.Tensor]:
        levels, factors = packed.read()[None], scales.read()[None]  # [1, G, N, 64], [1, G, N]
        for start, stop in row_ranges(weight.shape):
            yield unpack(Int4Weight(levels[:, :, start:stop], factors[:, :, start:stop]))[0]

    weight = replace(packed, name=name, shape=(shape[1], shape[0] * 2 * shape[2]))  # [N, K]
    return QuantizedTensor(**vars(computed(weight, torch.float32, parts)), pair=(packed, scales))


def _joined_int8(name: str, levels: StoredTensor, scales: StoredTensor | None, source: Path) -> StoredTensor:
    fits = levels.dtype == torch.int8 and len(levels.shape) == 2
    if not fits or scales is None or scales.dtype != torch.bfloat16 or scales.shape != levels.shape[:1]:
        raise UserError(
            f"{source}: tensor {levels.name!r} has no fitting {INT8_SCALES} beside it; copy the model again"
        )

    def parts() -> Iterator[torch.Tensor]:
        factors = scales.read().float()
        start = 0
        for part in levels.parts():
            yield part.float() * factors[start : start + len(part), None]
            start += len(part)

    weight = computed(replace(levels, name=name), torch.float32, parts)
    return QuantizedTensor(**vars(weight), pair=(levels, scales))


def join_quantized(tensors: Mapping[str, StoredTensor], source: Path) -> dict[str, StoredTensor]:
    """Replaces each pair of tensors with the weight that it encodes.

    Raises:
        UserError: a pair is incomplete, or its shapes or dtypes do not fit.
    """
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(PACKED):
            stem = name.removesuffix(PACKED)
            weight = f"{stem}.weight"
            result[weight] = _joined(weight, tensor, tensors.get(stem + SCALES), source)
        elif name.endswith(LEVELS):
            stem = name.removesuffix(LEVELS)
            weight = f"{stem}.weight"
            result[weight] = _joined_int8(weight, tensor, tensors.get(stem + INT8_SCALES), source)
        elif name.endswith((SCALES, INT8_SCALES)):
            end, other = (SCALES, PACKED) if name.endswith(SCALES) else (INT8_SCALES, LEVELS)
            if name.removesuffix(end) + other not in tensors:
                raise UserError(f"{source}: tensor {name!r} has no {other} beside it; copy the model again")
        else:
            result[name] = tensor
    return result
