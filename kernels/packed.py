"""Int8 and int4 weights as a CPU multiplies them: torch's packed kernels, which decode while they read.

Int8 has one scale for each output, int4 one for each output and group of inputs (`kernels.int4`). A few rows are
multiplied, in bf16, by the packed weight; for many it is decoded first, some outputs at a time, to the dtype of the
activations, which costs less than the product. For gradients a whole weight is decoded.
"""

# E experts (1 for a dense weight), N outputs, K inputs, G groups of inputs, M rows

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.int4 import Int4Weight

ROWS_AT_ONCE = 512  # a multiple of the 64 rows of a block in torch's order
CACHED = 1 << 21  # numbers of a weight that is decoded at once: of 14336 x 4096 that takes twice as long
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
            if math.prod(self.shape) <= CACHED:
                return F.linear(x, self.decode(x.dtype))
            return torch.cat([F.linear(x, part.decode(x.dtype)) for part in self._parts()], 1)
        few = x.to(torch.bfloat16).contiguous()
        if self.is_int4:
            group = self.shape[1] // self.scales.shape[0]
            return torch.ops.aten._weight_int4pack_mm_for_cpu(few, self.levels, group, self.scales).to(x.dtype)
        return torch.ops.aten._weight_int8pack_mm(few, self.levels, self.scales).to(x.dtype)

    def _parts(self) -> Iterator[Packed]:
        """Outputs ``ROWS_AT_ONCE`` at a time, so that what is decoded stays in the cache."""
        for start in range(0, self.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            yield Packed(self.levels[rows], self.scales[:, rows] if self.is_int4 else self.scales[rows])


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
    """The first of the weights, reordered for a CPU, some rows at a time: torch's packing wants levels in int32."""
    blocks = []
    for part in weight.packed[0].split(ROWS_AT_ONCE, dim=1):  # [G, rows, group / 2]
        levels = torch.cat((part & 0xF, part >> 4), -1).transpose(0, 1).flatten(1)  # [rows, K]
        blocks.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1))
    scales = weight.scales[0]  # [G, N]
    return Packed(torch.cat(blocks), torch.stack((scales, torch.zeros_like(scales)), -1).contiguous())


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
