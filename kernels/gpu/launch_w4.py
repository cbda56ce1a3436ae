"""Launches of the int4 kernels. As in `kernels.gpu.launch`, no value of a tensor is read on the host.

Shape legend: T tokens, K experts per token, R rows, E experts, N output columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import ExpertDispatch
from kernels.gpu import tile_tables as tuning
from kernels.gpu import w4
from kernels.gpu.launch import grouped_gemm, launch, pick, row_grid
from kernels.gpu.launch import swiglu as bf16_swiglu
from kernels.gpu.tile_tables import Tile
from kernels.gpu.variants import scale_in_weight
from kernels.int4 import Int4Weight


def linear(
    x: Tensor, w: Int4Weight, dispatch: ExpertDispatch, rows: int, *,
    top_k: int = 1, gather: bool = False, out_dtype: torch.dtype | None = None, tile: Tile | None = None,
    swap: bool | None = None, asm: bool = True,
) -> Tensor:  # fmt: skip
    """``x @ w[e].T`` -> [R, N], or float32 split-K parts [S, R, N] for few rows (`combine` takes both)."""
    experts, columns, width = w.shape3
    per_expert = -(-rows // experts)
    swap = per_expert <= tuning.W4_SWAP_ROWS if swap is None else swap
    if tile is None and not swap and per_expert > tuning.W4_DEQUANTISE_ROWS and x.dtype == torch.bfloat16:
        return grouped_gemm(x, dequantise(w), dispatch, rows, top_k=top_k, gather=gather, out_dtype=out_dtype)
    tile = tile or pick("w4_swap" if swap else "w4_gemm", x, rows, experts)
    splits = tile.split_k
    dtype = torch.float32 if splits > 1 else out_dtype or x.dtype
    y = torch.empty(splits, rows, columns, dtype=dtype, device=x.device)
    if not y.numel():
        return y[0]
    arguments = {
        "x_ptr": x, "q_ptr": w.packed, "s_ptr": w.scales, "q3_ptr": None, "s3_ptr": None, "y_ptr": y, "h1_ptr": None,
        "h3_ptr": None, "order_ptr": dispatch.order, "offsets_ptr": dispatch.offsets, "rows_total": rows, "N": columns,
        "K": width, "E": experts, "TOPK": top_k, "GATHER": gather, "SWIGLU": False, "SAVE_H": False, "ASM": asm,
        "SPLIT_K": splits, "BM": tile.bm, "BN": tile.bn, "GROUP_M": tile.group_m,
    }  # fmt: skip
    grid = (row_grid(rows, columns, experts, tile), splits)
    if swap:
        launch(w4.w4_swap_kernel, grid, tile, **arguments)
    else:
        launch(w4.w4_gemm_kernel, grid, tile, **arguments, SCALE_W=scale_in_weight(tile, False))
    return y if splits > 1 else y[0]


def swiglu(
    x: Tensor, w1: Int4Weight, w3: Int4Weight, dispatch: ExpertDispatch, rows: int, *,
    top_k: int, gather: bool, save_h: bool, out_dtype: torch.dtype | None = None, tile: Tile | None = None,
    swap: bool | None = None, asm: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """``a = silu(h1) * h3`` with int4 weights -> a, h1, h3 [R, N] (h only if ``save_h``)."""
    experts, columns, width = w1.shape3
    per_expert = -(-rows // experts)
    swap = per_expert <= tuning.W4_SWAP_ROWS if swap is None else swap
    if tile is None and not swap and per_expert > tuning.W4_DEQUANTISE_ROWS and x.dtype == torch.bfloat16:
        full1, full3 = dequantise(w1), dequantise(w3)
        return bf16_swiglu(x, full1, full3, dispatch, rows, top_k=top_k, gather=gather, save_h=save_h)
    tile = tile or pick("w4_swap_swiglu" if swap else "w4_swiglu", x, rows, experts)
    a = torch.empty(rows, columns, dtype=out_dtype or x.dtype, device=x.device)
    h1, h3 = (torch.empty_like(a), torch.empty_like(a)) if save_h else (None, None)
    if not a.numel():
        return a, h1, h3
    arguments = {
        "x_ptr": x, "q_ptr": w1.packed, "s_ptr": w1.scales, "q3_ptr": w3.packed, "s3_ptr": w3.scales, "y_ptr": a,
        "h1_ptr": h1, "h3_ptr": h3, "order_ptr": dispatch.order, "offsets_ptr": dispatch.offsets, "rows_total": rows,
        "N": columns, "K": width, "E": experts, "TOPK": top_k, "GATHER": gather, "SWIGLU": True, "SAVE_H": save_h,
        "ASM": asm, "SPLIT_K": 1, "BM": tile.bm, "BN": tile.bn, "GROUP_M": tile.group_m,
    }  # fmt: skip
    grid = (row_grid(rows, columns, experts, tile), 1)
    if swap:
        launch(w4.w4_swap_kernel, grid, tile, **arguments)
    else:
        launch(w4.w4_gemm_kernel, grid, tile, **arguments, SCALE_W=scale_in_weight(tile, True))
    return a, h1, h3


def gemv(
    x: Tensor, w: Int4Weight, w3: Int4Weight | None, expert_ids: Tensor, *, rows_per_x: int,
    out_dtype: torch.dtype | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Decode product of slot s with expert ``expert_ids[s]``: x [slots / rows_per_x, K] -> [S, slots, N] (S = split-K).

    With ``w3`` the SwiGLU of both products, never split.
    """
    experts, columns, width = w.shape3
    slots = expert_ids.numel()
    tile = tile or pick("w4_gemv" if w3 is None else "w4_gemv_swiglu", x, slots, 1)
    splits = tile.split_k if w3 is None else 1
    dtype = torch.float32 if splits > 1 else out_dtype or x.dtype
    y = torch.empty(splits, slots, columns, dtype=dtype, device=x.device)
    launch(
        w4.w4_gemv_kernel, (-(-columns // tile.bn), slots, splits), tile,
        x_ptr=x, q_ptr=w.packed, s_ptr=w.scales, q3_ptr=w3.packed if w3 is not None else None,
        s3_ptr=w3.scales if w3 is not None else None, y_ptr=y, ids_ptr=expert_ids, slots=slots, N=columns, K=width,
        E=experts, TOPK=rows_per_x, SWIGLU=w3 is not None, SPLIT_K=splits, BN=tile.bn,
    )  # fmt: skip
    return y


def linear_dx(
    dy: Tensor, w: Int4Weight, dispatch: ExpertDispatch, rows: int, *,
    top_k: int = 1, gather: bool = False, dy2: Tensor | None = None, w2: Int4Weight | None = None,
    out_dtype: torch.dtype | None = None, tile: Tile | None = None, asm: bool = True,
) -> Tensor:  # fmt: skip
    """``dy @ w[e] (+ dy2 @ w2[e])`` -> [R, K], from the same packing as the forward."""
    experts, columns, width = w.shape3
    dx = torch.empty(rows, width, dtype=out_dtype or dy.dtype, device=dy.device)
    if not dx.numel():
        return dx
    tile = tile or pick("w4_dx", dy, rows, experts)
    launch(
        w4.w4_dx_kernel, ((-(-rows // tile.bm) + experts - 1) * (width // 128),), tile,
        dy_ptr=dy, q_ptr=w.packed, s_ptr=w.scales, dy2_ptr=dy2, q2_ptr=w2.packed if w2 is not None else None,
        s2_ptr=w2.scales if w2 is not None else None, dx_ptr=dx, order_ptr=dispatch.order,
        offsets_ptr=dispatch.offsets, rows_total=rows, N=columns, K=width, E=experts, TOPK=top_k, GATHER=gather,
        DUAL=dy2 is not None, ASM=asm, BM=tile.bm, BN=tile.bn, GROUP_M=tile.group_m,
    )  # fmt: skip
    return dx


def dequantise(w: Int4Weight, dtype: torch.dtype = torch.bfloat16, asm: bool = True) -> Tensor:
    """The bf16 weight [E, N, K]: a workspace the caller drops after one product."""
    experts, columns, width = w.shape3
    out = torch.empty(experts, columns, width, dtype=dtype, device=w.packed.device)
    tile = pick("w4_dequantise", w.packed, columns, 1)
    launch(
        w4.w4_dequantise_kernel, (-(-columns // tile.bn), width // 128, experts), tile,
        q_ptr=w.packed, s_ptr=w.scales, w_ptr=out, N=columns, K=width, ASM=asm, BN=tile.bn,
    )  # fmt: skip
    return out
