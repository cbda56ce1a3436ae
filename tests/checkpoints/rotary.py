"""The row order of q and k in Mistral's own files and in GGUF, for tests that write such files."""

from torch import Tensor


def to_interleaved_rotary(weight: Tensor, heads: int) -> Tensor:
    """Inverse of :func:`checkpoints.formats.rotary.from_interleaved_rotary`."""
    rows, dim = weight.shape
    return weight.view(heads, 2, rows // heads // 2, dim).transpose(1, 2).reshape(rows, dim)  # [H*C, D]
