"""The CPU benchmark compares like with like; no test looks at a time."""

from __future__ import annotations

import json

import pytest
import torch

from kernels import benchmark
from kernels.bench import cpu as benchmark_cpu


def test_cpu_benchmark_measures_the_same_layer_as_transformers(monkeypatch, tmp_path, capsys):
    pytest.importorskip("transformers", reason="the CPU benchmark compares with transformers")
    monkeypatch.setattr(benchmark_cpu, "SHAPES", {"tiny": (16, 24)})
    monkeypatch.setattr(benchmark_cpu, "TRAIN_TOKENS", (6,))
    monkeypatch.setattr(benchmark_cpu, "CACHE_BYTES", 1)
    monkeypatch.setattr(benchmark_cpu, "read_bandwidth", lambda: 1e9)
    assert benchmark.main(["--device", "cpu", "--repeats", "1", "--malloc", "default", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert [(r["phase"], r["tokens"]) for r in result["rows"]] == [("forward+backward", 6), ("decode", 1)]
    assert all(r["max_relative_error"] < 1e-4 for r in result["rows"])
    assert set(result["rows"][1]["ms"]) == {"ours", *benchmark_cpu.BASELINES}
    for row in result["rows"]:
        assert row["max_speedup"] > 0 and row["roofline_share"] > 0 and "roofline" not in row["ms"]
    assert "GB/s" in capsys.readouterr().out and (tmp_path / "cpu.png").stat().st_size > 1000


def test_every_round_of_training_routes_anew_and_alike_for_all(monkeypatch):
    pytest.importorskip("transformers", reason="the CPU benchmark compares with transformers")
    seen = []
    monkeypatch.setattr(benchmark_cpu, "_train_step", lambda forward, x, leaves, grad: seen.append(x.detach().clone()))
    blocks = benchmark_cpu.MixtralBlocks(16, 24, 1)
    benchmark_cpu._train_medians(blocks, 6, 16, 24, repeats=2)
    rounds = [seen[i : i + 3] for i in range(0, len(seen), 3)]  # ours and two baselines
    assert len(rounds) == 3 and all(torch.equal(x, inputs[0]) for inputs in rounds for x in inputs)
    assert not torch.equal(rounds[0][0], rounds[1][0]) and not torch.equal(rounds[1][0], rounds[2][0])
