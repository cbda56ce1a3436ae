"""Launches: one function per kernel, which picks the tile, allocates the output and computes the grid.

Nothing here reads a tensor's values, so nothing waits for the GPU and everything can be captured in a CUDA graph.

Shape legend: T tokens, K experts per token, R = T*K rows sorted by expert, E experts, N output columns, r rank.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.dispatch import ExpertDispatch
from kernels.gpu import gemm, persistent, routing
from kernels.gpu import tile_tables as tuning
from kernels.gpu.tile_tables import Tile

_counter: ContextVar[list[str] | None] = ContextVar("launch_counter", default=None)


@contextmanager
def record_launches() -> Iterator[list[str]]:
    """Collects the names of the kernels launched inside the block."""
    names: list[str] = []
    token = _counter.set(names)
    try:
        yield names
    finally:
        _counter.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
    """Launches ``kernel``; every launch of this package goes through here."""
    names = _counter.get()
    if names is not None:
        names.append(kernel.__name__)
    kernel[grid](**arguments, num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True)


@functools.cache
def _device_arch(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def arch_of(tensor: Tensor) -> str:
    """``sm_XY`` of the tensor's GPU; sm_86 for CPU tensors, which only the interpreter can run."""
    return _device_arch(tensor.device.index or 0) if tensor.is_cuda else "sm_86"


def pick(op: str, tensor: Tensor, rows: int, experts: int) -> Tile:
    return tuning.select(op, arch_of(tensor), -(-rows // experts))


def row_grid(rows: int, columns: int, experts: int, tile: Tile) -> int:
    """Upper bound on (row tile, column tile) pairs, known without the offsets' values."""
    return (-(-rows // tile.bm) + experts - 1) * -(-columns // tile.bn)


def route(expert_ids: Tensor, num_experts: int) -> ExpertDispatch:
    """One launch; see `kernels.dispatch.sort_by_expert`."""
    ids = expert_ids.reshape(-1).contiguous()  # [R]
    rows = ids.numel()
    order = torch.empty(rows, dtype=torch.int64, device=ids.device)
    inverse = torch.empty_like(order)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=ids.device)
    tile = pick("route", ids, rows, 1)
    launch(
        routing.route_kernel,
        (max(1, -(-rows // tile.bm)),),
        tile,
        ids_ptr=ids,
        order_ptr=order,
        inverse_ptr=inverse,
        offsets_ptr=offsets,
        rows=rows,
        E=num_experts,
        E_PAD=triton.next_power_of_2(num_experts),
        BLOCK=tile.bm,
    )
    return ExpertDispatch(order, inverse, offsets)


def combine(
    rows: Tensor,
    dispatch: ExpertDispatch | None,
    top_k: int,
    out_dtype: torch.dtype,
    gates: Tensor | None = None,
    base: Tensor | None = None,
    scale: float = 1.0,
    num_experts: int = 1,
) -> Tensor:
    """Weighted sum of each token's rows: rows [R, H] or split-K parts [S, R, H] -> [T, H]."""
    parts = rows if rows.dim() == 3 else rows.unsqueeze(0)
    splits, count, width = parts.shape
    tokens = count // top_k
    out = torch.empty(tokens, width, dtype=out_dtype, device=rows.device)
    if not out.numel():
        return out
    tile = pick("combine", rows, count, 1)
    launch(
        routing.combine_kernel,
        (tokens, -(-width // tile.bn)),
        tile,
        y_ptr=parts,
        gates_ptr=gates,
        base_ptr=base,
        out_ptr=out,
        inverse_ptr=dispatch.inverse if dispatch is not None else None,
        offsets_ptr=dispatch.offsets if dispatch is not None else None,
        tokens=tokens,
        H=width,
        scale=float(scale),
        TOPK=top_k,
        E=num_experts,
        SPLIT_K=splits,
        SORTED=dispatch is not None,
        HAS_GATES=gates is not None,
        HAS_BASE=base is not None,
        BH=tile.bn,
    )
    return out


def _persistent_tile(op: str, x: Tensor, rows: int, experts: int, columns: int, width: int) -> Tile | None:
    arch = arch_of(x)
    if not x.is_cuda or x.element_size() != 2 or not tuning.has(op, arch) or rows < tuning.PERSISTENT_ROWS * experts:
        return None
    tile = tuning.select(op, arch, -(-rows // experts))
    return tile if columns % tile.bn == 0 and width % tile.bk == 0 else None


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors a kernel builds."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def persistent_launch(
    tile: Tile, x: Tensor, w: Tensor, w3: Tensor | None, y: Tensor, h1: Tensor | None, h3: Tensor | None,
    dispatch: ExpertDispatch, top_k: int, gather: bool, programs: int,
) -> None:  # fmt: skip
    """One launch of the descriptor kernel; `grouped_gemm` and `swiglu` choose it where it pays."""
    if x.is_cuda:
        triton.set_allocator(_scratch)
    experts, columns, width = w.shape
    launch(
        persistent.persistent_gemm_kernel, (programs,), tile,
        x_ptr=x, w_ptr=w, w3_ptr=w3, y_ptr=y, h1_ptr=h1, h3_ptr=h3, order_ptr=dispatch.order if gather else None,
        offsets_ptr=dispatch.offsets, rows_total=y.shape[0], N=columns, K=width, E=experts, TOPK=top_k,
        GATHER=gather, SWIGLU=w3 is not None, SAVE_H=h1 is not None, PROGRAMS=programs,
        BM=tile.bm, BN=tile.bn, BK=tile.bk, GROUP_M=tile.group_m,
    )  # fmt: skip


def grouped_gemm(
    x: Tensor, w: Tensor, dispatch: ExpertDispatch, rows: int, *,
    top_k: int = 1, gather: bool = False, transposed: bool = False, x2: Tensor | None = None, w2: Tensor | None = None,
    xa: Tensor | None = None, b: Tensor | None = None, scale: float = 1.0, out_dtype: torch.dtype | None = None,
    op: str | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """``scale * (x @ w[e].T (+ x2 @ w2[e].T) (+ xa @ b[e].T))`` -> [R, N]; w [E, N, K], or [E, K, N] if transposed.

    ``gather`` reads x at the row's token (x [T, K]); low-rank xa [R, r], b [E, N, r].
    """
    experts = w.shape[0]
    columns, width = (w.shape[2], w.shape[1]) if transposed else (w.shape[1], w.shape[2])
    y = torch.empty(rows, columns, dtype=out_dtype or x.dtype, device=x.device)
    if not y.numel():
        return y
    plain = x2 is None and xa is None and not transposed and scale == 1.0
    if plain and tile is None and op is None:
        fast = _persistent_tile("persistent_gemm", x, rows, experts, columns, width)
        if fast is not None:
            programs = _multiprocessors(x.device.index or 0)
            persistent_launch(fast, x, w, None, y, None, None, dispatch, top_k, gather, programs)
            return y
    tile = tile or pick(op or ("gemm_dx" if transposed else "gemm"), x, rows, experts)
    launch(
        gemm.grouped_gemm_kernel, (row_grid(rows, columns, experts, tile),), tile,
        x_ptr=x, w_ptr=w, x2_ptr=x2, w2_ptr=w2, xa_ptr=xa, b_ptr=b, y_ptr=y, order_ptr=dispatch.order,
        offsets_ptr=dispatch.offsets, rows_total=rows, scale=float(scale), N=columns, K=width, E=experts, TOPK=top_k,
        GATHER=gather, TRANSPOSED=transposed, DUAL=x2 is not None, RANK=0 if b is None else b.shape[2],
        RANK_STEP=16 if b is None else max(16, triton.next_power_of_2(b.shape[2])),
        BM=tile.bm, BN=tile.bn, BK=_inner(tile, width), GROUP_M=tile.group_m,
    )  # fmt: skip
    return y


def _inner(tile: Tile, width: int) -> int:
    """The tile's inner step, no larger than a narrow (low-rank) inner width needs; at least the 16 of a product."""
    return min(tile.bk, max(16, triton.next_power_of_2(width)))


def swiglu(
    x: Tensor, w1: Tensor, w3: Tensor, dispatch: ExpertDispatch, rows: int, *,
    top_k: int, gather: bool, x2: Tensor | None = None, base: tuple[Tensor, Tensor] | None = None, scale: float = 1.0,
    save_h: bool = True, out_dtype: torch.dtype | None = None, op: str = "swiglu", tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """``a = silu(h1) * h3`` with ``h = base[token] + scale * x @ w[e].T`` -> a, h1, h3 [R, N]; h if ``save_h``."""
    experts, columns, width = w1.shape
    a = torch.empty(rows, columns, dtype=out_dtype or x.dtype, device=x.device)
    h1, h3 = (torch.empty_like(a), torch.empty_like(a)) if save_h else (None, None)
    if not a.numel():
        return a, h1, h3
    if base is None and x2 is None and scale == 1.0 and tile is None:
        fast = _persistent_tile("persistent_swiglu", x, rows, experts, columns, width)
        if fast is not None:
            programs = _multiprocessors(x.device.index or 0)
            persistent_launch(fast, x, w1, w3, a, h1, h3, dispatch, top_k, gather, programs)
            return a, h1, h3
    tile = tile or pick(op, x, rows, experts)
    base1, base3 = base if base is not None else (None, None)
    launch(
        gemm.swiglu_kernel, (row_grid(rows, columns, experts, tile),), tile,
        x_ptr=x, x2_ptr=x2, w1_ptr=w1, w3_ptr=w3, base1_ptr=base1, base3_ptr=base3, a_ptr=a, h1_ptr=h1, h3_ptr=h3,
        order_ptr=dispatch.order, offsets_ptr=dispatch.offsets, rows_total=rows, scale=float(scale),
        N=columns, K=width, E=experts, TOPK=top_k, GATHER=gather, TWO_INPUTS=x2 is not None,
        HAS_BASE=base is not None, SAVE_H=save_h, BM=tile.bm, BN=tile.bn, BK=_inner(tile, width), GROUP_M=tile.group_m,
    )  # fmt: skip
    return a, h1, h3


def swiglu_backward(
    dy: Tensor | None, w2: Tensor | None, h1: Tensor, h3: Tensor, gates: Tensor, dispatch: ExpertDispatch, *,
    experts: int, gather: bool, base: Tensor | None = None, gather_base: bool = False, scale: float = 1.0,
    write_a: bool = True, op: str = "swiglu_backward", tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """dh1, dh3, gates * a (or None) [R, F] and the gates' gradient [T, K] from dy and w2 [E, D, F], or from base."""
    rows, columns = h1.shape
    top_k = gates.shape[1]
    width = w2.shape[1] if w2 is not None else 1
    tile = tile or pick(op, h1, rows, experts)
    dh1, dh3 = torch.empty_like(h1), torch.empty_like(h3)
    ga = torch.empty_like(h1) if write_a else None
    tiles = -(-columns // tile.bn)
    partial = torch.empty(rows, tiles, dtype=torch.float32, device=h1.device)
    dgates = torch.empty(gates.shape, dtype=torch.float32, device=h1.device)
    if not h1.numel():
        return dh1, dh3, ga, dgates.zero_()
    launch(
        gemm.swiglu_backward_kernel, (row_grid(rows, columns, experts, tile),), tile,
        dy_ptr=dy, w2_ptr=w2, base_ptr=base, h1_ptr=h1, h3_ptr=h3, gates_ptr=gates, dh1_ptr=dh1, dh3_ptr=dh3, ga_ptr=ga,
        partial_ptr=partial, order_ptr=dispatch.order, offsets_ptr=dispatch.offsets, rows_total=rows,
        scale=float(scale), N=columns, K=width, E=experts, TOPK=top_k, PRODUCT=dy is not None, GATHER=gather,
        HAS_BASE=base is not None, GATHER_BASE=gather_base, WRITE_A=write_a,
        BM=tile.bm, BN=tile.bn, BK=_inner(tile, width), GROUP_M=tile.group_m,
    )  # fmt: skip
    launch(
        routing.gate_gradient_kernel, (-(-rows // 64),), tile,
        partial_ptr=partial, inverse_ptr=dispatch.inverse, out_ptr=dgates, rows=rows, TILES=tiles,
        PAD=triton.next_power_of_2(tiles),
    )  # fmt: skip
    return dh1, dh3, ga, dgates


def weight_gradient(
    x: Tensor, dy: Tensor, dispatch: ExpertDispatch, rows: int, experts: int, *,
    top_k: int = 1, gather_x: bool = False, gather_dy: bool = False, scale: float = 1.0, out: Tensor | None = None,
    out_dtype: torch.dtype | None = None, op: str = "weight_gradient", tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """``scale * dy.T @ x`` of each expert's rows -> [E, N, K]; added to ``out`` where given (any float dtype)."""
    columns, width = dy.shape[1], x.shape[1]
    dw = out if out is not None else torch.empty(
        experts, columns, width, dtype=out_dtype or x.dtype, device=x.device
    )  # fmt: skip
    tile = tile or pick(op, x, rows, experts)
    grid = experts * -(-columns // tile.bn) * -(-width // tile.bk)
    launch(
        gemm.weight_gradient_kernel, (grid,), tile,
        x_ptr=x, dy_ptr=dy, dw_ptr=dw, order_ptr=dispatch.order, offsets_ptr=dispatch.offsets, rows_total=rows,
        scale=float(scale), N=columns, K=width, E=experts, TOPK=top_k, GATHER_X=gather_x, GATHER_DY=gather_dy,
        ACCUMULATE=out is not None, BN=tile.bn, BK=tile.bk, BT=tile.bm, GROUP_M=tile.group_m,
    )  # fmt: skip
    return dw
