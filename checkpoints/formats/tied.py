"""Output matrices that a config calls tied to the embedding: what the file stores decides."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints.storage.safetensors_file import StoredTensor
from moe.config import ModelConfig
from moe.errors import Notice

_EMBEDDING, _OUTPUT = "tok_embeddings.weight", "output.weight"


def resolve_tied(
    config: ModelConfig, tensors: Mapping[str, StoredTensor], source: Path
) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """The config and tensors (by flat name) of a model whose config ties the output to the embedding.

    Where both matrices are stored and equal, the copy is left out. Where they differ (merged adapters leave such
    files), the stored output is used, as transformers 5 does, with a :class:`Notice`. One alone serves as both.
    """
    found = dict(tensors)
    if not config.tie_embeddings or _OUTPUT not in found:
        return config, found
    if _EMBEDDING not in found:
        found[_EMBEDDING] = replace(found.pop(_OUTPUT), name=_EMBEDDING)
        return config, found
    if _equal(found[_EMBEDDING], found[_OUTPUT]):
        del found[_OUTPUT]
        return config, found
    warnings.warn(
        f"{source}: the config says that embedding and output (lm_head) are tied, but two different matrices are "
        "stored; both are used, as transformers 5 does",
        Notice,
        stacklevel=2,
    )
    return replace(config, tie_embeddings=False), found


def _equal(first: StoredTensor, second: StoredTensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return all(torch.equal(one, other) for one, other in zip(first.parts(), second.parts(), strict=True))
