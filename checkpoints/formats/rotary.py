"""Two layouts of q and k weights: neighbours paired (Mistral's own files, GGUF), halves paired (Hugging Face)."""

# H heads, C head dim, D model dim

from __future__ import annotations

from torch import Tensor


def from_interleaved_rotary(weight: Tensor, heads: int) -> Tensor:
    """Reorders rows of q or k [H*C, D] from neighbours paired to halves paired (the Hugging Face layout)."""
    rows, dim = weight.shape
    return weight.view(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)  # [H*C, D]


def to_interleaved_rotary(weight: Tensor, heads: int) -> Tensor:
    """Inverse of :func:`from_interleaved_rotary`."""
    rows, dim = weight.shape
    return weight.view(heads, 2, rows // heads // 2, dim).transpose(1, 2).reshape(rows, dim)  # [H*C, D]
