"""What a CPU can do at most: its read bandwidth, and the bare matrix products of an expert layer."""

# M rows of one expert, D model dim, F hidden dim

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.cpu.decode import matvec
from kernels.cpu.experts import has_onednn_linear

Run = Callable[[], Any]


def interleaved_medians(
    runs: Mapping[str, Run], repeats: int, warmup: int = 1, before: Callable[[], Any] | None = None
) -> dict[str, float]:
    """Median seconds of each function, measured in turns so that a busy moment affects all alike.

    ``before`` is called ahead of each round and not measured. With one thread it is CPU time, which other work on the
    machine hardly changes.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_index in range(repeats + warmup):
        if before is not None:
            before()
        for name, function in runs.items():
            start = clock()
            function()
            if round_index >= warmup:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def read_bandwidth(megabytes: int = 256, repeats: int = 7) -> float:
    """Bytes per second of reading a buffer far larger than any cache: the best of a sum and products with a row."""
    buffer = torch.ones(megabytes << 18)
    runs: dict[str, Run] = {"sum": buffer.sum}
    for width in (1024, 8192):  # rows of these widths; which is faster depends on the processor
        runs[f"product with {width}"] = partial(matvec, torch.ones(1, width), buffer.view(-1, width))
    return buffer.numel() * 4 / min(interleaved_medians(runs, repeats).values())


def _product(x: Tensor, w: Tensor, out: Tensor) -> dict[str, Run]:
    """``x @ w.T`` by each routine torch has, with every operand where that routine wants it."""
    runs: dict[str, Run] = {"mm": lambda: torch.mm(x, w.t(), out=out)}
    if has_onednn_linear():
        runs["onednn"] = partial(torch.ops.mkldnn._linear_pointwise, x.contiguous(), w, None, "none", [], "")
    return runs


def matrix_products(rows: Sequence[int], width: int, hidden: int) -> Run:
    """A function that runs the nine products of a forward and backward, and nothing else, for ``rows`` of each expert.

    Operands and results exist beforehand, and each product uses the routine that was faster in a trial of its own.
    """
    chosen: list[Run] = []
    for count in rows:
        if not count:
            continue
        x, dy, y = (torch.randn(count, width) for _ in range(3))  # [M, D]
        h1, h3, act = (torch.randn(count, hidden) for _ in range(3))  # [M, F]
        w1, w3, dw1, dw3 = (torch.randn(hidden, width) for _ in range(4))  # [F, D]
        w2, dw2 = (torch.randn(width, hidden) for _ in range(2))  # [D, F]
        for operands in (
            (x, w1, h1), (x, w3, h3), (act, w2, y),  # forward
            (dy, w2.t(), act), (h1, w1.t(), y), (h3, w3.t(), y),  # gradients of the rows
            (dy.t(), act.t(), dw2), (h1.t(), x.t(), dw1), (h3.t(), x.t(), dw3),  # gradients of the weights
        ):  # fmt: skip
            runs = _product(*operands)
            times = interleaved_medians(runs, 5)
            chosen.append(runs[min(times, key=lambda name: times[name])])
    return lambda: [run() for run in chosen]
