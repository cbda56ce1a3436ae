"""Int8 and int4 weights as a CPU multiplies them: torch's packed kernels, which decode while they read.

Int8 has one scale for each output, int4 one for each output and group of inputs (`kernels.int4`). A few rows are
multiplied, in bf16, by the packed weight; for many, and for gradients, the weight is decoded first, one at a time, to
the dtype of the activations, which costs less than the product.
"""

# E experts (1 for a dense weight), N outputs, K inputs, G groups of inputs, M rows

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.int4 import Int4Weight

FEW_ROWS = 8  # up to here the packed kernels are faster than decoding (Xeon with AMX, 576 x 1536 and 4096 x 14336)


class Packed(NamedTuple):
    """A weight [N, K]: levels int8 [N, K] with scales [N], or int4 in torch's order, uint8 [N, K / 2], [G, N, 2]."""

    levels: Tensor
    scales: Tensor

    @property
    def is_int4(self) -> bool:
        return self.levels.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[0], self.levels.shape[1] * (2 if self.is_int4 else 1)

    def decode(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The weight [N, K] that this stands for."""
        if not self.is_int4:
            return self.levels.to(dtype).mul_(self.scales.to(dtype)[:, None])
        rows, columns = self.shape
        scales = self.scales[..., 0].t().to(dtype)  # [N, G]
        levels = _levels(self.levels, rows, columns).to(dtype).sub_(8).view(rows, scales.shape[1], -1)
        return levels.mul_(scales[..., None]).view(rows, columns)

    def product(self, x: Tensor) -> Tensor:
        """``x @ w.T`` for x [M, K], in x's dtype."""
        if x.shape[0] > FEW_ROWS:
            return F.linear(x, self.decode(x.dtype))
        few = x.to(torch.bfloat16).contiguous()
        if self.is_int4:
            group = self.shape[1] // self.scales.shape[0]
            return torch.ops.aten._weight_int4pack_mm_for_cpu(few, self.levels, group, self.scales).to(x.dtype)
        return torch.ops.aten._weight_int8pack_mm(few, self.levels, self.scales).to(x.dtype)


def whole(weight: Tensor | Packed, dtype: torch.dtype) -> Tensor:
    """A weight as a tensor: itself, or decoded."""
    return weight.decode(dtype) if isinstance(weight, Packed) else weight


class PackedWeights(nn.Module):
    """E weights [N, K] on a CPU, as buffers: levels [E, N, K or K / 2], scales [E, N] or [E, G, N, 2]."""

    levels: Tensor
    scales: Tensor

    def __init__(self, levels: Tensor, scales: Tensor):
        super().__init__()
        self.register_buffer("levels", levels)
        self.register_buffer("scales", scales)

    def __getitem__(self, expert: int) -> Packed:
        return Packed(self.levels[expert], self.scales[expert])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K)."""
        return self.levels.shape[0], *self[0].shape

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the first weight, in int8: index [...] -> [..., K]."""
        return self.levels[0][index].to(dtype).mul_(self.scales[0][index].to(dtype)[..., None])


class Int4Weights(nn.Module):
    """E int4 weights on a GPU, as buffers in the order of the Triton kernels."""

    packed: Tensor
    scales: Tensor

    def __init__(self, weight: Int4Weight):
        super().__init__()
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scales", weight.scales)

    def weight(self) -> Int4Weight:
        return Int4Weight(self.packed, self.scales)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K)."""
        return self.weight().shape3


def pack_for_cpu(weight: Int4Weight) -> Packed:
    """The first of the weights, reordered for a CPU."""
    low, high = weight.packed[0] & 0xF, weight.packed[0] >> 4
    levels = torch.cat((low, high), -1).transpose(0, 1).flatten(1)  # [N, K]
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
    scales = weight.scales[0]  # [G, N]
    return Packed(packed, torch.stack((scales, torch.zeros_like(scales)), -1).contiguous())


def _levels(packed: Tensor, rows: int, columns: int) -> Tensor:
    """[N, K] uint8 levels 0..15 of torch's order: blocks of rows, each transposed, two halves of a block in a byte.

    A last block that is smaller than the others has neighbors in a byte.
    """
    block = 64 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 32
    flat, whole = packed.reshape(-1), rows // block * block
    head = flat[: whole // 2 * columns].view(-1, columns, block // 2)
    blocks = [torch.cat((head & 0xF, head >> 4), 2).transpose(1, 2).reshape(whole, columns)]
    if rows > whole:
        tail = flat[whole // 2 * columns :].view(columns, -1)
        blocks.append(torch.stack((tail & 0xF, tail >> 4), 2).view(columns, -1).t())
    return torch.cat(blocks)


def int8_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a weight [N, K] to int8 levels [N, K] and bf16 scales [N], the largest magnitude of each row / 127.

    Raises ValueError where the weight is not finite.
    """
    wide = weight.detach().float()
    largest = wide.abs().amax(1)
    if not torch.isfinite(largest).all():
        raise ValueError("int8: expected a finite weight, found inf or nan")
    scales = (largest / 127).clamp_min(torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    return (wide / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales
