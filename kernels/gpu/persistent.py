"""Persistent grouped matrix products for sm_90: weights (and rows that need no gather) arrive through TMA descriptors.

One program per multiprocessor walks over all tiles of all experts, so that the loads of the next tile overlap the
products of this one. The tile order and the results are those of `kernels.gpu.gemm`.
"""

# R rows sorted by expert, E experts, N output columns, K inner width

from __future__ import annotations

import triton.language as tl

from kernels.gpu.common import cast, dot, kernel, locate, rows_of, sigmoid


@kernel
def persistent_gemm_kernel(
    x_ptr, w_ptr, w3_ptr, y_ptr, h1_ptr, h3_ptr, order_ptr, offsets_ptr, rows_total,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr,
    SWIGLU: tl.constexpr, SAVE_H: tl.constexpr, PROGRAMS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``y = x @ w[e].T``, or SWIGLU: ``silu(x[token] @ w[e].T) * (x[token] @ w3[e].T)``; N % BN == K % BK == 0."""
    w_desc = tl.make_tensor_descriptor(w_ptr, shape=[E * N, K], strides=[K, 1], block_shape=[BN, BK])
    if SWIGLU:
        w3_desc = tl.make_tensor_descriptor(w3_ptr, shape=[E * N, K], strides=[K, 1], block_shape=[BN, BK])
    else:
        x_desc = tl.make_tensor_descriptor(x_ptr, shape=[rows_total, K], strides=[K, 1], block_shape=[BM, BK])
    column_tiles: tl.constexpr = N // BN
    tiles = 0
    for i in tl.static_range(E):
        count = tl.maximum(tl.load(offsets_ptr + i + 1) - tl.load(offsets_ptr + i), 0)
        tiles += (count + BM - 1) // BM * column_tiles
    # as many as a broken dispatch could need to fill every row with NaN; surplus tiles find no expert and are skipped
    tiles = tl.maximum(tiles, (rows_total + BM - 1) // BM * column_tiles)
    for pid in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        e, first, end, column_tile, poison = locate(pid, offsets_ptr, rows_total, column_tiles, E, BM, GROUP_M)
        rows, row_mask, source = rows_of(order_ptr, first, end, TOPK, SWIGLU, BM)  # a surplus tile has no rows
        weight_row = tl.maximum(e, 0) * N + column_tile * BN
        acc = tl.zeros((BM, BN), tl.float32)
        if SWIGLU:
            acc3 = tl.zeros((BM, BN), tl.float32)
            x_at = x_ptr + source.to(tl.int64)[:, None] * K + tl.arange(0, BK)[None, :]
        for k in range(0, K, BK):
            if SWIGLU:
                x = tl.load(x_at + k, mask=row_mask[:, None], other=0.0)
            else:
                x = x_desc.load([first, k])
            acc = dot(x, w_desc.load([weight_row, k]).T, acc)
            if SWIGLU:
                acc3 = dot(x, w3_desc.load([weight_row, k]).T, acc3)
        acc += poison
        columns = column_tile * BN + tl.arange(0, BN)
        at = rows.to(tl.int64)[:, None] * N + columns[None, :]
        mask = row_mask[:, None]
        if SWIGLU:
            if SAVE_H:
                tl.store(h1_ptr + at, cast(acc, h1_ptr.dtype.element_ty), mask=mask)
                tl.store(h3_ptr + at, cast(acc3, h3_ptr.dtype.element_ty), mask=mask)
            acc = acc * sigmoid(acc) * acc3
        tl.store(y_ptr + at, cast(acc, y_ptr.dtype.element_ty), mask=mask)
