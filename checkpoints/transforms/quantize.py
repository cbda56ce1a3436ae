"""Int4 feed-forwards, in groups of 128 along the input, in the packing of the kernels (:mod:`kernels.int4`).

Rounding to the nearest level is streamed in bounded memory; :mod:`checkpoints.transforms.gptq` rounds with calibration.
Only feed-forward matrices are rounded: they are 78% of Mistral-7B and 93% of its mixture.
"""

# N outputs, K inputs, G = K / 128 groups

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from checkpoints.formats import Checkpoint
from checkpoints.formats.dense_layers import dense_copies, huggingface_tensors, zero_router
from checkpoints.formats.names import expected_tensors, to_huggingface
from checkpoints.formats.quantized import METHOD, PACKED, SCALES
from checkpoints.storage.safetensors_file import StoredTensor, one_thread
from checkpoints.storage.writer import renamed
from kernels.int4 import GROUP, Int4Weight, pack
from moe.errors import UserError

Rounder = Callable[[str, StoredTensor], Int4Weight]  # flat name, weight [N, K]


def is_quantizable(name: str, shape: Sequence[int]) -> bool:
    """True for feed-forward matrices whose input width is a multiple of 128; never for routers."""
    return ".feed_forward." in name and ".gate." not in name and len(shape) == 2 and shape[1] % GROUP == 0


def round_to_nearest(name: str, weight: StoredTensor) -> Int4Weight:
    """weight [N, K] to int4, each group of 128 by its largest magnitude; a few rows at a time."""
    try:
        with one_thread():
            packed = [pack(part) for part in weight.parts()]
        return Int4Weight(*(torch.cat(pieces, 2) for pieces in zip(*packed)))  # [1, G, N, 64], [1, G, N]
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"tensor {name!r} cannot be quantized: {error}") from None


def quantized_tensors(source: Checkpoint, rounder: Rounder = round_to_nearest) -> Iterator[StoredTensor]:
    """Yields the tensors of the quantized model under Hugging Face names: packed levels and scales, the rest as it is.

    Raises:
        UserError: no feed-forward matrix has an input that is a multiple of 128.
    """
    names = dict(expected_tensors(source.config))
    if not any(is_quantizable(name, shape) for name, shape in names.items()):
        raise UserError(
            f"no feed-forward matrix of {source.path} has an input width that is a multiple of {GROUP}; "
            "nothing can be quantized in groups of that size"
        )
    for name, shape in names.items():
        tensor = renamed(source.tensors[name], name)
        if not is_quantizable(name, shape):
            yield from huggingface_tensors(source.config, [tensor])
            continue
        layer, theirs = dense_copies(name, source.config) or (None, [to_huggingface(name)])
        if layer is not None and name.endswith(".w1.weight"):
            yield zero_router(source.config, layer, tensor.dtype)
        rows, groups = shape[0], shape[1] // GROUP
        pair = _Once(partial(rounder, name, tensor))
        for written in theirs:
            stem, last = written.removesuffix(".weight"), written == theirs[-1]
            yield StoredTensor(stem + PACKED, torch.uint8, (groups, rows, GROUP // 2), partial(pair.value, 0))
            yield StoredTensor(stem + SCALES, torch.bfloat16, (groups, rows), partial(pair.value, 1, last))


class _Once:
    """Computes a weight's two tensors when the first is needed, and frees them after the last."""

    def __init__(self, compute: Callable[[], Int4Weight]) -> None:
        self.compute = compute
        self.kept: Int4Weight | None = None

    def value(self, part: int, last: bool = False) -> Tensor:
        value = self.kept or self.compute()
        self.kept = None if last else value
        return value[part][0]


def quantization_settings(method: str) -> dict[str, Any]:
    """The ``quantization_config`` of the written ``config.json``."""
    return {"quant_method": METHOD, "bits": 4, "group_size": GROUP, "rounding": method}
