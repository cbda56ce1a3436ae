"""Int4 feed-forwards, in groups of 128 along the input, in the packing of the kernels (:mod:`kernels.int4`), and int8.

Rounding to the nearest level is streamed in bounded memory; :mod:`checkpoints.transforms.gptq` rounds with calibration.
Int4 is for feed-forward matrices, which are 78% of Mistral-7B and 93% of its mixture; int8, one scale for each output,
also for attention and output.
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
from checkpoints.formats.quantized import INT8_METHOD, INT8_SCALES, LEVELS, METHOD, PACKED, SCALES
from checkpoints.storage.safetensors_file import StoredTensor, one_thread
from checkpoints.storage.writer import renamed
from checkpoints.transforms.rewrite import Rewrite
from kernels.int4 import GROUP, Int4Weight, group_of, pack
from kernels.packed import int8_levels
from moe.errors import UserError

Rounder = Callable[[str, StoredTensor], Int4Weight]  # flat name, weight [N, K]


def is_quantizable(name: str, shape: Sequence[int]) -> bool:
    """True for feed-forward matrices whose input width is a multiple of 128; never for routers."""
    return ".feed_forward." in name and ".gate." not in name and len(shape) == 2 and group_of(shape[1]) > 0


def is_int8(name: str, shape: Sequence[int], tied: bool, everything: bool) -> bool:
    """True for the matrices that int8 rounds: attention and output, which tied embeddings are, too; with ``everything``
    feed-forwards. Never routers and norms."""
    wanted = everything and ".feed_forward." in name and ".gate." not in name
    output = "tok_embeddings.weight" if tied else "output.weight"
    return len(shape) == 2 and (wanted or ".attention." in name or name == output)


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


def round_to_int8(name: str, weight: StoredTensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] to int8 levels and scales; a few rows at a time."""
    try:
        with one_thread():
            levels, scales = zip(*(int8_levels(part) for part in weight.parts()))
        return torch.cat(levels), torch.cat(scales)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"tensor {name!r} cannot be quantized: {error}") from None


def quantized_tensors(
    source: Checkpoint, rounder: Rounder = round_to_nearest, bits: int = 4, rest: str = "keep"
) -> Iterator[StoredTensor]:
    """Yields the tensors of the quantized model under Hugging Face names: levels and scales, the rest as it is.

    Args:
        bits: of feed-forwards; 8 rounds the rest to int8, too.
        rest: ``int8`` rounds attention and output to int8 beside int4 feed-forwards; ``keep`` leaves them.

    Raises:
        UserError: no feed-forward matrix has an input that is a multiple of 32.
    """
    names = dict(expected_tensors(source.config))
    if bits == 4 and not any(is_quantizable(name, shape) for name, shape in names.items()):
        raise UserError(
            f"no feed-forward matrix of {source.path} has an input width that is a multiple of 32; "
            "nothing can be quantized in groups of that size; give --bits 8"
        )
    for name, shape in names.items():
        tensor = renamed(source.tensors[name], name)
        layer, theirs = dense_copies(name, source.config) or (None, [to_huggingface(name)])
        if is_int8(name, shape, source.config.tie_embeddings, bits == 8) and (bits == 8 or rest == "int8"):
            if layer is not None and name.endswith(".w1.weight"):
                yield zero_router(source.config, layer, tensor.dtype)
            rounded = _Once(partial(round_to_int8, name, tensor))
            for written in theirs:
                stem, last = written.removesuffix(".weight"), written == theirs[-1]
                yield StoredTensor(stem + LEVELS, torch.int8, shape, partial(rounded.value, 0))
                yield StoredTensor(stem + INT8_SCALES, torch.bfloat16, shape[:1], partial(rounded.value, 1, last))
            continue
        if bits == 8 or not is_quantizable(name, shape):
            yield from huggingface_tensors(source.config, [tensor])
            continue
        if layer is not None and name.endswith(".w1.weight"):
            yield zero_router(source.config, layer, tensor.dtype)
        group = group_of(shape[1])
        rows, groups = shape[0], shape[1] // group
        pair = _Once(partial(_only_expert, rounder, name, tensor))
        for written in theirs:
            stem, last = written.removesuffix(".weight"), written == theirs[-1]
            yield StoredTensor(stem + PACKED, torch.uint8, (groups, rows, group // 2), partial(pair.value, 0))
            yield StoredTensor(stem + SCALES, torch.bfloat16, (groups, rows), partial(pair.value, 1, last))


def _only_expert(rounder: Rounder, name: str, weight: StoredTensor) -> list[Tensor]:
    return [part[0] for part in rounder(name, weight)]


class _Once:
    """Computes a weight's two tensors when the first is needed, and frees them after the last."""

    def __init__(self, compute: Callable[[], Sequence[Tensor]]) -> None:
        self.compute = compute
        self.kept: Sequence[Tensor] | None = None

    def value(self, part: int, last: bool = False) -> Tensor:
        value = self.kept or self.compute()
        self.kept = None if last else value
        return value[part]


def quantized_rewrite(
    source: Checkpoint,
    action: str,
    rounder: Rounder = round_to_nearest,
    method: str = "nearest",
    prompts: Sequence[Sequence[int]] = (),
    bits: int = 4,
    rest: str = "keep",
    base_id: str | None = None,
) -> Rewrite:
    """The quantized model, to be written; ``prompts`` are those that ``rounder`` was calibrated on."""
    return Rewrite(
        source,
        source.config,
        list(quantized_tensors(source, rounder, bits, rest)),
        action=action,
        job=["quantize", method, list(prompts), bits, rest],
        base_id=base_id,
        extra_config={"quantization_config": quantization_settings(method, bits, rest)},
    )


def quantization_settings(method: str, bits: int = 4, rest: str = "keep") -> dict[str, Any]:
    """The ``quantization_config`` of the written ``config.json``."""
    if bits == 8:
        return {"quant_method": INT8_METHOD, "bits": 8}
    settings = {"quant_method": METHOD, "bits": 4, "group_size": GROUP, "rounding": method}
    return settings if rest == "keep" else settings | {"rest": rest}
