"""Launches of the int4 kernels. As in `kernels.gpu.launch`, no value of a tensor is read on the host."""

# T tokens, E experts, R = T*K rows sorted by expert, N output columns, K inner width

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu import launch as bf16
from kernels.gpu import tile_tables, w4
from kernels.gpu.launch import launch, pick, row_grid, rows_per_expert, top_k_of
from kernels.int4 import GROUP, Int4Weight
from kernels.types import ExpertDispatch


def linear(x: Tensor, w: Int4Weight, dispatch: ExpertDispatch) -> Tensor:
    """``x @ w[e].T`` for x [R, K] -> [R, N], or float32 split-K parts [S, R, N] for few rows (`combine` takes both)."""
    if rows_per_expert(dispatch) > tile_tables.W4_DEQUANTIZE_ROWS:
        return bf16.grouped_gemm("gemm", x, dequantize(w, x.dtype), dispatch)
    return _product(x, w, None, dispatch, False)[0]


def swiglu(
    x: Tensor, w1: Int4Weight, w3: Int4Weight, dispatch: ExpertDispatch, save_h: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``a = silu(h1) * h3`` with int4 weights for x [T, K] -> a, h1, h3 [R, N] (h only if ``save_h``)."""
    if rows_per_expert(dispatch) > tile_tables.W4_DEQUANTIZE_ROWS:
        return bf16.swiglu(x, dequantize(w1, x.dtype), dequantize(w3, x.dtype), dispatch, save_h)
    return _product(x, w1, w3, dispatch, save_h)


def _product(
    x: Tensor, w: Int4Weight, w3: Int4Weight | None, dispatch: ExpertDispatch, save_h: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    experts, columns, width = w.shape3
    rows, per_expert = dispatch.order.numel(), rows_per_expert(dispatch)
    swap = per_expert <= tile_tables.W4_SWAP_ROWS
    op = ("w4_swap" if swap else "w4_gemm") if w3 is None else ("w4_swap_swiglu" if swap else "w4_swiglu")
    tile = pick(op, x, per_expert)
    splits = tile.split_k if w3 is None else 1  # SwiGLU needs whole sums
    shape = (splits, rows, columns) if splits > 1 else (rows, columns)
    y = torch.empty(shape, dtype=torch.float32 if splits > 1 else x.dtype, device=x.device)
    h1, h3 = (torch.empty_like(y), torch.empty_like(y)) if save_h else (None, None)
    if y.numel():
        launch(
            op, w4.w4_swap_kernel if swap else w4.w4_gemm_kernel,
            (row_grid(dispatch, columns, tile), splits), tile,
            x_ptr=x, q_ptr=w.packed, s_ptr=w.scales, q3_ptr=None if w3 is None else w3.packed,
            s3_ptr=None if w3 is None else w3.scales, y_ptr=y, h1_ptr=h1, h3_ptr=h3, order_ptr=dispatch.order,
            offsets_ptr=dispatch.offsets, rows_total=rows, N=columns, K=width, E=experts,
            TOPK=top_k_of(dispatch, x.shape[0]), SWIGLU=w3 is not None, SAVE_H=save_h,
            BM=tile.bm, BN=tile.bn, GROUP_M=tile.group_m, **({"SPLIT_K": splits} if swap else {}),
        )  # fmt: skip
    return y, h1, h3


def linear_dx(
    dy: Tensor, w: Int4Weight, dispatch: ExpertDispatch, *,
    gather: bool = False, dy2: Tensor | None = None, w2: Int4Weight | None = None,
) -> Tensor:  # fmt: skip
    """``dy @ w[e] (+ dy2 @ w2[e])`` -> [R, K], from the same packing as the forward; dy [R, N], or [T, N] to gather."""
    experts, columns, width = w.shape3
    rows = dispatch.order.numel()
    dx = torch.empty(rows, width, dtype=dy.dtype, device=dy.device)
    if not dx.numel():
        return dx
    if rows_per_expert(dispatch) > tile_tables.W4_DEQUANTIZE_ROWS:
        second = None if w2 is None else dequantize(w2, dy.dtype)
        full = dequantize(w, dy.dtype)
        return bf16.grouped_gemm("gemm_dx", dy, full, dispatch, gather=gather, transposed=True, x2=dy2, w2=second)
    tile = pick("w4_dx", dy, rows_per_expert(dispatch))
    launch(
        "w4_dx", w4.w4_dx_kernel, (row_grid(dispatch, width, tile._replace(bn=GROUP)),), tile,
        dy_ptr=dy, q_ptr=w.packed, s_ptr=w.scales, dy2_ptr=dy2, q2_ptr=None if w2 is None else w2.packed,
        s2_ptr=None if w2 is None else w2.scales, dx_ptr=dx, order_ptr=dispatch.order, offsets_ptr=dispatch.offsets,
        rows_total=rows, N=columns, K=width, E=experts, TOPK=top_k_of(dispatch, dy.shape[0]), GATHER=gather,
        DUAL=dy2 is not None, BM=tile.bm, BN=tile.bn, GROUP_M=tile.group_m,
    )  # fmt: skip
    return dx


def dequantize(w: Int4Weight, dtype: torch.dtype) -> Tensor:
    """The weight [E, N, K] in ``dtype``: a workspace the caller drops after one product."""
    experts, columns, width = w.shape3
    out = torch.empty(experts, columns, width, dtype=dtype, device=w.packed.device)
    tile = pick("w4_dequantize", w.packed, columns)
    launch(
        "w4_dequantize", w4.w4_dequantize_kernel, (-(-columns // tile.bn), width // GROUP, experts), tile,
        q_ptr=w.packed, s_ptr=w.scales, w_ptr=out, N=columns, K=width, BN=tile.bn,
    )  # fmt: skip
    return out
