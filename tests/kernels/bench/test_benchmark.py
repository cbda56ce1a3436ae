"""The benchmark compares like with like, writes its files and says what is missing; no test looks at a time."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from eval import gpu_suite
from kernels import benchmark
from kernels.bench import cpu as benchmark_cpu
from kernels.bench import gpu_checks
from kernels.bench import roofline as ceiling
from kernels.bench.baselines import Layer, expert_loop, grouped_nf4
from kernels.bench.gpu import _costs


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
    assert set(result["rows"][1]["ms"]) == {"ours", *benchmark_cpu.PEERS}
    for row in result["rows"]:
        assert row["largest_possible_ratio"] > 0 and row["share_of_ceiling"] > 0 and "ceiling" not in row["ms"]
    assert "GB/s" in capsys.readouterr().out and (tmp_path / "cpu.png").stat().st_size > 1000


def test_the_ceiling_is_nine_products_for_each_expert_with_rows(monkeypatch):
    monkeypatch.setattr(ceiling, "has_onednn_linear", lambda: False)
    calls = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: calls.append((a.shape[0], a.shape[1], b.shape[1])))
    run = ceiling.bare_products([3, 0, 5], 8, 12)
    calls.clear()
    run()
    assert len(calls) == 18 and sum(a * b * c for a, b, c in calls) == 9 * 8 * (8 * 12)
    assert calls[:3] == [(3, 8, 12), (3, 8, 12), (3, 12, 8)] and calls[6:9] == [(8, 3, 12), (12, 3, 8), (12, 3, 8)]


def test_medians_are_taken_in_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    benchmark_cpu.interleaved_medians(runs, 2, warmup=1)
    assert calls == ["a", "b"] * 3
    calls.clear()
    benchmark_cpu.interleaved_medians(runs, 1, warmup=1, before=lambda: calls.append("new"))
    assert calls == ["new", "a", "b"] * 2


def test_every_round_of_training_routes_anew_and_alike_for_all(monkeypatch):
    pytest.importorskip("transformers", reason="the CPU benchmark compares with transformers")
    seen = []
    monkeypatch.setattr(benchmark_cpu, "_train_step", lambda forward, x, leaves, grad: seen.append(x.detach().clone()))
    blocks = benchmark_cpu.MixtralBlocks(16, 24, 1)
    benchmark_cpu._train_medians(blocks, 6, 16, 24, repeats=2)
    rounds = [seen[i : i + 3] for i in range(0, len(seen), 3)]  # ours and two peers
    assert len(rounds) == 3 and all(torch.equal(x, inputs[0]) for inputs in rounds for x in inputs)
    assert not torch.equal(rounds[0][0], rounds[1][0]) and not torch.equal(rounds[1][0], rounds[2][0])


def test_the_loop_peer_computes_the_layer():
    torch.manual_seed(0)
    weights = torch.randn(3, 12, 8), torch.randn(3, 8, 12), torch.randn(3, 12, 8)
    gates, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    x = torch.randn(5, 8)
    from kernels import reference

    torch.testing.assert_close(
        expert_loop(Layer(*weights, gates, ids))(x), reference.experts_forward(x, *weights, gates, ids)
    )


@pytest.mark.parametrize(
    "name", ["grouped_mm", "transformers eager", "transformers grouped_mm", "transformers batched_mm"]
)
def test_peers_that_a_cpu_has_compute_the_layer(name):
    if name.startswith("transformers"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    weights = [torch.randn(s).div(4).bfloat16() for s in ((3, 32, 16), (3, 16, 32), (3, 32, 16))]
    gates, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    x = torch.randn(5, 16).bfloat16()
    from kernels import reference
    from kernels.bench.baselines import PEERS

    want = reference.experts_forward(x.double(), *(w.double() for w in weights), gates.double(), ids)
    got = PEERS[name](Layer(*weights, gates, ids))(x)
    assert (got.double() - want).abs().max() < 2**-5 * want.abs().max()


def test_the_nf4_peer_keeps_the_contract_of_its_library(monkeypatch):
    """Groups of its calls: host lists, none empty, rows sorted by expert; `exact` is the layer it computes."""
    import sys
    import types

    from kernels import reference

    def grouped(rows, packed, scales, sizes, experts):
        assert min(sizes) > 0 and sum(sizes) == len(rows) and len(sizes) == len(experts)
        parts = rows.split(sizes)
        return torch.cat([part @ (packed[e] * scales[e]).T for part, e in zip(parts, experts, strict=True)])

    library = types.SimpleNamespace(gemm_4bit_grouped=grouped, dequant_ref=lambda packed, scales, n, k: packed * scales)
    packer = types.SimpleNamespace(quantize_pack_nf4=lambda w: ((w * 4).round(), torch.full_like(w[:, :1], 0.25)))
    monkeypatch.setitem(sys.modules, "nf4_grouped", library)
    monkeypatch.setitem(sys.modules, "nf4_pack_ref", packer)
    torch.manual_seed(0)
    weights = torch.randn(4, 12, 8), torch.randn(4, 8, 12), torch.randn(4, 12, 8)
    layer = Layer(*weights, torch.rand(5, 2), torch.tensor([[0, 1], [3, 0], [1, 3], [0, 3], [3, 1]]))
    forward, x = grouped_nf4(layer), torch.randn(5, 8)
    exact = forward.exact
    assert not torch.equal(exact.w1, layer.w1)
    torch.testing.assert_close(
        forward(x), reference.experts_forward(x, exact.w1, exact.w2, exact.w3, layer.gates, layer.ids)
    )


def test_bytes_count_only_the_experts_that_were_hit():
    layer = Layer(*(torch.empty(4, 4, 8) for _ in range(3)), torch.ones(1, 2), torch.tensor([[0, 2]]))
    flop, moved = _costs(layer, 1, 2)
    assert flop == 2 * 3 * 8 * 4 * 2 and moved == 3 * 8 * 4 * 2 * 2 + 2 * 8 * 2 + 4 * 2 * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--tune", "table.json"]])
def test_without_a_gpu_the_commands_say_so(arguments, capsys):
    assert benchmark.main(arguments) == 2 and gpu_suite.main([]) == 2
    assert capsys.readouterr().err.count("error: no GPU that torch can use was found") == 2


@pytest.mark.parametrize("flag", ["--repeats", "--threads"])
def test_a_wrong_number(flag, capsys):
    assert benchmark.main([flag, "0"]) == 2
    assert f"{flag}: expected at least 1, got 0" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_said_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    file = tmp_path / "results"
    file.write_text("mine")
    monkeypatch.setattr(benchmark_cpu, "run", lambda repeats: pytest.fail("measured"))
    for path, problem in ((file, "expected a folder, found a file"), (file / "deeper", "Not a directory")):
        assert benchmark.main(["--device", "cpu", "--output", str(path)]) == 2
        assert capsys.readouterr().err == f"error: {path}: {problem}; name another one with --output\n"
    assert file.read_text() == "mine"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert benchmark.main(["--tune", str(tmp_path)]) == 2
    assert f"{tmp_path}: expected a file's name, found a folder" in capsys.readouterr().err
    assert gpu_suite.main(["--output", str(file)]) == 2
    assert f"{file}: expected a folder, found a file" in capsys.readouterr().err


def test_without_transformers_the_cpu_benchmark_says_so_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert benchmark.main(["--device", "cpu", "--output", str(tmp_path / "new")]) == 2
    assert "pip install transformers" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("step", ["correctness", "no_host_synchronization", "cuda_graph"])
def test_layers_on_the_gpu(step):
    assert not gpu_checks.failed(getattr(gpu_checks, step)())
