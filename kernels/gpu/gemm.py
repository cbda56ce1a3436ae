"""Grouped matrix products over expert-sorted rows: forward, fused SwiGLU forward and backward, weight gradients.

Operands are bf16 (or any float), sums are float32 and cast once. No atomics: one program writes each output element,
so every result is bitwise repeatable.
"""

# R rows sorted by expert, E experts, N output columns, K inner width, r rank

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.common import cast, dot, kernel, locate, rows_of, sigmoid


@triton.jit
def _load_x(at, row_mask, inside, EVEN: tl.constexpr):
    """A tile [BM, BK] of rows, with zeros for missing rows and, where K is no multiple of BK, beyond K."""
    if EVEN:
        return tl.load(at, mask=row_mask[:, None], other=0.0)
    else:
        return tl.load(at, mask=row_mask[:, None] & inside[None, :], other=0.0)


@triton.jit
def _load_w(at, column_mask, inside, EVEN_K: tl.constexpr, EVEN_N: tl.constexpr):
    """A tile [BK, BN] of a weight, with zeros outside of it."""
    if EVEN_K and EVEN_N:
        return tl.load(at)
    elif EVEN_K:
        return tl.load(at, mask=column_mask[None, :], other=0.0)
    else:
        return tl.load(at, mask=column_mask[None, :] & inside[:, None], other=0.0)


@triton.jit
def _product(
    acc, x_ptr, w_ptr, source, row_mask, columns, expert,
    N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``acc + x[source] @ w[expert].T``; w is [E, N, K], or [E, K, N] where TRANSPOSED."""
    inner = tl.arange(0, BK)
    x_at = x_ptr + source.to(tl.int64)[:, None] * K + inner[None, :]
    w_at = w_ptr + expert.to(tl.int64) * N * K
    if TRANSPOSED:
        w_at += columns[None, :] + inner[:, None] * N
    else:
        w_at += columns.to(tl.int64)[None, :] * K + inner[:, None]
    for k in range(0, K, BK):
        inside = inner < K - k
        x = _load_x(x_at, row_mask, inside, K % BK == 0)
        acc = dot(x, _load_w(w_at, columns < N, inside, K % BK == 0, N % BN == 0), acc)
        x_at += BK
        w_at += BK * N if TRANSPOSED else BK
    return acc


@kernel
def grouped_gemm_kernel(
    x_ptr, w_ptr, x2_ptr, w2_ptr, y_ptr, order_ptr, offsets_ptr, rows_total, scale,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    GATHER: tl.constexpr, TRANSPOSED: tl.constexpr, DUAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``y[i] = scale * (w[e] @ x[i] (+ w2[e] @ x2[i]))``.

    GATHER reads the row of i's token from x. DUAL adds a second product (the backward of a SwiGLU pair). Part p of the
    grid's second axis computes ``y[p]`` from ``w[p]`` and, without GATHER, ``x[p]``.
    """
    part = tl.program_id(1).to(tl.int64)
    w_ptr += part * E * N * K
    y_ptr += part * rows_total * N
    if not GATHER:
        x_ptr += part * rows_total * K
    e, first, end, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, (N + BN - 1) // BN, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows, row_mask, source = rows_of(order_ptr, first, end, TOPK, GATHER, BM)
    columns = column_tile * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = _product(acc, x_ptr, w_ptr, source, row_mask, columns, e, N, K, TRANSPOSED, BK, BN)
    if DUAL:
        acc = _product(acc, x2_ptr, w2_ptr, source, row_mask, columns, e, N, K, TRANSPOSED, BK, BN)
    mask = row_mask[:, None] & (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(y_ptr + at, cast(acc * scale + poison, y_ptr.dtype.element_ty), mask=mask)


@kernel
def swiglu_kernel(
    x_ptr, x3_ptr, w1_ptr, w3_ptr, base1_ptr, base3_ptr, a_ptr, h1_ptr, h3_ptr, order_ptr, offsets_ptr,
    rows_total, scale,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    DELTA: tl.constexpr, SAVE_H: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``a = silu(h1) * h3`` with ``h1 = w1[e] @ x[token]``, ``h3 = w3[e] @ x[token]`` in one pass over x.

    DELTA: ``h1 = base1[token] + scale * w1[e] @ x[i]`` and ``h3 = base3[token] + scale * w3[e] @ x3[i]``, the low-rank
    projections of a delta expert on products of the base. SAVE_H keeps h1 and h3 for the backward.
    """
    e, first, end, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, (N + BN - 1) // BN, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows, row_mask, token = rows_of(order_ptr, first, end, TOPK, True, BM)
    columns = column_tile * BN + tl.arange(0, BN)
    column_mask = columns < N
    h1 = tl.zeros((BM, BN), tl.float32)
    h3 = tl.zeros((BM, BN), tl.float32)
    if DELTA:
        h1 = _product(h1, x_ptr, w1_ptr, rows, row_mask, columns, e, N, K, False, BK, BN)
        h3 = _product(h3, x3_ptr, w3_ptr, rows, row_mask, columns, e, N, K, False, BK, BN)
        h1 = h1 * scale
        h3 = h3 * scale
    else:
        inner = tl.arange(0, BK)
        x_at = x_ptr + token.to(tl.int64)[:, None] * K + inner[None, :]
        w_at = columns.to(tl.int64)[None, :] * K + inner[:, None] + e.to(tl.int64) * N * K
        for k in range(0, K, BK):
            inside = inner < K - k
            x = _load_x(x_at, row_mask, inside, K % BK == 0)
            h1 = dot(x, _load_w(w1_ptr + w_at, column_mask, inside, K % BK == 0, N % BN == 0), h1)
            h3 = dot(x, _load_w(w3_ptr + w_at, column_mask, inside, K % BK == 0, N % BN == 0), h3)
            x_at += BK
            w_at += BK
    mask = row_mask[:, None] & column_mask[None, :]  # after the products: held across them it takes registers
    h1 += poison
    if DELTA:
        base_at = token.to(tl.int64)[:, None] * N + columns[None, :]
        h1 += tl.load(base1_ptr + base_at, mask=mask, other=0.0).to(tl.float32)
        h3 += tl.load(base3_ptr + base_at, mask=mask, other=0.0).to(tl.float32)
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if SAVE_H:
        tl.store(h1_ptr + at, cast(h1, h1_ptr.dtype.element_ty), mask=mask)
        tl.store(h3_ptr + at, cast(h3, h3_ptr.dtype.element_ty), mask=mask)
    tl.store(a_ptr + at, cast(h1 * sigmoid(h1) * h3, a_ptr.dtype.element_ty), mask=mask)


@kernel
def swiglu_backward_kernel(
    dy_ptr, w2_ptr, base_ptr, h1_ptr, h3_ptr, gates_ptr, dh1_ptr, dh3_ptr, ga_ptr, partial_ptr, order_ptr, offsets_ptr,
    rows_total, scale,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    PRODUCT: tl.constexpr, HAS_BASE: tl.constexpr, WRITE_A: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """From the gradient of a token's output to those of its experts' pre-activations and gates.

    The activation's gradient, not yet gated, is ``da = dy[token] @ w2[e]`` (w2 [E, K, N]); of a delta expert (PRODUCT
    and HAS_BASE) ``base[token] + scale * dy[i] @ w2[e]``; without PRODUCT ``base[i]``. Per row and column tile
    ``partial = sum a * da`` is the gate's gradient; ``dh3 = g * da * silu(h1)``, ``dh1 = g * da * h3 * silu'(h1)``;
    WRITE_A also stores ``g * a``, the left operand of the down projection's gradient.
    """
    e, first, end, column_tile, poison = locate(
        tl.program_id(0), offsets_ptr, rows_total, (N + BN - 1) // BN, E, BM, GROUP_M
    )
    if e < 0:
        return
    rows, row_mask, token = rows_of(order_ptr, first, end, TOPK, True, BM)
    columns = column_tile * BN + tl.arange(0, BN)
    da = tl.zeros((BM, BN), tl.float32)
    if PRODUCT:
        da = _product(da, dy_ptr, w2_ptr, rows if HAS_BASE else token, row_mask, columns, e, N, K, True, BK, BN) * scale
    mask = row_mask[:, None] & (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if HAS_BASE:
        base_at = token.to(tl.int64)[:, None] * N + columns[None, :] if PRODUCT else at
        da += tl.load(base_ptr + base_at, mask=mask, other=0.0).to(tl.float32)
    h1 = tl.load(h1_ptr + at, mask=mask, other=0.0).to(tl.float32)
    h3 = tl.load(h3_ptr + at, mask=mask, other=0.0).to(tl.float32)
    s = sigmoid(h1)
    silu = h1 * s
    a = silu * h3
    da += poison
    column_tiles: tl.constexpr = (N + BN - 1) // BN
    tl.store(partial_ptr + rows * column_tiles + column_tile, tl.sum(a * da, 1), mask=row_mask)
    slot = tl.load(order_ptr + rows, mask=row_mask, other=0)
    g = tl.load(gates_ptr + slot, mask=row_mask, other=0.0).to(tl.float32)
    if WRITE_A:
        tl.store(ga_ptr + at, cast(a * g[:, None], ga_ptr.dtype.element_ty), mask=mask)
    da = da * g[:, None]
    tl.store(dh3_ptr + at, cast(da * silu, dh3_ptr.dtype.element_ty), mask=mask)
    dh1 = da * h3 * (s * (1.0 + h1 * (1.0 - s)))
    tl.store(dh1_ptr + at, cast(dh1, dh1_ptr.dtype.element_ty), mask=mask)


@kernel
def weight_gradient_kernel(
    x_ptr, dy_ptr, dw_ptr, order_ptr, offsets_ptr, rows_total,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    GATHER_X: tl.constexpr, GATHER_DY: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``dw[e, n, k] = sum_i dy[i, n] * x[i, k]`` over expert e's rows; an expert without rows gets zeros.

    Split s of the grid's second axis sums over its share of the rows, to ``dw[s]``. Part p of the third reads those
    operands of ``dy[p]`` and ``x[p]`` that are not gathered and writes ``dw[s, p]``.
    """
    split = tl.program_id(1)
    part = tl.program_id(2).to(tl.int64)
    if not GATHER_X:
        x_ptr += part * rows_total * K
    if not GATHER_DY:
        dy_ptr += part * rows_total * N
    pid = tl.program_id(0)
    n_tiles: tl.constexpr = (N + BN - 1) // BN
    k_tiles: tl.constexpr = (K + BK - 1) // BK
    e = pid // (n_tiles * k_tiles)
    local = pid % (n_tiles * k_tiles)
    pn, pk = tl.swizzle2d(local // k_tiles, local % k_tiles, n_tiles, k_tiles, GROUP_M)
    r0 = tl.load(offsets_ptr + e)
    r1 = tl.load(offsets_ptr + e + 1)
    whole = (tl.load(offsets_ptr) == 0) & (tl.load(offsets_ptr + E) == rows_total) & (r1 >= r0)
    share = ((r1 - r0 + BT - 1) // BT + tl.num_programs(1) - 1) // tl.num_programs(1) * BT
    r0 += split * share
    r1 = tl.where(whole, tl.minimum(r1, r0 + share), r0)
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
    acc += tl.where(whole, 0.0, float("nan"))
    place = (split * tl.num_programs(2) + part) * E + e
    at = dw_ptr + place * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(at, cast(acc, dw_ptr.dtype.element_ty), mask=(n < N)[:, None] & (k < K)[None, :])
