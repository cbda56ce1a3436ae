"""``python -m kernels.benchmark --tune FILE``: measures candidate tiles on the card at hand and writes its table.

Candidates come from every checked-in table plus a few neighbours; one that does not compile, does not fit the card or
gives a wrong result is dropped. Production never searches: it reads the table.

Shape legend: R rows sorted by expert, E experts, F hidden width, D model width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import int4
from kernels.bench.gpu import measure
from kernels.dispatch import ExpertDispatch, sort_by_expert
from kernels.gpu import tile_tables as tuning
from kernels.gpu.tile_tables import Tile

WIDTH, HIDDEN, EXPERTS = 4096, 14336, 4
ROWS_PER_EXPERT = (8, 32, 1024)  # each stands for the rule that covers it
LIMITS = (16, 48, tuning.ANY)
NEIGHBOURS = (
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
    known = [tile for table in tuning.TABLES.values() for _, tile in table.get(op, [])]
    extra = NEIGHBOURS if op in ("gemm", "gemm_dx", "swiglu", "swiglu_backward") else ()
    return list(dict.fromkeys([*known, *extra]))


def _operations(rows: int, dispatch: ExpertDispatch) -> dict[str, Callable[[Tile], Tensor]]:
    from kernels.gpu import launch, launch_w4

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5

    x, h, dout = random(rows, WIDTH), random(rows, HIDDEN), random(rows, WIDTH)
    up, up3, down = random(EXPERTS, HIDDEN, WIDTH), random(EXPERTS, HIDDEN, WIDTH), random(EXPERTS, WIDTH, HIDDEN)
    q_up, q_down = int4.pack(up), int4.pack(down)
    gates = torch.rand(rows, 1, device="cuda")
    few = rows // EXPERTS <= tuning.W4_SWAP_ROWS
    operations = {
        "gemm": lambda t: launch.grouped_gemm(h, down, dispatch, rows, tile=t),
        "gemm_dx": lambda t: launch.grouped_gemm(h, up, dispatch, rows, transposed=True, x2=h, w2=up3, tile=t),
        "swiglu": lambda t: launch.swiglu(x, up, up3, dispatch, rows, top_k=1, gather=True, tile=t)[0],
        "swiglu_backward": lambda t: launch.swiglu_backward(
            dout, down, h, h, gates, dispatch, experts=EXPERTS, gather=True, tile=t
        )[0],
        "w4_dx": lambda t: launch_w4.linear_dx(h, q_up, dispatch, rows, tile=t),
    }
    if few:
        operations["w4_swap"] = lambda t: launch_w4.linear(h, q_down, dispatch, rows, tile=t, swap=True)
        operations["w4_swap_swiglu"] = lambda t: launch_w4.swiglu(
            x, q_up, q_up, dispatch, rows, top_k=1, gather=True, save_h=False, tile=t, swap=True
        )[0]
    else:
        operations["w4_gemm"] = lambda t: launch_w4.linear(h, q_down, dispatch, rows, tile=t, swap=False)
        operations["w4_swiglu"] = lambda t: launch_w4.swiglu(
            x, q_up, q_up, dispatch, rows, top_k=1, gather=True, save_h=False, tile=t, swap=False
        )[0]
        operations["weight_gradient"] = lambda t: launch.weight_gradient(x, h, dispatch, rows, EXPERTS, tile=t)
    return operations


def tune(deadline: float, seconds_per_operation: float = 4.0) -> tuple[tuning.Table, list[dict[str, Any]]]:
    """(table, measurements). What the deadline (`time.monotonic`) leaves no time for keeps the checked-in tile."""
    table: tuning.Table = {}
    log: list[dict[str, Any]] = []
    for per_expert, limit in zip(ROWS_PER_EXPERT, LIMITS):
        rows = per_expert * EXPERTS
        ids = torch.arange(rows, device="cuda").remainder(EXPERTS).unsqueeze(1)
        for op, run in _operations(rows, sort_by_expert(ids, EXPERTS)).items():
            if time.monotonic() > deadline:
                return _complete(table), log
            fitting: dict[str, tuple[Tile, Callable[[], Tensor]]] = {}
            want: Tensor | None = None
            for tile in candidates(op):
                if time.monotonic() > deadline:
                    break  # compiling takes seconds a tile; those that there was time for are compared
                try:
                    got = run(tile)
                    got = (got.sum(0) if got.dim() == 3 and op.startswith("w4") else got).float()
                except Exception as error:  # too large for the card, or not compilable
                    log.append({"op": op, "rows": per_expert, "tile": list(tile), "error": str(error)[:120]})
                    continue
                want = got if want is None else want
                if (got - want).abs().max() <= 2**-5 * want.abs().max():
                    fitting[str(tile)] = (tile, lambda tile=tile, run=run: run(tile))
            if not fitting:
                continue
            ms = measure({name: call for name, (_, call) in fitting.items()}, 9, seconds_per_operation)
            log += [{"op": op, "rows": per_expert, "tile": list(fitting[n][0]), "ms": v} for n, v in ms.items()]
            table.setdefault(op, []).append((limit, fitting[min(ms, key=ms.get)][0]))
    return _complete(table), log


def _complete(table: tuning.Table) -> tuning.Table:
    """The last rule of each operation covers any number of rows."""
    return {op: [*rules[:-1], (tuning.ANY, rules[-1][1])] for op, rules in table.items()}
