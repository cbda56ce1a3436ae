"""Delta experts as PEFT adapters, one per language, and adapters as the experts of a mixture.

``W + s (B0 A0 + B_e A_e)`` is one LoRA pair: A0 and A_e stacked, B0 and B_e side by side. Nothing is computed in either
direction unless adapters differ in their scales.
"""

# E experts, D model dim, F hidden dim, r rank

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.formats import Checkpoint
from checkpoints.formats.delta import DeltaCheckpoint, is_own
from checkpoints.formats.peft import (
    ADAPTER_CONFIG,
    ADAPTER_STEM,
    Adapter,
    LowRankPair,
    Place,
    adapter_config,
    changed_modules,
    tensor_name,
)
from checkpoints.model_card import adapter_card, base_license, base_name, is_hub_id, stated_base, training_of
from checkpoints.storage.files import new_directory, write_json
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.storage.writer import (
    MANIFEST,
    SMALL_FILES_BYTES,
    Output,
    in_dtype,
    write_model_directory,
)
from checkpoints.transforms.merge import expert_names
from checkpoints.transforms.rewrite import DEFAULT_OUTPUT, OutputOptions, source_files
from checkpoints.transforms.upcycle import upcycled_config
from moe.config import ATTENTION_EXPERTS, ModelConfig
from moe.errors import UserError

LONE = "adapter"  # the folder of a model that has the shared delta alone


def adapter_tensors(
    delta: DeltaCheckpoint, expert: int | None, dtype: torch.dtype | None = None
) -> Iterator[StoredTensor]:
    """The shared delta and that of ``expert`` (None: the shared one alone) as one pair per matrix, by PEFT's names."""
    config = delta.config
    for layer in config.sparse_layers:
        for module, matrix in changed_modules(config).items():
            for side in "AB":
                groups: list[tuple[StoredTensor, int | None]] = []
                if config.shared_rank:
                    groups.append((delta.tensors[_ours(layer, "shared_delta", side, matrix)], None))
                if expert is not None:
                    groups.append((delta.tensors[_ours(layer, "expert_deltas", side, matrix)], expert))
                yield in_dtype(_joined(tensor_name(layer, module, side), side, groups), dtype)


def _ours(layer: int, group: str, side: str, matrix: str) -> str:
    part = "attention" if matrix in ATTENTION_EXPERTS else "feed_forward"
    return f"layers.{layer}.{part}.{group}.{side.lower()}{matrix}"


def _joined(name: str, side: str, groups: Sequence[tuple[StoredTensor, int | None]]) -> StoredTensor:
    """A [r, in] of all groups on top of each other, or B [out, r] side by side."""
    dim = 0 if side == "A" else 1
    shapes = [tensor.shape[-2:] for tensor, _ in groups]
    shape = list(shapes[0])
    shape[dim] = sum(found[dim] for found in shapes)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor, _ in groups))

    def read() -> Tensor:
        whole = (tensor.read() if index is None else tensor.read()[index] for tensor, index in groups)
        return torch.cat([part.to(dtype) for part in whole], dim)

    return StoredTensor(name, dtype, tuple(shape), read)


def write_adapters(
    delta: DeltaCheckpoint,
    target: Path,
    dtype: torch.dtype | None = None,
    base_id: str | None = None,
    options: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Writes one adapter folder per language into ``target``, all or none of them.

    Raises:
        UserError: the target exists, the disk is too small, or the model changes more of its base than adapters hold.
    """
    if changed := next((name for name in delta.tensors if not is_own(name)), None):
        raise UserError(
            f"{delta.path} changes the base's {changed}, too, which no adapter holds; take its "
            "experts out with python -m checkpoints extract"
        )
    config, base = delta.config, delta.base
    rank = config.shared_rank + (config.expert_rank if config.is_moe else 0)
    name = base_name(base, base_id or stated_base(delta.path))
    stated = name if is_hub_id(name) else str(base.path.absolute())
    settings = adapter_config(stated, rank, config.delta_scale, config.moe_layers, changed_modules(config))
    planned = {folder: list(adapter_tensors(delta, expert, dtype)) for folder, expert in adapter_folders(config)}
    needed = sum(tensor.nbytes for tensors in planned.values() for tensor in tensors) + SMALL_FILES_BYTES
    with new_directory(target, options.force, needed, options.disk_free, source_files(delta)) as temporary:
        for folder, tensors in planned.items():
            card = adapter_card(name, folder, rank, base_license(base), training_of(delta.path)).encode()
            output = Output(
                tensors, {ADAPTER_CONFIG: settings}, {"README.md": card}, stem=ADAPTER_STEM, max_shard_bytes=1 << 62
            )
            write_model_directory(temporary / folder, output, progress=options.progress)
        # Each folder has its own manifest. This one marks the directory as ours, which --force may replace.
        write_json(temporary / MANIFEST, {"format_version": 1, "files": {}})


def adapter_folders(config: ModelConfig) -> list[tuple[str, int | None]]:
    """The folders that :func:`write_adapters` makes, with the expert in each."""
    if not config.is_moe:
        return [(LONE, None)]
    return [(name, expert) for expert, name in enumerate(expert_names(config))]


def mixture_of_adapters(
    base: Checkpoint, adapters: Mapping[str, Adapter], num_experts_per_tok: int = 1, **settings: Any
) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """The config and the deltas of a mixture whose experts are adapters of ``base``, one per language.

    The leading ranks that all adapters have in common become the shared delta, so that a mixture written by
    :func:`write_adapters` comes back as it was. Smaller ranks are filled with zeros. If scales differ, they go into B.

    Args:
        settings: further fields of :class:`ModelConfig`, such as ``router_context``.

    Raises:
        UserError: sizes, languages or the number of experts per token do not fit.
    """
    found = list(adapters.values())
    places = sorted({place for adapter in found for place in adapter.pairs})
    scales = {pair.scale for adapter in found for pair in adapter.pairs.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    shared = _common_rank(found, places) if len(found) > 1 else 0
    rank = max(pair.rank for adapter in found for pair in adapter.pairs.values()) - shared
    config = upcycled_config(
        base.config,
        tuple(adapters),
        "delta",
        num_experts_per_tok,
        rank,
        shared,
        moe_layers=tuple(sorted({layer for layer, _ in places})),
        delta_scale=scale,
        attention_experts=tuple(name for name in ATTENTION_EXPERTS if name in {matrix for _, matrix in places}),
        **settings,
    )
    tensors = (tensor for adapter in found for pair in adapter.pairs.values() for tensor in (pair.a, pair.b))
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    deltas = {}
    for layer in config.sparse_layers:
        for matrix in changed_modules(config).values():
            pairs = [adapter.pairs.get((layer, matrix)) for adapter in found]
            for side, size in zip("AB", config.matrix_sizes[matrix]):
                groups: list[tuple[str, tuple[int, ...], int, Any]] = [
                    ("expert_deltas", (len(pairs),), rank, partial(_own, pairs, shared, scale))
                ]
                if shared:
                    groups.append(("shared_delta", (), shared, partial(_shared, pairs[0], shared)))
                for group, lead, height, fill in groups:
                    name = _ours(layer, group, side, matrix)
                    shape = (*lead, *((height, size) if side == "A" else (size, height)))
                    read = partial(_filled, shape, dtype, side, fill)
                    deltas[name] = StoredTensor(name, dtype, shape, read)
    return config, deltas


def _filled(shape: tuple[int, ...], dtype: torch.dtype, side: str, fill: Callable[[Tensor, str], None]) -> Tensor:
    tensor = torch.zeros(shape, dtype=dtype)
    fill(tensor if side == "A" else tensor.mT, side)  # ranks come before sizes
    return tensor


def _rows(pair: LowRankPair, side: str) -> Tensor:
    """A [r, in], or B transposed [r, out]."""
    return pair.a.read() if side == "A" else pair.b.read().T


def _shared(pair: LowRankPair | None, shared: int, out: Tensor, side: str) -> None:
    if pair is not None:
        out.copy_(_rows(pair, side)[:shared])


def _own(pairs: Sequence[LowRankPair | None], shared: int, scale: float, out: Tensor, side: str) -> None:
    for expert, pair in enumerate(pairs):
        if pair is not None:
            rows = _rows(pair, side)[shared:].to(out.dtype)
            out[expert, : len(rows)] = rows if side == "A" or pair.scale == scale else rows * (pair.scale / scale)


def _common_rank(adapters: Sequence[Adapter], places: Sequence[Place]) -> int:
    """How many leading ranks are the same in all adapters and matrices; each adapter keeps one of its own."""
    ranks = [pair.rank for adapter in adapters for pair in adapter.pairs.values()]
    common = min(ranks) - 1
    for place in places:
        for one, other in pairwise(adapter.pairs.get(place) for adapter in adapters):
            if one is None or other is None or one.scale != other.scale or common == 0:
                return 0
            for side in "AB":
                same = (_rows(one, side)[:common] == _rows(other, side)[:common]).all(1)
                common = min(common, int(same.long().cumprod(0).sum()))
    return common
