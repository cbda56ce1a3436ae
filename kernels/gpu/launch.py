"""Launches: one function per kernel, which picks the tile, allocates the output and computes the grid.

Nothing here reads a tensor's values, so nothing waits for the GPU and everything can be captured in a CUDA graph.
"""

# T tokens, E experts, K top-k, R = T*K rows sorted by expert, N output columns, r rank

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.gpu import gemm, persistent, routing, tile_tables
from kernels.gpu.common import COUNTS
from kernels.gpu.tile_tables import Tile
from kernels.types import ExpertDispatch


class Launch(NamedTuple):
    """``op`` names the tile table's entry; ``arguments`` holds every argument of the kernel by its name."""

    op: str
    kernel: Any
    grid: tuple[int, ...]
    tile: Tile
    arguments: dict[str, Any]


_compiled: dict[tuple[Any, ...], Any] = {}


def code_key(made: Launch) -> tuple[Any, ...]:
    """What the compiled code of a launch depends on: constants, types, and whether addresses divide by 16."""
    key: list[Any] = [id(made.kernel), made.tile]
    for name in made.kernel.arg_names:
        value = made.arguments[name]
        if isinstance(value, Tensor):
            key.append((value.dtype, value.data_ptr() % 16 == 0))
        elif isinstance(value, float):
            key.append(float)
        else:
            key.append(value >= 2**31 if name in COUNTS else value)
    return tuple(key)


def run_on_gpu(made: Launch) -> None:
    """Launches a kernel on the device of its tensors.

    Triton looks compiled code up by all arguments, which takes several times as long as the launch: from the second
    launch on it is found by `code_key`.
    """
    device = next(value for value in made.arguments.values() if isinstance(value, Tensor)).device
    if device.type != "cuda":  # Triton's interpreter
        made.kernel[made.grid](**made.arguments)
        return
    known = (device.index, *code_key(made))
    compiled = _compiled.get(known)
    with nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        if compiled is None:
            _compiled[known] = made.kernel[made.grid](
                **made.arguments, num_warps=made.tile.warps, num_stages=made.tile.stages, enable_fp_fusion=True
            )
        else:
            compiled[(*made.grid, 1, 1)[:3]](*(made.arguments[name] for name in made.kernel.arg_names))


class _Target(NamedTuple):
    run: Callable[[Launch], None] = run_on_gpu
    arch: str | None = None
    tiles: Mapping[str, Tile] = {}


_PRODUCTION = _Target()
_target: ContextVar[_Target] = ContextVar("launch_target", default=_PRODUCTION)


@contextmanager
def redirected(
    run: Callable[[Launch], None] | None = None, arch: str | None = None, tiles: Mapping[str, Tile] | None = None
) -> Iterator[None]:
    """Inside the block launches go to ``run``, tiles are ``arch``'s, and ``tiles`` by operation precede its table."""
    old = _target.get()
    token = _target.set(_Target(run or old.run, arch or old.arch, {**old.tiles, **(tiles or {})}))
    try:
        yield
    finally:
        _target.reset(token)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collects the launches made inside the block, which also run."""
    launches: list[Launch] = []
    run = _target.get().run

    def both(made: Launch) -> None:
        launches.append(made)
        run(made)

    with redirected(both):
        yield launches


def launch(op: str, kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
    """Every launch of this package goes through here."""
    _target.get().run(Launch(op, kernel, grid, tile, arguments))


@functools.cache
def _device_arch(index: int) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(index))


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def arch_of(tensor: Tensor) -> str:
    """``sm_XY`` of the tensor's GPU; sm_86 for CPU tensors, which only the interpreter can run."""
    return _target.get().arch or (_device_arch(tensor.device.index or 0) if tensor.is_cuda else "sm_86")


def pick(op: str, tensor: Tensor, rows_per_expert: int) -> Tile:
    """The tile of ``op`` on the tensor's GPU."""
    given = _target.get().tiles.get(op)
    if given is not None:
        return given
    if tensor.dtype == torch.float32:
        return tile_tables.for_float32(op, rows_per_expert)
    return tile_tables.select(op, arch_of(tensor), rows_per_expert)


def rows_per_expert(dispatch: ExpertDispatch) -> int:
    """The mean, rounded up: what tiles are chosen by, as the real numbers are on the GPU."""
    return -(-dispatch.order.numel() // (dispatch.offsets.numel() - 1))


def row_grid(dispatch: ExpertDispatch, columns: int, tile: Tile) -> int:
    """Upper bound on (row tile, column tile) pairs, known without the offsets' values."""
    rows, experts = dispatch.order.numel(), dispatch.offsets.numel() - 1
    return (-(-rows // tile.bm) + experts - 1) * -(-columns // tile.bn)


def top_k_of(dispatch: ExpertDispatch, tokens: int) -> int:
    """K from the R = T*K sorted rows."""
    return max(1, dispatch.order.numel() // max(1, tokens))


def route(expert_ids: Tensor, num_experts: int) -> ExpertDispatch:
    """`kernels.dispatch.sort_by_expert` in one launch."""
    ids = expert_ids.reshape(-1).contiguous()  # [R]
    rows = ids.numel()
    order = torch.empty(rows, dtype=torch.int64, device=ids.device)
    inverse = torch.empty_like(order)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=ids.device)
    tile = pick("route", ids, rows)
    launch(
        "route", routing.route_kernel, (max(1, -(-rows // tile.bm)),), tile,
        ids_ptr=ids, order_ptr=order, inverse_ptr=inverse, offsets_ptr=offsets, rows=rows, E=num_experts,
        E_PAD=triton.next_power_of_2(num_experts), BLOCK=tile.bm,
    )  # fmt: skip
    return ExpertDispatch(order, inverse, offsets)


def combine(
    rows: Tensor, dispatch: ExpertDispatch, top_k: int, dtype: torch.dtype, gates: Tensor | None = None,
    base: Tensor | None = None, scale: float = 1.0, each: bool = False,
) -> Tensor:  # fmt: skip
    """``base + scale * sum`` of each token's rows [R, H] or parts [S, R, H], weighted by gates [T, K] -> [T, H].

    With ``each`` the parts are not summed: [P, R, H] -> [P, T, H].
    """
    parts = rows if rows.dim() == 3 else rows.unsqueeze(0)
    splits, count, width = parts.shape
    tokens = count // top_k
    out = torch.empty(*(splits, tokens) if each else (tokens,), width, dtype=dtype, device=rows.device)
    if not out.numel():
        return out
    tile = narrowed(pick("combine", rows, count), width)
    grid = (tokens, -(-width // tile.bn), splits if each else 1)
    launch(
        "combine", routing.combine_kernel, grid, tile,
        y_ptr=parts, gates_ptr=gates, base_ptr=base, out_ptr=out,
        inverse_ptr=dispatch.inverse, offsets_ptr=dispatch.offsets, tokens=tokens, H=width, scale=float(scale),
        TOPK=top_k, E=dispatch.offsets.numel() - 1, SPLIT_K=1 if each else splits, HAS_GATES=gates is not None,
        HAS_BASE=base is not None, BH=tile.bn,
    )  # fmt: skip
    return out


def narrowed(tile: Tile, columns: int, width: int | None = None) -> Tile:
    """The tile, no larger than narrow (low-rank) dimensions need; at least the 16 of a product."""
    bn = min(tile.bn, max(16, triton.next_power_of_2(columns)))
    return tile._replace(bn=bn, bk=tile.bk if width is None else _inner(tile, width))


def _inner(tile: Tile, width: int) -> int:
    return min(tile.bk, max(16, triton.next_power_of_2(width)))


def takes_descriptors(x: Tensor, w: Tensor, dispatch: ExpertDispatch) -> bool:
    """Whether the product of rows like x's with w [E, N, K] runs on the persistent kernel.

    So it does where the card has it, rows are many, and sizes and addresses suit TMA.
    """
    large = x.element_size() == 2 and tile_tables.has("persistent_gemm", arch_of(x))
    if not large or rows_per_expert(dispatch) < tile_tables.PERSISTENT_ROWS:
        return False
    fits = w.shape[1] % tile_tables.PERSISTENT_WIDTH == w.shape[2] % tile_tables.PERSISTENT_WIDTH == 0
    return fits and x.data_ptr() % 16 == 0 and w.data_ptr() % 16 == 0


def splits_backward(x: Tensor, dispatch: ExpertDispatch) -> bool:
    """Whether a large product and a pass over its result beat one kernel for both, whose accumulators bound its tile.

    So it is where a card has large tiles for 16-bit products.
    """
    large = x.element_size() == 2 and tile_tables.has("persistent_gemm", arch_of(x))
    return large and rows_per_expert(dispatch) >= tile_tables.SPLIT_BACKWARD_ROWS


def scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors a kernel builds."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def program_count(x: Tensor) -> int:
    """One program per multiprocessor; an H100's 132 for tensors without data, a few for the interpreter."""
    return _multiprocessors(x.device.index or 0) if x.is_cuda else 132 if x.is_meta else 4


def persistent_gemm(
    op: str, x: Tensor, w: Tensor, w3: Tensor | None, dispatch: ExpertDispatch, y: Tensor, h1: Tensor | None = None,
    h3: Tensor | None = None, transposed: bool = False,
) -> None:  # fmt: skip
    """Writes the result of `grouped_gemm` of x [R, K], or with w3 those of `swiglu`, to y, h1 and h3."""
    if x.is_cuda:
        triton.set_allocator(scratch)
    programs, tile = program_count(x), pick(op, x, rows_per_expert(dispatch))
    launch(
        op, persistent.persistent_gemm_kernel, (programs,), tile,
        x_ptr=x, w_ptr=w, w3_ptr=w3, y_ptr=y, h1_ptr=h1, h3_ptr=h3, offsets_ptr=dispatch.offsets,
        rows_total=dispatch.order.numel(), N=y.shape[1], K=x.shape[1], E=w.shape[0], TRANSPOSED=transposed,
        SWIGLU=w3 is not None, SAVE_H=h1 is not None, PROGRAMS=programs, BM=tile.bm, BN=tile.bn, BK=tile.bk,
        GROUP_M=tile.group_m,
    )  # fmt: skip


def gather_rows(x: Tensor, dispatch: ExpertDispatch) -> Tensor:
    """x [T, H] of every row's token -> [R, H]."""
    rows, width = dispatch.order.numel(), x.shape[1]
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    tile = pick("gather", x, rows)
    launch(
        "gather", routing.gather_kernel, (rows, -(-width // tile.bn)), tile,
        x_ptr=x, order_ptr=dispatch.order, out_ptr=out, H=width, TOPK=top_k_of(dispatch, x.shape[0]), BH=tile.bn,
    )  # fmt: skip
    return out


def grouped_gemm(
    op: str, x: Tensor, w: Tensor, dispatch: ExpertDispatch, *,
    gather: bool = False, transposed: bool = False, x2: Tensor | None = None, w2: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """``scale * (x @ w[e].T (+ x2 @ w2[e].T))`` -> [R, N]; w [E, N, K], or [E, K, N] if transposed.

    ``gather`` reads x [T, K] at the row's token, else x is [R, K]. With w [P, E, N, K], and x [P, R, K] unless
    gathered, P products -> [P, R, N]. The two terms of a large sum stay apart, [2, R, N]: `combine` adds them.
    """
    rows = dispatch.order.numel()
    *parts, experts, columns, width = w.shape
    if transposed:
        columns, width = width, columns
    if op in ("gemm", "gemm_dx") and takes_descriptors(x, w, dispatch):
        sums = torch.empty(1 if x2 is None else 2, rows, columns, dtype=x.dtype, device=x.device)
        for y, left, right in zip(sums.unbind(), (x, x2), (w, w2)):
            assert left is not None and right is not None and scale == 1.0
            left = gather_rows(left, dispatch) if gather else left
            persistent_gemm(f"persistent_{op}", left, right, None, dispatch, y, transposed=transposed)
        return sums[0] if x2 is None else sums
    y = torch.empty(*parts, rows, columns, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    tile = narrowed(pick(op, x, rows_per_expert(dispatch)), columns, width)
    launch(
        op, gemm.grouped_gemm_kernel, (row_grid(dispatch, columns, tile), *parts), tile,
        x_ptr=x, w_ptr=w, x2_ptr=x2, w2_ptr=w2, y_ptr=y, order_ptr=dispatch.order, offsets_ptr=dispatch.offsets,
        rows_total=rows, scale=float(scale), N=columns, K=width, E=experts, TOPK=top_k_of(dispatch, x.shape[-2]),
        GATHER=gather, TRANSPOSED=transposed, DUAL=x2 is not None,
        BM=tile.bm, BN=tile.bn, BK=tile.bk, GROUP_M=tile.group_m,
    )  # fmt: skip
    return y


def swiglu(
    x: Tensor, w1: Tensor, w3: Tensor, dispatch: ExpertDispatch, save_h: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``a = silu(h1) * h3`` with ``h = x[token] @ w[e].T`` for x [T, K] -> a, h1, h3 [R, N]; h only if ``save_h``."""
    a, h1, h3 = outputs = swiglu_outputs(x, dispatch, w1.shape[1], save_h)
    if not a.numel():
        return outputs
    if takes_descriptors(x, w1, dispatch):
        persistent_gemm("persistent_swiglu", gather_rows(x, dispatch), w1, w3, dispatch, a, h1, h3)
    else:
        launch_swiglu("swiglu", x, None, w1, w3, (None, None), outputs, dispatch, top_k_of(dispatch, x.shape[0]), 1.0)
    return outputs


def swiglu_outputs(
    x: Tensor, dispatch: ExpertDispatch, columns: int, save_h: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """a and, with ``save_h``, h1 and h3 [R, columns], to be filled."""
    a = torch.empty(dispatch.order.numel(), columns, dtype=x.dtype, device=x.device)
    return (a, torch.empty_like(a), torch.empty_like(a)) if save_h else (a, None, None)


def launch_swiglu(
    op: str, x: Tensor, x3: Tensor | None, w1: Tensor, w3: Tensor, base: tuple[Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor | None, Tensor | None], dispatch: ExpertDispatch, top_k: int, scale: float,
) -> None:  # fmt: skip
    """Fills the outputs of `swiglu`, or of delta experts with their ``base``."""
    experts, columns, width = w1.shape
    tile = pick(op, x, rows_per_expert(dispatch))
    a, h1, h3 = outputs
    launch(
        op, gemm.swiglu_kernel, (row_grid(dispatch, columns, tile),), tile,
        x_ptr=x, x3_ptr=x3, w1_ptr=w1, w3_ptr=w3, base1_ptr=base[0], base3_ptr=base[1], a_ptr=a, h1_ptr=h1, h3_ptr=h3,
        order_ptr=dispatch.order, offsets_ptr=dispatch.offsets, rows_total=a.shape[0], scale=float(scale),
        N=columns, K=width, E=experts, TOPK=top_k, DELTA=x3 is not None, SAVE_H=h1 is not None,
        BM=tile.bm, BN=tile.bn, BK=_inner(tile, width), GROUP_M=tile.group_m,
    )  # fmt: skip


def swiglu_backward(
    op: str, dy: Tensor | None, w2: Tensor | None, h1: Tensor, h3: Tensor, gates: Tensor, dispatch: ExpertDispatch, *,
    base: Tensor | None = None, scale: float = 1.0, write_a: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dh1, dh3 and, with ``write_a``, gates * a, stacked [2 or 3, R, F]; and the gates' gradient [T, K].

    The activation's gradient comes from dy [T, D] and w2 [E, D, F]; of delta experts from base [T, F] and the low-rank
    dy [R, r], w2 [E, r, F]; or is ``base`` [R, F] alone.
    """
    rows, columns = h1.shape
    width = w2.shape[1] if w2 is not None else 1
    tile = pick(op, h1, rows_per_expert(dispatch))
    dh = torch.empty(3 if write_a else 2, rows, columns, dtype=h1.dtype, device=h1.device)
    tiles = -(-columns // tile.bn)
    partial = torch.empty(rows, tiles, dtype=torch.float32, device=h1.device)
    dgates = torch.empty(gates.shape, dtype=torch.float32, device=h1.device)
    if not h1.numel():
        return dh, dgates.zero_()
    launch(
        op, gemm.swiglu_backward_kernel, (row_grid(dispatch, columns, tile),), tile,
        dy_ptr=dy, w2_ptr=w2, base_ptr=base, h1_ptr=h1, h3_ptr=h3, gates_ptr=gates, dh1_ptr=dh[0], dh3_ptr=dh[1],
        ga_ptr=dh[2] if write_a else None,
        partial_ptr=partial, order_ptr=dispatch.order, offsets_ptr=dispatch.offsets, rows_total=rows,
        scale=float(scale), N=columns, K=width, E=dispatch.offsets.numel() - 1, TOPK=gates.shape[1],
        PRODUCT=dy is not None, HAS_BASE=base is not None, WRITE_A=write_a,
        BM=tile.bm, BN=tile.bn, BK=_inner(tile, width), GROUP_M=tile.group_m,
    )  # fmt: skip
    tile = pick("gate_gradient", h1, rows)
    launch(
        "gate_gradient", routing.gate_gradient_kernel, (-(-rows // tile.bm),), tile,
        partial_ptr=partial, inverse_ptr=dispatch.inverse, out_ptr=dgates, rows=rows, TILES=tiles,
        PAD=triton.next_power_of_2(tiles), BLOCK=tile.bm,
    )  # fmt: skip
    return dh, dgates
