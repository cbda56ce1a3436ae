"""W4A16: products with int4 weights (`kernels.int4`), decoded inside the kernel.

A nibble minus 8 is exact in bf16. `w4_swap_kernel`, for few rows, multiplies the float32 sum of a group by its
scale, so its only error is that of float32 sums; `w4_gemm_kernel`, for many, rounds the scaled weight to
bf16, which saves a second accumulator that would spill. Inputs are gathered in the SwiGLU product.
"""

# R rows sorted by expert, E experts, N output columns, K inner width in groups of 128

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.common import INTERPRETED, cast, dot, from_int, kernel, locate, rows_of, sigmoid


@triton.jit
def nibbles(q):
    """uint8 tile -> (low half - 8, high half - 8) in bf16; 11 PTX instructions for 8 weights (sm_80 and later)."""
    if INTERPRETED:
        low = from_int((q & 0xF).to(tl.int8) - 8, tl.bfloat16)
        high = from_int((q >> 4).to(tl.int8) - 8, tl.bfloat16)
    else:
        # 0x4300 | n is bf16 128 + n; fma(1, -136) leaves n - 8
        low, high = tl.inline_asm_elementwise(
            """{ .reg .b32 t, s, o, z, m;
            mov.b32 o, 0x3F803F80;
            mov.b32 z, 0xC308C308;
            mov.b32 m, 0x43434343;
            and.b32 t, $4, 0x0F0F0F0F;
            shr.u32 s, $4, 4;
            and.b32 s, s, 0x0F0F0F0F;
            prmt.b32 $0, t, m, 0x4140;
            prmt.b32 $1, t, m, 0x4342;
            prmt.b32 $2, s, m, 0x4140;
            prmt.b32 $3, s, m, 0x4342;
            fma.rn.bf16x2 $0, $0, o, z;
            fma.rn.bf16x2 $1, $1, o, z;
            fma.rn.bf16x2 $2, $2, o, z;
            fma.rn.bf16x2 $3, $3, o, z; }""",
            "=r,=r,=r,=r,r", [q], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
    return low, high


@triton.jit
def _scaled_product(acc, x_low, x_high, q_at, s_at, column_mask, EVEN: tl.constexpr):
    """One group of 128: ``acc + x_low @ (scale * low).T + x_high @ (scale * high).T``; q tile [64, BN]."""
    if EVEN:
        low, high = nibbles(tl.load(q_at))
        scale = tl.load(s_at).to(tl.float32)[None, :]
    else:
        low, high = nibbles(tl.load(q_at, mask=column_mask[None, :], other=0))
        scale = tl.load(s_at, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    acc = dot(x_low, cast(low.to(tl.float32) * scale, tl.bfloat16), acc)
    return dot(x_high, cast(high.to(tl.float32) * scale, tl.bfloat16), acc)


@kernel
def w4_gemm_kernel(
    x_ptr, q_ptr, s_ptr, q3_ptr, s3_ptr, y_ptr, h1_ptr, h3_ptr, order_ptr, offsets_ptr, rows_total,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    SWIGLU: tl.constexpr, SAVE_H: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``y = x @ w[e].T``, or SWIGLU: ``y = silu(h1) * h3`` with ``h1 = x[token] @ w1[e].T``, h3 likewise."""
    e, first, end, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, (N + BN - 1) // BN, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows, row_mask, source = rows_of(order_ptr, first, end, TOPK, SWIGLU, BM)
    columns = column_tile * BN + tl.arange(0, BN)
    column_mask = columns < N
    EVEN: tl.constexpr = N % BN == 0
    GROUPS: tl.constexpr = K // 128
    inner = tl.arange(0, 64)
    x_at = x_ptr + source.to(tl.int64)[:, None] * K + inner[None, :]
    group = e.to(tl.int64) * GROUPS * N
    q_at = q_ptr + (group + columns[None, :]) * 64 + inner[:, None]
    s_at = s_ptr + group + columns
    acc = tl.zeros((BM, BN), tl.float32)
    if SWIGLU:
        acc3 = tl.zeros((BM, BN), tl.float32)
        q3_at = q3_ptr + (group + columns[None, :]) * 64 + inner[:, None]
        s3_at = s3_ptr + group + columns
    for _ in range(GROUPS):
        x_low = tl.load(x_at, mask=row_mask[:, None], other=0.0)
        x_high = tl.load(x_at + 64, mask=row_mask[:, None], other=0.0)
        acc = _scaled_product(acc, x_low, x_high, q_at, s_at, column_mask, EVEN)
        if SWIGLU:
            acc3 = _scaled_product(acc3, x_low, x_high, q3_at, s3_at, column_mask, EVEN)
            q3_at += N * 64
            s3_at += N
        x_at += 128
        q_at += N * 64
        s_at += N
    acc += poison
    mask = row_mask[:, None] & column_mask[None, :]
    y_at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if SWIGLU:
        if SAVE_H:
            tl.store(h1_ptr + y_at, cast(acc, h1_ptr.dtype.element_ty), mask=mask)
            tl.store(h3_ptr + y_at, cast(acc3, h3_ptr.dtype.element_ty), mask=mask)
        acc = acc * sigmoid(acc) * acc3
    tl.store(y_ptr + y_at, cast(acc, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _swapped_product(acc, x_low, x_high, q_at, s_at, column_mask, BM: tl.constexpr, BN: tl.constexpr):
    """One group of 128: ``acc + scale * (low @ x_low + high @ x_high)``; q tile [BN, 64], x tiles [64, BM]."""
    low, high = nibbles(tl.load(q_at, mask=column_mask[:, None], other=0))
    part = dot(low, x_low, tl.zeros((BN, BM), tl.float32))
    part = dot(high, x_high, part)
    return acc + part * tl.load(s_at, mask=column_mask, other=0.0).to(tl.float32)[:, None]


@kernel
def w4_swap_kernel(
    x_ptr, q_ptr, s_ptr, q3_ptr, s3_ptr, y_ptr, h1_ptr, h3_ptr, order_ptr, offsets_ptr, rows_total,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    SWIGLU: tl.constexpr, SAVE_H: tl.constexpr,
    SPLIT_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """The same product transposed, ``w @ x.T``: weights are the tensor cores' wide operand, tokens come in eights.

    With SPLIT_K, y is [SPLIT_K, R, N] and program (tile, s) computes the s-th share of K.
    """
    e, first, end, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, (N + BN - 1) // BN, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows, row_mask, source = rows_of(order_ptr, first, end, TOPK, SWIGLU, BM)
    columns = column_tile * BN + tl.arange(0, BN)
    column_mask = columns < N
    GROUPS: tl.constexpr = K // 128
    SHARE: tl.constexpr = (GROUPS + SPLIT_K - 1) // SPLIT_K
    split = tl.program_id(1)
    g0 = split * SHARE
    inner = tl.arange(0, 64)
    x_at = x_ptr + source.to(tl.int64)[None, :] * K + g0 * 128 + inner[:, None]
    group = (e.to(tl.int64) * GROUPS + g0) * N
    at = (group + columns[:, None]) * 64 + inner[None, :]
    s_at = group + columns
    acc = tl.zeros((BN, BM), tl.float32)
    if SWIGLU:
        acc3 = tl.zeros((BN, BM), tl.float32)
    for _ in range(g0, tl.minimum(g0 + SHARE, GROUPS)):
        x_low = tl.load(x_at, mask=row_mask[None, :], other=0.0)
        x_high = tl.load(x_at + 64, mask=row_mask[None, :], other=0.0)
        acc = _swapped_product(acc, x_low, x_high, q_ptr + at, s_ptr + s_at, column_mask, BM, BN)
        if SWIGLU:
            acc3 = _swapped_product(acc3, x_low, x_high, q3_ptr + at, s3_ptr + s_at, column_mask, BM, BN)
        x_at += 128
        at += N * 64
        s_at += N
    acc += poison
    mask = row_mask[None, :] & column_mask[:, None]
    y_at = (rows + split.to(tl.int64) * rows_total)[None, :] * N + columns[:, None]
    if SWIGLU:
        if SAVE_H:
            tl.store(h1_ptr + y_at, cast(acc, h1_ptr.dtype.element_ty), mask=mask)
            tl.store(h3_ptr + y_at, cast(acc3, h3_ptr.dtype.element_ty), mask=mask)
        acc = acc * sigmoid(acc) * acc3
    tl.store(y_ptr + y_at, cast(acc, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dx_product(
    low_acc, high_acc, dy_ptr, q_ptr, s_ptr, source, row_mask, e, g,
    N: tl.constexpr, GROUPS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    n = tl.arange(0, BN)
    inner = tl.arange(0, 64)
    dy_at = dy_ptr + source.to(tl.int64)[:, None] * N + n[None, :]
    group = (e.to(tl.int64) * GROUPS + g) * N
    q_at = q_ptr + (group + n[:, None]) * 64 + inner[None, :]
    s_at = s_ptr + group + n
    for start in range(0, N, BN):
        if N % BN == 0:
            dy = tl.load(dy_at, mask=row_mask[:, None], other=0.0)
            low, high = nibbles(tl.load(q_at))
            scale = tl.load(s_at).to(tl.float32)
        else:
            inside = n < N - start
            dy = tl.load(dy_at, mask=row_mask[:, None] & inside[None, :], other=0.0)
            low, high = nibbles(tl.load(q_at, mask=inside[:, None], other=0))
            scale = tl.load(s_at, mask=inside, other=0.0).to(tl.float32)
        dy = cast(dy.to(tl.float32) * scale[None, :], dy_ptr.dtype.element_ty)
        low_acc = dot(dy, low, low_acc)
        high_acc = dot(dy, high, high_acc)
        dy_at += BN
        q_at += BN * 64
        s_at += BN
    return low_acc, high_acc


@kernel
def w4_dx_kernel(
    dy_ptr, q_ptr, s_ptr, dy2_ptr, q2_ptr, s2_ptr, dx_ptr, order_ptr, offsets_ptr, rows_total,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    GATHER: tl.constexpr, DUAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``dx = dy @ w[e] (+ dy2 @ w2[e])``: a column tile is one group, its halves two accumulators of 64 columns."""
    GROUPS: tl.constexpr = K // 128
    e, first, end, g, poison = locate(tl.program_id(0), offsets_ptr, rows_total, GROUPS, E, BM, GROUP_M)
    if e < 0:
        return
    rows, row_mask, source = rows_of(order_ptr, first, end, TOPK, GATHER, BM)
    low = tl.zeros((BM, 64), tl.float32)
    high = tl.zeros((BM, 64), tl.float32)
    low, high = _dx_product(low, high, dy_ptr, q_ptr, s_ptr, source, row_mask, e, g, N, GROUPS, BN)
    if DUAL:
        low, high = _dx_product(low, high, dy2_ptr, q2_ptr, s2_ptr, source, row_mask, e, g, N, GROUPS, BN)
    at = dx_ptr + rows.to(tl.int64)[:, None] * K + g * 128 + tl.arange(0, 64)[None, :]
    tl.store(at, cast(low + poison, dx_ptr.dtype.element_ty), mask=row_mask[:, None])
    tl.store(at + 64, cast(high + poison, dx_ptr.dtype.element_ty), mask=row_mask[:, None])


@kernel
def w4_dequantize_kernel(q_ptr, s_ptr, w_ptr, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr):
    """int4 -> float [E, N, K], for products with so many rows that one pass over the weights costs little."""
    GROUPS: tl.constexpr = K // 128
    g = tl.program_id(1)
    e = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    mask = columns < N
    inner = tl.arange(0, 64)
    group = (e * GROUPS + g) * N
    low, high = nibbles(tl.load(q_ptr + (group + columns[:, None]) * 64 + inner[None, :], mask=mask[:, None], other=0))
    scale = tl.load(s_ptr + group + columns, mask=mask, other=0.0).to(tl.float32)[:, None]
    at = w_ptr + (e * N + columns[:, None]) * K + g * 128 + inner[None, :]
    tl.store(at, cast(low.to(tl.float32) * scale, w_ptr.dtype.element_ty), mask=mask[:, None])
    tl.store(at + 64, cast(high.to(tl.float32) * scale, w_ptr.dtype.element_ty), mask=mask[:, None])
