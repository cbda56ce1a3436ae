"""Int4 weights in groups of 128: one packing for the forward, decode and the gradient of the input.

Widths that 128 does not divide have groups of 64 or 32, which the CPU multiplies and the Triton kernels do not.

A group is 128 neighbors along the inner width K with one bf16 scale; values are q - 8 for q in 0..15. Byte j of a group
holds weight j in its low and weight 64 + j in its high half, so a kernel reads two runs of 64 weights without
shuffling. Groups come before columns, ``packed`` [E, K / 128, N, 64] uint8 and ``scales`` [E, K / 128, N] bf16, so that
one step of the inner loop is one contiguous read. A weight takes 0.516 bytes.
"""

# E experts (1 for a dense weight), N output columns, K inner width, G = K / 128 groups

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 128


def group_of(width: int) -> int:
    """The largest group that divides an inner width; 0 where none does."""
    return next((group for group in (GROUP, 64, 32) if width % group == 0), 0)


class Int4Weight(NamedTuple):
    """``packed`` [E, K / 128, N, 64] uint8 and ``scales`` [E, K / 128, N] bf16 of a weight [E, N, K]."""

    packed: Tensor
    scales: Tensor

    @property
    def shape3(self) -> tuple[int, int, int]:
        """(E, N, K) of the weight this stands for."""
        experts, groups, columns, half = self.packed.shape
        return experts, columns, groups * 2 * half


def pack(weight: Tensor) -> Int4Weight:
    """Quantizes a weight [E, N, K], or [N, K] as E = 1: symmetric, scale = the group's largest magnitude / 7.

    Raises ValueError where K is not a multiple of 32 or the weight is not finite.
    """
    if weight.dim() == 2:
        weight = weight.unsqueeze(0)
    if weight.dim() != 3 or not weight.is_floating_point():
        raise ValueError(f"int4: expected a floating weight [E, N, K], got {weight.dtype} {list(weight.shape)}")
    experts, columns, width = weight.shape
    group = group_of(width)
    if not group:
        raise ValueError(f"int4: expected an inner width divisible by 32, got {width}")
    groups = weight.detach().float().view(experts, columns, width // group, group)
    largest = groups.abs().amax(-1)  # [E, N, G]
    if not torch.isfinite(largest).all():
        raise ValueError("int4: expected a finite weight, found inf or nan")
    scales = (largest / 7).clamp_min(torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    q = (groups / scales.float().unsqueeze(-1)).round().clamp(-8, 7).to(torch.int16) + 8
    q = q.to(torch.uint8)
    packed = q[..., : group // 2] | (q[..., group // 2 :] << 4)  # [E, N, G, group / 2]
    return Int4Weight(packed.transpose(1, 2).contiguous(), scales.transpose(1, 2).contiguous())


def unpack(weight: Int4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [E, N, K] that the packed form stands for, in ``dtype`` (exact in float32 and float64)."""
    low = (weight.packed & 0xF).to(dtype) - 8
    high = (weight.packed >> 4).to(dtype) - 8
    values = torch.cat((low, high), -1) * weight.scales.to(dtype).unsqueeze(-1)  # [E, G, N, 128]
    return values.transpose(1, 2).reshape(weight.shape3)  # [E, N, K]


def check(name: str, weight: Int4Weight, expected: tuple[int, int, int]) -> None:
    """ValueError where the tensors are not the packed form of a weight of shape ``expected`` = (E, N, K)."""
    experts, columns, width = expected
    if width % GROUP:
        raise ValueError(f"{name}: int4 needs an inner width divisible by {GROUP}, got {width}")
    shape = (experts, width // GROUP, columns)
    if weight.packed.dtype != torch.uint8 or tuple(weight.packed.shape) != (*shape, 64):
        raise ValueError(
            f"{name}.packed: expected uint8 {[*shape, 64]}, got {weight.packed.dtype} {list(weight.packed.shape)}"
        )
    if weight.scales.dtype != torch.bfloat16 or tuple(weight.scales.shape) != shape:
        raise ValueError(
            f"{name}.scales: expected torch.bfloat16 {list(shape)}, got "
            f"{weight.scales.dtype} {list(weight.scales.shape)}"
        )
