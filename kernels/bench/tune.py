"""``python -m kernels.benchmark --tune FILE``: measures candidate tiles on the card at hand and writes its table.

Candidates come from every checked-in table plus a few neighbors, the tile in use first; one that does not compile, does
not fit the card or gives a wrong result is dropped, and one that is not clearly faster than the tile in use does not
replace it. For sm_86 the same search on a newer card takes only tiles that compile clean for sm_86: such a table is
derived, not measured there. Production never searches: it reads the table.
"""

# R rows sorted by expert, E experts, D model dim, F hidden dim

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels import int4
from kernels.bench.shapes import EXPERTS, MISTRAL_7B, RANK, ModelShape
from kernels.bench.timing import measure
from kernels.dispatch import sort_by_expert
from kernels.gpu import tile_tables
from kernels.gpu.tile_tables import ANY, Table, Tile

if TYPE_CHECKING:
    from kernels.gpu.launch import Launch

# rows per expert that are measured -> up to where they stand for others
SIZES = {1024: ANY, 256: 512, 128: 255, 32: 64, 8: 16, 1: 1}
GAIN = 1.02  # how much faster than the tile in use another one must be: less is noise
PRODUCTS = (
    Tile(16, 128, 64, 4, 4),
    Tile(32, 128, 64, 4, 3),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 128, 32, 4, 3),
    Tile(64, 128, 64, 8, 3),
    Tile(128, 64, 64, 8, 3),
    Tile(128, 128, 32, 4, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 256, 64, 8, 3),
)
NEIGHBORS = {
    **dict.fromkeys(("gemm", "gemm_dx", "swiglu", "swiglu_backward"), PRODUCTS),
    "persistent_gemm": (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 4), Tile(256, 128, 64, 8, 3)),
    "persistent_gemm_dx": (Tile(128, 256, 64, 8, 4), Tile(256, 128, 64, 8, 3)),
    "persistent_weight_gradient": (Tile(64, 256, 128, 8, 4), Tile(64, 128, 256, 8, 3), Tile(64, 128, 128, 8, 4)),
    "persistent_swiglu": (Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(128, 64, 64, 4, 4)),
    "weight_gradient": (Tile(64, 128, 256, 8, 5), Tile(64, 128, 128, 8, 4), Tile(32, 128, 128, 8, 3)),
    "low_rank_down": (Tile(64, 64, 128, 4, 3), Tile(64, 64, 64, 4, 4), Tile(128, 64, 64, 8, 4)),
    "low_rank_up": (Tile(64, 128, 64, 4, 2), Tile(64, 256, 64, 8, 2), Tile(128, 128, 64, 8, 2)),
    "low_rank_gradient": (Tile(64, 128, 128, 8, 3), Tile(128, 128, 128, 4, 3), Tile(128, 64, 64, 4, 3)),
    **dict.fromkeys(
        ("delta_swiglu", "delta_swiglu_backward"),
        (
            Tile(32, 64, 64, 8, 2),
            Tile(16, 64, 64, 4, 2),
            Tile(16, 128, 64, 8, 2),
            Tile(32, 128, 64, 8, 2),
            Tile(64, 64, 64, 8, 2),
        ),
    ),
    "elementwise_backward": (Tile(16, 256, 64, 8, 1), Tile(32, 128, 64, 8, 1), Tile(8, 256, 64, 4, 1)),
    "combine": (Tile(1, 1024, 1, 4, 1), Tile(1, 2048, 1, 4, 1), Tile(1, 2048, 1, 8, 1), Tile(1, 1024, 1, 2, 1)),
    "w4_gemm": (Tile(64, 64, 128, 4, 3), Tile(128, 128, 128, 8, 4)),
    "w4_swiglu": (Tile(64, 64, 128, 4, 3), Tile(128, 64, 128, 8, 2)),
    "w4_dx": (Tile(64, 64, 128, 8, 3), Tile(128, 64, 128, 8, 4)),
    "w4_swap": (Tile(8, 64, 128, 4, 4, 8, 14), Tile(8, 128, 128, 8, 4, 8, 14), Tile(32, 64, 128, 4, 3, 8, 2)),
    "w4_swap_swiglu": (Tile(8, 32, 128, 2, 5), Tile(8, 128, 128, 4, 4), Tile(8, 128, 128, 8, 5)),
}


def candidates(op: str, used: Tile) -> list[Tile]:
    """Distinct tiles to try for ``op``, the one in use first."""
    known = [tile for table in tile_tables.TABLES.values() for _, tile in table.get(op, [])]
    return list(dict.fromkeys([used, *known, *NEIGHBORS.get(op, ())]))


def _operations(per_expert: int, shape: ModelShape, device: str) -> list[Callable[[], Tensor]]:
    """Launches of the costly operations; which kernel each takes depends on the rows and on the card."""
    from kernels.gpu import launch, launch_delta, launch_gradient, launch_w4

    def random(*sizes: int) -> Tensor:
        return (torch.randn(sizes, device=device) / sizes[-1] ** 0.5).bfloat16()

    rows, width, hidden = per_expert * EXPERTS, shape.dim, shape.hidden_dim
    ids = torch.arange(rows, device=device).remainder(EXPERTS).unsqueeze(1)
    dispatch = sort_by_expert(ids, EXPERTS)
    x, h, gates = random(rows, width), random(rows, hidden), torch.rand(rows, 1, device=device)
    w1, w3, w2 = random(EXPERTS, hidden, width), random(EXPERTS, hidden, width), random(EXPERTS, width, hidden)
    q1, q2 = int4.pack(w1), int4.pack(w2)
    rank = RANK // 4  # an expert's own; the other three quarters are shared
    low, b1, b2 = random(rows, rank), random(EXPERTS, hidden, rank), random(EXPERTS, width, rank)
    a2 = random(EXPERTS, rank, hidden)

    def backward(op: str, dy: Tensor | None, w: Tensor | None) -> Tensor:
        return launch.swiglu_backward(op, dy, w, h, h, gates, dispatch, base=h)[0]

    streams = [  # bound by bandwidth, and no part of a small step's time
        lambda: launch.grouped_gemm("low_rank_down", h, a2, dispatch),
        lambda: launch.grouped_gemm("low_rank_up", low, b2, dispatch),
        lambda: launch_delta.low_rank_gradient(low, h, dispatch),
        lambda: launch_delta.delta_swiglu(low, low, b1, b1, (h, h), dispatch, 1.0, True)[0],
        lambda: backward("delta_swiglu_backward", low, a2),
        lambda: backward("elementwise_backward", None, None),
        lambda: launch.combine(h, dispatch, 1, h.dtype),
    ]
    return [
        lambda: launch.grouped_gemm("gemm", h, w2, dispatch),
        lambda: launch.swiglu(x, w1, w3, dispatch, False)[0],
        lambda: launch.grouped_gemm("gemm_dx", h, w1, dispatch, transposed=True, x2=h, w2=w3),
        lambda: launch.swiglu_backward("swiglu_backward", x, w2, h, h, gates, dispatch)[0],
        lambda: launch_gradient.weight_gradient(x, h, dispatch, gather_x=True),
        lambda: launch_w4.linear_dx(h, q1, dispatch),
        lambda: launch_w4.linear(h, q2, dispatch),
        lambda: launch_w4.swiglu(x, q1, q1, dispatch, False)[0],
        *(streams if per_expert >= 256 else ()),
    ]


def fill_with_zeros(made: Launch) -> None:
    """Stands for a launch where no GPU is: to see what the search does."""
    for name in ("y_ptr", "a_ptr", "dh1_ptr", "dh3_ptr", "ga_ptr", "dw_ptr", "dx_ptr", "w_ptr", "out_ptr"):
        value = made.arguments.get(name)
        if isinstance(value, Tensor) and value.is_floating_point():
            value.zero_()


def tune(
    deadline: float, seconds_per_operation: float = 4.0, shape: ModelShape = MISTRAL_7B, device: str = "cuda",
    arch: str | None = None, sizes: Mapping[int, int] = SIZES,
    on_result: Callable[[Table, list[dict[str, Any]]], None] = lambda table, log: None,
) -> tuple[Table, list[dict[str, Any]]]:  # fmt: skip
    """(table, measurements) until the deadline (`time.monotonic`), most rows first.

    Sizes that were not measured keep the tiles of the checked-in table. ``arch``: derive the table of another
    architecture. ``sizes``: as `SIZES`. ``on_result`` gets the table and the measurements so far after each operation.
    """
    from kernels.gpu.launch import arch_of, redirected

    found: dict[str, dict[int, Tile]] = {}
    log: list[dict[str, Any]] = []
    table: Table = {}
    with redirected(arch=arch):
        own = arch_of(torch.empty(0, device=device))
        for per_expert in sizes:
            for run in _operations(per_expert, shape, device):
                if time.monotonic() > deadline:
                    return table, log
                launches: list[Launch] = []
                with redirected(launches.append):  # which kernel it takes here, without running it
                    run()
                made = launches[-1] if launches[-1].op != "gate_gradient" else launches[0]
                tiles = found.setdefault(made.op, {})
                if per_expert not in tiles:
                    best = _fastest(made, run, per_expert, deadline, seconds_per_operation, log, derived=arch)
                    if best is not None:
                        tiles[per_expert] = best
                if tiles:
                    chosen = {n: tiles.get(n) or tile_tables.select(made.op, own, n) for n in sizes}
                    table[made.op] = sorted((limit, chosen[n]) for n, limit in sizes.items())
                    on_result(table, log)
    return table, log


def _fastest(
    made: Launch, run: Callable[[], Tensor], per_expert: int, deadline: float, seconds: float,
    log: list[dict[str, Any]], derived: str | None,
) -> Tile | None:  # fmt: skip
    """The fastest tile that is right; None where there was no time to compare, or the tile in use does not run."""

    def with_tile(tile: Tile) -> Tensor:
        got = _run_with(made.op, tile, run).float()
        return got.sum(0) if made.op.startswith("w4") and got.dim() == 3 else got

    fitting: dict[str, Callable[[], Tensor]] = {}
    want: Tensor | None = None
    tiles = candidates(made.op, made.tile)
    for tile in tiles:
        if time.monotonic() > deadline:
            break  # compiling takes seconds a tile; those that there was time for are compared
        try:
            if derived is not None and tile != made.tile:
                _require_clean(derived, made._replace(tile=tile), run)
            got = with_tile(tile)
        except Exception as error:  # too large for the card, or not compilable
            log.append({"op": made.op, "rows": per_expert, "tile": list(tile), "error": str(error)[:120]})
            if tile == made.tile:
                return None
            continue
        want = got if want is None else want
        if (got - want).abs().max() <= 2**-5 * want.abs().max():
            fitting[str(tile)] = lambda tile=tile: _run_with(made.op, tile, run)  # type: ignore[misc]
        else:
            log.append({"op": made.op, "rows": per_expert, "tile": list(tile), "error": "another result"})
    if len(fitting) < 2:
        return None
    ms = measure(fitting, 9, seconds, want.device if want is not None else torch.device("cpu"))
    log += [{"op": made.op, "rows": per_expert, "tile": name, "ms": value} for name, value in ms.items()]
    best = min(ms, key=lambda name: ms[name])
    if ms[best] * GAIN > ms[str(made.tile)]:
        return made.tile
    return next(tile for tile in tiles if str(tile) == best)


def _run_with(op: str, tile: Tile, run: Callable[[], Tensor]) -> Tensor:
    from kernels.gpu.launch import redirected

    with redirected(tiles={op: tile}):
        return run()


def _require_clean(arch: str, made: Launch, run: Callable[[], Tensor]) -> None:
    """Compiles the operation with the launch's tile for ``arch``; raises ValueError where it does not fit there."""
    from kernels import compile_check
    from kernels.gpu.launch import redirected

    launches: list[Launch] = []
    with redirected(launches.append, tiles={made.op: made.tile}):
        run()
    launch = next(found for found in launches if found.op == made.op)
    problem = compile_check.problem(compile_check.resources(arch, launch))
    if problem is not None:
        raise ValueError(f"{arch}: {problem}")
