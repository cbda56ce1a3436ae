"""Launches of delta experts' own kernels, beside those of `kernels.gpu.launch`."""

# T tokens, E experts, K top-k, R = T*K rows sorted by expert, N output columns, r rank

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu import gemm, tile_tables
from kernels.gpu.launch import (
    launch,
    launch_swiglu,
    narrowed,
    pick,
    program_count,
    rows_per_expert,
    swiglu_outputs,
    top_k_of,
)  # fmt: skip
from kernels.types import ExpertDispatch


def delta_swiglu(
    x: Tensor, x3: Tensor, w1: Tensor, w3: Tensor, base: tuple[Tensor, Tensor], dispatch: ExpertDispatch, scale: float,
    save_h: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """SwiGLU with ``h1 = base[0][token] + scale * x @ w1[e].T`` and h3 of x3, base[1]; x, x3 [R, r], base [T, N]."""
    outputs = swiglu_outputs(x, dispatch, w1.shape[1], save_h)
    if outputs[0].numel():
        top_k = top_k_of(dispatch, base[0].shape[0])
        launch_swiglu("delta_swiglu", x, x3, w1, w3, base, outputs, dispatch, top_k, scale)
    return outputs


def low_rank_gradient(
    x: Tensor, dy: Tensor, dispatch: ExpertDispatch, *, gather_x: bool = False, gather_dy: bool = False
) -> Tensor:
    """`kernels.gpu.launch.weight_gradient` in float32, where N or K is a rank -> [E, N, K].

    Of x or dy [P, R, ...] come P of them, [P, E, N, K]. Narrow matrices have too few tiles for the card: several
    programs share an expert's rows, and their sums are added.
    """
    columns, width, experts = dy.shape[-1], x.shape[-1], dispatch.offsets.numel() - 1
    parts = max([t.shape[0] for t in (x, dy) if t.dim() == 3], default=1)
    tile = narrowed(pick("low_rank_gradient", x, rows_per_expert(dispatch)), columns, width)
    tiles = experts * -(-columns // tile.bn) * -(-width // tile.bk)
    most = rows_per_expert(dispatch) // tile_tables.LOW_RANK_SPLIT_ROWS
    splits = max(1, min(most, -(-2 * program_count(x) // (tiles * parts))))
    dw = torch.empty(splits, parts, experts, columns, width, dtype=torch.float32, device=x.device)
    launch(
        "low_rank_gradient", gemm.weight_gradient_kernel, (tiles, splits, parts), tile,
        x_ptr=x, dy_ptr=dy, dw_ptr=dw, order_ptr=dispatch.order, offsets_ptr=dispatch.offsets,
        rows_total=dispatch.order.numel(), N=columns, K=width, E=experts,
        TOPK=top_k_of(dispatch, x.shape[-2] if gather_x else dy.shape[-2]), GATHER_X=gather_x, GATHER_DY=gather_dy,
        BN=tile.bn, BK=tile.bk, BT=tile.bm, GROUP_M=tile.group_m,
    )  # fmt: skip
    total = dw[0] if splits == 1 else dw.sum(0)  # [P, E, N, K]
    return total if x.dim() == 3 or dy.dim() == 3 else total[0]
