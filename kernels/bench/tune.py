"""``python -m kernels.benchmark --tune FILE``: measures candidate tiles on the card at hand and writes its table.

Candidates come from every checked-in table plus a few neighbors; one that does not compile, does not fit the card or
gives a wrong result is dropped. Production never searches: it reads the table.
"""

# R rows sorted by expert, E experts, D model dim, F hidden dim

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import int4
from kernels.bench.gpu import measure
from kernels.bench.shapes import EXPERTS, MISTRAL_7B, ModelShape
from kernels.dispatch import sort_by_expert
from kernels.gpu import tile_tables
from kernels.gpu.tile_tables import ANY, Table, Tile

SIZES = {1024: ANY, 128: 255, 32: 48, 8: 16}  # rows per expert that are measured -> up to where they stand for others
NEIGHBORS = (
    Tile(16, 128, 64, 4, 4),
    Tile(32, 128, 64, 4, 3),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 128, 64, 8, 3),
    Tile(128, 64, 64, 8, 3),
    Tile(128, 128, 32, 4, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 256, 64, 8, 3),
)


def candidates(op: str) -> list[Tile]:
    """Distinct tiles to try for ``op``."""
    known = [tile for table in tile_tables.TABLES.values() for _, tile in table.get(op, [])]
    extra = NEIGHBORS if op in ("gemm", "gemm_dx", "swiglu", "swiglu_backward") else ()
    return list(dict.fromkeys([*known, *extra]))


def _operations(per_expert: int, shape: ModelShape, device: str) -> list[Callable[[], Tensor]]:
    """Launches of the costly products; which kernel each takes depends on the rows and on the card."""
    from kernels.gpu import launch, launch_w4

    def random(*sizes: int) -> Tensor:
        return (torch.randn(sizes, device=device) / sizes[-1] ** 0.5).bfloat16()

    rows, width, hidden = per_expert * EXPERTS, shape.dim, shape.hidden_dim
    ids = torch.arange(rows, device=device).remainder(EXPERTS).unsqueeze(1)
    dispatch = sort_by_expert(ids, EXPERTS)
    x, h, gates = random(rows, width), random(rows, hidden), torch.rand(rows, 1, device=device)
    w1, w3, w2 = random(EXPERTS, hidden, width), random(EXPERTS, hidden, width), random(EXPERTS, width, hidden)
    q1, q2 = int4.pack(w1), int4.pack(w2)
    return [
        lambda: launch.grouped_gemm("gemm", h, w2, dispatch),
        lambda: launch.swiglu(x, w1, w3, dispatch, False)[0],
        lambda: launch.grouped_gemm("gemm_dx", h, w1, dispatch, transposed=True, x2=h, w2=w3),
        lambda: launch.swiglu_backward("swiglu_backward", x, w2, h, h, gates, dispatch)[0],
        lambda: launch.weight_gradient("weight_gradient", x, h, dispatch, gather_x=True),
        lambda: launch_w4.linear_dx(h, q1, dispatch),
        lambda: launch_w4.linear(h, q2, dispatch),
        lambda: launch_w4.swiglu(x, q1, q1, dispatch, False)[0],
    ]


def tune(
    deadline: float, seconds_per_operation: float = 4.0, shape: ModelShape = MISTRAL_7B, device: str = "cuda"
) -> tuple[Table, list[dict[str, Any]]]:
    """(table, measurements) until the deadline (`time.monotonic`), most rows first.

    Sizes that were not measured keep the tiles of the checked-in table.
    """
    from kernels.gpu.launch import Launch, arch_of, redirected

    found: dict[str, dict[int, Tile]] = {}
    log: list[dict[str, Any]] = []
    for per_expert in SIZES:
        for run in _operations(per_expert, shape, device):
            if time.monotonic() > deadline:
                break
            launches: list[Launch] = []
            with redirected(launches.append):  # which kernel it takes here, without running it
                run()
            op = launches[-1].op if launches[-1].op != "gate_gradient" else launches[0].op
            if per_expert not in found.setdefault(op, {}):
                best = _fastest(op, run, per_expert, deadline, seconds_per_operation, log)
                if best is not None:
                    found[op][per_expert] = best
    arch = arch_of(torch.empty(0, device=device))
    table: Table = {}
    for op, tiles in found.items():
        sizes = {limit: tiles.get(n) or tile_tables.select(op, arch, n) for n, limit in SIZES.items()}
        if tiles:
            table[op] = sorted(sizes.items())
    return table, log


def _fastest(
    op: str, run: Callable[[], Tensor], per_expert: int, deadline: float, seconds: float, log: list[dict[str, Any]]
) -> Tile | None:
    from kernels.gpu.launch import redirected

    def with_tile(tile: Tile) -> Tensor:
        with redirected(tiles={op: tile}):
            return run()

    fitting: dict[str, Callable[[], Tensor]] = {}
    want: Tensor | None = None
    tiles = candidates(op)
    for tile in tiles:
        if time.monotonic() > deadline:
            break  # compiling takes seconds a tile; those that there was time for are compared
        try:
            got = with_tile(tile).float()
        except Exception as error:  # too large for the card, or not compilable
            log.append({"op": op, "rows": per_expert, "tile": list(tile), "error": str(error)[:120]})
            continue
        got = got.sum(0) if op.startswith("w4") and got.dim() == 3 else got
        want = got if want is None else want
        if (got - want).abs().max() <= 2**-5 * want.abs().max():
            fitting[str(tile)] = lambda tile=tile: with_tile(tile)  # type: ignore[misc]
    if not fitting:
        return None
    ms = measure(fitting, 9, seconds)
    log += [{"op": op, "rows": per_expert, "tile": name, "ms": value} for name, value in ms.items()]
    best = min(ms, key=lambda name: ms[name])
    return next(tile for tile in tiles if str(tile) == best)
