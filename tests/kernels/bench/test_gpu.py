"""The GPU benchmark as far as a CPU shows it."""

from __future__ import annotations

import pytest
import torch

from kernels import int4
from kernels.bench import gpu
from kernels.bench.baselines import Forward, Layer
from kernels.bench.gpu import Case, LayerBenchmark, _costs


def test_bytes_count_only_the_experts_that_were_hit():
    layer = Layer(*(torch.empty(4, 4, 8) for _ in range(3)), torch.ones(1, 2), torch.tensor([[0, 2]]))
    flop, moved = _costs(layer, 1, "bf16 forward")
    assert flop == 2 * 3 * 8 * 4 * 2 and moved == 3 * 8 * 4 * 2 * 2 + 2 * 8 * 2 + 4 * 2 * 4
    assert _costs(layer, 1, "bf16 forward+backward") == (3 * flop, 4 * moved)
    base, _ = _costs(layer, 1, "delta forward+backward")  # once per token, the input's gradient alone
    assert base == 2 * 2 * 3 * 8 * 4


def layer_benchmark(tokens: int) -> tuple[LayerBenchmark, Layer, torch.Tensor]:
    """A small layer with a routing of its own, and its input."""
    torch.manual_seed(0)
    w1, w2, w3 = ((torch.randn(4, n, k) / k**0.5).bfloat16() for n, k in ((256, 128), (128, 256), (256, 128)))
    layer = Layer(w1, w2, w3, torch.rand(tokens, 2), torch.rand(tokens, 4).topk(2, -1).indices)
    packed = (int4.pack(w1), int4.pack(w2), int4.pack(w3))
    return LayerBenchmark(layer, packed, {}, 1, 1.0, torch.Generator()), layer, torch.randn(tokens, 128).bfloat16()


@pytest.mark.parametrize("phase", ["bf16 forward", "int4 forward"])
def test_only_what_computes_the_layer_is_measured(phase, monkeypatch):
    builds = {
        "right": lambda layer: Forward(lambda x: gpu.ops.experts_forward(x, *layer)),
        "wrong": lambda layer: Forward(lambda x: x * 0),
        "not installed": lambda layer: 1 / 0,
    }
    monkeypatch.setattr(gpu, "BASELINES", builds)
    monkeypatch.setattr(gpu, "INT4_BASELINES", {name: builds[name] for name in ("wrong", "not installed")})
    benchmark, layer, x = layer_benchmark(9)
    forwards, errors, skipped = benchmark._candidates(layer, x, Case(phase, 9))
    assert set(forwards) == ({"ours", "right"} if phase == "bf16 forward" else {"ours"})
    assert errors["ours"] <= gpu.BOUND_BF16 < errors["wrong"]
    assert "wrong by" in skipped["wrong"] and "ZeroDivisionError" in skipped["not installed"]


def test_speedups_compare_times_taken_alike():
    assert gpu.best_speedup({"ours": 2.0, "a": 3.0, "b": 5.0}) == 1.5
    assert gpu.best_speedup({"ours": 2.0}) == gpu.best_speedup({}) == float("inf")


def test_what_there_is_no_time_for_is_listed_and_what_fails_costs_no_other(monkeypatch):
    cases = [Case(phase, 4) for phase in gpu.FULL[:2]]
    options = {"width": 128, "hidden": 128, "repeats": 1, "per_case_seconds": 0.0}
    late = gpu.run(0.0, torch.device("cpu"), cases, **options)
    assert late["rows"] == [] and late["left_out"] == [str(case) for case in cases]
    monkeypatch.setattr(LayerBenchmark, "measure", lambda self, case: {} if "bf16" in case.phase else 1 / 0)
    monkeypatch.setattr(gpu, "line", str)
    found = gpu.run(float("inf"), torch.device("cpu"), cases, **options)
    assert found["rows"] == [{}] and "int4 forward T=4 top-2 uniform: ZeroDivisionError" in found["failures"][0]
