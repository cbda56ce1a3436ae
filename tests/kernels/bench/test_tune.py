"""The tuner on launches that do nothing, with invented times: which tiles it tries, takes and keeps."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from kernels.bench import tune
from kernels.bench.shapes import ModelShape
from kernels.gpu import tile_tables
from kernels.gpu.launch import Launch, redirected
from kernels.gpu.tile_tables import Tile

tune_operations = tune._operations

SHAPE = ModelShape(vocab_size=1, dim=256, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=256)


def tuned(monkeypatch, measure, run=lambda made: None, deadline=float("inf"), **options):
    """The tuner's result for sm_90; outputs of launches are zeros."""

    def zeros(made: Launch) -> None:
        run(made)
        tune.fill_with_zeros(made)

    monkeypatch.setattr(tune, "measure", measure)
    options = {"sizes": {256: tile_tables.ANY, 8: 16}, **options}
    with redirected(zeros, "sm_90"):
        return tune.tune(deadline, shape=SHAPE, device="cpu", **options)


def test_the_fastest_tile_of_every_operation_is_taken(monkeypatch):
    table, log = tuned(monkeypatch, lambda runs, *_: {name: float(len(runs) - i) for i, name in enumerate(runs)})
    assert {"gemm", "persistent_gemm", "gemm_dx", "swiglu", "persistent_swiglu", "swiglu_backward"} < set(table)
    assert {"weight_gradient", "w4_dx", "w4_gemm", "w4_swiglu", "w4_swap", "w4_swap_swiglu"} < set(table)
    for op, rules in table.items():
        assert [limit for limit, _ in rules] == [16, tile_tables.ANY]
        assert any(entry["op"] == op for entry in log)
    used = tile_tables.select("gemm", "sm_90", 8)
    assert dict(table["gemm"])[16] == tune.candidates("gemm", used)[-1]  # the last was given the shortest time
    assert dict(table["persistent_gemm"])[16] == tile_tables.select("persistent_gemm", "sm_90", 8)


def test_what_there_was_no_time_to_compare_keeps_its_tile(monkeypatch):
    """The tile in use alone was tried, whatever its time."""
    clock = iter([0.0] * 2 + [2.0] * 1000)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    table, _ = tuned(monkeypatch, lambda *_: pytest.fail("measured"), deadline=1.0)
    assert table == {}


def test_a_tile_that_is_hardly_faster_changes_nothing(monkeypatch):
    """Times within noise, also where another tile comes out first."""
    sizes = {8: tile_tables.ANY}
    table, _ = tuned(monkeypatch, lambda runs, *_: {name: 1.0 - i * 1e-3 for i, name in enumerate(runs)}, sizes=sizes)
    assert table
    for op, rules in table.items():
        assert rules == [(tile_tables.ANY, tile_tables.select(op, "sm_90", 8))]


def test_another_result_drops_a_tile_and_never_the_one_in_use(monkeypatch):
    def wrong(made: Launch) -> None:
        if made.op == "gemm_dx" and made.tile != tile_tables.select("gemm_dx", "sm_90", 8):
            made.arguments["y_ptr"].fill_(1.0)

    def keep(made: Launch) -> None:
        tune.fill_with_zeros(made)
        wrong(made)

    monkeypatch.setattr(tune, "measure", lambda runs, *_: {name: float(len(runs) - i) for i, name in enumerate(runs)})
    with redirected(keep, "sm_90"):
        table, log = tune.tune(float("inf"), shape=SHAPE, device="cpu", sizes={8: tile_tables.ANY})
    assert "gemm_dx" not in table
    assert any(entry.get("error") == "another result" for entry in log)


def test_the_table_is_handed_over_after_every_operation(monkeypatch):
    seen = []
    options = {"sizes": {8: tile_tables.ANY}, "on_result": lambda table, log: seen.append(set(table))}
    tuned(monkeypatch, lambda runs, *_: dict.fromkeys(runs, 1.0), **options)
    assert len(seen) > 5 and seen[0] < seen[-1]


@pytest.mark.slow
def test_a_derived_table_takes_what_compiles_clean_there(monkeypatch):
    """sm_86 cannot hold four buffers of a large tile."""
    monkeypatch.setattr(tune, "candidates", lambda op, used: [used, Tile(64, 64, 64, 4, 2), Tile(128, 256, 64, 8, 4)])
    monkeypatch.setattr(tune, "_operations", lambda *given: tune_operations(*given)[:1])
    times = {"arch": "sm_86", "sizes": {512: tile_tables.ANY}}
    table, log = tuned(monkeypatch, lambda runs, *_: {name: 3.0 - i for i, name in enumerate(runs)}, **times)
    assert dict(table["gemm"])[tile_tables.ANY] == Tile(64, 64, 64, 4, 2)
    assert any("KB of shared memory, 99 allowed" in entry.get("error", "") for entry in log)


def test_a_tile_that_fails_is_dropped(monkeypatch):
    def too_large(made: Launch) -> None:
        if made.op == "gemm" and made.tile.bn == 256:
            raise RuntimeError("out of resource: shared memory")

    table, log = tuned(monkeypatch, lambda runs, *_: dict.fromkeys(runs, 1.0), run=too_large)
    assert 256 not in {tile.bn for _, tile in table["gemm"]} and 256 in {
        t.bn for t in tune.candidates("gemm", Tile(1, 1, 1, 1, 1))
    }
    assert any("out of resource" in entry.get("error", "") for entry in log)
