"""Two row orders of q and k: adjacent rows form a pair (Mistral, GGUF), or rows of the two halves do (Hugging Face)."""

# H heads, C head dim, D model dim

from __future__ import annotations

from torch import Tensor


def from_interleaved_rotary(weight: Tensor, heads: int) -> Tensor:
    """Reorders the rows of q or k [H*C, D], or their biases [H*C], from adjacent pairs to the Hugging Face layout."""
    paired = weight.view(heads, weight.shape[0] // heads // 2, 2, -1)
    return paired.transpose(1, 2).reshape(weight.shape)  # [H*C, D]
