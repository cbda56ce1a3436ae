"""Directories with int4 feed-forwards: each such weight is two tensors, ``.int4_packed`` and ``.int4_scales``.

Reading yields the weight that the pair encodes, in float32, which represents it exactly. Packing: :mod:`kernels.int4`.
"""

# N outputs, K inputs, G = K / 128 groups

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.storage.safetensors_file import StoredTensor, computed, row_ranges
from kernels.int4 import GROUP, Int4Weight, unpack
from moe.errors import UserError

METHOD = "int4-split128"
PACKED, SCALES = ".int4_packed", ".int4_scales"


def is_quantized(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a model in this format."""
    quantization = settings.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD


def _joined(name: str, packed: StoredTensor, scales: StoredTensor | None, source: Path) -> StoredTensor:
    shape = packed.shape
    fits = packed.dtype == torch.uint8 and len(shape) == 3 and shape[2] == GROUP // 2
    if not fits or scales is None or scales.dtype != torch.bfloat16 or scales.shape != shape[:2]:
        raise UserError(f"{source}: tensor {packed.name!r} has no fitting {SCALES} beside it; copy the model again")

    def parts() -> Iterator[torch.Tensor]:
        levels, factors = packed.read()[None], scales.read()[None]  # [1, G, N, 64], [1, G, N]
        for start, stop in row_ranges(weight.shape):
            yield unpack(Int4Weight(levels[:, :, start:stop], factors[:, :, start:stop]))[0]

    weight = replace(packed, name=name, shape=(shape[1], shape[0] * GROUP))  # [N, K]
    return computed(weight, torch.float32, parts)


def join_quantized(tensors: Mapping[str, StoredTensor], source: Path) -> dict[str, StoredTensor]:
    """Replaces each pair of int4 tensors with the weight that it encodes.

    Raises:
        UserError: a pair is incomplete, or its shapes or dtypes do not fit.
    """
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(PACKED):
            stem = name.removesuffix(PACKED)
            weight = f"{stem}.weight"
            result[weight] = _joined(weight, tensor, tensors.get(stem + SCALES), source)
        elif name.endswith(SCALES):
            if name.removesuffix(SCALES) + PACKED not in tensors:
                raise UserError(f"{source}: tensor {name!r} has no {PACKED} beside it; copy the model again")
        else:
            result[name] = tensor
    return result
