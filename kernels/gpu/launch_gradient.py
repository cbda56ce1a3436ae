"""Launches of the gradients of experts' weights."""

# E experts, R = T*K rows sorted by expert, N output columns, K input columns

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kernels.gpu import gemm, persistent
from kernels.gpu.launch import (
    gather_rows,
    launch,
    pick,
    program_count,
    rows_per_expert,
    scratch,
    takes_descriptors,
    top_k_of,
)
from kernels.types import ExpertDispatch


def weight_gradient(
    x: Tensor, dy: Tensor, dispatch: ExpertDispatch, *, gather_x: bool = False, gather_dy: bool = False
) -> Tensor:
    """``dy.T @ x`` of each expert's rows -> [E, N, K]; a gathered operand has one row per token, else one per row."""
    columns, width, experts = dy.shape[1], x.shape[1], dispatch.offsets.numel() - 1
    dw = torch.empty(experts, columns, width, dtype=x.dtype, device=x.device)
    if takes_descriptors(x, dw, dispatch) and takes_descriptors(dy, dw, dispatch):
        x, dy = gather_rows(x, dispatch) if gather_x else x, gather_rows(dy, dispatch) if gather_dy else dy
        return persistent_weight_gradient(x, dy, dw, dispatch)
    tile = pick("weight_gradient", x, rows_per_expert(dispatch))
    grid = (experts * -(-columns // tile.bn) * -(-width // tile.bk),)
    launch(
        "weight_gradient", gemm.weight_gradient_kernel, grid, tile,
        x_ptr=x, dy_ptr=dy, dw_ptr=dw, order_ptr=dispatch.order, offsets_ptr=dispatch.offsets,
        rows_total=dispatch.order.numel(), N=columns, K=width, E=experts,
        TOPK=top_k_of(dispatch, x.shape[0] if gather_x else dy.shape[0]), GATHER_X=gather_x, GATHER_DY=gather_dy,
        BN=tile.bn, BK=tile.bk, BT=tile.bm, GROUP_M=tile.group_m,
    )  # fmt: skip
    return dw


def persistent_weight_gradient(x: Tensor, dy: Tensor, dw: Tensor, dispatch: ExpertDispatch) -> Tensor:
    """`weight_gradient` of sorted rows x [R, K] and dy [R, N], written to dw."""
    if x.is_cuda:
        triton.set_allocator(scratch)
    experts, columns, width = dw.shape
    tile = pick("persistent_weight_gradient", x, rows_per_expert(dispatch))
    programs = min(program_count(x), experts * -(-columns // tile.bn) * -(-width // tile.bk))
    launch(
        "persistent_weight_gradient", persistent.persistent_weight_gradient_kernel, (programs,), tile,
        x_ptr=x, dy_ptr=dy, dw_ptr=dw, offsets_ptr=dispatch.offsets, rows_total=dispatch.order.numel(),
        N=columns, K=width, E=experts, PROGRAMS=programs, BN=tile.bn, BK=tile.bk, BT=tile.bm, GROUP_M=tile.group_m,
    )  # fmt: skip
    return dw
