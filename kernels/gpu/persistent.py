"""Persistent grouped matrix products for sm_90: both operands arrive through TMA descriptors.

One program per multiprocessor walks over the tiles of all experts. TMA reads neighbors only, so rows are gathered
before (`kernels.gpu.routing.gather_kernel`). The tile order and the results are those of `kernels.gpu.gemm`.
"""

# R rows sorted by expert, E experts, N output columns, K inner width

from __future__ import annotations

import triton.language as tl

from kernels.gpu.common import cast, dot, kernel, locate, sigmoid


@kernel
def persistent_gemm_kernel(
    x_ptr, w_ptr, w3_ptr, y_ptr, h1_ptr, h3_ptr, offsets_ptr, rows_total,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
    TRANSPOSED: tl.constexpr, SWIGLU: tl.constexpr, SAVE_H: tl.constexpr, PROGRAMS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``y = x @ w[e].T``, or SWIGLU: ``silu(x @ w[e].T) * (x @ w3[e].T)``, for x [R, K]; N % BN == K % BK == 0.

    w is [E, N, K], or [E, K, N] where TRANSPOSED.
    """
    x_desc = tl.make_tensor_descriptor(x_ptr, shape=[rows_total, K], strides=[K, 1], block_shape=[BM, BK])
    if TRANSPOSED:
        w_desc = tl.make_tensor_descriptor(w_ptr, shape=[E * K, N], strides=[N, 1], block_shape=[BK, BN])
    else:
        w_desc = tl.make_tensor_descriptor(w_ptr, shape=[E * N, K], strides=[K, 1], block_shape=[BN, BK])
    if SWIGLU:
        w3_desc = tl.make_tensor_descriptor(w3_ptr, shape=[E * N, K], strides=[K, 1], block_shape=[BN, BK])
    column_tiles: tl.constexpr = N // BN
    tiles = 0
    for i in tl.static_range(E):
        count = tl.maximum(tl.load(offsets_ptr + i + 1) - tl.load(offsets_ptr + i), 0)
        tiles += (count + BM - 1) // BM * column_tiles
    # as many as a broken dispatch could need to fill every row with NaN; surplus tiles find no expert and are skipped
    tiles = tl.maximum(tiles, (rows_total + BM - 1) // BM * column_tiles)
    for pid in range(tl.program_id(0), tiles, PROGRAMS):  # `flatten` of tl.range costs half of the speed in SwiGLU
        e, first, end, column_tile, poison = locate(pid, offsets_ptr, rows_total, column_tiles, E, BM, GROUP_M)
        e = tl.maximum(e, 0)
        acc = tl.zeros((BM, BN), tl.float32)
        if SWIGLU:
            acc3 = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            x = x_desc.load([first, k])
            if TRANSPOSED:
                w = w_desc.load([e * K + k, column_tile * BN])
            else:
                w = w_desc.load([e * N + column_tile * BN, k]).T
            acc = dot(x, w, acc)
            if SWIGLU:
                acc3 = dot(x, w3_desc.load([e * N + column_tile * BN, k]).T, acc3)
        acc += poison
        rows = first + tl.arange(0, BM)  # a surplus tile has none
        columns = column_tile * BN + tl.arange(0, BN)
        at = rows.to(tl.int64)[:, None] * N + columns[None, :]
        mask = (rows < end)[:, None]
        if SWIGLU:
            if SAVE_H:
                tl.store(h1_ptr + at, cast(acc, h1_ptr.dtype.element_ty), mask=mask)
                tl.store(h3_ptr + at, cast(acc3, h3_ptr.dtype.element_ty), mask=mask)
            acc = acc * sigmoid(acc) * acc3
        tl.store(y_ptr + at, cast(acc, y_ptr.dtype.element_ty), mask=mask)


@kernel
def persistent_weight_gradient_kernel(
    x_ptr, dy_ptr, dw_ptr, offsets_ptr, rows_total, N: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
    PROGRAMS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``dw[e] = dy.T @ x`` over expert e's rows of x [R, K] and dy [R, N]; N % BN == K % BK == 0.

    The rows that do not fill a step are read without descriptors, since those would read the next expert's, too.
    """
    x_desc = tl.make_tensor_descriptor(x_ptr, shape=[rows_total, K], strides=[K, 1], block_shape=[BT, BK])
    dy_desc = tl.make_tensor_descriptor(dy_ptr, shape=[rows_total, N], strides=[N, 1], block_shape=[BT, BN])
    n_tiles: tl.constexpr = N // BN
    k_tiles: tl.constexpr = K // BK
    broken = (tl.load(offsets_ptr) != 0) | (tl.load(offsets_ptr + E) != rows_total)
    for pid in tl.range(tl.program_id(0), E * n_tiles * k_tiles, PROGRAMS):
        e = pid // (n_tiles * k_tiles)
        local = pid % (n_tiles * k_tiles)
        pn, pk = tl.swizzle2d(local // k_tiles, local % k_tiles, n_tiles, k_tiles, GROUP_M)
        r0 = tl.load(offsets_ptr + e)
        r1 = tl.load(offsets_ptr + e + 1)
        whole = (r1 >= r0) & (broken == 0)
        r1 = tl.where(whole, r1, r0)
        n = pn * BN + tl.arange(0, BN)
        k = pk * BK + tl.arange(0, BK)
        acc = tl.zeros((BN, BK), tl.float32)
        last = r0 + (r1 - r0) // BT * BT
        for start in range(r0, last, BT):
            acc = dot(dy_desc.load([start, pn * BN]).T, x_desc.load([start, pk * BK]), acc)
        if last < r1:
            rows = last + tl.arange(0, BT)
            mask = rows < r1
            rows = rows.to(tl.int64)
            dy = tl.load(dy_ptr + rows[None, :] * N + n[:, None], mask=mask[None, :], other=0.0)
            acc = dot(dy, tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=mask[:, None], other=0.0), acc)
        acc += tl.where(whole, 0.0, float("nan"))
        at = dw_ptr + e.to(tl.int64) * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
        tl.store(at, cast(acc, dw_ptr.dtype.element_ty))
