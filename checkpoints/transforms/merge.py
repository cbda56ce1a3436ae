"""Turns delta experts into full weights, and a mixture into one dense model; tensor by tensor, in bounded memory.

``merge``: every expert e becomes ``W + scale (B0 A0 + B_e A_e)``, a Mixtral model that any reader takes.
``collapse``: the experts become one feed-forward by a weighted mean (as in model soups, Wortsman et al., 2022).
Sums are kept in float32 (float64 for float64 weights) and cast once.
"""

# E experts, D model dim, F hidden dim, r rank

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.formats import Checkpoint, open_checkpoint
from checkpoints.formats.delta import DeltaCheckpoint, is_delta, open_delta
from checkpoints.formats.dense_layers import huggingface_tensors
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.parameters import base_rename
from checkpoints.storage.safetensors_file import StoredTensor, computed
from checkpoints.storage.writer import in_dtype, renamed
from moe.config import ModelConfig
from moe.errors import UserError, did_you_mean


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _add_low_rank(
    weight: StoredTensor, terms: list[tuple[Tensor, Tensor]], scale: float, dtype: torch.dtype
) -> Iterator[Tensor]:
    """weight [N, M] + scale * sum of B [N, r] A [r, M] in ``dtype``, a few rows at a time."""
    wide = _wide(weight.dtype)
    terms = [(b.to(wide), a.to(wide)) for b, a in terms]
    done = 0
    for part in weight.parts():
        rows = slice(done, done + len(part))
        block = part.to(wide)
        for b, a in terms:
            block = torch.addmm(block, b[rows], a, alpha=scale)
        yield block.to(dtype)
        done += len(part)


def _flat_base(delta: DeltaCheckpoint) -> dict[str, StoredTensor]:
    """The base's tensors under flat names, with those that the delta directory replaces."""
    rename = base_rename(delta.config)
    return {name: delta.tensors.get(rename.get(name, name), tensor) for name, tensor in delta.base.tensors.items()}


def _effective(
    delta: DeltaCheckpoint,
    base: StoredTensor,
    name: str,
    mixture: Mapping[int, float],
    dtype: torch.dtype | None,
) -> StoredTensor:
    """One matrix ``name`` with the shared delta and the given mixture of experts' deltas (expert -> share).

    The sum is rounded once, to ``dtype`` (None: the base's); a base of 16 bits loses nothing of it in float32.
    """
    prefix, weight = name.removesuffix(".weight").rsplit(".", 1)
    number = weight[1]

    def factors(group: str) -> tuple[Tensor, Tensor]:
        b, a = (delta.tensors[f"{prefix}.{group}.{side}{number}"].read() for side in "ba")
        return b, a

    def parts() -> Iterator[Tensor]:
        terms = []
        if delta.config.shared_rank:
            terms.append(factors("shared_delta"))
        if mixture:
            b, a = factors("expert_deltas")  # [E, F, r], [E, r, D]
            terms += [(share * b[expert], a[expert]) for expert, share in mixture.items()]
        return _add_low_rank(base, terms, delta.config.delta_scale, dtype or base.dtype)

    return computed(base, dtype or base.dtype, parts)


def full_config(config: ModelConfig) -> ModelConfig:
    """The config of the Mixtral model that a delta model is merged into (a dense one for a lone adapter).

    Raises:
        UserError: it has experts in its attention, which no Mixtral has.
    """
    if not config.num_experts:
        return config.dense()
    if config.attention_experts:
        raise UserError(
            f"this mixture has experts in its attention ({', '.join(config.attention_experts)}), which Mixtral has "
            "not; take one language out with python -m checkpoints extract"
        )
    return replace(config, expert_form="full", shared_rank=0, expert_rank=0)


def _is_changed(config: ModelConfig, name: str) -> bool:
    """Whether deltas change the dense matrix ``name``, as in layers.0.feed_forward.w1.weight."""
    if not name.startswith("layers."):
        return False
    _, layer, part, weight, *leaf = name.split(".")
    return int(layer) in config.sparse_layers and leaf == ["weight"] and weight[1:] in config.delta_names.get(part, ())


def _assemble(
    config: ModelConfig, find: Callable[[str], StoredTensor], dtype: torch.dtype | None
) -> Iterator[StoredTensor]:
    def flat() -> Iterator[StoredTensor]:
        for name, shape in expected_tensors(config):
            tensor = find(name)
            assert tensor.shape == shape, name
            yield renamed(in_dtype(tensor, dtype), name)

    return huggingface_tensors(config, flat())


def merged_tensors(delta: DeltaCheckpoint | Checkpoint, dtype: torch.dtype | None = None) -> Iterator[StoredTensor]:
    """Yields the tensors of the merged model under Hugging Face names; those of full experts are its own."""
    base = _flat_base(delta) if isinstance(delta, DeltaCheckpoint) else delta.tensors

    def find(name: str) -> StoredTensor:
        if not isinstance(delta, DeltaCheckpoint):
            return base[name]
        parts = name.split(".")
        if ".experts." in name:
            dense = f"layers.{parts[1]}.feed_forward.{parts[5]}.weight"
            return _effective(delta, base[dense], dense, {int(parts[4]): 1.0}, dtype)
        if _is_changed(delta.config, name):
            return _effective(delta, base[name], name, {}, dtype)
        return delta.tensors[name] if name.endswith(".gate.weight") else base[name]

    return _assemble(full_config(delta.config), find, dtype)


def expert_names(config: ModelConfig) -> tuple[str, ...]:
    """The experts' languages; numbers where the model names none."""
    return config.expert_languages or tuple(str(expert) for expert in range(config.num_experts))


def expert_shares(config: ModelConfig, weights: Mapping[str, float] | None) -> dict[int, float]:
    """Turns weights by language (None: equal) into shares by expert that sum to 1.

    Raises:
        UserError: the model is not a mixture, a language has no expert, or weights are negative or all zero.
    """
    if not config.num_experts:
        raise UserError("this model is dense already; give a mixture of experts")
    names = expert_names(config)
    given = dict(weights) if weights is not None else dict.fromkeys(names, 1.0)
    for name, value in given.items():
        if name not in names:
            hint = did_you_mean(name, names)
            raise UserError(f"no expert is named {name!r}{hint}; experts here: {', '.join(names)}")
        if not 0 <= value < float("inf"):
            raise UserError(f"the weight of {name} is {value}; expected a number of at least 0")
    total = sum(given.values())
    if total <= 0:
        raise UserError("all weights are 0; give at least one expert a positive weight")
    return {names.index(name): value / total for name, value in given.items() if value > 0}


def _mean(tensors: list[tuple[float, StoredTensor]], dtype: torch.dtype | None) -> StoredTensor:
    first = tensors[0][1]
    if len(tensors) == 1:
        return first
    wide, dtype = _wide(first.dtype), dtype or first.dtype

    def parts() -> Iterator[Tensor]:
        for pieces in zip(*(tensor.parts() for _, tensor in tensors)):
            yield sum(share * piece.to(wide) for (share, _), piece in zip(tensors, pieces)).to(dtype)

    return computed(first, dtype, parts)


def collapsed_tensors(
    source: DeltaCheckpoint | Checkpoint, shares: Mapping[int, float], dtype: torch.dtype | None = None
) -> Iterator[StoredTensor]:
    """Yields the tensors of the dense model with the weighted mean of the experts, under Hugging Face names."""
    base = _flat_base(source) if isinstance(source, DeltaCheckpoint) else source.tensors

    def find(name: str) -> StoredTensor:
        if not _is_changed(source.config, name):
            return base[name]
        if isinstance(source, DeltaCheckpoint):
            return _effective(source, base[name], name, shares, dtype)
        owner, weight = name.removesuffix(".weight").rsplit(".", 1)
        return _mean(
            [(share, base[f"{owner}.experts.{expert}.{weight}.weight"]) for expert, share in shares.items()], dtype
        )

    return _assemble(source.config.dense(), find, dtype)


def open_any(path: Path) -> DeltaCheckpoint | Checkpoint:
    """Opens a delta directory or a checkpoint of any other format."""
    return open_delta(path) if is_delta(path) else open_checkpoint(path)
