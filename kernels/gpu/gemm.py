"""Grouped matrix products over expert-sorted rows: forward, fused SwiGLU forward and backward, weight gradients.

All of them take bf16 (or any float) operands, accumulate in float32 and cast once. No atomics: each output element is
written by one program, so every result is bitwise repeatable.

Shape legend: R rows sorted by expert, E experts, N output columns, K inner width, r rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.common import cast, dot, locate, sigmoid


@triton.jit
def _product(
    acc, x_ptr, w_ptr, src, row_mask, columns, expert,
    N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``acc + x[src] @ w[expert].T``; w is [E, N, K], or [E, K, N] where TRANSPOSED."""
    inner = tl.arange(0, BK)
    x_at = x_ptr + src.to(tl.int64)[:, None] * K + inner[None, :]
    w_base = w_ptr + expert.to(tl.int64) * N * K
    if TRANSPOSED:
        w_at = w_base + columns[None, :] + inner[:, None] * N
    else:
        w_at = w_base + columns.to(tl.int64)[None, :] * K + inner[:, None]
    for k in range(0, K, BK):
        if K % BK == 0:
            x = tl.load(x_at, mask=row_mask[:, None], other=0.0)
            if N % BN == 0:
                w = tl.load(w_at)
            else:
                w = tl.load(w_at, mask=(columns < N)[None, :], other=0.0)
        else:
            x = tl.load(x_at, mask=row_mask[:, None] & (inner < K - k)[None, :], other=0.0)
            w = tl.load(w_at, mask=(columns < N)[None, :] & (inner < K - k)[:, None], other=0.0)
        acc = dot(x, w, acc)
        x_at += BK
        w_at += BK * N if TRANSPOSED else BK
    return acc


@triton.jit
def grouped_gemm_kernel(
    x_ptr, w_ptr, x2_ptr, w2_ptr, xa_ptr, b_ptr, y_ptr, order_ptr, offsets_ptr, rows_total, scale,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    GATHER: tl.constexpr, TRANSPOSED: tl.constexpr, DUAL: tl.constexpr, RANK: tl.constexpr, RANK_STEP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``y[i] = scale * (w[e] @ x[i] (+ w2[e] @ x2[i]) (+ b[e] @ xa[i]))``.

    GATHER reads row ``order[i] // TOPK`` of x instead of row i. DUAL adds a second product (the backward of a SwiGLU
    pair). RANK > 0 adds a low-rank delta [E, N, RANK] as one more step of the inner loop.
    """
    column_tiles = (N + BN - 1) // BN
    e, r0, r1, row_tile, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, column_tiles, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows = r0 + row_tile * BM + tl.arange(0, BM)
    row_mask = rows < r1
    if GATHER:
        src = tl.load(order_ptr + rows, mask=row_mask, other=0).to(tl.int32) // TOPK
    else:
        src = rows
    columns = column_tile * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = _product(acc, x_ptr, w_ptr, src, row_mask, columns, e, N, K, TRANSPOSED, BK, BN)
    if DUAL:
        acc = _product(acc, x2_ptr, w2_ptr, src, row_mask, columns, e, N, K, TRANSPOSED, BK, BN)
    if RANK > 0:
        acc = _product(acc, xa_ptr, b_ptr, rows, row_mask, columns, e, N, RANK, False, RANK_STEP, BN)
    acc = acc * scale + poison
    mask = row_mask[:, None] & (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(y_ptr + at, cast(acc, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def swiglu_kernel(
    x_ptr, x2_ptr, w1_ptr, w3_ptr, base1_ptr, base3_ptr, a_ptr, h1_ptr, h3_ptr, order_ptr, offsets_ptr,
    rows_total, scale,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    GATHER: tl.constexpr, TWO_INPUTS: tl.constexpr, HAS_BASE: tl.constexpr, SAVE_H: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``h1 = base1[t] + scale * w1[e] @ x``, ``h3`` likewise, ``a = silu(h1) * h3`` in one pass over x.

    TWO_INPUTS reads x2 for w3 (the two low-rank projections of a delta expert). HAS_BASE adds rows of the
    once-per-token base products, found through ``order``. SAVE_H keeps h1 and h3 for the backward.
    """
    column_tiles = (N + BN - 1) // BN
    e, r0, r1, row_tile, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, column_tiles, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows = r0 + row_tile * BM + tl.arange(0, BM)
    row_mask = rows < r1
    if GATHER:
        src = tl.load(order_ptr + rows, mask=row_mask, other=0).to(tl.int32) // TOPK
    else:
        src = rows
    columns = column_tile * BN + tl.arange(0, BN)
    column_mask = columns < N
    acc1 = tl.zeros((BM, BN), tl.float32)
    acc3 = tl.zeros((BM, BN), tl.float32)
    if TWO_INPUTS:
        acc1 = _product(acc1, x_ptr, w1_ptr, src, row_mask, columns, e, N, K, False, BK, BN)
        acc3 = _product(acc3, x2_ptr, w3_ptr, src, row_mask, columns, e, N, K, False, BK, BN)
    else:
        inner = tl.arange(0, BK)
        x_at = x_ptr + src.to(tl.int64)[:, None] * K + inner[None, :]
        shift = e.to(tl.int64) * N * K
        w_at = columns.to(tl.int64)[None, :] * K + inner[:, None] + shift
        for k in range(0, K, BK):
            if K % BK == 0:
                x = tl.load(x_at, mask=row_mask[:, None], other=0.0)
                if N % BN == 0:
                    acc1 = dot(x, tl.load(w1_ptr + w_at), acc1)
                    acc3 = dot(x, tl.load(w3_ptr + w_at), acc3)
                else:
                    acc1 = dot(x, tl.load(w1_ptr + w_at, mask=column_mask[None, :], other=0.0), acc1)
                    acc3 = dot(x, tl.load(w3_ptr + w_at, mask=column_mask[None, :], other=0.0), acc3)
            else:
                inside = inner < K - k
                x = tl.load(x_at, mask=row_mask[:, None] & inside[None, :], other=0.0)
                w_mask = column_mask[None, :] & inside[:, None]
                acc1 = dot(x, tl.load(w1_ptr + w_at, mask=w_mask, other=0.0), acc1)
                acc3 = dot(x, tl.load(w3_ptr + w_at, mask=w_mask, other=0.0), acc3)
            x_at += BK
            w_at += BK
    acc1 = acc1 * scale + poison
    acc3 = acc3 * scale
    mask = row_mask[:, None] & column_mask[None, :]
    if HAS_BASE:
        token = tl.load(order_ptr + rows, mask=row_mask, other=0) // TOPK
        base_at = token.to(tl.int64)[:, None] * N + columns[None, :]
        acc1 += tl.load(base1_ptr + base_at, mask=mask, other=0.0).to(tl.float32)
        acc3 += tl.load(base3_ptr + base_at, mask=mask, other=0.0).to(tl.float32)
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if SAVE_H:
        tl.store(h1_ptr + at, cast(acc1, h1_ptr.dtype.element_ty), mask=mask)
        tl.store(h3_ptr + at, cast(acc3, h3_ptr.dtype.element_ty), mask=mask)
    a = acc1 * sigmoid(acc1) * acc3
    tl.store(a_ptr + at, cast(a, a_ptr.dtype.element_ty), mask=mask)


@triton.jit
def swiglu_backward_kernel(
    dy_ptr, w2_ptr, base_ptr, h1_ptr, h3_ptr, gates_ptr, dh1_ptr, dh3_ptr, ga_ptr, partial_ptr, order_ptr, offsets_ptr,
    rows_total, scale,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    PRODUCT: tl.constexpr, GATHER: tl.constexpr, HAS_BASE: tl.constexpr, GATHER_BASE: tl.constexpr,
    WRITE_A: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """From the gradient of a token's output to those of its experts' pre-activations and gates.

    ``da = base + scale * dy @ w2[e]`` (w2 [E, K, N], not yet gated); per row and column tile ``partial = sum a * da``
    is the gate's gradient; ``dh3 = g * da * silu(h1)``, ``dh1 = g * da * h3 * silu'(h1)``; WRITE_A also stores
    ``g * a``, the left operand of the down projection's gradient. PRODUCT off: da is the base alone.
    """
    column_tiles = (N + BN - 1) // BN
    e, r0, r1, row_tile, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, column_tiles, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows = r0 + row_tile * BM + tl.arange(0, BM)
    row_mask = rows < r1
    slot = tl.load(order_ptr + rows, mask=row_mask, other=0)
    token = slot.to(tl.int32) // TOPK
    columns = column_tile * BN + tl.arange(0, BN)
    da = tl.zeros((BM, BN), tl.float32)
    if PRODUCT:
        da = _product(da, dy_ptr, w2_ptr, token if GATHER else rows, row_mask, columns, e, N, K, True, BK, BN)
        da = da * scale
    mask = row_mask[:, None] & (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if HAS_BASE:
        base_at = at
        if GATHER_BASE:
            base_at = token.to(tl.int64)[:, None] * N + columns[None, :]
        da += tl.load(base_ptr + base_at, mask=mask, other=0.0).to(tl.float32)
    h1 = tl.load(h1_ptr + at, mask=mask, other=0.0).to(tl.float32)
    h3 = tl.load(h3_ptr + at, mask=mask, other=0.0).to(tl.float32)
    s = sigmoid(h1)
    silu = h1 * s
    a = silu * h3
    da += poison
    tl.store(partial_ptr + rows * column_tiles + column_tile, tl.sum(a * da, 1), mask=row_mask)
    g = tl.load(gates_ptr + slot, mask=row_mask, other=0.0).to(tl.float32)
    if WRITE_A:
        tl.store(ga_ptr + at, cast(a * g[:, None], ga_ptr.dtype.element_ty), mask=mask)
    da = da * g[:, None]
    tl.store(dh3_ptr + at, cast(da * silu, dh3_ptr.dtype.element_ty), mask=mask)
    dh1 = da * h3 * (s * (1.0 + h1 * (1.0 - s)))
    tl.store(dh1_ptr + at, cast(dh1, dh1_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradient_kernel(
    x_ptr, dy_ptr, dw_ptr, order_ptr, offsets_ptr, rows_total, scale,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    GATHER_X: tl.constexpr, GATHER_DY: tl.constexpr, ACCUMULATE: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``dw[e, n, k] (+)= scale * sum_i dy[i, n] * x[i, k]`` over expert e's rows; an expert without rows gets zeros."""
    pid = tl.program_id(0)
    n_tiles: tl.constexpr = (N + BN - 1) // BN
    k_tiles: tl.constexpr = (K + BK - 1) // BK
    e = pid // (n_tiles * k_tiles)
    local = pid % (n_tiles * k_tiles)
    pn, pk = tl.swizzle2d(local // k_tiles, local % k_tiles, n_tiles, k_tiles, GROUP_M)
    r0 = tl.load(offsets_ptr + e)
    r1 = tl.load(offsets_ptr + e + 1)
    whole = (tl.load(offsets_ptr) == 0) & (tl.load(offsets_ptr + E) == rows_total) & (r1 >= r0)
    r1 = tl.where(whole, r1, r0)
    n = pn * BN + tl.arange(0, BN)
    k = pk * BK + tl.arange(0, BK)
    acc = tl.zeros((BN, BK), tl.float32)
    for start in range(r0, r1, BT):
        rows = start + tl.arange(0, BT)
        row_mask = rows < r1
        token = rows
        if GATHER_X or GATHER_DY:
            token = tl.load(order_ptr + rows, mask=row_mask, other=0).to(tl.int32) // TOPK
        dy_row = token if GATHER_DY else rows
        x_row = token if GATHER_X else rows
        dy = tl.load(
            dy_ptr + dy_row.to(tl.int64)[None, :] * N + n[:, None], mask=row_mask[None, :] & (n < N)[:, None], other=0.0
        )
        x = tl.load(
            x_ptr + x_row.to(tl.int64)[:, None] * K + k[None, :], mask=row_mask[:, None] & (k < K)[None, :], other=0.0
        )
        acc = dot(dy, x, acc)
    acc = acc * scale + tl.where(whole, 0.0, float("nan"))
    at = dw_ptr + e.to(tl.int64) * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
    mask = (n < N)[:, None] & (k < K)[None, :]
    if ACCUMULATE:
        acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, cast(acc, dw_ptr.dtype.element_ty), mask=mask)
