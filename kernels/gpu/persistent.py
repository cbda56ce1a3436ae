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
    SWIGLU: tl.constexpr, SAVE_H: tl.constexpr, PROGRAMS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``y = x @ w[e].T``, or SWIGLU: ``silu(x @ w[e].T) * (x @ w3[e].T)``, for x [R, K]; N % BN == K % BK == 0."""
    x_desc = tl.make_tensor_descriptor(x_ptr, shape=[rows_total, K], strides=[K, 1], block_shape=[BM, BK])
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
            acc = dot(x, w_desc.load([e * N + column_tile * BN, k]).T, acc)
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
