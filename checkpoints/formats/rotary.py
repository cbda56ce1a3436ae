"""Two row orders of q and k: adjacent rows form a pair (Mistral, GGUF), or rows of the two halves do (Hugging Face)."""

# H heads, C head dim, D model dim

from __future__ import annotations

from torch import Tensor


def from_interleaved_rotary(weight: Tensor, heads: int) -> Tensor:
    """Reorders the rows of q or k [H*C, D] from adjacent pairs to the Hugging Face layout."""
    rows, dim = weight.shape
    return weight.view(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)  # [H*C, D]
