"""The tuner on launches that do nothing, with invented times: which tiles it tries, takes and keeps."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from kernels.bench import tune
from kernels.bench.shapes import ModelShape
from kernels.gpu import tile_tables
from kernels.gpu.launch import Launch, redirected

SHAPE = ModelShape(vocab_size=1, dim=256, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=256)


def tuned(monkeypatch, measure, run=lambda made: None, deadline=float("inf")):
    """The tuner's result for sm_90; outputs of launches are zeros."""

    def zeros(made: Launch) -> None:
        run(made)
        for name in ("y_ptr", "a_ptr", "dh1_ptr", "dw_ptr", "dx_ptr", "w_ptr"):
            if torch.is_tensor(made.arguments.get(name)) and made.arguments[name].is_floating_point():
                made.arguments[name].zero_()

    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune, "SIZES", {512: tile_tables.ANY, 128: 255, 8: 16})
    with redirected(zeros, "sm_90"):
        return tune.tune(deadline, shape=SHAPE, device="cpu")


def test_the_fastest_tile_of_every_operation_is_taken(monkeypatch):
    table, log = tuned(monkeypatch, lambda runs, *_: {name: float(len(runs) - i) for i, name in enumerate(runs)})
    assert {"gemm", "persistent_gemm", "gemm_dx", "swiglu", "persistent_swiglu", "swiglu_backward"} < set(table)
    assert {"weight_gradient", "w4_dx", "w4_gemm", "w4_swiglu", "w4_swap", "w4_swap_swiglu"} < set(table)
    for op, rules in table.items():
        assert [limit for limit, _ in rules] == [16, 255, tile_tables.ANY]
        assert any(entry["op"] == op for entry in log)
    assert dict(table["gemm"])[16] == tune.candidates("gemm")[-1]  # the last was given the shortest time
    assert dict(table["persistent_gemm"])[16] == tile_tables.select("persistent_gemm", "sm_90", 8)


def test_what_the_deadline_left_out_keeps_its_tile(monkeypatch):
    clock = iter([0.0] * 3 + [2.0] * 1000)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    table, _ = tuned(monkeypatch, lambda runs, *_: dict.fromkeys(runs, 1.0), deadline=1.0)
    assert set(table) == {"persistent_gemm"}
    for limit, tile in table["persistent_gemm"]:
        assert tile == tile_tables.select("persistent_gemm", "sm_90", limit)


def test_a_tile_that_fails_is_dropped(monkeypatch):
    def too_large(made: Launch) -> None:
        if made.op == "gemm" and made.tile.bn != 64:
            raise RuntimeError("out of resource: shared memory")

    table, log = tuned(monkeypatch, lambda runs, *_: dict.fromkeys(runs, 1.0), run=too_large)
    assert {tile.bn for _, tile in table["gemm"][:2]} == {64}
    assert any("out of resource" in entry.get("error", "") for entry in log)
