"""Rotary embeddings in one pass, forward and backward."""

# B batch, S sequence, H heads, C head dim

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.common import cast, kernel
from kernels.gpu.launch import launch, pick


@kernel
def rotate_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr, x_batch, x_row, cos_batch, tokens, direction,
    H: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Rotates the pairs ``(x[c], x[c + C/2])`` of a token's heads by its angles, times ``direction`` (1 or -1).

    Rounds where torch's products and sum in the dtype of x would.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    half = tl.arange(0, HALF)
    inside = half < C // 2
    mask = (head < H)[:, None] & inside[None, :]
    batch, row = token // tokens, token % tokens
    at = x_ptr + batch * x_batch + row * x_row + head[:, None] * C + half[None, :]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + C // 2, mask=mask, other=0.0).to(tl.float32)
    angle = batch * cos_batch + row * C + half
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0).to(tl.float32)[None, :] * direction
    left = cast(first * cos, dtype).to(tl.float32) - cast(second * sin, dtype).to(tl.float32)
    right = cast(second * cos, dtype).to(tl.float32) + cast(first * sin, dtype).to(tl.float32)
    out = out_ptr + (token * H + head[:, None]) * C + half[None, :]
    tl.store(out, cast(left, dtype), mask=mask)
    tl.store(out + C // 2, cast(right, dtype), mask=mask)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """x [B, H, S, C], cos and sin [B or 1, 1, S, C] with equal halves -> [B, H, S, C], a token's heads side by side."""
    cos, sin = cos.contiguous(), sin.contiguous()
    batch, heads, length, width = x.shape
    if x.stride(3) != 1 or (heads > 1 and x.stride(1) != width):  # strides that grow with S would be code of their own
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    out = torch.empty(batch, length, heads, width, dtype=x.dtype, device=x.device)
    if out.numel():
        tile = pick("rotate", x, heads)
        launch(
            "rotate", rotate_kernel, (batch * length, -(-heads // tile.bm)), tile,
            x_ptr=x, cos_ptr=cos, sin_ptr=sin, out_ptr=out, x_batch=x.stride(0) if batch > 1 else 0,
            x_row=x.stride(2), cos_batch=cos.stride(0) if cos.shape[0] > 1 else 0, tokens=length,
            direction=direction, H=heads, C=width, HALF=triton.next_power_of_2(width // 2), BH=tile.bm,
        )  # fmt: skip
    return out.transpose(1, 2)


class Rotation(torch.autograd.Function):
    """`rotate`; the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], cos, sin, -1.0), None, None
